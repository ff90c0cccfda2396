"""Which paired difference a number of documents can show, and how many documents a difference needs.

What decides it is on how many documents two candidates differ (the discordance) and by how much there. Both come from a
finished sweep, from a pilot of some 30 documents or from a guess. "Can show" means: a difference of this size gives
p < alpha in at least the stated share (the power) of samples, for the exact McNemar test of a 0/1 metric, for any other
by the paired t test on the documents that differ, of which the randomisation test needs at least six. Where documents
belong together, clusters take their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_sums
from lm_eval_lora_drop.text import percent, significant

Floats = NDArray[np.float64]

POWER = 0.8
ALPHA = 0.05
MOST_DOCUMENTS = 10_000_000
"""More are not looked for."""


@dataclass(frozen=True)
class PairedVariation:
    """How much two candidates differ from document to document.

    `discordance` is the share of documents (of clusters) that differ and `size` the root mean square of the differences
    there, in the metric's units. `unit` is the size of every change of a 0/1 metric (1, or 100 in percent), None for
    any other. `changed` of `documents` were seen to differ, None for a guess; where fewer than three were,
    `discordance` is the upper limit of what they leave open. `per_unit` documents are in a cluster on average.
    """

    size: float
    discordance: float = 1.0
    unit: float | None = None
    documents: int | None = None
    changed: int | None = None
    per_unit: float = 1.0

    @property
    def spread(self) -> float:
        """The standard deviation of the differences of all documents, about zero."""
        return self.size * math.sqrt(self.discordance)

    @classmethod
    def of_share(cls, discordance: float, unit: float = 1.0) -> PairedVariation:
        """A guess for a 0/1 metric.

        Raises:
            ArgumentError: no share above 0 and at most 1.
        """
        if not 0 < discordance <= 1:
            raise ArgumentError(f"the discordance is a share above 0 and at most 1, got {discordance:g}.")
        return cls(unit, discordance, unit)

    @classmethod
    def of_spread(cls, spread: float) -> PairedVariation:
        """A guess for any other metric: every document differs.

        Raises:
            ArgumentError: not above 0.
        """
        if not spread > 0 or not math.isfinite(spread):
            raise ArgumentError(f"the standard deviation of the differences must be above 0, got {spread:g}.")
        return cls(spread)


def variation(one: Floats, other: Floats, clusters: Codes | None = None) -> PairedVariation:
    """Estimate from per-document values of two candidates, `(documents,)` each.

    Where fewer than three documents (clusters) changed, planning takes three to have: a pilot without any change does
    not promise that every difference can be shown (three in n is the upper limit where none of n changed).

    Raises:
        ArgumentError: fewer than two documents.
    """
    documents = len(one)
    if documents < 2:
        raise ArgumentError(
            f"the variation between documents needs at least two of them, got {documents}. Use a larger pilot."
        )
    differences = other - one
    alone = clusters is None or int(clusters.max()) == documents - 1
    if clusters is not None and not alone:
        differences = cluster_sums(differences, clusters)
        differences = differences * (len(differences) / documents)
    n = len(differences)
    changed = differences[differences != 0]
    share = min(1.0, max(len(changed), 3) / n)
    values = np.unique(np.concatenate([one, other]))
    if alone and len(values) <= 2 and (len(values) == 1 or 0.0 in values):
        unit = float(np.ptp(values)) if len(values) == 2 else 1.0
        return PairedVariation(unit, share, unit, documents, len(changed))
    # About their mean, for a difference to be planned for is another one than that seen; of a few, about zero.
    size = float(np.std(changed, ddof=1)) if len(changed) >= 6 else 0.0
    if not size > 1e-9 * float(np.abs(changed).max(initial=0.0)):
        size = float(np.sqrt(np.square(changed).sum() / (share * n)))
    return PairedVariation(size or float(np.ptp(values)), share, None, documents, len(changed), documents / n)


def mcnemar_power(documents: int, difference: float, discordance: float, *, alpha: float = ALPHA) -> float:
    """Share of samples in which the exact McNemar test gives p < `alpha`.

    Args:
        documents: n.
        difference: share gained less share lost, in absolute value at most `discordance`.
        discordance: share gained or lost.
    """
    changed = np.arange(documents + 1)
    weights = stats.binom.pmf(changed, documents, discordance)
    # Far from the expected number the weights are nothing, and the power need not be computed.
    changed, weights = changed[weights > 1e-12], weights[weights > 1e-12]
    # The largest number of losses (or gains) that rejects: 2 P(X <= c) < alpha under the coin toss.
    critical = stats.binom.ppf(alpha / 2, changed, 0.5)
    critical -= 2 * stats.binom.cdf(critical, changed, 0.5) >= alpha
    gains = (1 + difference / discordance) / 2
    rejected = stats.binom.cdf(critical, changed, gains) + stats.binom.sf(changed - critical - 1, changed, gains)
    return float(np.sum(weights * np.where(critical >= 0, rejected, 0.0)))


def power_of(documents: int, difference: float, known: PairedVariation, *, alpha: float = ALPHA) -> float:
    """Share of samples of `documents` documents in which a true `difference` gives p < `alpha`.

    A 0/1 metric can never differ by more than its discordance; a larger difference means that more documents change.
    """
    difference = abs(difference)
    if known.discordance is not None and known.unit is not None:
        share = difference / known.unit
        if share > 1:
            raise ArgumentError(f"this metric cannot differ by more than {known.unit:g}, got {difference:g}.")
        return mcnemar_power(documents, share, max(known.discordance, share), alpha=alpha)
    units = round(documents / known.per_unit)
    # A larger difference than that many changes of the usual size make means that more documents change.
    share = min(1.0, max(known.discordance, difference / known.size)) if known.discordance < 1 else 1.0
    changed = np.arange(units + 1)
    weights = stats.binom.pmf(changed, units, share)
    # Below six the randomisation test has no p-value under .05; far from the expected number the weights are nothing.
    counted = (weights > 1e-12) & (2.0 ** (1.0 - changed) < alpha)
    changed, weights = changed[counted], weights[counted]
    effect = difference / share / known.size
    critical = stats.t.isf(alpha / 2, changed - 1)
    found = stats.nct.sf(critical, changed - 1, effect * np.sqrt(changed))
    # Far out the non-central t distribution of scipy has no value; the normal one is as good there.
    normal = stats.norm.sf(critical - effect * np.sqrt(changed))
    return float(np.sum(weights * np.where(np.isfinite(found), found, normal)))


def detectable_difference(
    documents: int, known: PairedVariation, *, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """The smallest difference that `documents` documents show with this power, in the metric's units.

    None where they cannot show any: a 0/1 metric on five documents has no p-value below .05.
    """
    largest = known.size * (100 if known.discordance == 1 and known.unit is None else 1)
    if power_of(documents, largest, known, alpha=alpha) < power:
        return None
    return float(
        optimize.brentq(
            lambda d: power_of(documents, d, known, alpha=alpha) - power, 1e-9 * largest, largest, rtol=1e-6
        )
    )


def documents_needed(
    difference: float, known: PairedVariation, *, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """How many documents show `difference` with this power; None where more than `MOST_DOCUMENTS` would be needed.

    The exact test's power goes up in a saw-tooth; this is a number from which on it stays above, up to a tooth.

    Raises:
        ArgumentError: a difference of 0, or one that the metric does not allow.
    """
    if not difference:
        raise ArgumentError("the difference to be shown must not be 0: no number of documents shows it.")

    def enough(n: int) -> bool:
        return power_of(n, difference, known, alpha=alpha) >= power

    # Connor's (1987) normal approximation brackets the answer closely enough for the search to start there.
    z = float(stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power))
    high = max(4, round((z * known.spread / difference) ** 2))
    if high > MOST_DOCUMENTS:
        return None
    while not enough(high):
        high *= 2
        if high > MOST_DOCUMENTS:
            return None
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def duration(documents: int, candidates: int, pairs_per_second: float) -> float:
    """Seconds for a sweep of `candidates` candidates over `documents` documents, at a measured speed."""
    return documents * candidates / pairs_per_second


def sentence(documents: int, known: PairedVariation, example: float) -> str:
    """One line for the end of a sweep: the minimum detectable difference, and the documents needed for `example`."""
    found = detectable_difference(documents, known)
    least = "none, too few documents" if found is None else significant(found, 2)
    needed = documents_needed(example, known)
    many = f"more than {MOST_DOCUMENTS:,}" if needed is None else f"about {needed:,}"
    return (
        f"Minimum detectable difference with {documents} documents: {least} ({percent(POWER)} power, alpha = "
        f"{ALPHA:g}; {assumed(known)}). To detect {significant(example, 1)}, use {many}."
    )


def assumed(known: PairedVariation) -> str:
    """What a plan rests on, in words: what was seen, or what is assumed where too little was."""
    what = "documents" if known.per_unit == 1 else "clusters"
    share = percent(known.discordance)
    size = "" if known.unit is not None else f" by {significant(known.size, 2)} (root mean square)"
    if known.changed is not None and known.changed < 3:
        units = round((known.documents or 0) / known.per_unit)
        return f"{known.changed} of {units} {what} changed, so up to {share} may{size}"
    if known.discordance == 1 and known.unit is None:
        return f"the differences of {what} have a standard deviation of {significant(known.size, 2)}"
    return f"{share} of the {what} change{size}"
