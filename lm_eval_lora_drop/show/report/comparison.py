"""What `compare` finds, and how a terminal and the report page show it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lm_eval_lora_drop.show.report.judged import judged_metric
from lm_eval_lora_drop.show.report.outputs import ErrorAnalysis
from lm_eval_lora_drop.show.tables import paragraph, table
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.statistics.randomisation import RANDOMISATION_DRAWS
from lm_eval_lora_drop.text import NOTHING, decimals_of_difference, number, p_value, percent, significant

_LONGEST_OUTPUT = 100
"""Characters of an output that are shown beside others."""


@dataclass
class MetricComparison:
    """One metric of one task, `other` minus `baseline`.

    `gained` and `lost` count the documents on which `other` scores better and worse; None where the metric has no
    direction or its per-document values are no numbers. `p_holm` is corrected over the tasks that the two systems share
    and is there for the metric that stands for the task; `p_table` is corrected over all such tests of the comparison.
    `note` says why there is no test.
    """

    metric: str
    filter: str
    other: str
    higher_is_better: bool | None
    baseline_score: float
    other_score: float
    difference: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    p_table: float | None = None
    test: str = ""
    gained: int | None = None
    lost: int | None = None
    note: str = ""
    represents: bool = False
    """Whether the task stands for this pair of systems by this metric (`show/report/corrections.py`)."""
    clusters: int | None = None
    bracket: str = ""
    """Why the two scores are not comparable: both are shown in brackets, and nothing is tested."""

    @property
    def cells(self) -> dict[str, str]:
        """The row of a table, by heading."""
        places = decimals_of_difference(self.difference, self.interval)
        left, right = ("[", "]") if self.bracket else ("", "")
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        ends = [] if self.interval is None else [number(end, places, sign=True) for end in self.interval]
        return {
            "metric": (self.metric if self.filter == "none" else f"{self.metric},{self.filter}") + arrow,
            "A": f"{left}{number(self.baseline_score, places)}{right}",
            "B": f"{left}{number(self.other_score, places)}{right}",
            "difference": f"{left}{number(self.difference, places, sign=True)}{right}",
            "95 % interval": " to ".join(ends),
            "p": p_value(self.p_value),
            "p (Holm)": p_value(self.p_holm),
            "p (all)": p_value(self.p_table),
            "gained/lost": "" if self.gained is None else f"{self.gained}/{self.lost}",
            "test": "not comparable" if self.bracket else self.test.split(",")[0] or self.note,
        }


@dataclass
class TaskComparison:
    """One task: its settings, every metric of every other system that has it, and the error analysis.

    `settings` are those of each system (`show/signature.py`). `clusters` counts what was exchanged and resampled as one
    where the task names a cluster, None where documents are.
    """

    task: str
    version: str
    documents: int
    settings: dict[str, str] = field(default_factory=dict)
    clusters: int | None = None
    metrics: list[MetricComparison] = field(default_factory=list)
    errors: list[ErrorAnalysis] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Task, version, number of documents."""
        clusters = "" if self.clusters is None else f" in {self.clusters} clusters"
        return f"Task {self.task}, version {self.version}, {self.documents} documents{clusters}"

    @property
    def rows(self) -> list[list[str]]:
        """The cells of all metrics, the test of each with everything that it depends on."""
        tests = ("; ".join(filter(None, (row.test, row.note))) for row in self.metrics)
        return [[*[*row.cells.values()][:-1], test] for row, test in zip(self.metrics, tests, strict=True)]


@dataclass
class SystemComparison:
    """What `compare` found; `print` shows it. `refused` maps a task to the reasons why its runs are not comparable;
    `tests` counts the tests that were corrected."""

    baseline: str
    others: list[str]
    tasks: list[TaskComparison] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tests: int = 0
    level: float = 1 - significance.LEVEL
    resamples: int = RANDOMISATION_DRAWS
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`; NaN, which JSON lacks, becomes null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def __str__(self) -> str:
        labels = [self.baseline, *self.others]
        names = {label: chr(ord("A") + i) if i < 26 else f"S{i + 1}" for i, label in enumerate(labels)}
        parts = ["\n".join(f"{names[label]}  {label}" for label in labels).replace("\n", "  (baseline)\n", 1)]
        parts += [_task(task, names) for task in self.tasks]
        parts.append(paragraph(legend(self)))
        parts += [f"Not compared, task {task}: {'; '.join(reasons)}." for task, reasons in self.refused.items()]
        parts += [f"Note: {note}" for note in self.notes]
        return "\n\n".join(parts)


def legend(found: SystemComparison) -> str:
    """What the columns mean."""
    text = (
        f"Interval: {percent(found.level)}; it contains 0 exactly if p is at least {number(1 - found.level, 2)}. p: "
        "two-sided. p (Holm): first metric of a task, corrected over the tasks that the two systems share"
    )
    if len(found.others) > 1:
        text += f"; p (all): corrected over all {found.tests} of these tests"
    text += ". gained/lost: documents on which the other system scores better/worse than A."
    if any(task.clusters is not None for task in found.tasks):
        text += " clusters: documents that the task declares to belong together; the test exchanges them together."
    if any("draws" in row.test for task in found.tasks for row in task.metrics):
        text += f" Seed {found.seed}, {found.resamples:,} draws where the exchanges are not enumerated."
    return text


def _task(task: TaskComparison, names: Mapping[str, str]) -> str:
    rows = [{"": f"A → {names[row.other]}", **row.cells} for row in task.metrics]
    # With one pair of systems its name says nothing, and the two corrections are the same.
    shown = [head for head in (rows[0] if rows else ()) if len(names) > 2 or head not in ("", "p (all)")]
    text = table(shown, [[row[head] for head in shown] for row in rows], left=["", "metric", "test"])
    notes = dict.fromkeys(
        f"{names[row.other]}, {row.metric}: {row.note}"
        for row in task.metrics
        if judged_metric(row.metric) and row.note
    )
    settings = [f"{names[label]}: {line}" for label, line in task.settings.items()]
    errors = [_errors(errors, names[errors.other]) for errors in task.errors]
    return "\n\n".join([task.title, text, "\n".join(["Settings", *settings]), *map(paragraph, notes), *errors])


def error_sentences(errors: ErrorAnalysis, name: str) -> list[str]:
    """The error analysis of the system that the table calls `name`."""
    if errors.contain is None:
        return [f"{name} scores lower than A on no document ({errors.metric})."]
    there, everywhere = (
        NOTHING if ratio is None else number(ratio, 2) for ratio in (errors.length_ratio, errors.length_ratio_all)
    )
    return [
        f"{name} scores lower than A ({errors.metric}) on {errors.worse} of {errors.documents} documents.",
        f"Output of {name} contains that of A: {percent(errors.contain)} of these documents.",
        f"Length of {name}'s outputs divided by A's: {there} on these documents, {everywhere} on all.",
    ]


def _errors(errors: ErrorAnalysis, name: str) -> str:
    lines = error_sentences(errors, name)
    if errors.worst:
        lines.append("Largest losses:")
    for document in errors.worst:
        lines.append(f"  doc_id {document['doc_id']}, {significant(document['loss'])} lower")
        for who, text in (("reference", document["target"]), ("A", document["baseline"]), (name, document["other"])):
            lines.append(f"    {who:<9} {textwrap.shorten(text, _LONGEST_OUTPUT, placeholder=' ...')}")
    return "\n  ".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
