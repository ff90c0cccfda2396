"""The answer of a run, task by task: what was kept, its scores beside full and base, and the verdict.

The screen, a notebook, the report and a model card show what is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.record.evaluated import PairedRecord
from lm_eval_lora_drop.record.find import scores_of
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.runs import Score
from lm_eval_lora_drop.record.schema import RunRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.show.verdict.doubts import doubts, inconclusive
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals, verdict
from lm_eval_lora_drop.text import NOTHING, decimals_of_column, decimals_of_difference, number, with_error
from lm_eval_lora_drop.variant import Variant

MOST_NOTES = 3


@dataclass(frozen=True)
class EvaluatedScore:
    """A task's score on its evaluated split, as the harness has it."""

    metric: MetricSpec
    score: Score
    documents: int | None


@dataclass(frozen=True)
class TableRow:
    """A line of the table: scores are text, `-` if unknown; `difference` is that of the test score to the full
    adapter's."""

    name: str
    validation: str
    test: str
    difference: str
    is_chosen: bool


@dataclass(frozen=True)
class TaskVerdict:
    """Table, verdict and notes of one task."""

    task: str
    headings: tuple[str, str, str]
    rows: tuple[TableRow, ...]
    verdict: str
    doubts: tuple[str, ...]
    """Reasons against the choice, each with what to do."""
    notes: tuple[str, ...]
    hint: str | None
    is_smaller: bool

    @property
    def remarks(self) -> list[str]:
        """What stands below the verdict."""
        said = [*(f"Caution: {doubt}" for doubt in self.doubts), *(f"Note: {note}" for note in self.notes)]
        return [*said, *([self.hint] if self.hint else [])]

    @property
    def chosen(self) -> TableRow:
        """The line of what was kept."""
        return next(row for row in self.rows if row.is_chosen)

    @property
    def columns(self) -> list[tuple[str, list[str]]]:
        """(heading, cells) of the table; the test scores and every other column that holds something."""
        validation, test, difference = self.headings
        columns = [
            ("kept", [row.name for row in self.rows]),
            (validation, [row.validation for row in self.rows]),
            (test, [row.test for row in self.rows]),
            (difference, [row.difference for row in self.rows]),
        ]
        return [one for one in columns if one[0] == test or any(cell != NOTHING for cell in one[1])]


def answers(results: Mapping[str, Any], record: RunRecord) -> list[TaskVerdict]:
    """The answers of a run, from the harness's results dictionary (or file) and our record in it."""
    return [task_answer(results, name, task) for name, task in record.tasks.items()]


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
    return EvaluatedScore(metric, scores[metric.name, metric.filter], counts.get("effective"))


def task_answer(results: Mapping[str, Any], name: str, task: TaskRecord) -> TaskVerdict:
    """The answer of one task; as `answers`."""
    test, sweep = evaluated_score(results, name, task), task.sweep
    kept = task.kept
    shown = [kept]
    if sweep is not None:
        candidates = [Variant.parse(row.variant, task.num_layers) for row in sweep.candidates]
        ends = ([one for one in candidates if one.is_full], [one for one in candidates if one.is_base])
        # Of several adapters the first is the reference.
        shown += [end[0] for end in ends if end and end[0] != kept]
    if task.evaluated is not None:
        evaluated = (Variant.parse(row.variant, task.num_layers) for row in task.evaluated.rows)
        shown += [one for one in evaluated if one not in shown]
    warnings = [*task.warnings, *(sweep.warnings if sweep else ())]
    notes = warnings[:MOST_NOTES]
    if more := len(warnings) - len(notes):
        notes.append(f"{more} more in the log and in the results file.")
    scores = {one: _test_score(one, task, test) for one in shown}
    return TaskVerdict(
        task=name,
        headings=(
            _heading("validation", task.metric if sweep else None, _documents(sweep)),
            _heading("test", test.metric, test.documents) if test else "test",
            "difference to full\npaired, 95 % CI" + ("" if test and test.metric.higher_is_better else "\n> 0: better"),
        ),
        rows=tuple(_row(variant, task, scores) for variant in shown),
        verdict=verdict(task),
        doubts=tuple(doubts(task, test.metric, test.score, test.documents) if test else doubts(task, None, None, None)),
        notes=tuple(notes),
        hint=_hint(task, [one for one, score in scores.items() if score is None and one != kept]),
        is_smaller=not kept.is_full and not kept.is_base and not (sweep and inconclusive(sweep)),
    )


TestScores = Mapping[Variant, tuple[float | None, float | None, PairedRecord | None] | None]
"""Variant -> score, standard error and difference to full; None where it was not evaluated."""


def _test_score(
    variant: Variant, task: TaskRecord, test: EvaluatedScore | None
) -> tuple[float | None, float | None, PairedRecord | None] | None:
    row = task.evaluated.row(str(variant)) if task.evaluated else None
    found = row.score_of(test.metric) if row is not None and test is not None else None
    compared = found.to_full if found else None
    if variant == task.kept:
        return (test.score.value, test.score.stderr, compared) if test else None
    return (found.score, found.stderr, compared) if found else None


def _row(variant: Variant, task: TaskRecord, scores: TestScores) -> TableRow:
    chosen = variant == task.kept
    how = "chosen" if task.sweep or task.method == "probe" else task.method
    marks = [word for word, is_so in (("full", variant.is_full), ("base", variant.is_base), (how, chosen)) if is_so]
    found = scores[variant]
    known = [one for one in scores.values() if one is not None]
    decimals = decimals_of_column((value, stderr) for value, stderr, _ in known) if len(known) > 1 else None
    return TableRow(
        name=f"{variant.label} ({', '.join(marks)})",
        validation=_validation(variant, task.sweep),
        test=with_error(found[0], found[1], decimals) if found else NOTHING,
        difference=difference_text(found[2]) if found else NOTHING,
        is_chosen=chosen,
    )


def difference_text(found: PairedRecord | None) -> str:
    """`+0.8 [-1.2, +2.9]`."""
    if found is None:
        return NOTHING
    decimals = decimals_of_difference(found.difference, (found.low, found.high))
    value, low, high = (number(one, decimals, sign=True) for one in (found.difference, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _hint(task: TaskRecord, missing: Sequence[Variant]) -> str | None:
    """How to have the test scores that a sweep's table lacks."""
    if task.sweep is None or not missing:
        return None
    names = " and ".join("full" if one.is_full else "base" for one in missing)
    return f"Not evaluated on the test split: {names}. To evaluate, add evaluate=chosen+full+base to --model_args."


def _validation(variant: Variant, sweep: SweepRecord | None) -> str:
    row = sweep.candidate(str(variant)) if sweep else None
    if sweep is None or row is None:
        return NOTHING
    text = with_error(row.score, row.stderr, sweep_decimals(sweep))
    return text if text == NOTHING or row.documents == _documents(sweep) else f"{text} on {row.documents}"


def _documents(sweep: SweepRecord | None) -> int | None:
    return max((row.documents for row in sweep.candidates), default=None) if sweep else None


def _heading(split: str, metric: MetricSpec | None, documents: int | None) -> str:
    """Four such columns must hold in 80, so metric, filter and number of documents have a line each."""
    parts = str(metric).split(",") if metric else []
    return "\n".join([split, *parts, *([f"{documents:,} docs"] if documents is not None else [])])
