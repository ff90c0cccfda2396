"""How far a sweep's choice can be trusted, from the recorded items alone: no model, no task.

The best of many scores on the same documents looks better than it is. The corrections here resample documents, the same
ones for every boundary, and choose anew on each resample by the sweep's own rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Floats, draw_counts
from lm_eval_lora_drop.sweep.recorded import RecordedSweep

RESAMPLES = 2000
RESAMPLES_OF_A_SLOW_AGGREGATION = 100


@dataclass(frozen=True)
class Trust:
    """What resampling says about a choice.

    Scores and gains are in the metric's own units; a gain is positive where K is better than full. Fields about full
    are None where full was no candidate.

    `choice_share`: K -> share of the resamples in which it is chosen.
    `better_than_full`: share of the resamples in which the chosen K scores strictly better than full (`tied_with_full`:
        equal). It takes K as given, so it shares the optimism of the choice.
    `apparent`: the chosen K's score on all documents. `corrected`: the score to expect on new documents, from
        resamples in which K is chosen on the documents drawn and scored on those that were not. `optimism`: by how much
        the former flatters.
    `gain`, `corrected_gain`, `corrected_gain_interval`: the same for the difference to full, with a 95 % percentile
        interval over resamples.
    `unseen_better_than_full`: share of the resamples in which the K chosen on the drawn documents beats full on the
        others (`unseen_tied_with_full`: equal, as when full itself is chosen).
    """

    choice_share: dict[int, float]
    apparent: float
    corrected: float
    optimism: float
    better_than_full: float | None
    tied_with_full: float | None
    gain: float | None
    corrected_gain: float | None
    corrected_gain_interval: tuple[float, float] | None
    unseen_better_than_full: float | None
    unseen_tied_with_full: float | None
    documents: int
    resamples: int


@dataclass(frozen=True)
class Size:
    """The choices on random subsets of `documents` documents.

    `choice_share`: K -> share of the subsets in which it is chosen. `same_choice`: share that choose what all documents
    choose. `regret`: how much worse, on all documents and on average, the choice is than the best K there; `regret_95`
    is what 95 % of the subsets stay below. `unseen`: mean score of the choice on the documents outside the subset, None
    where there are none.
    """

    documents: int
    choice_share: dict[int, float]
    same_choice: float
    regret: float
    regret_95: float
    unseen: float | None


def trust(recorded: RecordedSweep, *, resamples: int | None = None, seed: int = 0) -> Trust:
    """Bootstrap the choice.

    The correction is the bootstrap bias corrected estimate for the best of several configurations (BBC-CV) of
    Tsamardinos, Greasidou & Borboudakis (2018, Machine Learning 107): choose on the documents drawn with replacement,
    score on the out-of-bag ones, average. It leans to the careful side, because a resample holds some 63 % of the
    documents.

    Raises:
        ArgumentError: fewer than two documents.
    """
    n = _at_least_two(recorded)
    resamples = resamples or _worth(recorded)
    counts = draw_counts(n, resamples, seed)
    drawn = recorded.scores(counts)
    unseen = recorded.scores((counts == 0).astype(np.int64))
    everything = recorded.scores(np.ones((1, n), dtype=np.int64))[0]
    choices = recorded.choose(drawn, recorded.stderr)
    rows = np.arange(resamples)
    chosen = recorded.boundaries.index(recorded.chosen)
    apparent, corrected = everything[chosen], float(np.nanmean(unseen[rows, choices]))
    full = recorded.full
    gains = np.full(resamples, np.nan) if full is None else unseen[rows, choices] - unseen[:, full]
    return Trust(
        choice_share=_shares(recorded, choices),
        apparent=recorded.sign * float(apparent),
        corrected=recorded.sign * corrected,
        optimism=float(apparent) - corrected,
        better_than_full=None if full is None else float(np.mean(drawn[:, chosen] > drawn[:, full])),
        tied_with_full=None if full is None else float(np.mean(drawn[:, chosen] == drawn[:, full])),
        gain=None if full is None else float(apparent - everything[full]),
        corrected_gain=None if full is None else float(np.nanmean(gains)),
        corrected_gain_interval=None if full is None else _interval(gains),
        unseen_better_than_full=None if full is None else float(np.mean(gains > 0)),
        unseen_tied_with_full=None if full is None else float(np.mean(gains == 0)),
        documents=n,
        resamples=resamples,
    )


def stability(
    recorded: RecordedSweep, sizes: Sequence[int] | None = None, *, repeats: int | None = None, seed: int = 0
) -> list[Size]:
    """Repeat the choice on random subsets of the documents, drawn without replacement: what another `sweep_seed` or a
    smaller `sweep_limit` would have chosen.

    `sizes` defaults to 10, 20, 50, 100, 200, 500 ... as far as they are smaller than the number of documents, and all.

    Raises:
        ArgumentError: a size outside 2..N.
    """
    n = _at_least_two(recorded)
    sizes = _usual_sizes(n) if sizes is None else sizes
    repeats = repeats or _worth(recorded)
    everything = recorded.scores(np.ones((1, n), dtype=np.int64))
    choice_of_all = recorded.choose(everything, recorded.stderr)[0]
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        if not 2 <= size <= n:
            raise ArgumentError(f"a subset must have from 2 to {n} documents (the sweep read {n}), got {size}.")
        subsets = np.zeros((repeats, n), dtype=np.int64)
        np.put_along_axis(subsets, rng.random((repeats, n)).argsort(axis=1)[:, :size], 1, axis=1)
        # The standard error of a score shrinks with the root of the documents.
        choices = recorded.choose(recorded.scores(subsets), recorded.stderr * math.sqrt(n / size))
        regret = np.nanmax(everything[0]) - everything[0][choices]
        unseen = None
        if size < n:
            unseen = recorded.sign * float(np.nanmean(recorded.scores(1 - subsets)[np.arange(repeats), choices]))
        found.append(
            Size(
                documents=size,
                choice_share=_shares(recorded, choices),
                same_choice=float(np.mean(choices == choice_of_all)),
                regret=float(regret.mean()),
                regret_95=float(np.quantile(regret, 0.95)),
                unseen=unseen,
            )
        )
    return found


def _at_least_two(recorded: RecordedSweep) -> int:
    if recorded.documents < 2:
        raise ArgumentError(
            f"resampling documents needs at least 2 of them, got {recorded.documents}. Raise sweep_limit."
        )
    return recorded.documents


def _worth(recorded: RecordedSweep) -> int:
    return RESAMPLES if recorded.aggregation.is_additive else RESAMPLES_OF_A_SLOW_AGGREGATION


def _usual_sizes(documents: int) -> list[int]:
    usual = [step * 10**power for power in range(1, len(str(documents)) + 1) for step in (1, 2, 5)]
    return [*(size for size in usual if size < documents), documents]


def _shares(recorded: RecordedSweep, choices: NDArray[np.int64]) -> dict[int, float]:
    """K -> share of `choices` that are its row, those that occur, the largest K first."""
    times = np.bincount(choices, minlength=len(recorded.boundaries))
    return {
        boundary: float(count) / len(choices)
        for boundary, count in zip(recorded.boundaries, times.tolist(), strict=True)
        if count
    }


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
