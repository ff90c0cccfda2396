"""Intervals: Tango's against a brute-force likelihood, agreement with the test, no collapse, coverage."""

import numpy as np
import pytest
from scipy import optimize, stats

from benchmarks import coverage
from lm_eval_lora_drop.statistics.clusters import cluster_codes
from lm_eval_lora_drop.statistics.intervals import agreeing, mean_interval, tango
from lm_eval_lora_drop.statistics.significance import mean_test


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 1, 50), (0, 4, 50), (12, 7, 60), (0, 0, 40), (3, 20, 30)])
def test_tango_equals_brute_force(gained, lost, n):
    """At each limit the score statistic is +-1.96, its variance from the likelihood maximised numerically."""

    def score(d):
        def loss(q):
            cells = np.clip([q + d, q, 1 - 2 * q - d], 1e-12, 1)
            return -np.dot([gained, lost, n - gained - lost], np.log(cells))

        q = optimize.minimize_scalar(
            loss, bounds=(max(0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-10}
        ).x
        return (gained - lost - n * d) / np.sqrt(n * (2 * q + d - d**2))

    low, high = tango(gained, lost, n)
    assert score(low) == pytest.approx(stats.norm.ppf(0.975), abs=2e-3)
    assert score(high) == pytest.approx(-stats.norm.ppf(0.975), abs=2e-3)


def test_tango_at_the_edges():
    """Everything gained, everything lost: one limit is the edge; of 100 without a change, z^2 / (n + z^2)."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert tango(20, 0, 20)[1] == 1.0
    assert tango(0, 20, 20)[0] == -1.0


def zero_one(gained, lost, n):
    one, two = np.zeros(n), np.zeros(n)
    two[:gained], one[gained : gained + lost] = 1.0, 1.0
    return one, two


def test_interval_and_test_agree_on_every_small_table():
    """0/1 scores: the interval contains zero exactly if p is at least .05; no collapse, the estimate inside."""
    for n in (20, 50):
        for gained in range(n + 1):
            for lost in range(min(n - gained, 15) + 1):
                found = mean_test(*zero_one(gained, lost, n))
                low, high = found.interval
                assert (low <= 0 <= high) == (found.p_value >= 0.05), (gained, lost, n)
                assert low <= found.difference <= high
                assert high - low > 1 / n


def test_nothing_collapses():
    """No document differs, one does, all do by the same: the interval has a width."""
    same = np.array([0.2, 0.9, 0.4, 0.5, 0.1] * 4)
    assert mean_test(same, same).interval == pytest.approx(np.multiply(0.8, tango(0, 0, 20)))
    for change in (same * 0 + 0.1, np.eye(20)[0] * 0.3):
        low, high = mean_test(same, same + change).interval
        assert low < change.mean() < high
    assert all(np.isnan(mean_interval(np.array([1.0]), span=1.0)))
    constant = np.full(10, 0.5)
    assert mean_test(constant, constant).interval[1] > 0


def test_agreeing_moves_one_limit_to_the_side_of_the_test():
    assert agreeing((-0.2, -0.01), -0.1, 0.2)[1] > 0
    assert 0 < agreeing((-0.01, 0.3), 0.1, 0.01)[0] < 0.1
    assert agreeing((0.1, 0.3), 0.2, 0.01) == (0.1, 0.3)


CASES = [shape.name for shape in coverage.shapes(None)]
TOO_LOW = {"noise of .02, 3 % gain of 1"}


HELD = [name for name in CASES if name not in TOO_LOW]


@pytest.mark.parametrize(("name", "documents"), [*((one, 20) for one in HELD), *((one, 100) for one in HELD[::4])])
def test_coverage(name, documents):
    """At least .93 of 150 samples, less three standard errors; no contradiction (all: benchmarks/coverage.py)."""
    shape = next(shape for shape in coverage.shapes(None) if shape.name == name)
    found = coverage.simulate(shape, documents, 150, bootstrapped=1)
    assert found["ours"] >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 150)
    assert found["contradictions"] == 0


def test_coverage_of_clusters():
    """Questions on one passage rise and fall together: by cluster the interval covers, by document it does not."""
    rng = np.random.default_rng(0)
    codes = cluster_codes([str(i // 5) for i in range(200)])
    covered = {"by cluster": 0, "by document": 0}
    for _ in range(200):
        passage = rng.normal(0, 1, 40)[codes]
        one, two = rng.random(200), rng.random(200) + passage
        for name, clusters in (("by cluster", codes), ("by document", None)):
            low, high = mean_test(one, two, clusters=clusters, draws=199).interval
            covered[name] += low <= 0 <= high
    assert covered["by cluster"] / 200 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)
    assert covered["by document"] / 200 < 0.8
