"""What a reader wants first: for each task the verdict in one sentence, then all systems in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lm_eval_lora_drop.show.report.comparison import MetricComparison, SystemComparison
from lm_eval_lora_drop.show.report.corrections import first_metric
from lm_eval_lora_drop.show.report.judged import judged_metric, judgement
from lm_eval_lora_drop.show.report.systems import System
from lm_eval_lora_drop.show.verdict.answer import task_answer
from lm_eval_lora_drop.show.verdict.sweep_text import verdict
from lm_eval_lora_drop.text import decimals_of_column, with_error

HEADINGS = ("system", "metric", "documents", "score", "difference", "95 % interval", "p (Holm)", "p (all)", "test")


@dataclass
class Headline:
    """One task. `verdicts` are (system, sentence) of every run that searched; `rows` the systems, under `HEADINGS`."""

    task: str
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    evaluated: list[tuple[str, list[str], list[tuple[str, ...]]]] = field(default_factory=list)
    """(system, headings, rows) of every run that evaluated other variants beside its own (`evaluate=`)."""


def headlines(systems: Sequence[System], comparisons: Sequence[SystemComparison]) -> list[Headline]:
    """A headline for each task, in the order in which they are met; differences are to the baseline of each task."""
    tested: dict[tuple[str, str], MetricComparison | None] = {}
    for found in comparisons:
        for compared in found.tasks:
            tested |= {(compared.task, found.baseline): None}
            tested |= {(compared.task, row.other): row for row in compared.metrics if row.represents}
    return [
        _headline(name, [system for system in systems if name in system.tasks], tested)
        for name in dict.fromkeys(name for system in systems for name in system.tasks)
    ]


def _headline(name: str, systems: Sequence[System], tested: dict[tuple[str, str], MetricComparison | None]) -> Headline:
    headline = Headline(name)
    firsts = {system.label: first_metric(system.tasks[name]) for system in systems}
    scores = {system.label: system.tasks[name].scores[key] for system in systems if (key := firsts[system.label])}
    for system in systems:
        task = system.tasks[name]
        record = task.record
        # What was given needs no verdict: nobody chose it here.
        if record is not None and record.method != "given":
            headline.verdicts.append((system.label, verdict(record)))
        if record is not None and record.evaluated is not None:
            headings, columns = zip(*task_answer(task.run.data, name, record).columns, strict=True)
            headline.evaluated.append((system.label, list(headings), list(zip(*columns, strict=True))))
        key = firsts[system.label]
        if key is None:
            continue
        of_metric = [scores[label] for label, other in firsts.items() if other == key]
        decimals = decimals_of_column((score.value, score.stderr) for score in of_metric)
        text = with_error(scores[system.label].value, scores[system.label].stderr, decimals)
        if judged_metric(key[0]):
            judged = judgement(task, *key)
            text = f"{f'[{text}]' if judged.reasons else text} ({judged})"
        metric = key[0] if key[1] == "none" else ",".join(key)
        documents = str(task.documents_evaluated or "-")
        headline.rows.append((system.label, metric, documents, text, *_test(tested, name, system)))
    return headline


def _test(tested: dict[tuple[str, str], MetricComparison | None], task: str, system: System) -> tuple[str, ...]:
    """The cells of a row that come from the comparison with the baseline."""
    if (task, system.label) not in tested:
        return ("", "", "", "", "not compared")
    row = tested[task, system.label]
    if row is None:
        return ("", "", "", "", "baseline")
    return tuple(row.cells[heading] for heading in HEADINGS[4:])
