"""Paired statistics of two systems on the same documents.

Every function takes a seed or needs none, so that a table is the same when it is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.statistics import intervals, randomisation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_sums

Floats = NDArray[np.float64]

LEVEL = 0.05


@dataclass(frozen=True)
class PairedTest:
    """A difference with its interval and its two-sided p-value, which agree about zero; `method` names the test."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    method: str


def mean_test(
    baseline: Floats,
    other: Floats,
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> PairedTest:
    """Whether the mean of `other` differs from that of `baseline`, both `(documents,)`.

    Args:
        baseline, other: the two systems' values of the same documents.
        clusters: which documents belong together; those are exchanged together.
        draws, seed: of the randomisation, where not every exchange is tried.
    """
    differences = randomisation.snapped(other - baseline)
    weights = None
    if clusters is not None:
        weights = np.bincount(clusters)
    units = differences if clusters is None else cluster_sums(differences, clusters)
    test = randomisation.mean_tests(units[:, None], draws=draws, seed=seed)[0]
    values = np.concatenate([baseline, other])
    mean = float(differences.mean())
    interval = intervals.mean_interval(units, span=span(values), weights=weights, alpha=LEVEL)
    alone = weights is None or bool((weights == 1).all())
    name = f"paired randomisation{'' if alone else ' of clusters'}, {test}"
    if alone and is_binary(values):
        name = "McNemar, exact"
    return PairedTest(mean, intervals.agreeing(interval, mean, test.p_value, alpha=LEVEL), test.p_value, name)


def mean_p_values(
    differences: Floats,
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> list[float]:
    """The p-values of `mean_test` for many systems at once: `(documents, systems)` differences to one baseline."""
    differences = randomisation.snapped(differences)
    units = differences if clusters is None else cluster_sums(differences, clusters)
    return [test.p_value for test in randomisation.mean_tests(units, draws=draws, seed=seed)]


def span(values: Floats) -> float:
    """The largest difference that the metric allows, as far as `values` show: 1 for a 0/1 metric."""
    if is_binary(values):
        return 1.0
    largest = float(np.abs(values).max())
    spread = float(np.ptp(values))
    # Where all values are one, any other is as far as that one is from nothing.
    return spread if spread > 1e-9 * largest else largest


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being one family of tests (Holm's step-down, 1979); a NaN is no test and stays NaN.

    As statsmodels' `multipletests(method="holm")`, which collects garbage at every call: a second each beside a loaded
    torch, and a leaderboard has a family for each system.
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
    if not all(isinstance(value, bool | int | float) for value in values):
        return None
    array = np.asarray(values, dtype=np.float64)
    return array if np.isfinite(array).all() else None


def is_binary(values: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())
