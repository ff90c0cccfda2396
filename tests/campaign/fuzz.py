"""Every parser of what a user, a file or another program gives us, on damaged inputs that Hypothesis draws.
An input fails where a parser raises anything but an error of ours, or takes more than one second of CPU. Hypothesis
then looks for the smallest input that fails the same way, and prints it.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st

from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.files import find_folder, read_rows
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.judge.panel import load_panel
from lm_eval_lora_drop.judge.people.sheets import COLUMNS, collect
from lm_eval_lora_drop.options import LoraDropArgs, check_names, declared, parse_model_args
from lm_eval_lora_drop.options._notations import parse_sweep_boundaries
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import KEY, from_config
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.study.plan import plan
from lm_eval_lora_drop.train.settings import read_settings
from lm_eval_lora_drop.variant import Variant, parse_boundary, parse_layers
from testing.run_files import swept, write_run

Draw = Callable[[st.SearchStrategy[Any]], Any]
LIMIT = 1.0
"""CPU seconds for one input."""
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2.0, 1e308, float("nan"), float("inf"), 10**17, 10**30, 10**400),
    *("", " ", "auto", "none", "-1", "9" * 400, "9" * 5000, "0-99999", "0-30000000", "0-99999:1", "~nosuchuser/x"),
    *(
        "a\0b",
        "\ud83d",
        "\u202eabc",
        "=1+1",
        "(a+)+$",
        "a" * 5000,
        "/etc/passwd",
        "../..",
        "{{7*7}}",
        "<script>",
        "+",
        "@",
    ),
    *([], {}, [0, 2.0, 4], [[]], {"a": {}}, ["x"] * 300, "0-14+20-29x0.5.mlp", "+".join(map(str, range(3000)))),
    *("0x1e309", "0x0", "0r0", "0-5r999999", "0.a.a", "a@b@c", "x@0-3", "@", "@@", "@#", "@/dev/zero", "@.#t"),
)
TEXTS = ("boundary", "auto", "probe", "0-14+20", "0-29x0.5r4.mlp", "8-24:2", "seed1@0-3", "@results.json#task", "none")
PIECES = st.sampled_from([*'09-+:xr.@#e{["\0\n\u2028é٣²\ud83d'])
ODD = st.sampled_from(HOSTILE).map(copy.deepcopy)
NOTATION = st.lists(st.sampled_from(TEXTS) | PIECES | PIECES.map(lambda one: one * 300), max_size=6).map("".join)
JUNK = st.binary(max_size=3) | st.sampled_from(
    (b"[" * 5000, b"\xff\xfe", b"\0", b"&a *a ", b"1" * 5000, b'"' * 50, b"- " * 3000)
)
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@st.composite
def damaged(draw: Draw, value: Any) -> Any:
    """A copy of plain data with some nodes replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 4))):
        node, parent, key = value, None, None
        while isinstance(node, dict | list) and node and (parent is None or draw(st.integers(0, 4))):
            parent, key = node, draw(st.sampled_from([*node] if isinstance(node, dict) else range(len(node))))
            node = node[key]
        if parent is None:
            return draw(ODD)
        match draw(st.integers(0, 4)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw(ODD.map(lambda one: str(one)[:200]) | st.just("t/../x"))] = parent.pop(key)
            case _:
                parent[key] = draw(ODD)
    return value


@st.composite
def file_of(draw: Draw, raw: bytes) -> bytes:
    """A file cut, with bytes changed, with something foreign inside."""
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(raw)))
        gone = draw(st.sampled_from((0, 1, len(raw))))
        raw = raw[:place] + draw(JUNK) + raw[place + gone :]
    return raw


