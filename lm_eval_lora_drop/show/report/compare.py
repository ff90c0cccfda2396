"""`lora-drop compare A B ...`: systems B, ... against the baseline A on the same documents, metric by metric.

A p-value says how often a difference as large as this one would appear if the two systems were exchangeable; the
interval says how large the difference may be. `show/report/corrections.py` says which tests are corrected together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Issue, Sample, TaskRun
from lm_eval_lora_drop.show.report import judged
from lm_eval_lora_drop.show.report.comparison import MetricComparison, SystemComparison, TaskComparison
from lm_eval_lora_drop.show.report.corrections import corrected, first_metric
from lm_eval_lora_drop.show.report.outputs import analyse, scored_texts
from lm_eval_lora_drop.show.report.systems import System, common_tasks, differences, open_system
from lm_eval_lora_drop.show.signature import signature
from lm_eval_lora_drop.statistics import corpus, significance
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, cluster_field, cluster_key
from lm_eval_lora_drop.statistics.randomisation import RANDOMISATION_DRAWS


def compare_paths(
    paths: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    resamples: int = RANDOMISATION_DRAWS,
    seed: int = 0,
    show: int = 5,
) -> tuple[SystemComparison, list[Issue]]:
    """`compare` of the systems that `[LABEL=]PATH` name, the baseline first, and what was wrong with the files.

    Raises:
        ArgumentError: fewer than two, a path without a run or with several systems; as `compare`.
    """
    if len(paths) < 2:
        raise ArgumentError(f"compare needs at least two systems, got {len(paths)}. Give the baseline first.")
    systems, issues = list[System](), list[Issue]()
    for path in paths:
        system, wrong = open_system(path)
        if any(system.label == other.label for other in systems):
            system.label = f"{system.label} [{path}]"
        systems.append(system)
        issues += wrong
    found = compare(systems, metrics=metrics, resamples=resamples, seed=seed, show=show)
    return found, [*issues, *(issue for system in systems for run in system.runs for issue in run.all_issues)]


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


@dataclass
class _Pair:
    """Two runs of a task on the same documents, how they are tested, and their samples as far as they were read."""

    one: TaskRun
    two: TaskRun
    label: str
    draws: int
    seed: int
    _samples: dict[str, tuple[list[Sample], list[Sample]]] = field(default_factory=dict)

    def samples(self, filter_name: str) -> tuple[list[Sample], list[Sample]]:
        """Of both runs."""
        if filter_name not in self._samples:
            self._samples[filter_name] = (self.one.samples(filter_name), self.two.samples(filter_name))
        return self._samples[filter_name]

    def values(self, row: MetricComparison) -> list[significance.Floats | None]:
        """Per-document values of both, None where they are no numbers."""
        found = (task.documents[row.filter].metrics.get(row.metric, ["none"]) for task in (self.one, self.two))
        return [significance.numbers_or_missing(values) for values in found]

    def compare(self, metric: str, filter_name: str) -> MetricComparison:
        """One metric of the second run against the first."""
        before, after = (task.scores[metric, filter_name].value for task in (self.one, self.two))
        better = self.one.higher_is_better.get(metric, self.two.higher_is_better.get(metric))
        row = MetricComparison(metric, filter_name, self.label, better, before, after, after - before)
        _test(row, self)
        return row


def _compare_task(
    name: str, baseline: System, others: Sequence[System], metrics: Sequence[str], draws: int, seed: int, show: int
) -> TaskComparison:
    one = baseline.tasks[name]
    documents = max((len(found.doc_ids) for found in one.documents.values()), default=one.documents_evaluated or 0)
    settings = {system.label: signature(system.tasks[name]) for system in (baseline, *others)}
    result = TaskComparison(name, one.version, documents, settings)
    for other in others:
        pair = _Pair(one, other.tasks[name], other.label, draws, seed)
        rows = []
        for metric, filter_name in one.scores:
            wanted = metric in metrics if metrics else not judged.beside_judged(metric)
            if wanted and (metric, filter_name) in pair.two.scores:
                row = pair.compare(metric, filter_name)
                row.represents = (metric, filter_name) == first_metric(one, metrics)
                rows.append(row)
        result.metrics += rows
        # By the first metric that has a direction and one number per document.
        first = next((row for row in rows if row.gained is not None and not judged.judged_metric(row.metric)), None)
        if first is not None:
            a, b = pair.values(first)
            assert a is not None
            assert b is not None
            losses = np.nan_to_num(a - b if first.higher_is_better else b - a).tolist()
            result.errors.append(analyse(pair.label, first.metric, *pair.samples(first.filter), losses, show=show))
    result.clusters = max((row.clusters for row in result.metrics if row.clusters is not None), default=None)
    return result


def compare_metric(
    one: TaskRun, two: TaskRun, label: str, metric: str, filter_name: str, *, seed: int = 0
) -> MetricComparison:
    """One metric of `two` (called `label`) against `one`, whose documents are known to be the same."""
    return _Pair(one, two, label, RANDOMISATION_DRAWS, seed).compare(metric, filter_name)


def _test(row: MetricComparison, pair: _Pair) -> None:
    if row.filter not in pair.one.documents or row.filter not in pair.two.documents:
        row.note = "no samples, no test"
        if judged.judged_metric(row.metric):
            _bracketed(row, pair)
        return
    doc_ids = pair.one.documents[row.filter].doc_ids
    if len(set(doc_ids)) < len(doc_ids):
        row.note = "no test: documents are logged more than once, which would count each as independent evidence"
        return
    try:
        named = cluster_field(pair.one.config.get("metadata")) is not None
        clusters = clusters_of(pair.one, pair.samples(row.filter)[0]) if named else None
    except ArgumentError as error:
        row.note = f"no test: {error}"
        return
    row.clusters = None if clusters is None else int(clusters.max()) + 1
    a, b = pair.values(row)
    if judged.judged_metric(row.metric):
        _judged_test(row, pair, clusters)
    elif a is None or b is None:
        _corpus_test(row, pair, clusters)
    elif significance.is_mean(a, row.baseline_score) and significance.is_mean(b, row.other_score):
        _mean_test(row, a, b, pair, clusters)
    else:
        aggregation = pair.one.aggregations.get(row.metric, "mean")
        row.note = f"aggregated by {aggregation}, not a mean of documents: no test"


def _mean_test(
    row: MetricComparison, a: significance.Floats, b: significance.Floats, pair: _Pair, clusters: Codes | None
) -> None:
    """The test on the documents where both have a value; the difference is that of these too."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        row.note = "no document has a value under both: no test"
        return
    found = significance.mean_test(a, b, clusters=clusters, draws=pair.draws, seed=pair.seed)
    _take(row, found)
    if row.higher_is_better is not None:
        sign = 1 if row.higher_is_better else -1
        row.gained, row.lost = (int((side * (b - a)[both] > 0).sum()) for side in (sign, -sign))
    if (np.isfinite(a) != np.isfinite(b)).any():
        row.difference = found.difference
        row.test += f", on the {both.sum()} of {len(a)} documents with a value under both"


