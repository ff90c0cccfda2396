"""The statistics against independent programs, and their level under a true null."""

import numpy as np
import pytest
from scipy import stats

from lm_eval_lora_drop.statistics import significance


def test_mcnemar_equals_statsmodels():
    """statsmodels' exact McNemar test on every table of up to 12 changes."""
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables", reason="statsmodels is a dev dependency")
    for gained in range(13):
        for lost in range(13 - gained):
            want = contingency.mcnemar([[5, lost], [gained, 7]], exact=True).pvalue
            assert significance.mcnemar(gained, lost) == pytest.approx(min(1.0, want), abs=1e-12)


def test_mcnemar_by_hand():
    """Ten changes, nine of them gains: 2 * (1 + 10) / 2**10."""
    assert significance.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert significance.mcnemar(np.array([9, 0]), np.array([1, 0])) == pytest.approx([22 / 1024, 1.0])


def test_sign_flips_equal_the_exact_distribution():
    """scipy's permutation_test with every one of the 2**10 exchanges."""
    for seed in range(5):
        differences = np.random.default_rng(seed).normal(0.4, 1, 10).round(2)
        exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
        exact = exact.pvalue
        ours = significance.sign_flips(differences[:, None], resamples=40_000)[0]
        assert ours == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-4)


def test_sign_flips_count_ties_and_treat_columns_alike():
    """No difference gives 1, also where sums of the same numbers round differently; columns do not see one another."""
    differences = np.array([[0.1, 0.0, 1.0], [0.2, 0.0, 1.0], [-0.3, 0.0, 1.0], [0.1, 0.0, 1.0]] * 6)
    together = significance.sign_flips(differences, resamples=500, seed=3)
    assert together[1] == 1.0
    assert together[2] < 0.01
    for column in range(3):
        assert together[column] == significance.sign_flips(differences[:, [column]], resamples=500, seed=3)[0]


def test_interval_equals_scipys_paired_bootstrap():
    """Resampling differences is the paired bootstrap of two samples."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 60))
    want = stats.bootstrap(
        (b, a),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = significance.mean_interval(b - a)
    assert (low, high) == pytest.approx((want.low, want.high), abs=0.02)


def test_interval_of_hardly_any_difference_is_finite():
    """Where BCa has no value: all equal, one changed, one document."""
    assert significance.mean_interval(np.zeros(20)) == (0.0, 0.0)
    low, high = significance.mean_interval(np.array([1.0] + [0.0] * 30))
    assert 0.0 <= low < high <= 0.2
    assert all(np.isnan(significance.mean_interval(np.array([1.0]))))


def test_holm_equals_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is a dev dependency")
    for seed in range(20):
        p = np.random.default_rng(seed).random(9) ** 2
        assert significance.holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1].tolist())
    assert significance.holm([0.01, float("nan"), 0.04])[::2] == [0.02, 0.04]
    assert significance.holm([]) == []


@pytest.mark.parametrize("kind", ["binary", "number"])
def test_level_under_a_true_null(kind):
    """1,000 pairs of runs of one system: the 5 % test rejects 3 to 7 %.

    For 0/1 metrics the exact test is conservative by its discreteness, so there are enough documents for it to be
    near its level.
    """
    rng = np.random.default_rng(7)
    if kind == "binary":
        right = rng.random((2, 600, 1000)) < rng.random((600, 1))
        changes = right[0].astype(int) - right[1]
        p = significance.mcnemar((changes > 0).sum(axis=0), (changes < 0).sum(axis=0))
    else:
        difficulty = rng.gamma(2.0, 10.0, (80, 1))
        differences = rng.gamma(2.0, difficulty, (80, 1000)) - rng.gamma(2.0, difficulty, (80, 1000))
        p = significance.sign_flips(differences, resamples=999)
    assert 0.03 <= np.mean(np.asarray(p) < 0.05) <= 0.07
