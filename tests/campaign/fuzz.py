"""Every parser of what a user, a file or another program gives us, on seeded damaged inputs.

    python -m tests.campaign.fuzz [--inputs 100000] [--seed 0] [--folder .campaign/fuzz]

An input fails where a parser raises anything but an error of ours, or takes more than one second of CPU. Input n of a
seed is the same each time: `--only n` runs it alone, with its traceback.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import logging
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.files import find_folder, read_rows
from lm_eval_lora_drop.harness.work import Answer, Document
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
from tests.campaign.tries import TooLong, at_most, load, options, print_table, save

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
PIECES = (
    "0",
    "9",
    "-",
    "+",
    ":",
    "x",
    "r",
    ".",
    "@",
    "#",
    "e",
    "\0",
    "\n",
    "\u2028",
    "é",
    "٣",
    "²",
    "\ud83d",
    "{",
    "[",
    '"',
)


def text_of(draw: random.Random) -> Any:
    """A damaged piece of our notation, or something hostile."""
    if draw.random() < 0.3:
        return draw.choice(HOSTILE)
    text = list(draw.choice(TEXTS))
    for _ in range(draw.randint(0, 6)):
        place = draw.randrange(len(text) + 1)
        match draw.randrange(3):
            case 0:
                text.insert(place, draw.choice(PIECES) * draw.choice((1, 1, 2, 300)))
            case 1 if text:
                del text[min(place, len(text) - 1)]
            case 2:
                text = text[:place] + text[: draw.randrange(len(text) + 1)]
    return "".join(text)


def damaged(value: Any, draw: random.Random) -> Any:
    """A copy of plain data with some nodes replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        node, parent, key = value, None, None
        while isinstance(node, dict | list) and node and (parent is None or draw.random() < 0.8):
            parent = node
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            node = node[key]
        if parent is None:
            return draw.choice(HOSTILE)
        match draw.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[str(draw.choice(HOSTILE))[:200] if draw.random() < 0.7 else "t/../x"] = parent.pop(key)
            case _:
                parent[key] = draw.choice(HOSTILE)
    return value


def bytes_of(raw: bytes, draw: random.Random) -> bytes:
    """A file cut, with bytes changed, with something foreign inside."""
    found = bytearray(raw)
    for _ in range(draw.randint(0, 4)):
        place = draw.randrange(len(found) + 1)
        match draw.randrange(4):
            case 0:
                found = found[:place]
            case 1 if found:
                found[min(place, len(found) - 1)] = draw.randrange(256)
            case 2:
                found[place:place] = draw.choice(
                    (b"[" * 5000, b"\xff\xfe", b"\0", b"&a *a ", b"1" * 5000, b'"' * 50, b"- " * 3000)
                )
            case 3:
                found[place:place] = found[: draw.randrange(len(found) + 1)]
    return bytes(found)


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


def _yaml(value: Any, draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
        )
        return bomb.encode()
    try:
        return yaml.safe_dump(damaged(value, draw) if draw.random() < 0.7 else value).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return dumped(value)


def runs(draw: random.Random, folder: Path) -> None:
    """A folder of runs: results and samples, one of them damaged, read to the last document."""
    date = "2026-01-01T00-00-00.000000"
    path = write_run(folder, {"acc": [0.0, 1.0, 1.0]}, lora_drop=swept(documents=40) if draw.random() < 0.5 else None)
    path.write_bytes(
        bytes_of(dumped(damaged(json.loads(path.read_text()), draw)), draw if draw.random() < 0.3 else random.Random(4))
    )
    samples = folder / f"samples_t_{date}.jsonl"
    if draw.random() < 0.5:
        lines = [json.loads(line) for line in samples.read_text().split("\n") if line]
        samples.write_bytes(b"\n".join(dumped(damaged(line, draw)) for line in lines))
    elif draw.random() < 0.2:
        samples.unlink()
        samples.symlink_to("/etc/passwd")
    found, _ = find_runs([folder])
    for run in found:
        for task in run.tasks.values():
            _ = task.documents, task.samples(), task.aggregations, run.system, run.model_args, task.record


def record(draw: random.Random, folder: Path) -> None:
    """Our entry in a results file."""
    from_config({KEY: damaged(swept(documents=40), draw)}, folder)


def study(draw: random.Random, folder: Path) -> None:
    """A study file, read and planned."""
    file = folder / "study.yaml"
    file.write_bytes(bytes_of(_yaml(STUDY, draw), draw))
    plan(read_study(file, folder if draw.random() < 0.5 else None))


def panel(draw: random.Random, folder: Path) -> None:
    """A file of judges, or the name of one."""
    if draw.random() < 0.1:
        load_panel(draw.choice([one for one in HOSTILE if isinstance(one, str)]))
    file = folder / "panel.yaml"
    file.write_bytes(bytes_of(_yaml(PANEL, draw), draw))
    load_panel(file)


def rows(draw: random.Random, folder: Path) -> None:
    """A benchmark's data file."""
    name = draw.choice(("d.jsonl", "d.tsv", "d.jsonl.gz"))
    raw = (
        b"".join(dumped({"a": draw.choice(HOSTILE), "b": 1}) + b"\n" for _ in range(3))
        if "json" in name
        else b"a\tb\n1\t2\n"
    )
    raw = bytes_of(raw, draw)
    (folder / name).write_bytes(bytes_of(gzip.compress(raw, 1), draw) if name.endswith("gz") else raw)
    list(read_rows(folder / name))


