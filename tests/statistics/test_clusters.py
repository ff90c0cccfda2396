"""Clusters: where their key comes from, and errors and resamples by cluster against statsmodels and by hand."""

import numpy as np
import pytest
import statsmodels.api as sm

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.clusters import (
    cluster_codes,
    cluster_field,
    cluster_key,
    cluster_sums,
    draw_cluster_counts,
    mean_stderr,
)


def test_field_and_key():
    assert cluster_field({"version": 1.0, "cluster": "passage"}) == "passage"
    assert cluster_field({"version": 1.0}) is None
    assert cluster_field(None) is None
    assert cluster_key({"passage": "p7"}, "passage") == "p7"
    assert cluster_key({"turns": ["a", "b"]}, "turns") == cluster_key({"turns": ["a", "b"], "label": 1}, "turns")
    assert cluster_key({"turns": ["a", "b"]}, "turns") != cluster_key({"turns": ["a b"]}, "turns")


def test_wrong_words_are_refused():
    with pytest.raises(ArgumentError, match="must be the name of one field"):
        cluster_field({"cluster": ["a", "b"]})
    with pytest.raises(ArgumentError, match="cluster: passage, which this document does not have. Its fields: text"):
        cluster_key({"text": "x"}, "passage")


def test_codes_and_sums():
    """A document without a key stands alone, also beside another one."""
    codes = cluster_codes(["a", None, "b", "a", None])
    assert codes.tolist() == [0, 1, 2, 0, 3]
    assert cluster_sums(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), codes).tolist() == [5.0, 2.0, 3.0, 5.0]


def test_stderr_equals_statsmodels():
    """The cluster-robust standard error of an intercept; statsmodels' further factor (n - 1) / (n - 1) is 1."""
    rng = np.random.default_rng(0)
    codes = cluster_codes([str(key) for key in rng.integers(0, 15, 80)])
    values = rng.normal(0, 1, 15)[codes] + rng.normal(0, 1, 80)
    fitted = sm.OLS(values, np.ones(80)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert mean_stderr(values, codes) == pytest.approx(float(fitted.bse[0]), rel=1e-9)
    alone = cluster_codes([None] * 80)
    assert mean_stderr(values, alone) == pytest.approx(values.std(ddof=1) / np.sqrt(80))
    assert np.isnan(mean_stderr(values, cluster_codes(["one"] * 80)))


def test_resamples_hold_whole_clusters():
    codes = cluster_codes(list("aabbbc"))
    counts = draw_cluster_counts(codes, 500, seed=1)
    assert counts.shape == (500, 6)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert counts[:, 0].mean() == pytest.approx(1.0, abs=0.15)
