"""Paired randomisation: how often would a difference as large appear if the two systems were exchangeable?

Under that null hypothesis the two scores of a document (of a cluster of documents) may change places. The p-value is
the share of all exchanges whose difference is at least as large as the observed one (Noreen, 1989; Riezler & Maxwell,
2005), two-sided. Three things decide whether it is right where few documents differ:

- An exchange that gives the observed difference again counts (>=, not >), and so does the observed arrangement itself.
- Sums of the same numbers in another order differ in their last bits, so a tie is one within a tolerance.
- Documents that do not differ change nothing. Where so few differ that every exchange can be tried, every one is.

For a 0/1 metric the exact test is McNemar's in its exact form: a binomial distribution, for any number of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RANDOMISATION_DRAWS = 9_999
"""Exchanges that are drawn at random where not all can be tried: a p-value of .05 is then known to +-.004 (95 %)."""
TIE_TOLERANCE = 1e-9
"""Relative to the sum of the absolute differences."""
_CELLS = 4_000_000
"""Numbers held at once, 32 MB: keeps 500 systems on 10,000 documents small."""


@dataclass(frozen=True)
class ExchangeTest:
    """A p-value, and over which exchanges: all of them (`exact`) or `draws` random ones."""

    p_value: float
    exact: bool
    draws: int

    def __str__(self) -> str:
        return "exact" if self.exact else f"{self.draws:,} draws"


def every_exchange_up_to(draws: int) -> int:
    """How many differing units are few enough to try every exchange: 2**units is at most `draws` + 1."""
    return (draws + 1).bit_length() - 1


def exchanges(units: int, draws: int, seed: int) -> Iterator[NDArray[np.int8]]:
    """Blocks `(rows, units)`, 1 where a unit's two systems change places: all 2**units where those are at most
    `draws` + 1 (the observed arrangement is one of them), else `draws` random ones.

    The blocks depend on `units`, `draws` and `seed` alone, so that a pair of systems meets the same exchanges whatever
    it is tested together with.
    """
    rows = max(1, _CELLS // max(units, 1))
    if units <= every_exchange_up_to(draws):
        everything = np.arange(2**units, dtype=np.int64)
        for start in range(0, len(everything), rows):
            yield ((everything[start : start + rows, None] >> np.arange(units)) & 1).astype(np.int8)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, draws, rows):
        yield rng.integers(0, 2, size=(min(rows, draws - start), units), dtype=np.int8)


def without_rounding_noise(differences: Floats) -> Floats:
    """`differences` with rounding noise (1e-12 of the largest, along axis 0) set to zero: these documents are equal."""
    largest = np.abs(differences).max(axis=0, initial=0.0)
    return np.where(np.abs(differences) <= 1e-12 * largest, 0.0, differences)


def mean_tests(differences: Floats, *, draws: int = RANDOMISATION_DRAWS, seed: int = 0) -> list[ExchangeTest]:
    """Test for each column that its mean is zero.

    Args:
        differences: `(units, comparisons)`; a unit is a document, or a cluster with the sum of its documents. The
            result for a column does not depend on the others.
        draws: random exchanges, where there are too many to try all.
        seed: of the draws.
    """
    differences = without_rounding_noise(differences)
    found: list[ExchangeTest | None] = [_exact_test(column, draws) for column in differences.T]
    drawn = [index for index, test in enumerate(found) if test is None]
    if drawn:
        open_ = differences[:, drawn]
        total = np.abs(open_).sum(axis=0)
        observed = np.abs(open_.sum(axis=0)) - TIE_TOLERANCE * total
        # The observed arrangement counts as one of the draws.
        extreme = np.ones(len(drawn))
        for block in exchanges(len(open_), draws, seed):
            extreme += (np.abs((1.0 - 2.0 * block) @ open_) >= observed).sum(axis=0)
        for index, count in zip(drawn, extreme, strict=True):
            found[index] = ExchangeTest(float(count / (draws + 1)), False, draws)
    return [test for test in found if test is not None]


def step_down(
    differences: Floats, p_values: Floats, *, draws: int = RANDOMISATION_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """`p_values`, `(comparisons,)`, adjusted together: step-down minP (Westfall & Young, 1993, algorithm 2.8).

    All comparisons meet the same exchanges, so that what they share counts; the adjusted p-value is the share of
    exchanges in which any comparison not yet rejected has a p-value as small.

    Args:
        differences: as `mean_tests` takes them; `p_values` are at least as large as its.
        draws, seed: as for `mean_tests`.
    """
    comparisons = differences.shape[1]
    if comparisons < 2 or not differences.any():
        return p_values
    changed = differences[differences.any(axis=1)]
    sums = [np.abs((1.0 - 2.0 * block) @ changed) for block in exchanges(len(changed), draws, seed)]
    if len(changed) > every_exchange_up_to(draws):
        sums.append(np.abs(changed.sum(axis=0))[None])  # the observed arrangement is one of them
    drawn = np.concatenate(sums)
    tolerance = TIE_TOLERANCE * np.abs(changed).sum(axis=0)
    shares = np.empty_like(drawn)
    for column in range(comparisons):
        rows = drawn[:, column].argsort()
        ordered = drawn[rows, column]
        shares[rows, column] = 1 - np.searchsorted(ordered, ordered - tolerance[column]) / len(drawn)
    observed = shares[0] if len(changed) <= every_exchange_up_to(draws) else shares[-1]
    reached = np.maximum(p_values, observed)
    order = np.argsort(reached, kind="stable")
    least = np.minimum.accumulate(shares[:, order[::-1]], axis=1)[:, ::-1]
    stepped = np.maximum.accumulate((least <= reached[order] + 1e-12).mean(axis=0))
    adjusted = np.empty(comparisons)
    adjusted[order] = stepped
    return np.maximum(adjusted, p_values)


def _exact_test(column: Floats, draws: int) -> ExchangeTest | None:
    """The exact test of one column, None where that would be too many exchanges."""
    changed = column[column != 0]
    count = len(changed)
    if count == 0:
        return ExchangeTest(1.0, True, 0)
    sizes = np.abs(changed)
    if np.ptp(sizes) <= TIE_TOLERANCE * sizes.max():
        # All changes weigh the same, so only their number counts: binomial.
        fewer = min(int((changed > 0).sum()), int((changed < 0).sum()))
        return ExchangeTest(mcnemar(count - fewer, fewer), True, 0)
    if count > every_exchange_up_to(draws):
        return None
    observed = abs(changed.sum()) - TIE_TOLERANCE * sizes.sum()
    extreme = sum(
        int((np.abs((1.0 - 2.0 * block) @ changed) >= observed).sum()) for block in exchanges(count, draws, 0)
    )
    return ExchangeTest(extreme / 2**count, True, 0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that a 0/1 metric changed: each of the changed documents is a coin toss.

    As statsmodels' `mcnemar(table, exact=True)`, which takes the whole table; the unchanged documents do not matter.
    """
    return min(1.0, 2.0 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))


def totals_test(
    score: Callable[[Floats], Floats],
    baseline: Floats,
    other: Floats,
    *,
    draws: int = RANDOMISATION_DRAWS,
    seed: int = 0,
) -> ExchangeTest:
    """Test of a score that is a function of summed statistics (BLEU, chrF, TER).

    Args:
        score: `(rows, S)` sums to `(rows,)` scores.
        baseline, other: `(units, S)` statistics of the two systems.
        draws, seed: as for `mean_tests`.
    """
    differing = (baseline != other).any(axis=1)
    units = int(differing.sum())
    if units == 0:
        return ExchangeTest(1.0, True, 0)
    one, two = baseline.sum(axis=0)[None], other.sum(axis=0)[None]
    moved = (other - baseline)[differing]
    scores = np.concatenate([score(one), score(two)])
    observed = abs(scores[1] - scores[0]) - TIE_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    extreme = 0
    for block in exchanges(units, draws, seed):
        shift = block.astype(np.float64) @ moved
        extreme += int((np.abs(score(two - shift) - score(one + shift)) >= observed).sum())
    if units <= every_exchange_up_to(draws):
        return ExchangeTest(extreme / 2**units, True, 0)
    return ExchangeTest((extreme + 1) / (draws + 1), False, draws)
