"""Means over seeds and documents, against an analysis of variance by statsmodels and against simulation."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from lm_eval_lora_drop.statistics.crossed import crossed_mean
from lm_eval_lora_drop.statistics.intervals import mean_interval
from lm_eval_lora_drop.statistics.significance import mean_test


def draw(rng, seeds, documents, of_seeds=0.3, of_documents=1.0, rest=1.0):
    return (
        rng.normal(0, of_seeds, (seeds, 1))
        + rng.normal(0, of_documents, (1, documents))
        + rng.normal(0, rest, (seeds, documents))
    )


def test_the_variance_is_that_of_an_analysis_of_variance():
    values = draw(np.random.default_rng(3), 4, 30)
    seed, document = np.indices(values.shape)
    frame = pd.DataFrame({"y": values.ravel(), "seed": seed.ravel(), "document": document.ravel()})
    table = anova_lm(smf.ols("y ~ C(seed) + C(document)", frame).fit())
    a, b, rest = (table.loc[name, "mean_sq"] for name in ("C(seed)", "C(document)", "Residual"))
    found = crossed_mean(values, span=np.ptp(values))
    assert found.stderr == pytest.approx(math.sqrt((a + b - rest) / values.size))
    assert found.of_seeds == pytest.approx(values.mean(axis=1))


def test_where_one_sample_alone_differs_it_is_student_s_t():
    rng = np.random.default_rng(3)
    of_seeds = rng.normal(0.5, 1, 4)
    found = crossed_mean(of_seeds[:, None] + rng.normal(0, 1e-2, (1, 50)), span=10.0)
    expected = stats.ttest_1samp(of_seeds, 0)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), rel=0.03)
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.03)
    of_documents = rng.normal(0.1, 1, 200)
    found = crossed_mean(np.repeat(of_documents[None], 3, axis=0), span=np.ptp(of_documents))
    expected = stats.ttest_1samp(of_documents, 0)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=0.02)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize(("of_seeds", "samples"), [(0.0, 120), (0.5, 80)])
def test_it_covers_where_seeds_differ_and_documents_alone_do_not(of_seeds, samples):
    """The input that makes an interval over documents false: adapters that differ by their seed."""
    rng = np.random.default_rng(7)
    ours = alone = 0
    for _ in range(samples):
        values = draw(rng, 3, 60, of_seeds=of_seeds)
        low, high = crossed_mean(values, span=np.ptp(values)).interval
        ours += low <= 0 <= high
        low, high = mean_interval(values.mean(axis=0), span=np.ptp(values))
        alone += low <= 0 <= high
    assert 0.9 <= ours / samples <= (0.99 if of_seeds else 1)
    assert (alone / samples < 0.85) == (of_seeds > 0)


def test_one_seed_is_the_test_over_documents():
    rng = np.random.default_rng(5)
    one, two = (rng.random(40) < 0.5).astype(float), (rng.random(40) < 0.6).astype(float)
    found = crossed_mean((two - one)[None], span=1.0)
    alone = mean_test(one, two)
    assert (found.value, found.p_value) == (pytest.approx(alone.difference), alone.p_value)
    assert found.interval == pytest.approx(alone.interval)
    assert (len(found.of_seeds), found.apart) == (1, None)


def test_few_differing_documents_are_not_made_sure_by_seeds():
    """Two documents of 100 gained under each of three seeds: the variance is small, and two documents prove nothing."""
    values = np.zeros((3, 100))
    values[:, :2] = 1.0
    found = crossed_mean(values, span=1.0)
    assert found.p_value == 0.5
    assert found.interval[0] < 0 < found.interval[1]


def test_nothing_differs():
    found = crossed_mean(np.zeros((3, 50)), span=1.0)
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.interval[0] < 0 < found.interval[1]


def test_clusters_are_units():
    """Each document twice, as a cluster: as sure as each once, not surer."""
    values = draw(np.random.default_rng(11), 3, 40)
    once = crossed_mean(values, span=np.ptp(values))
    twice = crossed_mean(np.repeat(values, 2, axis=1), span=np.ptp(values), clusters=np.repeat(np.arange(40), 2))
    assert twice.stderr == pytest.approx(once.stderr)
    assert twice.value == pytest.approx(once.value)
    assert twice.documents == 80


@pytest.mark.parametrize("collapsed", [None, 2])
def test_a_seed_that_collapses_is_named_and_normal_ones_are_not(collapsed):
    """Of 25 studies of four normal seeds some 5 % name one (Grubbs' level); one far below is named in all."""
    rng = np.random.default_rng(0)
    named = []
    for _ in range(25):
        values = rng.normal(size=(4, 50)) + rng.normal(size=50) + rng.normal(0.5, 0.5, size=(4, 1))
        if collapsed is not None:
            values[collapsed] -= 25.0
        named.append(crossed_mean(values, span=60.0).apart)
    if collapsed is None:
        assert sum(one is not None for one in named) <= 4  # .05 and three Monte-Carlo errors
    else:
        assert named.count(collapsed) >= 23


def test_seeds_that_are_all_alike_have_none_apart():
    assert crossed_mean(np.zeros((4, 20)), span=1.0).apart is None
    assert crossed_mean(np.array([[0.0] * 20, [0.0] * 20, [1.0] * 20]), span=1.0).apart == 2
