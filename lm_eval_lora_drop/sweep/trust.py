"""How far a sweep's choice can be trusted, from the recorded items alone: no model, no task.

The best of many scores on the same documents looks better than it is. The corrections here resample documents, the same
ones for every candidate, and choose anew on each resample by the sweep's own rule; the verdict on the gain holds for
all candidates together, so it holds for whichever was chosen. Documents that belong together are drawn and exchanged
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Floats
from lm_eval_lora_drop.statistics.clusters import draw_cluster_counts, draw_cluster_subsets
from lm_eval_lora_drop.statistics.significance import mean_tests
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.variant import Variant

CHOICE_RESAMPLES = 2000
CHOICE_RESAMPLES_OF_A_SLOW_AGGREGATION = 100
ERROR_RATE = 0.05
"""Of all the verdicts of a sweep together; their intervals hold at one less this."""


class Evidence(Enum):
    """What the documents say of a candidate against the full adapter."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SIGNIFICANT = "not significant"
    TOO_FEW_DOCUMENTS = "too few documents"


@dataclass(frozen=True)
class Gain:
    """A candidate's paired difference to the full adapter, in the metric's units, positive where the candidate is
    better.

    `low`, `high`: the interval of the simultaneous band, which holds for all candidates of the sweep together at 95 %;
    `p_value` is adjusted for all of them and below .05 exactly where the interval excludes zero. `documents` have a
    value under both. `evidence` is `TOO_FEW_DOCUMENTS` where no difference on so few documents could be significant.
    """

    value: float
    low: float
    high: float
    evidence: Evidence
    p_value: float
    documents: int


@dataclass(frozen=True)
class Trust:
    """What resampling says about a choice.

    Scores and gains are in the metric's own units; a gain is positive where the choice is better than full.

    `choice_share`: candidate -> share of the resamples in which it is chosen.
    `apparent`: the chosen candidate's score on all documents. `corrected`: the score to expect on new documents, from
        resamples in which the choice is made on the documents drawn and scored on those that were not. `optimism`: the
        difference of both.
    `gains`: every candidate's difference to full; empty where full was no candidate.
    `corrected_gain`: the choice's difference to full to expect on new documents, by the same resamples; None where full
        was no candidate.
    """

    choice_share: dict[Variant, float]
    apparent: float
    corrected: float
    optimism: float
    gains: dict[Variant, Gain]
    corrected_gain: float | None
    documents: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain data, candidates by their notation."""
        gains = {str(variant): {**vars(gain), "evidence": gain.evidence.value} for variant, gain in self.gains.items()}
        return {**vars(self), "choice_share": _by_notation(self.choice_share), "gains": gains}


@dataclass(frozen=True)
class SubsetStability:
    """The choices on random subsets of `documents` documents.

    `choice_share`: candidate -> share of the subsets in which it is chosen. `same_choice`: share that choose what all
    documents choose. `regret`: how much worse, on all documents and on average, the choice is than the best candidate
    there; `regret_95` is what 95 % of the subsets stay below. `unseen`: mean score of the choice on the documents
    outside the subset.
    """

    documents: int
    choice_share: dict[Variant, float]
    same_choice: float
    regret: float
    regret_95: float
    unseen: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, candidates by their notation."""
        return {**vars(self), "choice_share": _by_notation(self.choice_share)}


def gains_over_full(recorded: RecordedSweep, *, seed: int = 0) -> dict[Variant, Gain]:
    """Every candidate's paired difference to full on the documents where both have a value, tested and with the
    simultaneous band of `significance.mean_tests`; empty where full was no candidate.

    After a race the candidates left share the error rate with those that were eliminated, in proportion: the ones left
    look best because the others were compared away on the same documents. So do those that refine asked with those
    that it did not: which were asked depends on the scores, so the tests cover all candidates of the set
    (docs/evidence/simulations.md).
    """
    if recorded.full is None:
        return {}
    row = recorded.candidates.index(recorded.full)
    left, all_of_them = len(recorded.candidates), len(recorded.candidates) + len(recorded.left_out)
    error_rate = ERROR_RATE * left / all_of_them
    others = [index for index in range(left) if index != row]
    values = recorded.values
    tests = mean_tests(values[others].T, values[row], clusters=recorded.codes, alpha=error_rate, seed=seed)
    known = np.isfinite(values)
    gains = {recorded.full: Gain(0.0, 0.0, 0.0, Evidence.NOT_SIGNIFICANT, 1.0, int(known[row].sum()))}
    for index, test in zip(others, tests, strict=True):
        both = known[index] & known[row]
        mine, whole = (
            float(recorded.aggregation.resample(recorded.items[one], both[None].astype(np.int64))[0])
            if both.any()
            else math.nan
            for one in (index, row)
        )
        low, high = test.interval
        if math.ldexp(2.0, -test.compared) > error_rate:
            # Even if all documents (clusters) differed the same way, a coin would do so more often than allowed.
            evidence = Evidence.TOO_FEW_DOCUMENTS
        elif test.p_value < error_rate:
            evidence = Evidence.BETTER if test.difference > 0 else Evidence.WORSE
        else:
            evidence = Evidence.NOT_SIGNIFICANT
        value = recorded.sign * (mine - whole)
        gains[recorded.candidates[index]] = Gain(value, low, high, evidence, test.p_value, int(both.sum()))
    return {variant: gains[variant] for variant in recorded.candidates}


