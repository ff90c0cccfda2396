"""Racing: boundaries that are out of the running stop meeting documents."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.elimination import Verdict, critical_value, eliminate
from lm_eval_lora_drop.sweep.table import Table
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class RacingSettings:
    """How careful a race is.

    `error_rate`: the probability with which the best boundary may be given up wrongly, over the whole race.
    `tolerance`: in standard errors of the leader's score over all documents; with `best`, a boundary that is not better
    than the leader by more than this is given up. 0 gives up only what is clearly beaten.
    `first_round`: documents that every boundary meets; `growth`: by which factor they grow from round to round.
    """

    error_rate: float = 0.05
    tolerance: float = 1.0
    first_round: int = 8
    growth: float = 1.5


class Race:
    """A plan in rounds. Every boundary in the running meets the same documents, in an order drawn from `seed`.

    `sign` is 1 where a higher score is better, -1 where a lower one is. `hopeless` boundaries meet no document at all
    (see prior.py).

    Full (K = `num_layers`) is carried to the end, because the user wants the comparison with it, and so is a boundary
    in whose favour another was given up as no better: the guarantee rests on it. Base may be given up.
    """

    def __init__(
        self,
        table: Table,
        aggregation: Aggregation,
        *,
        sign: int,
        full: Variant | None,
        seed: int,
        select: str = "best",
        settings: RacingSettings | None = None,
        hopeless: Collection[Variant] = (),
    ) -> None:
        self.settings = settings or RacingSettings()
        self._table = table
        self._aggregation = aggregation
        self._sign = sign
        self._one_se = select == "one_se"
        self._order = random.Random(seed).sample(range(table.documents), table.documents)
        self._kept: set[Variant] = set() if full is None else {full}
        self._running = [boundary for boundary in table.candidates if boundary not in hopeless]
        self._rivals = len(self._running) - 1
        self._schedule = schedule(table.documents, self.settings)
        self._verdicts = [Verdict(boundary, full, "prior") for boundary in hopeless]
        self.retired: dict[Variant, int] = dict.fromkeys(hopeless, 0)

    def rounds(self) -> Iterator[dict[Variant, Sequence[int]]]:
        """Rounds of boundary -> positions of documents; the table must be filled before the next one is asked for."""
        for documents in self._schedule:
            yield dict.fromkeys(self._running, self._order[:documents])
            if documents < self._table.documents:
                self._retire(documents)

    def positions(self, boundary: Variant) -> Sequence[int]:
        """The documents that the boundary met in this race, whatever else is known of it."""
        return sorted(self._order[: self.retired.get(boundary, self._table.documents)])

    def to_record(self) -> dict[str, Any]:
        """What the results file says about the race besides `retired_after`."""
        return {
            "error_rate": self.settings.error_rate,
            "tolerance": 0.0 if self._one_se else self.settings.tolerance,
            "rounds": self._schedule,
            "retired": [
                {"variant": str(verdict.boundary), "by": str(verdict.by), "reason": verdict.reason}
                for verdict in self._verdicts
            ],
        }

    def _retire(self, documents: int) -> None:
        if len(self._running) < 2:
            return
        seen = self._order[:documents]
        values = self._sign * np.array(
            [self._aggregation.per_document(self._table.items(boundary, seen)) for boundary in self._running]
        )
        verdicts = eliminate(
            values,
            self._running,
            self._kept,
            total=self._table.documents,
            critical=critical_value(self.settings.error_rate, self._rivals, len(self._schedule) - 1),
            margin=self._margin(values),
        )
        for verdict in verdicts:
            self.retired[verdict.boundary] = documents
            if verdict.reason == "no_better":
                self._kept.add(verdict.by)
        self._verdicts += verdicts
        self._running = [boundary for boundary in self._running if boundary not in self.retired]

    def _margin(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        """The standard error that the leader's score will have over all documents, as far as it can be seen now."""
        scored = [row[np.isfinite(row)] for row in values]
        leader = max(scored, key=lambda row: float(row.mean()) if len(row) else -math.inf)
        if len(leader) < 2:
            return 0.0
        stderr = float(np.std(leader, ddof=1)) / math.sqrt(self._table.documents)
        # one_se wants every boundary within one standard error of the best: only those further below may go.
        return stderr if self._one_se else -self.settings.tolerance * stderr


def schedule(documents: int, settings: RacingSettings) -> list[int]:
    """Documents seen after each round: the first round, then growing by `growth`; the last round is all of them."""
    rounds = []
    size = float(settings.first_round)
    # A last step of a few documents would cost a test and save nothing.
    while size * settings.growth**0.5 < documents:
        rounds.append(round(size))
        size *= settings.growth
    return [*rounds, documents]
