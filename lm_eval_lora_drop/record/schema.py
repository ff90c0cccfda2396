"""What a run writes into its results file, `config.lora_drop`: the types, their one writer and their one reader.

A number that is not known is None (null), never NaN. Variants stand in their notation (`variant.Variant`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import msgspec

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.evaluated import EvaluatedRecord
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.variant import Variant

KEY = "lora_drop"
"""Under `config` in the results file of lm_eval."""
SCHEMA = 1

Method = Literal["given", "default", "sweep", "probe", "recorded"]


class Reason(str, Enum):
    """Why a document is left out of what a search reads."""

    EVALUATED = "equals an evaluated document"
    NEARLY_EVALUATED = "nearly equals an evaluated document"
    TWICE = "equals a document drawn before"
    NEARLY_TWICE = "nearly equals a document drawn before"
    EXAMPLE = "as a few-shot example: equals an evaluated document"
    NEARLY_EXAMPLE = "as a few-shot example: nearly equals an evaluated document"


@dataclass(frozen=True)
class LeftOut:
    """A document that was left out, by its index in its split (of few-shot examples: among them).

    `of` is the index of the one it is compared with: in the evaluated split, or of a document drawn before.
    `similarity` is the Jaccard similarity of their character 5-grams, 1 where they are equal.
    """

    doc_id: int
    reason: Reason
    of: int
    similarity: float

    def __str__(self) -> str:
        return f"{self.doc_id} {self.reason.value} ({self.of}, similarity {self.similarity:.2f})"


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """One candidate of a sweep.

    `score` over its documents with `stderr`; `documents` had a value, `unscored` had none. `items[i]` is what the
    aggregation takes of document i (None: no value, or not met). `eliminated_after` is the number of documents after
    which racing eliminated it, None where it did not.
    """

    variant: str
    score: float | None
    stderr: float | None
    documents: int
    unscored: int = 0
    eliminated_after: int | None = None
    items: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DifferenceRecord:
    """A paired difference over the same documents; positive is better, whatever the metric's direction."""

    difference: float | None
    stderr: float | None
    documents: int


@dataclass(frozen=True, kw_only=True)
class EliminationRecord:
    """A candidate that racing eliminated, and the one that led then."""

    variant: str
    by: str