def dumped(value: Any) -> bytes:
    """JSON as a careless program writes it: NaN, lone surrogates and numbers of any length."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):
        return repr(value)[:10000].encode("utf-8", "surrogatepass")


STUDY = {
    "model_args": {"pretrained": "base"},
    "output": "out",
    "tasks": {"t": {"task": "t", "metadata": {}, "training": {"epochs": 1}, "evaluation": {"limit": 3}}},
    "trainings": {"full": {"seeds": [0, 1], "rank": 4, "layers": "0-3"}},
    "adapters": ["a"],
    "choices": ["auto", "full", "layers=0-3"],
}
PANEL = {
    "judges": [
        {"name": "j", "provider": "openai", "model": "m", "api_key_env": "K", "price": {"input": 1, "output": 2}}
    ],
    "concurrency": {"openai": 2},
    "attempts": 3,
    "timeout": 5,
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "b",
    "rank_pattern": {"a": 3},
    "layer_replication": [[0, 2]],
}


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return dumped(value)


def yaml_of(value: Any) -> st.SearchStrategy[bytes]:
    """A YAML file with this in it, damaged as data and as bytes, or one that grows without end when it is read."""
    return (damaged(value).map(_yaml) | st.just(BOMB.encode())).flatmap(file_of)


def runs(draw: Draw, folder: Path) -> None:
    """A folder of runs: results and samples, one of them damaged, read to the last document."""
    (path, results), (samples, lines) = _run_files(draw(st.booleans()))
    raw = dumped(draw(damaged(results)))
    (folder / path).write_bytes(draw(file_of(raw)) if draw(st.booleans()) else raw)
    if draw(st.booleans()):
        lines = [draw(damaged(line)) for line in lines]
    elif draw(st.booleans()):
        (folder / samples).symlink_to("/etc/passwd")
        lines = []
    if lines:
        (folder / samples).write_bytes(b"\n".join(map(dumped, lines)))
    read_runs(folder)


@functools.cache
def _run_files(with_sweep: bool) -> tuple[tuple[str, Any], tuple[str, list[Any]]]:
    """Name and content of a results file and a samples file: the same for each input, whatever folder they lie in."""
    with tempfile.TemporaryDirectory() as place:
        path = write_run(Path(place), {"acc": [0.0, 1.0, 1.0]}, lora_drop=swept(documents=40) if with_sweep else None)
        (samples,) = path.parent.glob("samples_*")
        lines = [json.loads(line) for line in samples.read_text().split("\n") if line]
        return (path.name, json.loads(path.read_text())), (samples.name, lines)


def read_runs(folder: Path) -> None:
    """All that reports read of runs."""
    for run in find_runs([folder])[0]:
        for task in run.tasks.values():
            _ = task.documents, task.samples(), task.aggregations, run.system, run.model_args, task.record


def record(draw: Draw, folder: Path) -> None:
    """Our entry in a results file."""
    from_config({KEY: draw(damaged(swept(documents=40)))}, folder)


def study(draw: Draw, folder: Path) -> None:
    """A study file, read and planned."""
    file = folder / "study.yaml"
    file.write_bytes(draw(yaml_of(STUDY)))
    plan(read_study(file, folder if draw(st.booleans()) else None))


def panel(draw: Draw, folder: Path) -> None:
    """A file of judges."""
    file = folder / "panel.yaml"
    file.write_bytes(draw(yaml_of(PANEL)))
    load_panel(file)


def rows(draw: Draw, folder: Path) -> None:
    """A benchmark's data file."""
    name = draw(st.sampled_from(("d.jsonl", "d.tsv", "d.jsonl.gz")))
    raw = b"".join(dumped({"a": draw(ODD), "b": 1}) + b"\n" for _ in range(3)) if "json" in name else b"a\tb\n1\t2\n"
    raw = draw(file_of(raw))
    (folder / name).write_bytes(draw(file_of(gzip.compress(raw, 1))) if name.endswith("gz") else raw)
    list(read_rows(folder / name))


def sheets(draw: Draw, folder: Path) -> None:
    """A key and a filled sheet."""
    key = {"sheet": "s", "systems": ["a", "b"], "seed": 0, "pairs": [{"pair": "1", "swapped": True}]}
    (folder / "key.json").write_bytes(draw((st.just(key) | damaged(key)).map(dumped).flatmap(file_of)))
    sheet = ",".join(("sheet", "pair", *COLUMNS)) + "\ns,1" + ",2" * len(COLUMNS) + "\n"
    (folder / "s.csv").write_bytes(draw(file_of(sheet.encode())))
    collect(folder / "key.json", [folder / "s.csv"])


