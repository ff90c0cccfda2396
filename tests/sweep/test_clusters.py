"""Documents that belong together: what a sweep says rests on clusters, not on documents."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from lm_eval.api.metrics import mean

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.options import SELECTIONS
from lm_eval_lora_drop.record.schema import ValidationRecord
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import cluster_codes, draw_cluster_subsets
from lm_eval_lora_drop.statistics.paired import paired_difference
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import choose, choose_rows
from lm_eval_lora_drop.sweep.trust import Evidence, gains_over_full, stability, trust
from lm_eval_lora_drop.variant import Variant
from testing.doubles import RuleRunner, make_documents, sweep, uniform
from testing.recorded_runs import L as RECORDED_L
from testing.recorded_runs import candidate, sweep_record, task_record
from testing.toy import make_task

MEAN = Aggregation(mean)
UNEVEN = [1, 2, 5, 1, 9, 3, 3, 1, 4, 2, 7, 1, 2, 6, 3]


def recorded(values: Any, clusters: list[str] | None, select: str = "best") -> RecordedSweep:
    """A sweep over `(candidates, documents)`, the full adapter first."""
    rows = tuple(tuple(row) for row in np.asarray(values).tolist())
    layers = len(rows) - 1
    variants = tuple(Variant.below(layers - row, layers) for row in range(len(rows)))
    codes = None if clusters is None else cluster_codes(clusters)
    chosen = choose(select, rows, MEAN, 1, ordered=False, clusters=codes).chosen
    named = None if clusters is None else tuple(clusters)
    return RecordedSweep(variants, rows, variants[chosen], select, 1, variants[0], MEAN, (), False, named)


def names(sizes: list[int]) -> list[str]:
    return [f"passage {number}" for number, size in enumerate(sizes) for _ in range(size)]


def sandwich(values: Any, codes: Any) -> float:
    """statsmodels' cluster-robust standard error of a mean."""
    values = np.asarray(values, dtype=float)
    fitted = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    return float(fitted.bse[0])


@pytest.mark.parametrize("select", SELECTIONS)
def test_documents_that_are_written_down_thrice_add_nothing(select: str) -> None:
    """Clusters of three equal documents: choice, shares, gains and intervals are those of one of each."""
    values = np.random.default_rng(0).normal(size=(6, 40)).round(2)
    once = recorded(values, None, select)
    thrice = recorded(np.repeat(values, 3, axis=1), names([3] * 40), select)
    assert (thrice.documents, thrice.units) == (120, 40)
    assert thrice.chosen == once.chosen
    one, three = trust(once, resamples=300), trust(thrice, resamples=300)
    assert three.choice_share == one.choice_share
    assert three.corrected == pytest.approx(one.corrected)
    for variant, gain in one.gains.items():
        assert (three.gains[variant].low, three.gains[variant].high) == pytest.approx((gain.low, gain.high))
        assert three.gains[variant].evidence is gain.evidence
    assert [size.choice_share for size in stability(thrice, [30], repeats=200)] == [
        size.choice_share for size in stability(once, [10], repeats=200)
    ]


def test_by_document_the_same_would_be_said_to_be_better() -> None:
    """Three passages gained with eight questions each: 24 documents of one sign, and a coin thrown three times."""
    full = np.zeros(120)
    better = full.copy()
    better[:24] = 1.0
    by_document = recorded([full, better], None)
    assert gains_over_full(by_document)[by_document.chosen].evidence is Evidence.BETTER
    by_cluster = recorded([full, better], names([8] * 15))
    assert gains_over_full(by_cluster)[by_cluster.chosen].evidence is Evidence.NOT_SIGNIFICANT
    few = recorded([full, better], names([60, 60]))
    assert gains_over_full(few)[few.chosen].evidence is Evidence.TOO_FEW_DOCUMENTS


def test_paired_errors_are_statsmodels_also_where_clusters_are_uneven() -> None:
    rng = np.random.default_rng(1)
    codes = cluster_codes(names(UNEVEN))
    one, two = rng.normal(size=(2, len(codes))) + rng.normal(size=len(UNEVEN))[codes] * [[1.0], [0.3]]
    found = paired_difference(MEAN, one.tolist(), two.tolist(), sign=1, resamples=10, clusters=codes)
    assert found.stderr == pytest.approx(sandwich(one - two, codes))
    # A document without a value leaves its cluster smaller, or leaves it out altogether.
    lacking: list[Any] = one.tolist()
    lacking[0] = lacking[5] = None
    kept = [place for place, item in enumerate(lacking) if item is not None]
    found = paired_difference(MEAN, lacking, two.tolist(), sign=1, resamples=10, clusters=codes)
    assert found.stderr == pytest.approx(sandwich((one - two)[kept], codes[kept]))


