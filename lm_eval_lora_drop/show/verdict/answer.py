"""The answer of a run, task by task: what was kept, its scores beside full and base, and the verdict.

One place for what the screen, a notebook and a model card show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.harness.work import MetricSpec
from lm_eval_lora_drop.record.find import scores_of
from lm_eval_lora_drop.record.runs import Score
from lm_eval_lora_drop.record.schema import RunRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.rounding import NOTHING, with_error
from lm_eval_lora_drop.show.verdict.doubts import doubts, says_nothing
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals, verdict
from lm_eval_lora_drop.variant import Variant

MOST_NOTES = 3


@dataclass(frozen=True)
class EvaluatedScore:
    """A task's score on its evaluated split, as the harness has it; `documents` were evaluated, of `available`."""

    metric: MetricSpec
    score: Score
    documents: int | None
    available: int | None

    @property
    def is_whole_split(self) -> bool:
        """Whether every document of the split was evaluated."""
        return self.documents is not None and self.documents == self.available


@dataclass(frozen=True)
class Row:
    """A line of the table: scores are text, `-` where they are not known."""

    name: str
    short: str
    validation: str
    test: str
    is_chosen: bool


@dataclass(frozen=True)
class Answer:
    """What is said of one task."""

    task: str
    headings: tuple[str, str]
    rows: tuple[Row, ...]
    verdict: str
    doubts: tuple[str, ...]
    """Why the choice should not be taken as it stands."""
    notes: tuple[str, ...]
    is_smaller: bool

    @property
    def chosen(self) -> Row:
        """The line of what was kept."""
        return next(row for row in self.rows if row.is_chosen)


def answers(results: Mapping[str, Any], record: RunRecord) -> list[Answer]:
    """The answers of a run, from the harness's results dictionary (or file) and our record in it."""
    return [_answer(name, task, evaluated_score(results, name, task)) for name, task in record.tasks.items()]


def evaluated_score(results: Mapping[str, Any], name: str, task: TaskRecord) -> EvaluatedScore | None:
    """The score on the evaluated documents by the metric that the choice was made by; by the task's first metric where
    it was made by none of its own. None where the harness has none (`--predict_only`)."""
    metrics = (results.get("results") or {}).get(name)
    config = (results.get("configs") or {}).get(name)
    scores = scores_of(metrics, config) if isinstance(metrics, Mapping) else {}
    if not scores:
        return None
    metric = task.metric
    if metric is None or (metric.name, metric.filter) not in scores:
        first, filter_name = next(iter(scores))
        better = ((results.get("higher_is_better") or {}).get(name) or {}).get(first)
        metric = MetricSpec(first, filter_name, better is not False)
    counts = (results.get("n-samples") or {}).get(name) or {}
    return EvaluatedScore(metric, scores[metric.name, metric.filter], counts.get("effective"), counts.get("original"))


def _answer(name: str, task: TaskRecord, test: EvaluatedScore | None) -> Answer:
    sweep = task.sweep
    kept = task.kept
    shown = [kept]
    if sweep is not None:
        candidates = [Variant.parse(row.variant, task.num_layers) for row in sweep.candidates]
        ends = ([one for one in candidates if one.is_full], [one for one in candidates if one.is_base])
        # Of several adapters the first is what the others are held against.
        shown += [end[0] for end in ends if end and end[0] != kept]
    warnings = [*task.warnings, *(sweep.warnings if sweep else ())]
    notes = warnings[:MOST_NOTES]
    if more := len(warnings) - len(notes):
        notes.append(f"{more} more in the log and in the results file.")
    return Answer(
        task=name,
        headings=(_heading("validation", task.metric if sweep else None, _documents(sweep)), _test_heading(test)),
        rows=tuple(_row(variant, task, test) for variant in shown),
        verdict=verdict(task),
        doubts=tuple(doubts(task, test.metric, test.score, test.documents) if test else doubts(task, None, None, None)),
        notes=tuple(notes),
        is_smaller=not kept.is_full and not kept.is_base and not (sweep and says_nothing(sweep)),
    )


def _row(variant: Variant, task: TaskRecord, test: EvaluatedScore | None) -> Row:
    chosen = variant == task.kept
    how = "chosen" if task.sweep or task.method == "probe" else task.method
    marks = [word for word, is_so in (("full", variant.is_full), ("base", variant.is_base), (how, chosen)) if is_so]
    boundary = variant.boundary
    tested = with_error(test.score.value, test.score.stderr) if chosen and test else NOTHING
    return Row(
        name=f"{variant.label} ({', '.join(marks)})",
        short=str(variant) if boundary is None else f"{boundary} of {variant.num_layers}",
        validation=_validation(variant, task.sweep),
        test=tested,
        is_chosen=chosen,
    )


def _validation(variant: Variant, sweep: SweepRecord | None) -> str:
    row = sweep.candidate(str(variant)) if sweep else None
    if sweep is None or row is None:
        return NOTHING
    text = with_error(row.score, row.stderr, sweep_decimals(sweep))
    return text if text == NOTHING or row.documents == _documents(sweep) else f"{text} on {row.documents}"


def _documents(sweep: SweepRecord | None) -> int | None:
    return max((row.documents for row in sweep.candidates), default=None) if sweep else None


def _heading(split: str, metric: MetricSpec | None, documents: int | None) -> str:
    parts = [str(metric)] if metric else []
    parts += [f"{documents:,} docs"] if documents is not None else []
    return f"{split}\n{', '.join(parts)}" if parts else split


def _test_heading(test: EvaluatedScore | None) -> str:
    return _heading("test", test.metric, test.documents) if test else "test"
