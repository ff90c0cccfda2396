"""Paired statistics of two systems on the same documents.

Every function takes a seed or needs none, so that a table is the same when it is made again. Sources: McNemar's test in
its exact form (Fagerland et al. 2013), randomisation by sign flips (Noreen 1989), Holm's correction (1979), and
sacrebleu's `PairedTest` for corpus metrics (Riezler and Maxwell 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 9_999
LEVEL = 0.05
_CELLS = 4_000_000
"""Numbers held at once while resampling, 32 MB: keeps 500 systems on 10,000 documents small."""


def mcnemar(gained: Any, lost: Any) -> Any:
    """Two-sided exact p-value that a 0/1 metric changed: under the null each change is a coin toss.

    Args:
        gained, lost: documents that became right and that became wrong; numbers or arrays of one shape.
    """
    smaller, changed = np.minimum(gained, lost), np.add(gained, lost)
    p = np.minimum(1.0, 2.0 * stats.binom.cdf(smaller, changed, 0.5))
    return float(p) if np.ndim(p) == 0 else p


def sign_flips(differences: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Two-sided p-values that the mean difference is zero, by randomly exchanging the two systems per document.

    The observed difference counts as one of the resamples, so a p-value is never 0.

    Args:
        differences: `(documents, comparisons)`; all columns see the same exchanges.
        resamples: how many random exchanges are drawn.
        seed: of the exchanges.

    Returns:
        `(comparisons,)` p-values.
    """
    documents, comparisons = differences.shape
    rng = np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=0))
    # Sums of the same numbers in another order differ in their last bits; a tie must count as a tie.
    observed = observed - 1e-9 * np.maximum(1.0, np.abs(differences).sum(axis=0))
    extreme = np.ones(comparisons)
    block = max(1, _CELLS // max(documents, comparisons, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        signs = rng.integers(0, 2, size=(rows, documents), dtype=np.int8).astype(np.float64) * 2.0 - 1.0
        extreme += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return np.asarray(extreme / (resamples + 1))


def mean_interval(
    differences: Floats, *, level: float = 1 - LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap confidence interval (BCa) of the mean of paired differences, `(documents,)`.

    Resampling documents, each with both its scores, is the paired bootstrap. Where BCa is undefined (all differences
    but at most one equal) the percentile interval is given; for a single document, NaN.
    """
    if len(differences) < 2:
        return (float("nan"), float("nan"))
    if np.ptp(differences) == 0:
        return (float(differences[0]), float(differences[0]))
    for method in ("BCa", "percentile"):
        with np.errstate(invalid="ignore", divide="ignore"):
            interval = stats.bootstrap(
                (differences,),
                np.mean,
                n_resamples=resamples,
                confidence_level=level,
                method=method,
                batch=max(1, _CELLS // len(differences)),
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            break
    return (float(interval.low), float(interval.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being `len(p_values)` tests (Holm's step-down); a NaN is no test and stays NaN."""
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
