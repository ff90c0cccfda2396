"""`lora-drop leaderboard DIR`: any number of results files as one table, systems by tasks.

Scores of a task are set side by side only where they were taken on the same documents with the same prompts and task
version. A mark says that a system differs from the named baseline, tested document by document and corrected over the
tasks that the two share; a double mark, that it does even when corrected for all tests of the table (`family.py`).
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
from lm_eval_lora_drop.show.report.family import corrected, first_metric
from lm_eval_lora_drop.show.report.systems import System, from_paths
from lm_eval_lora_drop.show.signature import signature
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_field, mean_stderr


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
    """One system: its cell per task (None where it has no run), its mean rank over the tasks it is ranked on."""

    system: str
    cells: dict[str, ScoreCell | None] = field(default_factory=dict)
    mean_rank: float | None = None
    ranked: int = 0


@dataclass
class Leaderboard:
    """The table, best mean rank first; systems that miss a task come after those that have all."""

    columns: list[Column]
    lines: list[Line]
    baseline: str | None
    tests: int
    notes: list[str]
    issues: list[Issue]
    metrics: tuple[str, ...] = ()
    """Every metric that any task has."""


@dataclass(frozen=True)
class _Test:
    column: Column
    system: str
    cell: ScoreCell
    p_value: float
    difference: float


@dataclass
class _Scored:
    line: Line
    task: TaskRun
    key: int
    values: significance.Floats | None
    clusters: Codes | None
    untestable: bool
    judged: judged.Judgement | None = None


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
    tested: list[_Test] = []
    for name in dict.fromkeys(task for system in systems for task in system.tasks):
        runs = {system.label: system.tasks[name] for system in systems if name in system.tasks}
        column = _column(name, next(iter(runs.values())), metrics)
        if column is None:
            table.notes.append(f"task {name}: none of the metrics asked for.")
            continue
        table.columns.append(column)
        scored = [
            entry for label, run in runs.items() if (entry := _read(table, lines[label], run, column)) is not None
        ]
        _set_apart(table, column, scored, named)
        _judged_alike(table, column, scored)
        if named is not None:
            tested += _test(column, [s for s in scored if (c := s.line.cells[name]) and c.comparable], named, seed)
        _rank(column, scored)
    adjusted = corrected([test.system for test in tested], [test.p_value for test in tested])
    for test, (within, over_all) in zip(tested, adjusted, strict=True):
        test.cell.p_holm, test.cell.p_table = within, over_all
        if within < significance.LEVEL and test.column.higher_is_better is not None:
            sign = "*" if (test.difference > 0) == test.column.higher_is_better else "†"
            test.cell.mark = sign * (2 if over_all < significance.LEVEL else 1)
    table.tests = len(tested)
    for line in table.lines:
        _mean_rank(line, table.columns)
    table.lines.sort(key=lambda line: (-line.ranked, line.mean_rank is None, line.mean_rank or 0.0, line.system))
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


def _column(name: str, run: TaskRun, metrics: Sequence[str]) -> Column | None:
    chosen = first_metric(run, metrics)
    if chosen is None:
        return None
    metric, filter_name = chosen
    return Column(name, metric, filter_name, run.higher_is_better.get(metric))


def _read(table: Leaderboard, line: Line, run: TaskRun, column: Column) -> _Scored | None:
    score = run.scores.get((column.metric, column.filter))
    if score is None:
        line.cells[column.task] = None
        return None
    documents = run.documents.get(column.filter)
    values = significance.numbers(documents.metrics.get(column.metric, [None])) if documents else None
    if values is not None and not significance.is_mean(values, score.value):
        values = None
    identity = (documents.doc_ids, documents.identity) if documents else run.documents_evaluated
    by_judges = judged.judgement(run, column.metric, column.filter) if judged.judged_metric(column.metric) else None
    key = hash((run.version, run.num_fewshot, identity, by_judges and judged.key(by_judges)))
    stderr, clusters, untestable = score.stderr, None, False
    try:
        if documents is not None and cluster_field(run.config.get("metadata")) is not None:
            clusters = clusters_of(run, run.samples(column.filter))
            stderr = mean_stderr(values, clusters) if values is not None and clusters is not None else None
    except ArgumentError as error:
        table.notes.append(f"task {column.task}, {line.system}: not tested, and no standard error: {error}")
        stderr, untestable = None, True
    # Texts and hashes of 500 runs need not stay in memory.
    run.__dict__.pop("documents", None)
    record = run.record
    found = record.boundary if record is not None and record.method != "given" else None
    count = len(documents.doc_ids) if documents else run.documents_evaluated
    line.cells[column.task] = ScoreCell(score.value, stderr, count, boundary=found, settings=signature(run))
    return _Scored(line, run, key, values, clusters, untestable, by_judges)


def _set_apart(table: Leaderboard, column: Column, scored: Sequence[_Scored], baseline: str | None) -> None:
    """The column's documents are the baseline's, or those of most systems; the others are shown in brackets."""
    whole = [s for s in scored if s.judged is None or not s.judged.reasons] or scored
    with_samples = [s for s in whole if s.task.samples_path is not None] or whole
    base = [s.key for s in scored if s.line.system == baseline]
    reference = base[0] if base else Counter(s.key for s in with_samples).most_common(1)[0][0] if scored else 0
    for entry in scored:
        cell = entry.line.cells[column.task]
        assert cell is not None
        cell.comparable = entry.key == reference
        if entry.judged is not None and (entry.judged.reasons or not cell.comparable):
            cell.comparable = False
            others = [s.judged for s in scored if s.key == reference and s.judged is not None]
            reasons = (
                entry.judged.reasons or judged.differing(others[0], entry.judged) or ["other documents or prompts"]
            )
            table.notes.append(
                f"task {column.task}: {entry.line.system} is in brackets and not ranked: {'; '.join(reasons)}."
            )
        elif not cell.comparable:
            table.notes.append(
                f"task {column.task}: {entry.line.system} ({cell.documents} documents, version {entry.task.version}) "
                "has other documents, prompts, task version or no samples; its score is in brackets and not ranked."
            )


def _judged_alike(table: Leaderboard, column: Column, scored: Sequence[_Scored]) -> None:
    """Take GPT-Scores over the documents that all judges scored for all systems that are compared."""
    shown = [(entry, entry.judged) for entry in scored if entry.judged is not None]
    alike = [(e, j) for e, j in shown if (c := e.line.cells[column.task]) and c.comparable and e.task.samples_path]
    means = judged.panel_means([one for _, one in alike]) if alike else []
    number = len(means[0]) if means else None
    for (entry, _), by_document in zip(alike, means, strict=True):
        cell = entry.line.cells[column.task]
        assert cell is not None
        if number:
            cell.score, cell.documents = float(by_document.mean()), number
            cell.stderr = float(by_document.std(ddof=1) / np.sqrt(number)) if number > 1 else None
    if shown:
        said = judged.sentence([e.line.system for e, _ in shown], [one for _, one in shown], number)
        table.notes.append(f"task {column.task}: {said}")


def _test(column: Column, scored: Sequence[_Scored], baseline: str, seed: int) -> list[_Test]:
    base = next((s for s in scored if s.line.system == baseline), None)
    others = [s for s in scored if s.line.system != baseline]
    if base is None or base.untestable:
        return []
    # Means over documents are tested together, which is fast; what else there is, one by one. The p-values are those of
    # `compare_metric` either way.
    together = [s for s in others if base.values is not None and s.values is not None]
    found: list[tuple[_Scored, float, float]] = []
    if together:
        differences = np.stack([s.values - base.values for s in together], axis=1)  # type: ignore[operator]
        p_values = significance.mean_p_values(differences, clusters=base.clusters, seed=seed)
        found += zip(together, p_values, differences.mean(axis=0).tolist(), strict=True)
    for s in others:
        if base.values is None or s.values is None:
            row = compare_metric(base.task, s.task, s.line.system, column.metric, column.filter, seed=seed)
            if row.p_value is not None:
                found.append((s, row.p_value, row.difference))
    return [
        _Test(column, s.line.system, cell, p, difference)
        for s, p, difference in found
        if (cell := s.line.cells[column.task]) is not None
    ]


def _rank(column: Column, scored: Sequence[_Scored]) -> None:
    cells = [cell for s in scored if (cell := s.line.cells[column.task]) is not None and cell.comparable]
    if column.higher_is_better is None or not cells:
        return
    best = (max if column.higher_is_better else min)(cell.score for cell in cells)
    for cell in cells:
        cell.best = cell.score == best
    sign = -1.0 if column.higher_is_better else 1.0
    ranks = rankdata([sign * cell.score for cell in cells], method="average")
    for cell, rank in zip(cells, ranks, strict=True):
        cell.rank = float(rank)


def _mean_rank(line: Line, columns: Sequence[Column]) -> None:
    cells = [cell for column in columns if (cell := line.cells.get(column.task)) is not None]
    ranks = [cell.rank for cell in cells if cell.rank is not None]
    line.ranked = len(ranks)
    line.mean_rank = float(np.mean(ranks)) if ranks else None
