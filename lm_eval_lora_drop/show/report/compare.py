"""`lora-drop compare A B ...`: systems B, ... against the baseline A on the same documents, metric by metric.

A p-value says how often a difference as large as this one would appear if the two systems were exchangeable; the
interval says how large the difference may be. What is corrected together says `show/report/family.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Issue, Sample, TaskRun
from lm_eval_lora_drop.show.report import judged
from lm_eval_lora_drop.show.report.family import corrected, first_metric
from lm_eval_lora_drop.show.report.outputs import ErrorAnalysis, analyse, scored_texts
from lm_eval_lora_drop.show.report.systems import System, common_tasks, differences
from lm_eval_lora_drop.statistics import corpus, significance
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, cluster_field, cluster_key
from lm_eval_lora_drop.statistics.randomisation import RANDOMISATION_DRAWS

Texts = dict[str, tuple[list[Sample], list[Sample]]]
"""Per filter, the samples of the two systems as far as they have been read."""


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
    """Whether the task stands for this pair of systems by this metric (`show/report/family.py`)."""
    clusters: int | None = None
    bracket: str = ""
    """Why the two scores are not comparable: both are shown in brackets, and nothing is tested."""


@dataclass
class TaskComparison:
    """One task: its settings, every metric of every other system that has it, and the error analysis.

    `clusters` counts what was exchanged and resampled as one where the task names a cluster, None where documents are.
    """

    task: str
    version: str
    documents: int
    clusters: int | None = None
    metrics: list[MetricComparison] = field(default_factory=list)
    errors: list[ErrorAnalysis] = field(default_factory=list)


@dataclass
class SystemComparison:
    """What `compare` found. `refused` maps a task to the reasons why its runs are not comparable; `tests` counts the
    tests that were corrected."""

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


def compare(
    systems: Sequence[System],
    *,
    metrics: Sequence[str] = (),
    resamples: int = RANDOMISATION_DRAWS,
    seed: int = 0,
    show: int = 5,
) -> SystemComparison:
    """The first of `systems` is the baseline; `metrics` restricts the tests (and so the correction) to those named.

    Raises:
        ArgumentError: no common task, an unknown metric, or no task whose runs are comparable.
    """
    baseline, others = systems[0], systems[1:]
    tasks, notes = common_tasks(systems)
    _check_metrics(baseline, tasks, metrics)
    found = SystemComparison(baseline.label, [s.label for s in others], notes=notes, resamples=resamples, seed=seed)
    for name in tasks:
        having = [other for other in others if name in other.tasks]
        reasons = {other.label: _refusals(name, baseline, other) for other in having}
        having = [other for other in having if not reasons[other.label]]
        if any(reasons.values()):
            found.refused[name] = [reason for refused in reasons.values() for reason in refused]
        if having:
            found.tasks.append(_compare_task(name, baseline, having, metrics, resamples, seed, show))
            found.notes += _release_notes(name, baseline, having)
    if not found.tasks:
        reasons_of = "; ".join(f"{task}: {'; '.join(reasons)}" for task, reasons in found.refused.items())
        raise ArgumentError(
            f"the runs are not comparable. They differ in: {reasons_of}. Evaluate the systems on the same documents, "
            "prompts and task version."
        )
    _correct(found)
    return found


def _check_metrics(baseline: System, tasks: Sequence[str], metrics: Sequence[str]) -> None:
    known = {metric for task in tasks for metric, _ in baseline.tasks[task].scores}
    unknown = [metric for metric in metrics if metric not in known]
    if unknown:
        raise ArgumentError(f"no metric {', '.join(unknown)} in these runs; there are: {', '.join(sorted(known))}.")


def _refusals(name: str, baseline: System, other: System) -> list[str]:
    one = baseline.tasks[name]
    return list(
        dict.fromkeys(
            f"{baseline.label} and {other.label}: {difference}"
            for filter_name in one.filters
            for difference in differences(one, other.tasks[name], filter_name)
        )
    )


def _release_notes(name: str, baseline: System, others: Sequence[System]) -> list[str]:
    releases = {system.label: system.tasks[name].run.lm_eval_version or "unknown" for system in (baseline, *others)}
    if len(set(releases.values())) == 1:
        return []
    return [f"task {name}: other lm-eval releases ({', '.join(f'{k}: {v}' for k, v in releases.items())})."]


def _compare_task(
    name: str,
    baseline: System,
    others: Sequence[System],
    metrics: Sequence[str],
    resamples: int,
    seed: int,
    show: int,
) -> TaskComparison:
    one = baseline.tasks[name]
    documents = max((len(found.doc_ids) for found in one.documents.values()), default=one.documents_evaluated or 0)
    result = TaskComparison(name, one.version, documents)
    for other in others:
        two = other.tasks[name]
        texts: Texts = {}
        for metric, filter_name in one.scores:
            if (metrics and metric not in metrics) or (metric, filter_name) not in two.scores:
                continue
            if judged.beside_judged(metric) and metric not in metrics:
                continue
            row = compare_metric(
                one, two, other.label, metric, filter_name, resamples=resamples, seed=seed, texts=texts
            )
            row.represents = (metric, filter_name) == first_metric(one, metrics)
            result.metrics.append(row)
        analysis = _analyse(result, one, two, other.label, texts, show)
        if analysis is not None:
            result.errors.append(analysis)
    result.clusters = max((row.clusters for row in result.metrics if row.clusters is not None), default=None)
    return result


def compare_metric(
    one: TaskRun,
    two: TaskRun,
    label: str,
    metric: str,
    filter_name: str,
    *,
    resamples: int = RANDOMISATION_DRAWS,
    seed: int = 0,
    texts: Texts | None = None,
) -> MetricComparison:
    """One metric of `two` (called `label`) against `one`, whose documents are known to be the same.

    `texts` keeps the samples read for corpus metrics, per filter, for the next metric.
    """
    row = MetricComparison(
        metric=metric,
        filter=filter_name,
        other=label,
        higher_is_better=one.higher_is_better.get(metric, two.higher_is_better.get(metric)),
        baseline_score=one.scores[metric, filter_name].value,
        other_score=two.scores[metric, filter_name].value,
        difference=two.scores[metric, filter_name].value - one.scores[metric, filter_name].value,
    )
    _test(row, one, two, {} if texts is None else texts, resamples, seed)
    return row


def _test(
    row: MetricComparison,
    one: TaskRun,
    two: TaskRun,
    texts: Texts,
    resamples: int,
    seed: int,
) -> None:
    left, right = one.documents.get(row.filter), two.documents.get(row.filter)
    if left is None or right is None:
        row.note = "no samples, no test"
        if judged.judged_metric(row.metric):
            _bracketed(row, [judged.judgement(task, row.metric, row.filter) for task in (one, two)])
        return
    aggregation = one.aggregations.get(row.metric, "mean")
    a, b = (significance.numbers_or_missing(found.metrics.get(row.metric, ["none"])) for found in (left, right))
    if len(set(left.doc_ids)) < len(left.doc_ids):
        row.note = "no test: documents are logged more than once, which would count each as independent evidence"
        return
    try:
        named = cluster_field(one.config.get("metadata")) is not None
        clusters = clusters_of(one, _texts(row.filter, one, two, texts)[0]) if named else None
    except ArgumentError as error:
        row.note = f"no test: {error}"
        return
    row.clusters = None if clusters is None else int(clusters.max()) + 1
    if judged.judged_metric(row.metric):
        _test_judged(row, one, two, clusters, resamples, seed)
    elif a is None or b is None:
        _corpus_test(row, aggregation, _texts(row.filter, one, two, texts), clusters, resamples, seed)
    elif significance.is_mean(a, row.baseline_score) and significance.is_mean(b, row.other_score):
        _compare_means(row, a, b, clusters, resamples, seed)
    else:
        row.note = f"aggregated by {aggregation}, not a mean of documents: no test"


def _compare_means(
    row: MetricComparison, a: significance.Floats, b: significance.Floats, clusters: Codes | None, draws: int, seed: int
) -> None:
    """The test on the documents where both have a value; the difference is that of these too."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        row.note = "no document has a value under both: no test"
        return
    found = significance.mean_test(a, b, clusters=clusters, draws=draws, seed=seed)
    _take(row, found)
    _gains(row, (b - a)[both])
    if (np.isfinite(a) != np.isfinite(b)).any():
        row.difference = found.difference
        row.test += f", on the {both.sum()} of {len(a)} documents with a value under both"


