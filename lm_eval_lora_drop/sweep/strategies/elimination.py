"""The test by which racing eliminates candidates, on plain arrays: a bet against each candidate being the winner.

Betting for sampling without replacement: Waudby-Smith & Ramdas (2020, Confidence sequences for sampling without
replacement, NeurIPS 33, https://arxiv.org/abs/2006.04347; 2024, Estimating means of bounded random variables by
betting, JRSS B 86, 1-27). docs/explanation/method.md states the promise and proves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.statistics.aggregation import Floats
from lm_eval_lora_drop.variant import Variant

Bools = NDArray[np.bool_]

STAKES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the largest stake that cannot ruin more than the wealth bet; all of them are played side by side."""


@dataclass(frozen=True)
class Elimination:
    """A candidate, eliminated because the bet against its winning by more than the tolerance has paid, and the one that
    led at that time."""

    variant: Variant
    by: Variant


@dataclass(frozen=True)
class RaceHistory:
    """What was known and decided, document by document in the order of the race.

    `values`: `(candidates, documents)`, higher is better; NaN where no candidate has a value; what stands after a
    candidate's elimination is not read. `running`: `(candidates, documents)`, whether the candidate met the document.
    `carried`: `(candidates, documents)`, whether it had been promised, before the document was met, that the candidate
    will be carried to the end.
    """

    values: Floats
    running: Bools
    carried: Bools


def wealth(history: RaceHistory, *, total: int, tolerance: float, largest: float) -> Floats:
    """The highest wealth `(candidates,)` that bets against each candidate have reached so far, from a start of 1.

    If a candidate w is the winner over all `total` documents, and better by more than the tolerance than every carried
    candidate, then each bet is fair or worse, whatever happened before it, and by Ville's inequality its wealth ever
    reaches 1 / error_rate with a probability of at most `error_rate`.

    A bet is on d, a rival's score less w's on the next document. If the sum of d over all N documents is at most -c,
    and it is S over the i documents met, those left have a mean of at most m = (-c - S) / (N - i), so the payoff
    1 + stake (d - m) has an expectation of at most 1; it is never negative for a stake of at most 1 / (R + m), where
    d >= -R. c is 0, or for a carried rival the tolerance: `tolerance` times the root of w's sum of squares about its
    mean over the documents met, which is at most N standard errors of w's final score.

    Two gamblers play, each with every stake of `STAKES`: one bets on the candidate that leads at the time, one on the
    carried candidate that leads at the time. The wealth is the mean of theirs.

    Args:
        total: N, how many documents there are.
        tolerance: in standard errors of w's score over all documents.
        largest: R, the largest possible difference of two scores of a document.
    """
    candidates, seen = history.values.shape
    if candidates < 2 or seen == 0:
        return np.ones(candidates)
    known = history.running & np.isfinite(history.values)
    # On a document without a value nobody gains on anybody.
    values = np.where(known, history.values, 0.0)
    # What is known *before* each document: exclusive sums.
    before = np.arange(seen)
    sums = np.cumsum(values, axis=1) - values
    squares = np.cumsum(values**2, axis=1) - values**2
    met: NDArray[np.int64] = np.cumsum(known, axis=1) - known
    spread = np.sqrt(np.maximum(squares - sums**2 / np.maximum(met, 1), 0.0))
    left = total - before
    paths = []
    for among in (history.running, history.carried & history.running):
        rival = _leaders(sums, among)
        playing = (rival >= 0) & history.running
        margin = np.where(history.carried[rival, before], tolerance * spread, 0.0)
        least = (-margin - (sums[rival, before] - sums)) / left
        gained = values[rival, before] - values
        room = largest + least
        # Below -R the documents left cannot make up for what w lacks: it has lost for certain.
        lost = playing & (room < -1e-9 * largest)
        playing &= (least < largest) & ~lost
        unit = np.where(playing, (gained - least) / np.maximum(room, 1e-9 * largest), 0.0)
        for stake in STAKES:
            # R may be an estimate: a payoff below zero is ruin.
            grown = np.cumprod(np.maximum(1.0 + stake * unit, 0.0), axis=1)
            paths.append(np.where(np.logical_or.accumulate(lost, axis=1), np.inf, grown))
    return np.asarray(np.mean(paths, axis=0).max(axis=1))


def _leaders(sums: Floats, among: Bools) -> NDArray[np.int64]:
    """`(candidates, documents)`: which other candidate of `among` has the highest sum before the document, the first of
    equals; -1 where there is no other."""
    candidates, seen = sums.shape
    open_sums = np.where(among, sums, -np.inf)
    first = open_sums.argmax(axis=0)
    open_sums[first, np.arange(seen)] = -np.inf
    second = open_sums.argmax(axis=0)
    leads = first[None, :] == np.arange(candidates)[:, None]
    rivals = np.where(leads, second[None, :], first[None, :])
    # A leader needs a second candidate to have a rival.
    return np.where(among.sum(axis=0)[None, :] > leads, rivals, -1)
