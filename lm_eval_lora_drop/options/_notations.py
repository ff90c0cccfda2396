"""The options whose values have a notation of their own, read before a model is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_text, user_path
from lm_eval_lora_drop.options._declare import Positive, Reads, text, texts
from lm_eval_lora_drop.text import did_you_mean, shown
from lm_eval_lora_drop.variant import MOST_LAYERS, VariantSpec, parse_boundary, parse_layers

SELECTIONS = ("smooth", "best", "one_se", "smooth_one_se")
TEST_VARIANTS = ("chosen", "full", "base")
ALL_LAYERS, PAPER_LAYERS, CKA_LAYERS = "all", "paper", "cka:"
_ITEM = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12})(?::([0-9]{1,12}))?)?")


@dataclass(frozen=True)
class AlsoSpec:
    """A task, by its name in lm-eval or its YAML file, and the metric (with `,filter`) it is scored by; None: its
    first."""

    task: str
    metric: str | None = None


@dataclass(frozen=True)
class CandidateSpec:
    """What a sweep is to compare: names of candidate sets (docs/howto/other-candidates.md), or a file's `lines`, each
    a variant in its notation with its place."""

    names: tuple[str, ...]
    lines: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "+".join(self.names)


def parse_candidates(value: Any) -> CandidateSpec:
    """Read `sweep_candidates`: names joined by '+', or `@` and a file with a variant a line (`#` begins a comment).

    Raises:
        ArgumentError: the file cannot be read, is longer than 1 MB, or has no variant, or a line is not a variant.
    """
    given = text("sweep_candidates", value)
    if not given.startswith("@"):
        return CandidateSpec(tuple(name.strip() for name in given.split("+")))
    path = user_path(given[1:], "sweep_candidates=@FILE")
    lines = []
    for number, line in enumerate(read_text(path, "a list of variants, one a line", most=1 << 20).split("\n"), start=1):
        if notation := line.partition("#")[0].strip():
            where = f"{shown(path, 300)}, line {number}"
            try:
                lines.append((where, str(parse_layers(notation).layers)))
            except ArgumentError as error:
                raise ArgumentError(f"{where}: {error}") from None
    if not lines:
        raise ArgumentError(f"{shown(path, 300)} lists no variant, so there is nothing to compare. Example line: 0-14")
    return CandidateSpec((f"@{shown(path.name)}",), tuple(lines))


def parse_also(value: Any) -> tuple[AlsoSpec, ...]:
    """Read `sweep_also`: TASK, TASK:metric or TASK:metric:filter, joined by '+'.

    Raises:
        ArgumentError: an empty part, or a task named twice.
    """
    found = []
    for part in str(value).split("+"):
        task, colon, metric = (piece.strip() for piece in part.partition(":"))
        if not task or (colon and not metric):
            raise ArgumentError(f"sweep_also must be TASK or TASK:metric, joined by '+', got {shown(value, 200)!r}.")
        found.append(AlsoSpec(task, metric.replace(":", ",", 1) or None))
    if len({one.task for one in found}) < len(found):
        raise ArgumentError(f"sweep_also must name every task once, got {shown(value, 200)!r}.")
    return tuple(found)


def parse_sweep_boundaries(value: object) -> tuple[int, ...]:
    """Read `sweep_boundaries`: `0-32`, `8-24:2` (every second), `4+8+12`; ascending, without repeats.

    Raises:
        ArgumentError: empty or malformed.
    """
    # Both ends are included: a user who writes 0-14 names layer 14. The comma is taken: it separates model_args.
    items = list(value) if isinstance(value, list | tuple) else shown(value, MOST_LAYERS).split("+")
    found: set[int] = set()
    for item in items:
        match = _ITEM.fullmatch(shown(item))
        first, last, step = (int(part or 0) for part in match.groups("") if match) if match else (1, 0, 0)
        last, step = (last if match and match[2] else first), (step if match and match[3] else 1)
        if match is None or last < first or step < 1 or last > MOST_LAYERS or len(items) > MOST_LAYERS:
            raise ArgumentError(
                "sweep_boundaries must be boundaries of the model and ranges that run upwards, joined by '+', e.g. "
                f"0-32, 8-24:2 or 4+8+12, got {shown(value)!r}."
            )
        found.update(range(first, last + 1, step))
    return tuple(sorted(found))


def _select(value: Any) -> str:
    """A rule of choice; one with bounds as it was typed (`sweep.tradeoffs.bounds` reads it)."""
    given = text("sweep_select", value)
    if given in SELECTIONS or re.match(r"smallest(_confident)?(:|$)|best:", given):
        return given
    hint = did_you_mean(given, SELECTIONS, option="sweep_select", otherwise="With a bound: smallest:0.99.")
    raise ArgumentError(f"sweep_select must be one of {', '.join(SELECTIONS)}, or a bound, got {shown(given)!r}.{hint}")


def _metric(value: Any) -> str:
    # The comma that separates metric and filter also separates model_args, so a colon is taken for it.
    return text("sweep_metric", value).replace(":", ",", 1)


def parse_evaluate(value: Any) -> tuple[str, ...]:
    """Read `evaluate`: chosen, with full and base as wanted, joined by '+'; in the order of `TEST_VARIANTS`.

    Raises:
        ArgumentError: another word, or not chosen.
    """
    given = texts(value) if isinstance(value, list | tuple) else text("evaluate", value).split("+")
    words = [word.strip() for word in given]
    unknown = next((word for word in words if word not in TEST_VARIANTS), None)
    if unknown is not None:
        hint = did_you_mean(unknown, TEST_VARIANTS, otherwise="Example: evaluate=chosen+full+base.")
        raise ArgumentError(
            f"evaluate must be {', '.join(TEST_VARIANTS)}, joined by '+', got {shown(value, 200)!r}.{hint}"
        )
    if "chosen" not in words:
        raise ArgumentError(
            f"evaluate must name chosen, whose answers are the results of the run, got {shown(value, 200)!r}. Write "
            f"evaluate=chosen+{'+'.join(words)}; to evaluate nothing else, boundary=full or boundary=base."
        )
    return tuple(word for word in TEST_VARIANTS if word in words)


def _trained_layers(value: Any) -> str:
    given = str(value)
    if given.startswith(CKA_LAYERS):
        share = given.removeprefix(CKA_LAYERS)
        if not re.fullmatch(r"0\.\d{1,9}|1(\.0{1,9})?", share) or not float(share):
            raise ArgumentError(
                f"layers={CKA_LAYERS}SHARE needs a share of the layers above 0 and at most 1, got {shown(given)!r}. "
                "Example: cka:0.5 trains half of the layers."
            )
        return given
    return str(value) if value in (ALL_LAYERS, PAPER_LAYERS) else str(parse_layers(value).layers)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name.strip() for one in texts(value) for name in one.split(",") if name.strip())


def _gen_kwargs(value: Any) -> Any:
    return value if isinstance(value, dict) else text("gen_kwargs", value)


def _tasks(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {name: {} for name in texts(value)}


Boundary = Annotated[
    VariantSpec, Reads(parse_boundary, "an integer 0..L, auto, probe, default, full, base or @RESULTS")
]
Layers = Annotated[VariantSpec | None, Reads(parse_layers, "a variant (0-14+20, 0-29x0.5, 0-29r4, 0-29.mlp, none)")]
Candidates = Annotated[CandidateSpec, Reads(parse_candidates, "names of sets joined by +, or @FILE")]
Boundaries = Annotated[tuple[int, ...] | None, Reads(parse_sweep_boundaries, "integers and ranges joined by +")]
Metric = Annotated[str | None, Reads(_metric, "METRIC or METRIC:FILTER")]
Select = Annotated[
    str | None,
    Reads(
        _select, f"{', '.join(SELECTIONS)}, smallest:SHARE[@TASK], smallest_confident:SHARE[@TASK] or best:SHARE@TASK"
    ),
]
Merge = Annotated[bool | Literal["force"], Reads(values="true or false", words={"force": "force"})]
Jointly = Annotated[Literal["mean", "worst"] | None, Reads(words={True: "mean", False: None})]
Also = Annotated[tuple[AlsoSpec, ...], Reads(parse_also, "TASK[:METRIC[:FILTER]] joined by +")]
_AUTO = Annotated[str, Meta(pattern=r"\A(auto(:[0-9]+(\.[0-9]+)?)?|[1-9][0-9]{0,8})\Z")]
BatchSize = Annotated[Positive | _AUTO, Reads(values="an integer of at least 1, auto or auto:N")]
Evaluate = Annotated[tuple[str, ...] | None, Reads(parse_evaluate, "chosen, full and base joined by +")]
OrAuto = Annotated[Positive | None, Reads(words={"auto": None})]
Folder = Annotated[Path | None, Reads(lambda value: user_path(text("sweep_dir", value), "sweep_dir"), "a folder")]
TrainedLayers = Annotated[
    str, Reads(_trained_layers, f"{ALL_LAYERS}, {PAPER_LAYERS}, {CKA_LAYERS}SHARE or layers (0-18)")
]
Names = Annotated[tuple[str, ...], Reads(_names, "names, comma between")]
# A union of text and mapping would do, but msgspec 0.22 corrupts memory when it describes one.
GenKwargs = Annotated[Any, Reads(_gen_kwargs, "a text or a mapping")]
Texts = Annotated[tuple[str, ...], Reads(texts, "a list of texts")]
Tasks = Annotated[dict[Any, Any], Reads(_tasks, "a mapping or a list of tasks")]
