"""Means over two samples at once: documents, and the training seeds of an adapter.

Three adapters that differ in their seed alone score differently on the same documents, so that an interval over
documents says only how these three adapters do. What is asked is how the recipe does, on any seed and any document of
the kind. Seeds and documents are crossed (each adapter answers each document), so the variance of the mean is that of a
two-way random-effects layout without replication: with `S` seeds and `n` documents

    Var = (MS_seeds + MS_documents - MS_rest) / (n S)

of which the mean squares are known as well as their few degrees of freedom allow. The interval is the generalized
confidence interval (Weerahandi, 1993, JASA 88, 899-905; Hannig, Iyer & Patterson, 2006, JASA 101, 254-269): sums of
squares over chi-squares drawn at random take the place of the variance, and a normal draw of that variance that of the
error. Where only seeds differ it is Student's t with `S - 1` degrees of freedom, where only documents do with `n - 1`.
Satterthwaite's approximation to it covered .89 to .93 in place of .95 where seeds differ, a bootstrap over two or three
seeds .7 to .9: so few values cannot show their own spread. Coverage: `python benchmarks/coverage_seeds.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_lora_drop.statistics import intervals, randomisation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_sums

Floats = NDArray[np.float64]

DRAWS = 100_000
"""Of the error: its .975 quantile is known to 1 %."""


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds and documents, `value`, with its interval and its two-sided p-value against zero.

    `stderr` is an estimate from few seeds: the interval is wider than 1.96 of it says. With one seed all is over
    documents alone. `of_seeds` are the seeds' means; `apart` is the place of one that is none of a normal sample with
    the others, so that the interval does not hold; None where there is none, or fewer than three seeds.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    p_value: float
    of_seeds: tuple[float, ...]
    seeds: int
    documents: int
    apart: int | None = None


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
        return CrossedMean(value, stderr, interval, p_value, tuple(of_seeds.tolist()), seeds, documents)
    squares = _mean_squares(units * (n / documents))
    stderr = math.sqrt(_sum(*squares) / (n * seeds))
    if stderr > 0:
        errors = _errors(squares, seeds, n)
        low, high = np.quantile(errors, [level / 2, 1 - level / 2])
        interval = (min(interval[0], value + float(low)), max(interval[1], value + float(high)))
        # The error's distribution is symmetric; no share of finitely many draws is zero.
        beyond = float((np.abs(errors) >= abs(value)).sum() + 1) / (len(errors) + 1)
        p_value = max(p_value, beyond)
    interval = intervals.agreeing(interval, value, p_value, alpha=level)
    apart = _apart(of_seeds, math.sqrt(squares[2] / n))
    return CrossedMean(value, stderr, interval, p_value, tuple(of_seeds.tolist()), seeds, documents, apart)


def _apart(of_seeds: Floats, noise: float, level: float = 0.05) -> int | None:
    """Grubbs' test (1969), by the externally studentised deviation: the seed that is no sample with the others.

    `noise` is what chance in the documents alone moves a seed's mean by: the others never spread less.
    """
    seeds = len(of_seeds)
    if seeds < 3:
        return None
    others = [np.delete(of_seeds, place) for place in range(seeds)]
    spread = np.array([max(float(one.std(ddof=1)), noise) for one in others]) * math.sqrt(seeds / (seeds - 1))
    away = np.abs(of_seeds - [one.mean() for one in others])
    bound = float(stats.t.isf(level / (2 * seeds), seeds - 2))
    found = int(
        np.argmax(np.where(spread > 0, away / np.where(spread > 0, spread, 1.0), np.where(away > 0, np.inf, 0)))
    )
    return found if away[found] > bound * spread[found] else None


def _mean_squares(units: Floats) -> tuple[float, float, float]:
    """Of seeds, of units (documents or clusters) and of the rest, of `(seeds, units)`."""
    seeds, n = units.shape
    grand = units.mean()
    rows, columns = units.mean(axis=1), units.mean(axis=0)
    return (
        n * float(np.square(rows - grand).sum()) / (seeds - 1),
        seeds * float(np.square(columns - grand).sum()) / (n - 1),
        float(np.square(units - rows[:, None] - columns + grand).sum()) / ((seeds - 1) * (n - 1)),
    )


def _sum(of_seeds: Any, of_units: Any, rest: Any) -> Any:
    """`n S` times the variance of the mean. Either of the first two bounds it from below; the difference of estimates
    may fall beneath both."""
    return np.maximum(of_seeds + of_units - rest, np.maximum(of_seeds, of_units))


def _errors(mean_squares: tuple[float, float, float], seeds: int, n: int) -> Floats:
    """`(DRAWS,)` draws of the error of the mean, by its generalized pivotal quantity."""
    rng = np.random.default_rng(0)
    degrees = (seeds - 1, n - 1, (seeds - 1) * (n - 1))
    drawn = [square * count / rng.chisquare(count, DRAWS) for square, count in zip(mean_squares, degrees, strict=True)]
    return np.asarray(rng.standard_normal(DRAWS) * np.sqrt(_sum(*drawn) / (n * seeds)), dtype=np.float64)