@dataclass(frozen=True, kw_only=True)
class RacingRecord:
    """How careful the race was, the documents seen after each round, and who was eliminated. `guaranteed`: whether the
    range of the scores was known, on which the error rate rests."""

    error_rate: float
    tolerance: float
    guaranteed: bool
    rounds: tuple[int, ...]
    eliminated: tuple[EliminationRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GreedyRoundRecord:
    """One round of a greedy search: what it moved to, of how many candidates, its score and its difference to the full
    adapter on the round's documents. Optimistically biased: the best of many on the documents that chose it."""

    variant: str
    score: float
    difference: DifferenceRecord
    candidates: int


@dataclass(frozen=True, kw_only=True)
class GreedyRecord:
    """How a search in rounds (greedy, or generations of CMA-ES) came to a sweep's candidates, on documents that the
    sweep has not."""

    direction: Literal["backward", "forward", "cma_es"]
    doc_ids: tuple[int, ...]
    rounds: tuple[GreedyRoundRecord, ...]


@dataclass(frozen=True, kw_only=True)
class BoundRecord:
    """A bound of `sweep_select` and how the chosen candidate stands to it, on `task` (None: the optimised one).

    `score` is the chosen one's, `reference` that of the full adapter or the base model (`of`), `limit` the worst that
    is within the bound: `share` of the reference. `met` compares these numbers as they stand. `lower` is the lower
    limit of the score against this bound, for all candidates together at 95 %, and `shown` says that it is within the
    bound too. `difference` to the reference is None where the chosen one is the reference.
    """

    share: float
    task: str | None
    of: Literal["full", "base"]
    score: float | None
    reference: float | None
    limit: float | None
    met: bool
    lower: float | None = None
    shown: bool = False
    difference: DifferenceRecord | None = None


@dataclass(frozen=True, kw_only=True)
class JointRecord:
    """One choice for several tasks (`sweep_jointly`), as the record of one of them holds it.

    `others[task][variant]` is how a candidate differs from the full adapter on each other task, in that task's unit,
    positive is better (None: no score); `unit` is this task's own. `alone` is what it would have taken by itself.
    """

    how: Literal["mean", "worst"]
    unit: float
    alone: str
    others: dict[str, dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Everything a choice was made from. `candidates` stand from most kept to least; `ordered` says that neighbours in
    that order are alike (boundaries), so that their scores may be smoothed. `not_asked` are the candidates that
    `sweep_strategy=refine` had no reason to ask. `seconds_per_pair` is what an answer took
    when it was made, of all processes together: a sweep that found its answers in the journal was no faster for it."""

    candidate_set: str
    ordered: bool
    strategy: str
    select: str
    seed: int
    engine: str
    aggregation: str
    candidates: tuple[CandidateRecord, ...]
    chosen: str
    best: str
    gain_over_full: DifferenceRecord | None = None
    racing: RacingRecord | None = None
    greedy: GreedyRecord | None = None
    not_asked: tuple[str, ...] = ()
    bounds: tuple[BoundRecord, ...] = ()
    jointly: JointRecord | None = None
    check: dict[str, Any] | None = None
    seconds_per_pair: float | None = None
    warnings: tuple[str, ...] = ()

    def candidate(self, variant: str) -> CandidateRecord | None:
        """The candidate of this notation, None where it was none."""
        return next((one for one in self.candidates if one.variant == variant), None)


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The documents a choice was made on: their split, their indices in it, which drawn ones were left out and why, and
    what belongs together (None: every document stands alone). `task` is the one they are of, where that is another than
    the evaluated one (sweep_task)."""

    split: str
    doc_ids: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()
    clusters: tuple[str | None, ...] | None = None
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class AlsoRecord:
    """Another task that the candidates were scored on, and that chose nothing."""

    task: str
    metric: MetricSpec
    aggregation: str
    validation: ValidationRecord
    candidates: tuple[CandidateRecord, ...]
    journal: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What one task was answered with, and how it was found.

    `boundary` is K where `variant` is one. `seconds` is what finding it took. `fingerprint` digests everything that
    changed the decision: model, adapter, task, validation documents. `candidate_parameters` are those of the adapter
    that each candidate of the sweep keeps, `also` its scores on tasks that were not optimised. `source` is the results
    file that a "recorded" choice was taken from. `evaluated` has the test split under other variants beside it.
    """

    variant: str
    boundary: int | None
    num_layers: int
    method: Method
    fingerprint: str
    kept_parameters: int
    dropped_parameters: int
    metric: MetricSpec | None = None
    validation: ValidationRecord | None = None
    sweep: SweepRecord | None = None
    candidate_parameters: dict[str, int] = field(default_factory=dict)
    also: tuple[AlsoRecord, ...] = ()
    evaluated: EvaluatedRecord | None = None
    probe: dict[str, Any] | None = None
    journal: str | None = None
    source: str | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    from_answer_cache: bool = False

    @property
    def kept(self) -> Variant:
        """`variant`, read."""
        return Variant.parse(self.variant, self.num_layers)


@dataclass(frozen=True, kw_only=True)
class NamedAdapterRecord:
    """One of several adapters: where it came from, and its own digest."""

    path: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """The adapter: where it came from, what it is. Of several, `path` and `fingerprint` are those of all together,
    `several` each by the name that variants call it by, and the numbers those of the first."""

    path: str | None
    fingerprint: str
    base_model: str | None
    r: int
    lora_alpha: float
    parameters: int
    several: dict[str, NamedAdapterRecord] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """The base model."""

    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The whole entry: what was loaded, by which versions, and a `TaskRecord` for each task."""

    schema: int
    version: str
    adapter: AdapterRecord
    base: BaseRecord
    dtype: str
    num_layers: int
    fingerprint: str
    libraries: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)


def to_entry(record: RunRecord) -> dict[str, Any]:
    """What stands in a results file: `{KEY: ...}`."""
    return {KEY: as_json(record)}


def as_json(record: RunRecord | TaskRecord) -> Any:
    """A record as plain data."""
    return plain(msgspec.to_builtins(record, builtin_types=()))


def from_config(config: Mapping[str, Any], path: Path | str) -> RunRecord | None:
    """The entry in the `config` of a results file; None where there is none (a run of another model type).

    Raises:
        ArgumentError: the entry is none of ours, or damaged; names the file `path`, the field and its rule.
    """
    entry = config.get(KEY)
    if entry is None:
        return None
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise ArgumentError(
            f"{path}: config.{KEY}.schema must be {SCHEMA}, got {schema!r}: the file was written by another version of "
            "lm-eval-lora-drop or is damaged. Evaluate again with this version."
        )
    tasks = entry.get("tasks", {})
    if not isinstance(tasks, dict):
        raise _damaged(path, f"config.{KEY}.tasks", f"must be an object, got {type(tasks).__name__}")
    run: RunRecord = _convert({**entry, "tasks": {}}, RunRecord, f"config.{KEY}", path)
    # One by one, so that a message names the task.
    return replace(
        run, tasks={str(name): read_task(task, path, f"config.{KEY}.tasks.{name}") for name, task in tasks.items()}
    )


def read_task(entry: Any, path: Path | str, where: str) -> TaskRecord:
    """One task's record, as the answer cache and probe.json keep it.

    Raises:
        ArgumentError: as `from_config`.
    """
    task = _convert(entry, TaskRecord, where, path)
    _check(task, where, path)
    return task


def _convert(entry: Any, kind: type[Any], where: str, path: Path | str) -> Any:
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise _damaged(path, where + place.rstrip("`"), text) from error
    except UnicodeEncodeError as error:  # half a character, which JSON can hold and UTF-8 cannot
        raise _damaged(path, where, "must be text that UTF-8 can hold") from error


def _check(task: TaskRecord, where: str, path: Path | str) -> None:
    """What the types cannot say: variants that can be read, and that a choice is one of its candidates."""
    for name, text in (("variant", task.variant), *_variants(task)):
        try:
            Variant.parse(text, task.num_layers)
        except ArgumentError as error:
            raise _damaged(path, f"{where}.{name}", str(error)) from error
    if task.evaluated is not None:
        documents = len(task.evaluated.doc_ids)
        for row in task.evaluated.rows:
            if any(len(one.items) not in (0, documents) for one in row.scores):
                raise _damaged(path, f"{where}.evaluated", f"must hold {documents} items of each score")
    sweep = task.sweep
    if sweep is None:
        return
    alone = [("jointly.alone", sweep.jointly.alone)] if sweep.jointly else []
    for name, chosen in (("chosen", sweep.chosen), ("best", sweep.best), *alone):
        if sweep.candidate(chosen) is None:
            raise _damaged(path, f"{where}.sweep.{name}", f"must be one of the candidates, got {chosen!r}")
    lengths = {len(one.items) for one in sweep.candidates}
    if len(lengths) > 1:
        raise _damaged(path, f"{where}.sweep.candidates", f"must hold equally many items each, got {sorted(lengths)}")


def _variants(task: TaskRecord) -> list[tuple[str, str]]:
    candidates = task.sweep.candidates if task.sweep else ()
    rows = task.evaluated.rows if task.evaluated else ()
    return [
        *((f"sweep.candidates[{index}].variant", one.variant) for index, one in enumerate(candidates)),
        *((f"evaluated.rows[{index}].variant", one.variant) for index, one in enumerate(rows)),
    ]


def _damaged(path: Path | str, field_name: str, rule: str) -> ArgumentError:
    return ArgumentError(f"{path}: {field_name}: {rule}. The file is damaged or was edited; evaluate again.")