def _test_judged(
    row: MetricComparison, one: TaskRun, two: TaskRun, clusters: Codes | None, resamples: int, seed: int
) -> None:
    """By the documents that every judge scored for both, from which the scores of the row are taken as well."""
    a, b = sides = [judged.judgement(task, row.metric, row.filter) for task in (one, two)]
    if _bracketed(row, sides):
        return
    found = judged.paired_test(a, b, clusters=clusters, draws=resamples, seed=seed)
    if found is None:
        row.note = row.bracket = "fewer than two documents that all judges scored for both"
        return
    test, by_document = found
    row.baseline_score, row.other_score = (float(means.mean()) for means in judged.panel_means(sides))
    row.difference = row.other_score - row.baseline_score
    _take(row, test)
    row.gained, row.lost = int((by_document > 1e-9).sum()), int((by_document < -1e-9).sum())
    row.note = judged.sentence(("A", "B"), sides, len(by_document))


def _bracketed(row: MetricComparison, sides: Sequence[judged.Judgement]) -> bool:
    reasons = [f"{name}: {reason}" for name, side in zip("AB", sides, strict=True) for reason in side.reasons]
    row.bracket = "; ".join(reasons or judged.differing(*sides))
    if row.bracket:
        row.note = f"not comparable ({row.bracket}); {judged.sentence(('A', 'B'), sides, None)}"
    return bool(row.bracket)


