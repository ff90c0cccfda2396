"""Racing: candidates that are out of the running stop meeting documents."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats, assumed_range
from lm_eval_lora_drop.sweep.strategies.elimination import Elimination, RaceHistory, wealth
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class RacingSettings:
    """How careful a race is.

    `error_rate`: the share of races, over the order of the documents, that may end with a candidate worse than the
    exhaustive winner by more than the tolerance. `tolerance`: in standard errors of the exhaustive winner's score; 0
    promises the winner itself.
    `first_round`: documents that every candidate meets; `growth`: by which factor they grow from round to round.
    """

    error_rate: float = 0.05
    tolerance: float = 1.0
    first_round: int = 8
    growth: float = 1.3


class Race:
    """A plan in rounds. Every candidate in the running meets the same documents, in an order drawn from `seed`.

    `sign` is 1 where a higher score is better, -1 where a lower one is.

    `full` is carried to the end, because the user wants the comparison with it; so is a candidate that leads after a
    round, in whose favour others may be eliminated within the tolerance.

    `bounds`: the least and the largest score of a document. Where they are not known, or a score lies outside, the
    largest difference is taken from the scores seen, and `guaranteed` is False.
    """

    def __init__(
        self,
        table: Table,
        aggregation: Aggregation,
        *,
        sign: int,
        full: Variant | None,
        seed: int,
        settings: RacingSettings | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self.settings = settings or RacingSettings()
        self._table = table
        self._aggregation = aggregation
        self._sign = sign
        self._bounds = bounds
        self.guaranteed = bounds is not None
        self._order = random.Random(seed).sample(range(table.documents), table.documents)
        self._racers = list(table.candidates)
        self._schedule = schedule(table.documents, self.settings)
        self._eliminations: list[Elimination] = []
        self.eliminated: dict[Variant, int] = {}
        # Before which document it was promised that a candidate will be carried to the end.
        self._carried_from: dict[Variant, int] = {full: 0} if full in self._racers else {}

    def rounds(self) -> Iterator[dict[Variant, Sequence[int]]]:
        """Rounds of variant -> positions of documents; the table must be filled before the next one is asked for."""
        for documents in self._schedule:
            yield dict.fromkeys(self._running, self._order[:documents])
            if documents < self._table.documents:
                self._eliminate(documents)

    def positions(self, variant: Variant) -> Sequence[int]:
        """The documents that the variant met in this race, whatever else is known of it."""
        return sorted(self._order[: self.eliminated.get(variant, self._table.documents)])

    def to_record(self) -> dict[str, Any]:
        """What the results file says about the race besides after how many documents each candidate was eliminated."""
        return {
            "error_rate": self.settings.error_rate,
            "tolerance": self.settings.tolerance,
            "guaranteed": self.guaranteed,
            "rounds": self._schedule,
            "eliminated": [{"variant": str(one.variant), "by": str(one.by)} for one in self._eliminations],
        }

    @property
    def _running(self) -> list[Variant]:
        return [variant for variant in self._racers if variant not in self.eliminated]

    def _eliminate(self, documents: int) -> None:
        if len(self._running) < 2:
            return
        rows = [self._values(variant, documents) for variant in self._racers]
        largest = self._largest_difference(rows)
        history = self._history(rows, documents)
        if largest == 0.0:
            return
        reached = wealth(history, total=self._table.documents, tolerance=self.settings.tolerance, largest=largest)
        means = {v: np.nansum(history.values[row]) for row, v in enumerate(self._racers) if history.running[row, -1]}
        if not means:
            return
        leader = max(means, key=lambda variant: means[variant])  # the first of equals
        for row, variant in enumerate(self._racers):
            out = reached[row] >= 1.0 / self.settings.error_rate
            if variant in means and variant not in self._carried_from and variant != leader and out:
                self.eliminated[variant] = documents
                self._eliminations.append(Elimination(variant, leader))
        self._carried_from.setdefault(leader, documents)

    def _largest_difference(self, rows: Sequence[Floats]) -> float:
        seen = self._sign * np.concatenate(rows)
        low, high = self._bounds or (np.inf, -np.inf)
        self.guaranteed &= not ((seen < low) | (seen > high)).any()  # NaN is neither
        return high - low if self.guaranteed else assumed_range(seen)

    def _values(self, variant: Variant, documents: int) -> Floats:
        """`(documents met,)` of the first `documents`: the score of each, higher is better, NaN where it has no
        value."""
        met = self._order[: self.eliminated.get(variant, documents)]
        return self._sign * self._aggregation.per_document(self._table.items(variant, met))

    def _history(self, rows: Sequence[Floats], documents: int) -> RaceHistory:
        """The race so far. A candidate that lacks a value where another one has it is neither judged nor anybody's
        rival: nothing is known of what it would score."""
        values = np.full((len(rows), documents), np.nan)
        for place, seen in enumerate(rows):
            values[place, : len(seen)] = seen
        met = np.arange(documents) < np.array([len(seen) for seen in rows])[:, None]
        read = np.isfinite(values).any(axis=0)
        whole = ~(met & read & np.isnan(values)).any(axis=1)
        carried = np.zeros(values.shape, dtype=bool)
        for row, variant in enumerate(self._racers):
            carried[row, self._carried_from.get(variant, documents) :] = True
        return RaceHistory(values, met & whole[:, None], carried)


def schedule(documents: int, settings: RacingSettings) -> list[int]:
    """Documents seen after each round: the first round, then growing by `growth`; the last round is all of them."""
    rounds = []
    size = float(settings.first_round)
    # A last step of a few documents would cost a test and save nothing.
    while size * settings.growth**0.5 < documents:
        rounds.append(round(size))
        size *= settings.growth
    return [*rounds, documents]