def _judged_test(row: MetricComparison, pair: _Pair, clusters: Codes | None) -> None:
    """By the documents that every judge scored for both, from which the scores of the row are taken as well."""
    a, b = sides = _bracketed(row, pair)
    if row.bracket:
        return
    found = judged.paired_test(a, b, clusters=clusters, draws=pair.draws, seed=pair.seed)
    if found is None:
        row.note = row.bracket = "fewer than two documents that all judges scored for both"
        return
    test, by_document = found
    row.baseline_score, row.other_score = (float(means.mean()) for means in judged.panel_means(sides))
    row.difference = row.other_score - row.baseline_score
    _take(row, test)
    row.gained, row.lost = int((by_document > 1e-9).sum()), int((by_document < -1e-9).sum())
    row.note = judged.sentence(("A", "B"), sides, len(by_document))


def _bracketed(row: MetricComparison, pair: _Pair) -> list[judged.Judgement]:
    """What judges said of both; the row is put in brackets where that is not comparable."""
    sides = [judged.judgement(task, row.metric, row.filter) for task in (pair.one, pair.two)]
    reasons = [f"{name}: {reason}" for name, side in zip("AB", sides, strict=True) for reason in side.reasons]
    row.bracket = "; ".join(reasons or judged.differing(*sides))
    if row.bracket:
        row.note = f"not comparable ({row.bracket}); {judged.sentence(('A', 'B'), sides, None)}"
    return sides


def clusters_of(task: TaskRun, samples: Sequence[Sample]) -> Codes | None:
    """Which of the logged documents belong together, None where the task names no cluster.

    Raises:
        ArgumentError: it names a field that a document does not have.
    """
    field_name = cluster_field(task.config.get("metadata"))
    return None if field_name is None else cluster_codes([cluster_key(s.doc, field_name) for s in samples])


def _take(row: MetricComparison, found: significance.PairedTest) -> None:
    row.interval, row.p_value, row.test = found.interval, found.p_value, found.method


def _corpus_test(row: MetricComparison, pair: _Pair, clusters: Codes | None) -> None:
    aggregation = pair.one.aggregations.get(row.metric, "mean")
    metric = corpus.corpus_metric(aggregation)
    pairs = [scored_texts(side, row.metric) for side in pair.samples(row.filter)]
    if metric is None or pairs[0] is None or pairs[1] is None:
        row.note = f"aggregated by {aggregation}: no test for this kind of metric"
        return
    (one, references), (two, _) = pairs[0], pairs[1]
    # A metric that sees other texts than those logged (a task may clean them) would be tested on the wrong ones.
    for texts, score in ((one, row.baseline_score), (two, row.other_score)):
        if not corpus.reproduces_score(metric, texts, references, score):
            row.note = f"{aggregation} on the logged texts is not the recorded score: no test"
            return
    found = corpus.corpus_test(metric, one, two, references, clusters=clusters, draws=pair.draws, seed=pair.seed)
    _take(row, found)


def _correct(found: SystemComparison) -> None:
    """Set the corrected p-values of the rows that stand for their task."""
    tested = [row for task in found.tasks for row in task.metrics if row.represents and row.p_value is not None]
    values = corrected([row.other for row in tested], [row.p_value or 0.0 for row in tested])
    for row, (within, over_all) in zip(tested, values, strict=True):
        row.p_holm, row.p_table = within, over_all
    found.tests = len(tested)
