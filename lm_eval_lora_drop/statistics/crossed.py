"""Means over two samples at once: documents, and the training seeds of an adapter.

Three adapters that differ in their seed alone score differently on the same documents, so that an interval over
documents says only how these three adapters do. What is asked is how the recipe does, on any seed and any document of
the kind. Seeds and documents are crossed (each adapter answers each document), so the variance of the mean is that of a
two-way random-effects layout without replication: with `S` seeds and `n` documents

    Var = (MS_seeds + MS_documents - MS_rest) / (n S)

and its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2, 110-114; Searle, Casella & McCulloch, 1992,
Variance Components, chapter 4). A bootstrap over so few seeds is too narrow: three values cannot show their own spread.
Coverage of both, by simulation: `python benchmarks/coverage_seeds.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_lora_drop.statistics import intervals, randomisation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_sums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds and documents, `value`, with its interval and its two-sided p-value against zero.

    `over_seeds` is the standard deviation of the seeds' means, NaN with one seed. `degrees` are those of the interval:
    near `seeds - 1` where the seeds decide, infinite where there is only one and the documents alone are known.
    """

    value: float
    stderr: float
    degrees: float
    interval: tuple[float, float]
    p_value: float
    over_seeds: float
    seeds: int
    documents: int


def crossed_mean(
    values: Floats, *, span: float, clusters: Codes | None = None, level: float = 0.05, seed: int = 0
) -> CrossedMean:
    """The mean of `values`, `(seeds, documents)`: paired differences of two systems, or the scores of one.

    Never surer than the documents alone allow: the interval contains that over documents with these seeds as they are,
    and the p-value is not below the randomisation test's. Where few documents differ that is what counts, for a
    variance of next to no differences is next to nothing. With one seed there is no more than that.

    Args:
        values: finite numbers.
        span: the largest value a document can have, as far as is known: 1 for a difference of 0/1 scores.
        clusters: `(documents,)`, which documents belong together; None: each stands alone.
        level: the interval is to miss in this share of samples.
        seed: of the randomisation, where not every exchange is tried.
    """
    seeds, documents = values.shape
    weights = None if clusters is None else np.bincount(clusters)
    units = values if clusters is None else cluster_sums(values.T, clusters).T
    means = units.mean(axis=0)  # over seeds
    interval = intervals.mean_interval(means, span=span, weights=weights, alpha=level)
    p_value = randomisation.mean_tests(means[:, None], seed=seed)[0].p_value
    value = float(values.mean())
    of_seeds = values.mean(axis=1)
    n = units.shape[1]
    if seeds == 1 or n < 2:
        interval = intervals.agreeing(interval, value, p_value, alpha=level)
        stderr = float(means.std(ddof=1) * math.sqrt(n) / documents) if n > 1 else math.nan
        return CrossedMean(value, stderr, math.inf, interval, p_value, math.nan, seeds, documents)
    variance, degrees = _variance(units * (n / documents))
    if variance > 0:
        stderr = math.sqrt(variance)
        reach = float(stats.t.isf(level / 2, degrees)) * stderr
        interval = (min(interval[0], value - reach), max(interval[1], value + reach))
        p_value = max(p_value, 2 * float(stats.t.sf(abs(value) / stderr, degrees)))
    interval = intervals.agreeing(interval, value, p_value, alpha=level)
    return CrossedMean(
        value, math.sqrt(variance), degrees, interval, p_value, float(of_seeds.std(ddof=1)), seeds, documents
    )


def _variance(units: Floats) -> tuple[float, float]:
    """The variance of the grand mean of `(seeds, units)` and its degrees of freedom."""
    seeds, n = units.shape
    grand = units.mean()
    rows, columns = units.mean(axis=1), units.mean(axis=0)
    of_seeds = n * float(np.square(rows - grand).sum()) / (seeds - 1)
    of_units = seeds * float(np.square(columns - grand).sum()) / (n - 1)
    rest = float(np.square(units - rows[:, None] - columns + grand).sum()) / ((seeds - 1) * (n - 1))
    # Either alone bounds the sum from below; the difference of estimates may fall beneath both.
    mean_square = max(of_seeds + of_units - rest, of_seeds, of_units)
    if mean_square <= 0:
        return 0.0, math.inf
    squares = of_seeds**2 / (seeds - 1) + of_units**2 / (n - 1) + rest**2 / ((seeds - 1) * (n - 1))
    return mean_square / (n * seeds), mean_square**2 / squares
