"""`lora-drop leaderboard DIR`: any number of results files as one table, systems by tasks.

Scores of a task are set side by side only where they were taken on the same documents with the same prompts and task
version. A mark says that a system differs from the named baseline, tested document by document and corrected over the
tasks that the two share; a double mark, that it does even when corrected for all tests of the table (`corrections.py`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Issue, TaskRun
from lm_eval_lora_drop.show.report import judged
from lm_eval_lora_drop.show.report.compare import clusters_of, compare_metric
from lm_eval_lora_drop.show.report.comparison import MetricComparison
from lm_eval_lora_drop.show.report.corrections import corrected, first_metric
from lm_eval_lora_drop.show.report.systems import System, from_paths
from lm_eval_lora_drop.show.signature import signature
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.statistics.clusters import cluster_field, mean_stderr


@dataclass
class ScoreCell:
    """One system on one task. `boundary` is the K that was found or taken for it, where none was given.

    `comparable` is False where documents, prompts or version are not those of the column: shown, not ranked. `mark` is
    `*` (better than the baseline) or `†` (worse) where `p_holm` is below 0.05, doubled where `p_table` is as well.
    `stderr` is the results file's, or by cluster where the task names one.
    """

    score: float
    stderr: float | None
    documents: int | None
    boundary: int | None = None
    comparable: bool = True
    best: bool = False
    rank: float | None = None
    p_holm: float | None = None
    p_table: float | None = None
    mark: str = ""
    settings: str = ""
    """`show/signature.py`."""


@dataclass(frozen=True)
class Column:
    """One task: the metric that is shown, and its direction."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None

    @property
    def title(self) -> str:
        """As the head of the column."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.task} {self.metric}{'' if self.filter == 'none' else f',{self.filter}'}{arrow}"


@dataclass
class Line:
    """One system: its cell for each task that it has a score of, and its mean rank (`_mean_ranks`)."""

    system: str
    cells: dict[str, ScoreCell] = field(default_factory=dict)
    mean_rank: float | None = None


@dataclass
class Leaderboard:
    """The table, best mean rank first."""

    columns: list[Column]
    lines: list[Line]
    baseline: str | None
    tests: int
    notes: list[str]
    issues: list[Issue]
    metrics: tuple[str, ...] = ()
    """Every metric that any task has."""


@dataclass
class _Scored:
    """A system on the task of a column. Runs with one `key` are comparable."""

    system: str
    task: TaskRun
    cell: ScoreCell
    key: int
    judged: judged.Judgement | None
    values: significance.Floats | None
    """Per document, where the score is their mean and nothing else is needed to test it."""


def leaderboard(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
) -> Leaderboard:
    """Read everything below `paths`.

    Args:
        paths: folders or results files.
        baseline: (part of) the name of the system the others are tested against.
        metrics: metrics to show, `metric` or `task:metric`; else each task's first.
        seed: of the randomisation tests.

    Raises:
        ArgumentError: nothing readable, an unknown or ambiguous baseline.
    """
    return from_paths(paths, functools.partial(build, baseline=baseline, metrics=metrics, seed=seed))


def build(
    systems: Sequence[System],
    issues: Sequence[Issue],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
) -> Leaderboard:
    """As `leaderboard`, of systems that have been read."""
    named = find_system(systems, baseline).label if baseline is not None else None
    lines = {system.label: Line(system.label) for system in systems}
    known_metrics = dict.fromkeys(name for system in systems for run in system.tasks.values() for name, _ in run.scores)
    table = Leaderboard([], list(lines.values()), named, 0, [], [], tuple(known_metrics))
    tested: list[tuple[ScoreCell, MetricComparison]] = []
    for name in dict.fromkeys(task for system in systems for task in system.tasks):
        runs = {system.label: system.tasks[name] for system in systems if name in system.tasks}
        first = next(iter(runs.values()))
        chosen = first_metric(first, metrics)
        if chosen is None:
            table.notes.append(f"task {name}: none of the metrics asked for.")
            continue
        column = Column(name, *chosen, first.higher_is_better.get(chosen[0]))
        table.columns.append(column)
        scored = [_read(table, label, run, column) for label, run in runs.items() if chosen in run.scores]
        for one in scored:
            lines[one.system].cells[name] = one.cell
        _set_apart(table, column, scored, named)
        _judged_alike(table, column, scored)
        tested += _tests(column, [one for one in scored if one.cell.comparable], named, seed)
        _rank(column, [one.cell for one in scored if one.cell.comparable])
        for run in runs.values():
            run.__dict__.pop("documents", None)
    adjusted = corrected([row.other for _, row in tested], [row.p_value or 0.0 for _, row in tested])
    for (cell, row), (within, over_all) in zip(tested, adjusted, strict=True):
        cell.p_holm, cell.p_table = within, over_all
        if within < significance.LEVEL and row.higher_is_better is not None:
            sign = "*" if (row.difference > 0) == row.higher_is_better else "†"
            cell.mark = sign * (2 if over_all < significance.LEVEL else 1)
    table.tests = len(tested)
    _mean_ranks(table)
    known = [*issues, *(issue for system in systems for run in system.runs for issue in run.all_issues)]
    table.issues = list(dict.fromkeys(known))
    return table


def find_system(systems: Sequence[System], name: str) -> System:
    """The system whose label is, or alone contains, `name`.

    Raises:
        ArgumentError: none, or several.
    """
    exact = [system for system in systems if system.label == name]
    found = exact or [system for system in systems if name in system.label]
    if len(found) != 1:
        labels = ", ".join(system.label for system in (found or systems)[:10])
        what = "several systems match" if found else "no system is called"
        raise ArgumentError(f"--baseline: {what} {name!r}. There are: {labels}.")
    return found[0]


def _read(table: Leaderboard, system: str, run: TaskRun, column: Column) -> _Scored:
    score, documents = run.scores[column.metric, column.filter], run.documents.get(column.filter)
    values = significance.numbers(documents.metrics.get(column.metric, [None])) if documents else None
    if values is not None and not significance.is_mean(values, score.value):
        values = None
    stderr, clustered = score.stderr, False
    try:
        if documents is not None and cluster_field(run.config.get("metadata")) is not None:
            clustered = True
            clusters = clusters_of(run, run.samples(column.filter))
            stderr = mean_stderr(values, clusters) if values is not None and clusters is not None else None
    except ArgumentError as error:
        table.notes.append(f"task {column.task}, {system}: not tested, and no standard error: {error}")
        stderr, clustered = None, True
    record = run.record
    found = record.boundary if record is not None and record.method != "given" else None
    count = len(documents.doc_ids) if documents else run.documents_evaluated
    cell = ScoreCell(score.value, stderr, count, boundary=found, settings=signature(run))
    by_judges = judged.judgement(run, column.metric, column.filter) if judged.judged_metric(column.metric) else None
    identity = (documents.doc_ids, documents.identity) if documents else run.documents_evaluated
    key = hash((run.version, run.num_fewshot, identity, by_judges and judged.key(by_judges)))
    repeated = documents is not None and len(set(documents.doc_ids)) < len(documents.doc_ids)
    if clustered or repeated or by_judges is not None:
        values = None
    if values is not None:  # texts and hashes of 500 runs need not stay in memory
        run.__dict__.pop("documents", None)
    return _Scored(system, run, cell, key, by_judges, values)


def _set_apart(table: Leaderboard, column: Column, scored: Sequence[_Scored], baseline: str | None) -> None:
    """The column's documents are the baseline's, or those of most systems; the others are shown in brackets."""
    complete = [one for one in scored if one.judged is None or not one.judged.reasons] or scored
    with_samples = [one for one in complete if one.task.samples_path is not None] or complete
    keys = [one.key for one in scored if one.system == baseline] or [one.key for one in with_samples]
    reference = Counter(keys).most_common(1)[0][0] if keys else 0
    judged_alike = next((one.judged for one in scored if one.key == reference), None)
    for one in scored:
        reasons = list(one.judged.reasons) if one.judged is not None else []
        if one.key != reference and not reasons:
            reasons = judged.differing(judged_alike, one.judged) if judged_alike and one.judged else []
            reasons = reasons or [
                f"{one.cell.documents} documents, version {one.task.version}: other documents, prompts or version, or "
                "no samples"
            ]
        one.cell.comparable = not reasons
        if reasons:
            table.notes.append(f"task {column.task}: {one.system} is in brackets and not ranked: {'; '.join(reasons)}.")


def _judged_alike(table: Leaderboard, column: Column, scored: Sequence[_Scored]) -> None:
    """Take GPT-Scores over the documents that all judges scored for all systems that are compared."""
    shown = [(one, one.judged) for one in scored if one.judged is not None]
    alike = [(one, found) for one, found in shown if one.cell.comparable and one.task.samples_path]
    means = judged.panel_means([found for _, found in alike]) if alike else []
    number = len(means[0]) if means else None
    for (one, _), by_document in zip(alike, means, strict=True):
        if number:
            one.cell.score, one.cell.documents = float(by_document.mean()), number
            one.cell.stderr = float(by_document.std(ddof=1) / np.sqrt(number)) if number > 1 else None
    if shown:
        said = judged.sentence([one.system for one, _ in shown], [found for _, found in shown], number)
        table.notes.append(f"task {column.task}: {said}")


def _tests(
    column: Column, scored: Sequence[_Scored], baseline: str | None, seed: int
) -> list[tuple[ScoreCell, MetricComparison]]:
    base = next((one for one in scored if one.system == baseline), None)
    if base is None:
        return []
    others = [one for one in scored if one is not base]
    # Means meet the same exchanges in one go: the p-values of `compare_metric`, for 500 systems in seconds.
    together = [(one, one.values - base.values) for one in others if base.values is not None and one.values is not None]
    rows = []
    if together:
        p_values = significance.mean_p_values(np.stack([gains for _, gains in together], axis=1), seed=seed)
        for (one, gains), p_value in zip(together, p_values, strict=True):
            scores = base.cell.score, one.cell.score, float(gains.mean())
            row = MetricComparison(
                column.metric, column.filter, one.system, column.higher_is_better, *scores, p_value=p_value
            )
            rows.append((one.cell, row))
    for one in others:
        if base.values is None or one.values is None:
            row = compare_metric(base.task, one.task, one.system, column.metric, column.filter, seed=seed)
            rows.append((one.cell, row))
    return [(cell, row) for cell, row in rows if row.p_value is not None]


def _rank(column: Column, cells: Sequence[ScoreCell]) -> None:
    if column.higher_is_better is None or not cells:
        return
    scores = [cell.score if column.higher_is_better else -cell.score for cell in cells]
    ranks = rankdata([-score for score in scores], method="average")
    for cell, score, rank in zip(cells, scores, ranks, strict=True):
        cell.best, cell.rank = score == max(scores), float(rank)


def _mean_ranks(table: Leaderboard) -> None:
    """Over the tasks on which all systems are ranked that are ranked at all: on others some had fewer rivals."""
    ranks = {
        line.system: {task: cell.rank for task, cell in line.cells.items() if cell.rank is not None}
        for line in table.lines
    }
    common = set.intersection(*(set(one) for one in ranks.values() if one)) if any(ranks.values()) else set()
    for line in table.lines:
        own = [rank for task, rank in ranks[line.system].items() if task in common]
        line.mean_rank = float(np.mean(own)) if own else None
    table.lines.sort(key=lambda line: (line.mean_rank is None, line.mean_rank or 0.0, line.system))
