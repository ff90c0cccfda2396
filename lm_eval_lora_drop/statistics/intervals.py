"""Confidence intervals of a paired difference that say the same as its test, and do not collapse where little differs.

- All changes as large as they can be (a 0/1 metric): Tango's score interval (Tango, 1998, Statistics in Medicine 17,
  891-908).
- Anything else: the difference is the share of documents that differ times the mean difference of those. The share has
  Wilson's score interval, the mean a t interval widened for skewness (Hall, 1992, JRSS B 54, 221-228); the two
  statistics add up like independent chi-squares, and the interval is the range of the product over the region in which
  they stay below the critical value. With fewer differing documents than any test could reject on, their mean is
  bounded by their signs and the largest difference the metric was seen to allow, not by their own spread.
- Either is approximate, the test is exact: where they contradict each other about zero, the nearer limit is moved to
  the test-based one (Miettinen, 1976), which lies on the test's side of zero.

Coverage, by simulation: docs/evidence/simulations.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lm_eval_lora_drop.statistics.randomisation import TIE_TOLERANCE, without_rounding_noise

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_NORMALS = 9_999
_ANGLES = np.linspace(0.0, math.pi / 2, 17)
"""The critical value is split between share and mean as its sine and cosine."""


def tango(gained: int, lost: int, documents: int, *, alpha: float = 0.05) -> Interval:
    """Score interval of (gained - lost) / documents.

    The limits are the differences d at which (gained - lost - documents * d) reaches z standard deviations, the
    discordance being estimated under d by maximum likelihood.
    """
    z = float(stats.norm.isf(alpha / 2))
    estimate = (gained - lost) / documents

    def score(d: float) -> float:
        linear = -gained - lost + (2 * documents - gained + lost) * d
        constant = -lost * d * (1 - d)
        root = math.sqrt(max(linear**2 - 8 * documents * constant, 0.0))
        # The maximum likelihood estimate of the share lost, given that the shares gained and lost differ by d.
        share_lost = (root - linear) / (4 * documents)
        variance = documents * (2 * share_lost + d * (1 - d))
        return (gained - lost - documents * d) / math.sqrt(max(variance, 1e-300))

    edge = 1 - 1e-12
    low, high = -1.0, 1.0
    if estimate > -edge and score(-edge) > z:
        low = float(optimize.brentq(lambda d: score(d) - z, -edge, estimate))
    if estimate < edge and score(edge) < -z:
        high = float(optimize.brentq(lambda d: score(d) + z, estimate, edge))
    return low, high


def joint_level(differences: Floats, alpha: float, *, seed: int = 0) -> float:
    """At which level single intervals of the means of `differences`, `(units, candidates)`, miss in `alpha` of samples
    for any of them: that of the largest of normal variables correlated as the differences are (Hothorn, Bretz &
    Westfall, 2008, Biometrical Journal 50, 346-363). Between `alpha` over their number (Bonferroni) and `alpha`."""
    candidates = differences.shape[1]
    if candidates < 2:
        return alpha
    centred = differences - differences.mean(axis=0)
    norms = np.sqrt(np.square(centred).sum(axis=0))
    scaled = centred / np.where(norms > 0, norms, 1.0)
    correlation = scaled.T @ scaled
    np.fill_diagonal(correlation, 1.0)  # what never differs counts as independent of the others
    values, vectors = np.linalg.eigh(correlation)
    normals = np.random.default_rng(seed).standard_normal((_NORMALS, candidates))
    largest = np.abs(normals @ (vectors * np.sqrt(np.maximum(values, 0.0))).T).max(axis=1)
    return float(np.clip(2 * stats.norm.sf(np.quantile(largest, 1 - alpha)), alpha / candidates, alpha))


def mean_interval(
    differences: Floats, *, span: float, weights: NDArray[Any] | None = None, alpha: float = 0.05
) -> Interval:
    """Interval of the mean of paired differences over documents.

    Args:
        differences: `(units,)`: of documents, or sums over clusters.
        span: the largest difference the metric allows, as far as is known: 1 for a 0/1 metric.
        weights: `(units,)` documents of each cluster, None where the units are documents.
        alpha: the interval is to miss the true mean in this share of samples.

    Returns:
        NaN, NaN for fewer than two units.
    """
    units = len(differences)
    if units < 2:
        return (math.nan, math.nan)
    differences = without_rounding_noise(differences)
    changed = differences[differences != 0]
    sizes = np.abs(changed)
    if weights is None or (weights == 1).all():
        if len(changed) == 0 or (span - sizes <= TIE_TOLERANCE * span).all():
            gained = int((changed > 0).sum())
            low, high = tango(gained, len(changed) - gained, units, alpha=alpha)
            return low * span, high * span
        return _share_times_mean(changed, units, 1.0, span, alpha)
    mean_weight = float(weights.mean())
    if len(changed) == 0:
        low, high = tango(0, 0, units, alpha=alpha)
        return low * span, high * span
    theirs = weights[differences != 0]
    # The mean over the documents of the differing clusters is a ratio; these are its pseudo-values, whose mean it is.
    ratio = changed.sum() / theirs.sum()
    values = ratio + (changed - ratio * theirs) / theirs.mean()
    return _share_times_mean(values, units, float(theirs.mean()) / mean_weight, span, alpha)


def _share_times_mean(changed: Floats, units: int, scale: float, span: float, alpha: float) -> Interval:
    """`changed` are the values of the differing units; `scale` turns the share of units into one of documents."""
    z = float(stats.norm.isf(alpha / 2))
    least, most = scale * np.array(_wilson(len(changed), units, 2 * stats.norm.sf(z * np.sin(_ANGLES))))
    low, high = _mean_limits(changed, 2 * stats.norm.sf(z * np.cos(_ANGLES)), span, alpha)
    return (
        float(np.minimum(low * least, low * most).min()),
        float(np.maximum(high * least, high * most).max()),
    )


def _mean_limits(values: Floats, alphas: Floats, span: float, alpha: float) -> tuple[Floats, Floats]:
    """Limits of the mean of `values`, none of them 0, at each level 1 - `alphas`."""
    n = len(values)
    spread, mean = float(values.std(ddof=1)) if n > 1 else 0.0, float(values.mean())
    # With fewer differences than this the exact p-value is above alpha even where all have one sign. Their spread says
    # nothing then; their signs bound the share of gains (Clopper-Pearson), and no change is larger than the span.
    if 2.0 ** (1 - n) > alpha or spread <= TIE_TOLERANCE * abs(mean):
        fewest, most = _clopper_pearson(int((values > 0).sum()), n, alphas)
        return -span * (1 - fewest), span * most
    skewness = float(stats.skew(values))
    a, shift = skewness / (3 * math.sqrt(n)), skewness / (6 * math.sqrt(n))
    quantiles = stats.t.ppf(1 - alphas / 2, n - 1)

    def corrected(x: Floats) -> Floats:
        # Hall's cubic t + a t^2 + a^2 t^3 / 3 + shift has this monotone inverse.
        return x - shift if abs(a) < 1e-9 else (np.cbrt(1 + 3 * a * (x - shift)) - 1) / a

    stderr = spread / math.sqrt(n)
    # A sample's skewness is uncertain itself: where correcting for it would make a limit narrower, Student's stays.
    low = mean - stderr * np.maximum(corrected(quantiles), quantiles)
    high = mean - stderr * np.minimum(corrected(-quantiles), -quantiles)
    return np.clip(low, -span, span), np.clip(high, -span, span)


def _wilson(count: int, of: int, alphas: Floats) -> tuple[Floats, Floats]:
    """Wilson's score limits of a share at each level 1 - `alphas`."""
    z2 = np.square(stats.norm.isf(alphas / 2))
    centre, reach = count + z2 / 2, np.sqrt(z2 * (count * (of - count) / of + z2 / 4))
    return (centre - reach) / (of + z2), (centre + reach) / (of + z2)


def _clopper_pearson(count: int, of: int, alphas: Floats) -> tuple[Floats, Floats]:
    """Exact limits of a share at each level 1 - `alphas`."""
    low = stats.beta.ppf(alphas / 2, count, of - count + 1) if count else np.zeros_like(alphas)
    high = stats.beta.isf(alphas / 2, count + 1, of - count) if count < of else np.ones_like(alphas)
    return low, high


def agreeing(interval: Interval, difference: float, p_value: float, *, alpha: float = 0.05) -> Interval:
    """`interval`, moved where it contains zero although the test rejects zero, or the other way round.

    The limit between the difference and zero (or beyond it) becomes difference * (1 - z_alpha / z_p), z_p being the
    normal quantile of the p-value: above zero for a gain exactly if p is below alpha.
    """
    low, high = interval
    rejected = p_value < alpha
    if math.isnan(low) or difference == 0 or rejected == (not low <= 0 <= high):
        return interval
    z = float(stats.norm.isf(alpha / 2))
    limit = difference * (1 - z / float(stats.norm.isf(p_value / 2)))
    return (limit, high) if difference > 0 else (low, limit)