def test_one_se_is_within_one_paired_standard_error_by_cluster() -> None:
    """On 100 random tables: the last row that is within statsmodels' clustered error of the best."""
    rng = np.random.default_rng(2)
    codes = cluster_codes(names(UNEVEN))
    differing = 0
    for _ in range(100):
        shared = rng.random((5, len(UNEVEN)))[:, codes] * 0.7 + rng.random((5, len(codes))) * 0.3
        values = (shared < np.linspace(0.7, 0.5, 5)[:, None]).astype(float)
        best = int(values.mean(axis=1).argmax())
        within = [
            row
            for row in range(5)
            if (values[best] - values[row]).mean() <= sandwich(values[best] - values[row], codes) + 1e-9
        ]
        found = choose("one_se", values.tolist(), MEAN, 1, ordered=False, clusters=codes)
        assert (found.chosen, found.best) == (within[-1], best)
        differing += found != choose("one_se", values.tolist(), MEAN, 1, ordered=False)
    assert differing > 5


def test_resamples_of_clusters_are_chosen_from_as_if_written_out() -> None:
    """A cluster that is drawn twice counts as two clusters."""
    rng = np.random.default_rng(3)
    codes = cluster_codes(names(UNEVEN))
    values = (rng.random((6, len(codes))) < np.linspace(0.6, 0.5, 6)[:, None]).astype(float)
    drawn = rng.multinomial(len(UNEVEN), [1 / len(UNEVEN)] * len(UNEVEN), size=50)
    counts = drawn[:, codes]
    scores = counts @ values.T / counts.sum(axis=1, keepdims=True)
    fast, _ = choose_rows("one_se", values, scores, counts, ordered=False, clusters=codes)
    slow = []
    for row in drawn:
        places = [
            (c, copy, i) for c, times in enumerate(row) for copy in range(times) for i in np.flatnonzero(codes == c)
        ]
        written = cluster_codes([f"{c} {copy}" for c, copy, _ in places])
        rows = values[:, [i for _, _, i in places]].tolist()
        slow.append(choose("one_se", rows, MEAN, 1, ordered=False, clusters=written).chosen)
    assert fast.tolist() == slow


def test_subsets_hold_whole_clusters_and_enough_documents() -> None:
    codes = cluster_codes(names(UNEVEN))
    taken = draw_cluster_subsets(codes, 20, 300, seed=0)
    largest = max(UNEVEN)
    for subset in taken:
        assert all(len(set(subset[codes == cluster])) == 1 for cluster in range(len(UNEVEN)))
        assert 20 <= subset.sum() < 20 + largest
    alone = draw_cluster_subsets(cluster_codes([None] * 30), 7, 300, seed=0)
    assert (alone.sum(axis=1) == 7).all()
    assert abs(alone.mean(axis=0) - 7 / 30).max() < 0.12


def test_a_corpus_score_is_resampled_by_cluster(tmp_path: Path) -> None:
    """Copies within a cluster leave the bootstrap's standard error of a corpus score as it was."""
    rng = np.random.default_rng(5)
    words = list("天地玄黄宇宙洪荒日月盈昃")
    references = ["".join(rng.choice(words, size=10)) for _ in range(30)]
    items = [BLEU_ZH.statistics("".join(w if rng.random() < 0.7 else "某" for w in r), r) for r in references]
    task = make_task()
    scorer = Scorer(task, resolve_metric(task, None))
    scorer.aggregation = Aggregation(BLEU_ZH)
    thrice = [item for item in items for _ in range(3)]
    by_cluster = scorer.stderr(thrice, cluster_codes(names([3] * 30)))
    assert by_cluster == pytest.approx(scorer.stderr(items))
    assert scorer.stderr(thrice) < 0.7 * by_cluster
    assert math.isnan(scorer.stderr(thrice, cluster_codes(["one"] * 90)))


def test_a_sweep_writes_errors_by_cluster_and_a_record_is_read_with_them(tmp_path: Path) -> None:
    docs = [{"question": f"v {i}?", "answer": f"answer {i}"} for i in range(40)]
    task = make_task(splits={"validation": docs, "test": docs})
    documents = [replace(d, cluster=f"passage {d.doc_id // 4}") for d in make_documents(task)]

    def rule(boundary: int, document: Any) -> tuple[str]:
        return (document.doc["answer"] if uniform(document.cluster, boundary) < 0.5 else "else",)

    found = sweep(task, tmp_path, RuleRunner(rule), documents=documents)
    codes = np.repeat(np.arange(10), 4)
    rows = {row.variant: np.array(row.items) for row in found.candidates}
    for row in found.candidates:
        assert row.stderr == pytest.approx(sandwich(rows[row.variant], codes), abs=1e-9)
    gain = found.gain_over_full
    assert gain is not None
    full = rows[found.candidates[0].variant]
    assert gain.stderr == pytest.approx(sandwich(rows[found.chosen] - full, codes))


def test_a_records_clusters_must_fit_its_documents() -> None:
    rows = tuple(candidate(Variant.below(k, RECORDED_L), 1.0, items=(1.0, 0.0, 1.0), documents=3) for k in (10, 7))
    validation = ValidationRecord(split="validation", doc_ids=(0, 1, 2), clusters=("a", "a", None))
    record = task_record(sweep_record(rows), validation=validation)
    assert RecordedSweep.from_record(record).codes.tolist() == [0, 0, 1]
    with pytest.raises(ArgumentError, match="one cluster for each document, got 2 for 3"):
        RecordedSweep.from_record(replace(record, validation=replace(validation, clusters=("a", "b"))))
