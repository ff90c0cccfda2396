"""Candidates over the same documents: the differences of their scores, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats, score_range
from lm_eval_lora_drop.statistics.clusters import (
    Codes,
    cluster_codes,
    cluster_sums,
    codes_at,
    draw_cluster_counts,
    mean_stderr,
)


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
    both = [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if a is not None and b is not None]
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


@dataclass(frozen=True)
class Band:
    """Differences of several candidates to one reference, with intervals that hold for all of them together.

    `value`, `low`, `high`: `(candidates,)`. `differing`: on how many documents (clusters) each differs from the
    reference.
    """

    value: Floats
    low: Floats
    high: Floats
    differing: NDArray[np.int64]


def simultaneous_band(
    values: Floats,
    reference: Floats,
    *,
    error_rate: float = 0.05,
    resamples: int = 4_999,
    seed: int = 0,
    clusters: Codes | None = None,
) -> Band:
    """Intervals of the mean differences that all cover at once in at least `1 - error_rate` of samples of documents.

    The critical value is that of the largest studentised difference when each document's differences, of all candidates
    together, change their sign at random: the max-T procedure of Westfall & Young (1993, Resampling-Based Multiple
    Testing), so that an interval excludes zero only where that test rejects, exactly at its level if differences are
    symmetric under the null. Two pseudo-documents, one on either side, of the size of a typical difference keep the
    spread from vanishing where few documents differ (Bonett & Price, 2012, Journal of Educational and Behavioral
    Statistics 37, 479-488, for paired proportions, where they are of size 1). docs/sweep.md has the coverage.

    Documents that belong together change their sign together, and the spread is that of clusters (the sandwich estimate
    of `clusters.mean_stderr`).

    Args:
        values: `(candidates, documents)`, finite, higher is better.
        reference: `(documents,)`.
        clusters: `(documents,)`, which documents belong together; None: each stands alone.
    """
    differences = values - reference
    documents = differences.shape[1]
    codes = cluster_codes([None] * documents) if clusters is None else clusters
    weights = np.bincount(codes).astype(np.float64)
    n = len(weights)
    # Sums of clusters, so scaled that their mean, as that of their weights, is one over documents.
    scale = n / documents
    weights *= scale
    units = cluster_sums(differences.T, codes).T * scale  # (candidates, n)
    squares = (units**2).sum(axis=1)
    nonzero = np.abs(units) > 1e-12
    typical = float(squares.sum() / nonzero.sum()) if nonzero.any() else score_range([*values, reference]) ** 2
    size = n + 2
    spread = squares + 2 * typical
    squared_weights = float((weights**2).sum()) + 2.0

    def errors(means: Floats, weighted: Floats) -> Floats:
        """The residual of a cluster is its sum less its weight times the mean; `weighted` are sums of sum x weight."""
        residual = spread - 2 * means * weighted + means**2 * squared_weights
        return np.sqrt(np.maximum(residual, 0.0)) / size

    rng = np.random.default_rng(seed)
    # As int8 they are an eighth of the size; the product wants floats.
    signs = rng.integers(0, 2, size=(resamples, n), dtype=np.int8) * 2.0 - 1.0
    flipped = signs @ units.T / size
    flipped_errors = errors(flipped, signs @ (units * weights).T)
    largest = np.sort((np.abs(flipped) / np.maximum(flipped_errors, 1e-300)).max(axis=1))
    rank = min(resamples, math.ceil((1 - error_rate) * (resamples + 1)))
    critical = max(float(largest[rank - 1]), float(norm.isf(error_rate / 2)))
    centre = units.sum(axis=1) / size
    # The observed signs are among the random ones: a tie with them must not exclude zero by its last bits.
    reach = (1 + 1e-9) * critical * errors(centre, (units * weights).sum(axis=1))
    return Band(differences.mean(axis=1), centre - reach, centre + reach, nonzero.sum(axis=1))