def sheets(draw: random.Random, folder: Path) -> None:
    """A key and a filled sheet."""
    key = {"sheet": "s", "systems": ["a", "b"], "seed": 0, "pairs": [{"pair": "1", "swapped": True}]}
    (folder / "key.json").write_bytes(bytes_of(dumped(damaged(key, draw) if draw.random() < 0.7 else key), draw))
    sheet = ",".join(("sheet", "pair", *COLUMNS)) + "\ns,1" + ",2" * len(COLUMNS) + "\n"
    (folder / "s.csv").write_bytes(bytes_of(sheet.encode(), draw))
    collect(folder / "key.json", [folder / "s.csv"])


def journal(draw: random.Random, folder: Path) -> None:
    """A journal that was cut, changed, or belongs to something else."""
    made = Journal(folder, "sha256:" + "ab" * 32, "toy", settings={"adapter": "a"})
    made.path.write_bytes(bytes_of(_journal_lines(), draw))
    # What is read must be what was written: damage may lose an answer, never alter one.
    found = made.read()
    wrong = [key for key, value in found.items() if list(value) != [f"answer to {key[1]}"]]
    if wrong:
        raise AssertionError(f"an altered answer of {wrong[0]}")


@functools.cache
def _journal_lines() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        made = Journal(Path(place), "sha256:" + "ab" * 32, "toy", settings={"adapter": "a"})
        for key in ("d1", "d2", "d3"):
            document = Document(int(key[1]), {}, (), key)
            made.append([Answer(Variant.below(k, 3), document, (f"answer to {key}",)) for k in (1, 2, 3)])
        return made.path.read_bytes()


def adapter(draw: random.Random, folder: Path) -> None:
    """An adapter's configuration, or what is no folder at all."""
    if draw.random() < 0.1:
        open_adapter(draw.choice(("~nosuchuser/x", "a\0b", "x" * 5000, "../..", "", "\ud83d/x")))
    (folder / "adapter_config.json").write_bytes(bytes_of(dumped(damaged(ADAPTER, draw)), draw))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    open_adapter(str(folder))


def model_args(draw: random.Random, folder: Path) -> None:
    """What stands after --model_args."""
    names = (
        *declared(LoraDropArgs),
        "pretrained",
        "peft",
        "dtype",
        "batch_size",
        "backend",
        "K",
        "adapter",
        "attn_implementation",
    )
    given = {draw.choice(names): text_of(draw) for _ in range(draw.randint(1, 4))}
    if draw.random() < 0.1:
        given[str(text_of(draw))[:100] or "x"] = 1
    args, _ = parse_model_args(given, ("pretrained", "peft", "dtype", "batch_size", "backend"))
    args.spec.resolve(30)
    check_names(given)


def settings(draw: random.Random, folder: Path) -> None:
    """The settings of a training."""
    read_settings(
        damaged({"epochs": 1, "rank": 4, "layers": "0-3", "learning_rate": 1e-4, "target_modules": ["a"]}, draw), "f"
    )


def notation(draw: random.Random, folder: Path) -> None:
    """A variant's notation for a model of some size."""
    text = text_of(draw)
    Variant.parse(text if isinstance(text, str) else "0-3", draw.choice((0, 1, 30, 4000, 10**9, -1)))


PARSERS: dict[str, Callable[[random.Random, Path], object]] = {
    "boundary": lambda draw, _: parse_boundary(text_of(draw)),
    "layers": lambda draw, _: parse_layers(text_of(draw)).resolve(30),
    "sweep_boundaries": lambda draw, _: parse_sweep_boundaries(text_of(draw)),
    "a variant": notation,
    "model_args": model_args,
    "data_dir": lambda draw, folder: find_folder(str(text_of(draw)), "x"),
    "results and samples": runs,
    "a record": record,
    "a study": study,
    "judges": panel,
    "data files": rows,
    "sheets": sheets,
    "journals": journal,
    "adapter configurations": adapter,
    "training settings": settings,
}


def attempt(seed: int, number: int, folder: Path, *, show: bool = False) -> tuple[str, str | None]:
    """The parser that input `number` is for, and what went wrong, None where nothing did."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choice(list(PARSERS))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            with at_most(LIMIT):
                PARSERS[name](draw, Path(place))
        except LoraDropError as error:
            if len(str(error).split("\n")) > 2 or len(str(error)) > 3000:
                return name, f"a message of {len(str(error)):,} characters"
        except TooLong:
            if show:
                traceback.print_exc()
            return name, "more than one second of CPU"
        except Exception as error:
            if show:
                traceback.print_exc()
            return name, f"{type(error).__name__}: {str(error)[:120]}"
    return name, None


def main() -> int:
    """Run, or go on; 1 where anything failed."""
    parser = options(__doc__, "fuzz", inputs=100_000)
    parser.add_argument("--only", type=int, help="this input alone")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # "the last line is incomplete", thousands of times
    if args.only is not None:
        print(*attempt(args.seed, args.only, args.folder, show=True))
        return 0
    state = load(args.folder, {"inputs": args.inputs, "seed": args.seed})
    tried, failed = Counter(state.get("tried")), Counter(state.get("failed"))
    # Files of a moment: in memory where there is such a place.
    scratch = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else args.folder
    for number in range(state["done"], args.inputs):
        name, wrong = attempt(args.seed, number, scratch)
        tried[name] += 1
        if wrong is not None:
            failed[name] += 1
            state["failures"].append(f"input {number}, {name}: {wrong}")
        if number % 1000 == 999 or number + 1 == args.inputs:
            save(args.folder, {**state, "done": number + 1, "tried": tried, "failed": failed})
            state["done"] = number + 1
    table = [(f"fuzzed inputs: {name}", tried[name], failed[name]) for name in PARSERS if tried[name]]
    return print_table([*table, ("fuzzed inputs, all parsers", tried.total(), failed.total())], state["failures"])


if __name__ == "__main__":
    sys.exit(main())
