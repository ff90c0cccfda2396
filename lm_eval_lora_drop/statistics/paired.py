"""Candidates over the same documents: the differences of their scores, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.aggregation import Aggregation, has_value
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, codes_at, draw_cluster_counts, mean_stderr


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
    clusters: Codes | None = None,
) -> Difference:
    """Compare items of the same documents in the same order; documents that lack a value on either side are left out.

    For a mean the standard error is that of the mean of the per-document differences; for any other aggregation it is
    the standard deviation over bootstrap resamples of documents, the same ones on both sides. Clusters take the place
    of documents where there are any.

    Args:
        sign: 1 where higher is better, -1 where lower is.
        clusters: `(documents,)`, which documents belong together; None: each stands alone.
    """
    both = [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if has_value(a) and has_value(b)]
    n = len(both)
    if n == 0:
        return Difference(math.nan, math.nan, 0)
    ours, theirs = [first[place] for place in both], [second[place] for place in both]
    value = sign * (aggregation.score(ours) - aggregation.score(theirs))
    codes = cluster_codes([None] * n) if clusters is None else codes_at(clusters, both)
    if codes.max() < 1:
        return Difference(value, math.nan, n)
    if aggregation.is_mean:
        differences = np.array(ours, dtype=np.float64) - np.array(theirs, dtype=np.float64)
        return Difference(value, mean_stderr(differences, codes), n)
    counts = draw_cluster_counts(codes, resamples, seed)
    resampled = aggregation.resample(ours, counts) - aggregation.resample(theirs, counts)
    return Difference(value, float(np.nanstd(resampled, ddof=1)), n)