def clusters_of(task: TaskRun, samples: Sequence[Sample]) -> Codes | None:
    """Which of the logged documents belong together, None where the task names no cluster.

    Raises:
        ArgumentError: it names a field that a document does not have.
    """
    field_name = cluster_field(task.config.get("metadata"))
    return None if field_name is None else cluster_codes([cluster_key(s.doc, field_name) for s in samples])


def _take(row: MetricComparison, found: significance.PairedTest) -> None:
    row.interval, row.p_value, row.test = found.interval, found.p_value, found.method


def _gains(row: MetricComparison, differences_: significance.Floats) -> None:
    if row.higher_is_better is not None:
        gains, losses = int((differences_ > 0).sum()), int((differences_ < 0).sum())
        row.gained, row.lost = (gains, losses) if row.higher_is_better else (losses, gains)


def _corpus_test(
    row: MetricComparison,
    aggregation: str,
    samples: tuple[list[Sample], list[Sample]],
    clusters: Codes | None,
    resamples: int,
    seed: int,
) -> None:
    metric = corpus.corpus_metric(aggregation)
    pairs = [scored_texts(side, row.metric) for side in samples]
    if metric is None or pairs[0] is None or pairs[1] is None:
        row.note = f"aggregated by {aggregation}: no test for this kind of metric"
        return
    (one, references), (two, _) = pairs[0], pairs[1]
    # A metric that sees other texts than those logged (a task may clean them) would be tested on the wrong ones.
    for texts, score in ((one, row.baseline_score), (two, row.other_score)):
        if not corpus.reproduces_score(metric, texts, references, score):
            row.note = f"{aggregation} on the logged texts is not the recorded score: no test"
            return
    _take(row, corpus.corpus_test(metric, one, two, references, clusters=clusters, draws=resamples, seed=seed))


def _texts(filter_name: str, one: TaskRun, two: TaskRun, read: Texts) -> tuple[list[Sample], list[Sample]]:
    if filter_name not in read:
        read[filter_name] = (one.samples(filter_name), two.samples(filter_name))
    return read[filter_name]


def _analyse(
    result: TaskComparison,
    one: TaskRun,
    two: TaskRun,
    label: str,
    texts: Texts,
    show: int,
) -> ErrorAnalysis | None:
    """By the first metric that has a direction and one number per document."""
    for row in result.metrics:
        if row.other != label or row.gained is None or judged.judged_metric(row.metric):
            continue
        a = significance.numbers_or_missing(one.documents[row.filter].metrics[row.metric])
        b = significance.numbers_or_missing(two.documents[row.filter].metrics[row.metric])
        assert a is not None
        assert b is not None
        losses = np.nan_to_num(a - b if row.higher_is_better else b - a).tolist()
        return analyse(label, row.metric, *_texts(row.filter, one, two, texts), losses, show=show)
    return None


def _correct(found: SystemComparison) -> None:
    correct([row for task in found.tasks for row in task.metrics], found.baseline)
    found.tests = sum(row.p_holm is not None for task in found.tasks for row in task.metrics)


def correct(rows: Sequence[MetricComparison], baseline: str) -> None:
    """Set the corrected p-values of the rows that stand for their task, all against `baseline`."""
    tested = [row for row in rows if row.represents and row.p_value is not None]
    found = corrected([(baseline, row.other) for row in tested], [row.p_value or 0.0 for row in tested])
    for row, (within, table) in zip(tested, found, strict=True):
        row.p_holm, row.p_table = within, table


def all_issues(systems: Sequence[System]) -> list[Issue]:
    """What is known by now to be wrong with the files of `systems`."""
    return list(dict.fromkeys(issue for system in systems for run in system.runs for issue in run.all_issues))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
