"""Two boundaries over the same documents: the difference of their scores, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.aggregation import Aggregation, draw_counts


@dataclass(frozen=True)
class Difference:
    """`value` is how much better the first is (positive is better, whatever the metric's direction)."""

    value: float
    stderr: float
    documents: int


def paired_difference(
    aggregation: Aggregation,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    sign: int,
    resamples: int,
    seed: int = 0,
) -> Difference:
    """Compare items of the same documents in the same order; documents that lack a value on either side are left out.

    For a mean the standard error is that of the mean of the per-document differences; for any other aggregation it is
    the standard deviation over bootstrap resamples of documents, the same ones on both sides.

    Args:
        sign: 1 where higher is better, -1 where lower is.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    n = len(pairs)
    if n == 0:
        return Difference(math.nan, math.nan, 0)
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    value = sign * (aggregation.score(ours) - aggregation.score(theirs))
    if n < 2:
        return Difference(value, math.nan, n)
    if aggregation.is_mean:
        differences = np.array(ours, dtype=np.float64) - np.array(theirs, dtype=np.float64)
        return Difference(value, float(np.std(differences, ddof=1) / math.sqrt(n)), n)
    counts = draw_counts(n, resamples, seed)
    resampled = aggregation.resample(ours, counts) - aggregation.resample(theirs, counts)
    return Difference(value, float(np.nanstd(resampled, ddof=1)), n)
