"""Whether systems differ from a reference on the same documents: one test for `compare`, the leaderboard and a sweep.

A p-value is the larger of two: that of the paired randomisation (exact where differences are symmetric, as those of 0/1
scores are under the null hypothesis) and that of a t-test corrected for skewness (Hall, 1992, JRSS B 54, 221-228),
which does not take a few large losses for bad luck. Several candidates are adjusted together by the step-down minP
procedure of Westfall & Young (1993, Resampling-Based Multiple Testing): never less power than Holm's or Bonferroni's
correction of the same p-values, and a candidate that differs on few documents costs the others nothing.

Every function takes a seed or needs none, so that a table is the same when it is made again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_lora_drop.statistics import intervals, randomisation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_sums

Floats = NDArray[np.float64]

LEVEL = 0.05
_DRAWS_PER_CANDIDATE = 100
"""The smallest p-value of that many draws, times the candidates, is a fifth of `LEVEL`."""


@dataclass(frozen=True)
class PairedTest:
    """A difference with its interval and its two-sided p-value, which agree about zero; `method` names the test.

    `compared` counts the units (documents, or clusters of them) that have a value on both sides.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    method: str
    compared: int


def mean_test(
    baseline: Floats,
    other: Floats,
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> PairedTest:
    """Whether the mean of `other` differs from that of `baseline`, both `(documents,)`; as `mean_tests` for one."""
    return mean_tests(other[:, None], baseline, clusters=clusters, draws=draws, seed=seed)[0]


def mean_tests(
    candidates: Floats,
    reference: Floats,
    *,
    clusters: Codes | None = None,
    alpha: float = LEVEL,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> list[PairedTest]:
    """Which candidates' means differ from the reference's, each on the documents on which both have a value.

    P-values are adjusted for all candidates together; intervals hold for all of them together at `1 - alpha`, and
    exclude zero exactly where the adjusted p-value is below `alpha`.

    Args:
        candidates: `(documents, candidates)`, NaN where there is no value.
        reference: `(documents,)`, likewise.
        clusters: which documents belong together; those are exchanged together.
        draws, seed: of the randomisation, where not every exchange is tried.
    """
    units, weights = _units(candidates - reference[:, None], clusters)
    if len(units.T) > 1:
        draws = max(draws, _DRAWS_PER_CANDIDATE * len(units.T))
    marginal, names = _p_values(units, weights, draws, seed)
    adjusted = randomisation.step_down(units, np.array(marginal), draws=draws, seed=seed)
    level = intervals.joint_level(units, alpha)
    found = []
    for column, p_value in enumerate(adjusted.tolist()):
        there = weights[:, column] > 0
        mine, sizes = units[there, column], weights[there, column]
        if not len(mine):
            found.append(PairedTest(np.nan, (np.nan, np.nan), 1.0, "no document in common", 0))
            continue
        values = np.concatenate([candidates[:, column], reference])
        values = values[np.isfinite(values)]
        mean = float(mine.sum() / sizes.sum())
        interval = intervals.mean_interval(mine, span=span(values), weights=sizes, alpha=level)
        alone = bool((sizes == 1).all())
        name = f"paired randomisation{'' if alone else ' of clusters'}, {names[column]}"
        if alone and is_binary(values):
            name = "McNemar, exact"
        agreed = intervals.agreeing(interval, mean, p_value, alpha=alpha)
        found.append(PairedTest(mean, agreed, p_value, name, len(mine)))
    return found


def mean_p_values(
    differences: Floats,
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> list[float]:
    """The p-values of `mean_test` for many systems, not adjusted: `(documents, systems)` differences to one baseline,
    NaN where one has no value."""
    return _p_values(*_units(differences, clusters), draws, seed)[0]


def _units(differences: Floats, clusters: Codes | None) -> tuple[Floats, Floats]:
    """`(units, candidates)`: sums of the differences of a document or a cluster, and how many documents they are of."""
    known = np.isfinite(differences)
    units, weights = randomisation.without_rounding_noise(np.where(known, differences, 0.0)), known.astype(np.float64)
    if clusters is None:
        return units, weights
    return cluster_sums(units, clusters), cluster_sums(weights, clusters)


def _p_values(units: Floats, weights: Floats, draws: int, seed: int) -> tuple[list[float], list[str]]:
    """P-values and the names of the randomisation tests."""
    tests = randomisation.mean_tests(units, draws=draws, seed=seed)
    sizes = np.abs(units)
    largest = sizes.max(axis=0, initial=0.0)
    # Where every change is of one size, a mean of zero means as many gains as losses: symmetric, so exact.
    alike = ((sizes == 0) | (sizes >= (1 - randomisation.TIE_TOLERANCE) * largest)).all(axis=0)
    exact = alike & (weights <= 1).all(axis=0)
    p_values = np.where(exact, 0.0, skewed_p_values(units, weights))
    return [max(test.p_value, float(p)) for test, p in zip(tests, p_values, strict=True)], [str(t) for t in tests]


def skewed_p_values(units: Floats, weights: Floats) -> Floats:
    """`(candidates,)`: two-sided p-values of a mean by Student's t, corrected for skewness (Hall, 1992); of clusters
    with the sandwich error. 0 where nothing varies: then it is for the signs alone to say.

    Args:
        units: `(units, candidates)` sums of differences.
        weights: `(units, candidates)` documents they are of; 0 where there is none.
    """
    n = (weights > 0).sum(axis=0)
    total = np.maximum(weights.sum(axis=0), 1.0)
    means = units.sum(axis=0) / total
    residuals = (units - weights * means) * (n / total)
    variance = np.square(residuals).sum(axis=0) / np.maximum(n, 1)
    varies = (variance > 1e-18 * np.square(means)) & (variance > 0) & (n > 1)
    variance, n = np.where(varies, variance, 1.0), np.where(varies, n, 2)
    skewness = (residuals**3).sum(axis=0) / n / variance**1.5
    t = means * np.sqrt((n - 1) / variance)
    a = skewness / (3 * np.sqrt(n))
    corrected = t + a * t**2 + a**2 * t**3 / 3 + a / 2
    return np.where(varies, 2 * stats.t.sf(np.abs(corrected), n - 1), 0.0)


def span(values: Floats) -> float:
    """The largest difference that the metric allows, as far as `values` show: 1 for a 0/1 metric."""
    if is_binary(values):
        return 1.0
    largest = float(np.abs(values).max())
    spread = float(np.ptp(values))
    # Where all values are one, any other is as far as that one is from nothing.
    return spread if spread > 1e-9 * largest else largest


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being tested together (Holm's step-down, 1979); a NaN is no test and stays NaN.

    As statsmodels' `multipletests(method="holm")`, which collects garbage at every call: a second each beside a loaded
    torch, and a leaderboard corrects once for each system.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = [int(index) for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p[index])))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def numbers(values: Sequence[Any]) -> Floats | None:
    """Per-document values as floats (true is 1), or None where one is no finite number."""
    array = numbers_or_missing(values)
    return array if array is not None and np.isfinite(array).all() else None


def numbers_or_missing(values: Sequence[Any]) -> Floats | None:
    """Per-document values as floats (true is 1; NaN where a document has none), or None where one is no number."""
    if not all(value is None or isinstance(value, bool | int | float) for value in values):
        return None
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return None if np.isinf(array).any() else array


def is_binary(values: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def is_mean(values: Floats, score: float) -> bool:
    """Whether the recorded score is the mean of the documents' values."""
    known = values[np.isfinite(values)]
    return len(known) > 0 and math.isclose(float(known.mean()), score, rel_tol=1e-6, abs_tol=1e-9)