def journal(draw: Draw, folder: Path) -> None:
    """A journal that was cut, changed, or belongs to something else."""
    made = Journal(folder, "sha256:" + "ab" * 32, "toy", settings={"adapter": "a"})
    made.path.write_bytes(draw(file_of(_journal_lines())))
    # What is read must be what was written: damage may lose an answer, never alter one.
    wrong = [key for key, value in made.read().items() if list(value) != [f"answer to {key[1]}"]]
    assert not wrong, f"an altered answer of {wrong[0]}"


@functools.cache
def _journal_lines() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        made = Journal(Path(place), "sha256:" + "ab" * 32, "toy", settings={"adapter": "a"})
        for key in ("d1", "d2", "d3"):
            document = Document(int(key[1]), {}, (), key)
            made.append([Answer(Variant.below(k, 3), document, (f"answer to {key}",)) for k in (1, 2, 3)])
        return made.path.read_bytes()


def adapter(draw: Draw, folder: Path) -> None:
    """An adapter's configuration, or what is no folder at all."""
    (folder / "adapter_config.json").write_bytes(draw(damaged(ADAPTER).map(dumped).flatmap(file_of)))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    odd = st.sampled_from(("~nosuchuser/x", "a\0b", "x" * 5000, "../..", "", "\ud83d/x"))
    open_adapter(draw(st.just(str(folder)) | odd))


def model_args(draw: Draw, folder: Path) -> None:
    """What stands after --model_args."""
    theirs = ("pretrained", "peft", "dtype", "batch_size", "backend")
    names = st.sampled_from((*declared(LoraDropArgs), *theirs, "K", "adapter", "attn_implementation"))
    odd = NOTATION.map(lambda name: name[:100] or "x")
    given = draw(st.dictionaries(names | odd, ODD | NOTATION, min_size=1, max_size=4))
    args, _ = parse_model_args(given, theirs)
    args.spec.resolve(30)
    check_names(given)


def settings(draw: Draw, folder: Path) -> None:
    """The settings of a training."""
    given = {"epochs": 1, "rank": 4, "layers": "0-3", "learning_rate": 1e-4, "target_modules": ["a"]}
    read_settings(draw(damaged(given).filter(lambda one: isinstance(one, dict))), "f")


PARSERS: dict[str, Callable[[Draw, Path], object]] = {
    "boundary": lambda draw, _: parse_boundary(draw(ODD | NOTATION)),
    "layers": lambda draw, _: parse_layers(draw(ODD | NOTATION)).resolve(30),
    "sweep_boundaries": lambda draw, _: parse_sweep_boundaries(draw(ODD | NOTATION)),
    "a variant": lambda draw, _: Variant.parse(draw(NOTATION), draw(st.sampled_from((0, 1, 30, 4000, 10**9, -1)))),
    "model_args": model_args,
    "data_dir": lambda draw, _: find_folder(str(draw(ODD | NOTATION)), "x"),
    "results and samples": runs,
    "a record": record,
    "a study": study,
    "judges": panel,
    "a panel's name": lambda draw, _: load_panel(draw(ODD.filter(lambda one: isinstance(one, str)))),
    "data files": rows,
    "sheets": sheets,
    "journals": journal,
    "adapter configurations": adapter,
    "training settings": settings,
}


class TooLong(BaseException):
    """Raised in the middle of whatever took more CPU than it may; no `except Exception` swallows it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TooLong` inside after so many seconds of this process's CPU (a machine that is busy does not count)."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def attempt(name: str, draw: Draw) -> None:
    """One input for a parser.

    Raises:
        AssertionError: it took too long, or its message is too long to help; whatever else but our errors it raises.
    """
    with tempfile.TemporaryDirectory() as place:
        try:
            with at_most(LIMIT):
                PARSERS[name](draw, Path(place))
        except LoraDropError as error:
            if len(str(error).split("\n")) > 2 or len(str(error)) > 3000:
                raise AssertionError(f"a message of {len(str(error)):,} characters") from error
        except TooLong:
            raise AssertionError("more than one second of CPU") from None


def trial(check: Callable[[Draw], None], inputs: int, seed: int) -> Callable[[], None]:
    """`check` on so many inputs as Hypothesis test."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def every_input(data: Any) -> None:
        check(data.draw)

    return every_input
