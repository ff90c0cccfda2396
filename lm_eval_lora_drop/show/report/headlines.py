"""What a reader wants first: for each task the verdict in one sentence, then what the test documents say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lm_eval_lora_drop.show.report.compare import MetricComparison, SystemComparison, TaskComparison
from lm_eval_lora_drop.show.report.family import first_metric
from lm_eval_lora_drop.show.report.judged import judged_metric, judgement
from lm_eval_lora_drop.show.report.systems import System
from lm_eval_lora_drop.show.verdict.answer import task_answer
from lm_eval_lora_drop.show.verdict.sweep_text import verdict
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.text import decimals_of_column, decimals_of_difference, number, p_value, with_error


@dataclass
class Headline:
    """One task. `verdicts` are (system, sentence) of every run that searched; `tests` sentences about pairs."""

    task: str
    scores: list[tuple[str, str, str]] = field(default_factory=list)
    """(system, metric, score on the evaluated documents)."""
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    evaluated: list[tuple[str, list[str], list[tuple[str, ...]]]] = field(default_factory=list)
    """(system, headings, rows) of every run that evaluated other variants beside its own (`evaluate=`)."""


def headlines(systems: Sequence[System], comparisons: Sequence[SystemComparison]) -> list[Headline]:
    """A headline for each task, in the order in which they are met."""
    found: dict[str, Headline] = {}
    decimals = _decimals(systems)
    for system in systems:
        for name, task in system.tasks.items():
            headline = found.setdefault(name, Headline(name))
            record = task.record
            # What was given needs no verdict: nobody chose it here.
            if record is not None and record.method != "given":
                headline.verdicts.append((system.label, verdict(record)))
            if record is not None and record.evaluated is not None:
                headings, columns = zip(*task_answer(task.run.data, name, record).columns, strict=True)
                headline.evaluated.append((system.label, list(headings), list(zip(*columns, strict=True))))
            key = first_metric(task)
            if key is not None:
                score = task.scores[key]
                metric = key[0] if key[1] == "none" else ",".join(key)
                text = with_error(score.value, score.stderr, decimals[name, key])
                if judged_metric(key[0]):
                    found_by = judgement(task, *key)
                    text = f"{f'[{text}]' if found_by.reasons else text} ({found_by})"
                headline.scores.append((system.label, metric, text))
    for comparison in comparisons:
        for compared in comparison.tasks:
            row = next((metric for metric in compared.metrics if metric.represents), None)
            if row is not None:
                found[compared.task].tests.append(_test(comparison, compared, row))
    return list(found.values())


def _decimals(systems: Sequence[System]) -> dict[tuple[str, tuple[str, str]], int]:
    """Of each task's metric, the decimals that all systems' scores are shown with."""
    scores: dict[tuple[str, tuple[str, str]], list[tuple[float, float | None]]] = {}
    for system in systems:
        for name, task in system.tasks.items():
            key = first_metric(task)
            if key is not None:
                scores.setdefault((name, key), []).append((task.scores[key].value, task.scores[key].stderr))
    return {of: decimals_of_column(rows) for of, rows in scores.items()}


def _test(found: SystemComparison, task: TaskComparison, row: MetricComparison) -> str:
    if row.difference == 0:
        return f"{task.task}: {row.other} and {found.baseline} score the same {row.metric}."
    digits = decimals_of_difference(row.difference, row.interval)
    text = (
        f"{task.task}: {row.other} has {row.metric} {number(row.other_score, digits)}, {found.baseline} "
        f"{number(row.baseline_score, digits)}, on the same {task.documents} documents"
    )
    if row.p_holm is None or row.p_table is None or row.interval is None:
        return f"{text}; the difference was not tested ({row.note})."
    if row.higher_is_better is None:
        side = "higher" if row.difference > 0 else "lower"
    else:
        side = "better" if (row.difference > 0) == row.higher_is_better else "worse"
    said = f"significantly {side}"
    if row.p_holm >= significance.LEVEL:
        said = f"{side}, not significant"
    elif row.p_table >= significance.LEVEL:
        said += " for this pair alone, not significant after correction for all tests of this page"
    low, high = row.interval
    return (
        f"{text}: {said} (difference {number(row.difference, digits, sign=True)}, 95 % interval "
        f"{number(low, digits, sign=True)} to {number(high, digits, sign=True)}, p = {p_value(row.p_value)}, "
        f"corrected {p_value(row.p_holm)}, over the whole page {p_value(row.p_table)})."
    )
