"""The test by which racing gives boundaries up, on plain arrays.

Successive elimination with a tolerance (Even-Dar, Mannor & Mansour, 2006, Journal of Machine Learning Research 7,
section 3), on paired differences over the same documents, as the races of Moore & Lee (1994) block by query point.
docs/sweep.md states the guarantee and its assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]

PSEUDO_DOCUMENTS = 2


@dataclass(frozen=True)
class Verdict:
    """A boundary that is given up, in whose favour, and why.

    `beaten`; `no_better`, by more than the tolerance; or `prior`: before it met any document (see prior.py).
    """

    boundary: int
    by: int
    reason: str


def critical_value(error_rate: float, rivals: int, rounds: int) -> float:
    """The normal quantile that all `rivals` x `rounds` comparisons of one boundary together exceed by chance with a
    probability of at most `error_rate` (Bonferroni)."""
    return float(norm.isf(error_rate / max(1, rivals * rounds)))


def eliminate(
    values: Floats,
    boundaries: Sequence[int],
    kept: Collection[int],
    *,
    total: int,
    critical: float,
    margin: float,
) -> list[Verdict]:
    """Which boundaries are given up after this round.

    Boundary w is beaten by j where the lower confidence bound of the mean of j - w over all `total` documents lies
    above zero (above the margin, where that is positive). With a negative margin, the tolerance, w is also given up
    where the same bound for the leader lies above the margin: then w is not better than the leader by more than that.

    The bound takes the documents seen as a random sample without replacement of the `total` (hence the finite
    population correction). Two pseudo-documents, one for each side, of the size of the root mean square difference of
    the most different pair, keep the spread from being underestimated where few documents differ, as Bonett & Price
    (2012, Journal of Educational and Behavioral Statistics 37(4)) do for paired proportions.

    Args:
        values: `(boundaries, documents seen)`, higher is better, NaN where a document has no value.
        boundaries: K of each row.
        kept: boundaries that are not given up whatever they score.
        margin: in units of the score: minus the tolerance, or what a boundary must be beaten by.
    """
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else -math.inf for row in values])
    leader = max(range(len(boundaries)), key=lambda row: (means[row], -row))
    scale = _largest_difference(values)
    verdicts = []
    for row, boundary in enumerate(boundaries):
        if row == leader or boundary in kept:
            continue
        lower = _lower_bounds(values - values[row], total, critical, scale)
        lower[row] = -math.inf
        best = int(np.argmax(lower))
        if lower[best] > max(margin, 0.0):
            verdicts.append(Verdict(boundary, boundaries[best], "beaten"))
        elif margin < 0 and lower[leader] > margin:
            verdicts.append(Verdict(boundary, boundaries[leader], "no_better"))
    return verdicts


def _largest_difference(values: Floats) -> float:
    """Root mean square difference of the most different pair of rows."""
    largest = 0.0
    for row in values:
        squares = (values - row) ** 2
        counted = np.isfinite(squares)
        sums = np.where(counted, squares, 0.0).sum(axis=1)
        largest = max(largest, float(np.max(sums / np.maximum(counted.sum(axis=1), 1))))
    return math.sqrt(largest)


def _lower_bounds(differences: Floats, total: int, critical: float, scale: float) -> Floats:
    """`(rivals, documents)` differences to lower confidence bounds `(rivals,)`; minus infinity below two documents."""
    counted = np.isfinite(differences)
    filled = np.where(counted, differences, 0.0)
    seen = counted.sum(axis=1)
    n = seen + PSEUDO_DOCUMENTS
    mean = filled.sum(axis=1) / n
    variance = ((filled**2).sum(axis=1) + PSEUDO_DOCUMENTS * scale**2) / n - mean**2
    left = 1.0 - differences.shape[1] / total
    bounds = mean - critical * np.sqrt(np.maximum(variance, 0.0) / n * left)
    return np.asarray(np.where(seen < 2, -math.inf, bounds))
