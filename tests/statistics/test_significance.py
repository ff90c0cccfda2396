"""The correction, and the level of the tests under a true null."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from lm_eval_lora_drop.statistics import significance


def test_holm_by_hand():
    """Step-down on (.01, .03, .04): 3 * .01, then 2 * .03, then no less than that; a NaN is no test."""
    assert significance.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert significance.holm([0.01, float("nan"), 0.04])[::2] == pytest.approx([0.02, 0.04])
    assert significance.holm([]) == []
    p = (np.random.default_rng(0).random(9) ** 2).tolist()
    assert significance.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


@pytest.mark.parametrize("kind", ["binary", "number"])
def test_level_under_a_true_null(kind):
    """1,000 pairs of runs of one system: the 5 % test rejects 3 to 7 %.

    For 0/1 metrics the exact test is conservative by its discreteness, so there are enough documents for it to be
    near its level.
    """
    rng = np.random.default_rng(7)
    if kind == "binary":
        right = rng.random((2, 600, 1000)) < rng.random((600, 1))
        differences = right[0].astype(float) - right[1]
    else:
        difficulty = rng.gamma(2.0, 10.0, (80, 1))
        differences = rng.gamma(2.0, difficulty, (80, 1000)) - rng.gamma(2.0, difficulty, (80, 1000))
    p = significance.mean_p_values(differences, draws=999)
    assert 0.03 <= np.mean(np.asarray(p) < 0.05) <= 0.07


@pytest.mark.parametrize("differing", [2, 4, 6, 10])
def test_level_where_few_documents_differ(differing):
    """Exactly so many of 50 documents differ, their signs are coin tosses: at most 5 % of 2,000 are rejected."""
    rng = np.random.default_rng(differing)
    sizes = rng.random(differing)
    differences = np.zeros((50, 2000))
    differences[:differing] = sizes[:, None] * rng.choice([-1.0, 1.0], (differing, 2000))
    p = np.asarray(significance.mean_p_values(differences))
    assert np.mean(p < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    if differing < 6:
        assert p.min() == 2.0 ** (1 - differing)