def trust(recorded: RecordedSweep, *, resamples: int | None = None, seed: int = 0) -> Trust:
    """Bootstrap the choice.

    The correction is the bootstrap bias corrected estimate for the best of several configurations (BBC-CV) of
    Tsamardinos, Greasidou & Borboudakis (2018, Machine Learning 107): choose on the documents drawn with replacement,
    score on the out-of-bag ones, average. It leans to the careful side, because a resample holds some 63 % of the
    documents.

    Raises:
        ArgumentError: fewer than two documents, or clusters of them.
    """
    n = _at_least_two(recorded)
    resamples = resamples or _worth(recorded)
    counts = draw_cluster_counts(recorded.codes, resamples, seed)
    unseen = recorded.scores((counts == 0).astype(np.int64))
    everything = recorded.scores(np.ones((1, n), dtype=np.int64))[0]
    choices = recorded.choose(recorded.scores(counts), counts)
    rows = np.arange(resamples)
    apparent = float(everything[recorded.candidates.index(recorded.chosen)])
    corrected = _mean(unseen[rows, choices])
    corrected_gain = None
    if recorded.full is not None:
        corrected_gain = _mean(unseen[rows, choices] - unseen[:, recorded.candidates.index(recorded.full)])
    return Trust(
        choice_share=_shares(recorded, choices),
        apparent=recorded.sign * apparent,
        corrected=recorded.sign * corrected,
        optimism=apparent - corrected,
        gains=gains_over_full(recorded, seed=seed),
        corrected_gain=corrected_gain,
        documents=n,
        resamples=resamples,
    )


def stability(
    recorded: RecordedSweep, sizes: Sequence[int] | None = None, *, repeats: int | None = None, seed: int = 0
) -> list[SubsetStability]:
    """Repeat the choice on random subsets of the documents, drawn without replacement: what another `sweep_seed` or a
    smaller `sweep_limit` would have chosen. Clusters are taken whole, until they hold at least that many documents.

    `sizes` defaults to 10, 20, 50, 100, 200, 500 ... as far as they are smaller than the number of documents; without
    replacement all of them are the sweep itself.

    Raises:
        ArgumentError: a size outside 2..N-1.
    """
    n = _at_least_two(recorded)
    sizes = _usual_sizes(n) if sizes is None else sizes
    repeats = repeats or _worth(recorded)
    all_documents = np.ones((1, n), dtype=np.int64)
    everything = recorded.scores(all_documents)
    choice_of_all = recorded.choose(everything, all_documents)[0]
    found = []
    for number, size in enumerate(sizes):
        if not 2 <= size < n:
            raise ArgumentError(f"a subset must have from 2 to {n - 1} documents (the sweep read {n}), got {size}.")
        subsets = draw_cluster_subsets(recorded.codes, size, repeats, seed + number)
        choices = recorded.choose(recorded.scores(subsets), subsets)
        regret = np.nanmax(everything[0]) - everything[0][choices]
        unseen = recorded.sign * _mean(recorded.scores(1 - subsets)[np.arange(repeats), choices])
        found.append(
            SubsetStability(
                documents=size,
                choice_share=_shares(recorded, choices),
                same_choice=float(np.mean(choices == choice_of_all)),
                regret=float(regret.mean()),
                regret_95=float(np.quantile(regret, 0.95)),
                unseen=unseen,
            )
        )
    return found


def _by_notation(shares: dict[Variant, float]) -> dict[str, float]:
    return {str(variant): share for variant, share in shares.items()}


def _at_least_two(recorded: RecordedSweep) -> int:
    if recorded.units < 2:
        what = "documents" if recorded.units == recorded.documents else "clusters of documents"
        raise ArgumentError(f"resampling {what} needs at least 2 of them, got {recorded.units}. Raise sweep_limit.")
    return recorded.documents


def _worth(recorded: RecordedSweep) -> int:
    return CHOICE_RESAMPLES if recorded.aggregation.is_additive else CHOICE_RESAMPLES_OF_A_SLOW_AGGREGATION


def _mean(values: Floats) -> float:
    """Resamples without a score left out; NaN where none has one."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _usual_sizes(documents: int) -> list[int]:
    usual = [step * 10**power for power in range(1, len(str(documents)) + 1) for step in (1, 2, 5)]
    return [size for size in usual if size < documents]


def _shares(recorded: RecordedSweep, choices: NDArray[np.int64]) -> dict[Variant, float]:
    """Candidate -> share of `choices` that are its row, those that occur, in the sweep's order."""
    times = np.bincount(choices, minlength=len(recorded.candidates))
    return {
        variant: float(count) / len(choices)
        for variant, count in zip(recorded.candidates, times.tolist(), strict=True)
        if count
    }
