"""How a sweep stands while it goes on: pairs answered, and the best candidate so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_lora_drop.record.events import SweepStarted
from lm_eval_lora_drop.variant import Variant


class InterimScores:
    """Collects the items of a sweep from its events."""

    def __init__(self, sweep: SweepStarted) -> None:
        self._scores = sweep.scores
        self._items: dict[Variant, dict[int, Any]] = {variant: {} for variant in sweep.candidates}
        self._running = self._items
        self.add(sweep.known)

    def add(self, pairs: Sequence[tuple[Variant, int, Any]]) -> None:
        """Take up answered pairs."""
        for variant, position, item in pairs:
            self._items[variant][position] = item

    def begin_round(self, running: Sequence[Variant]) -> None:
        """From now on only these candidates are compared: others were eliminated, or have not been asked."""
        self._running = {variant: self._items[variant] for variant in running}

    @property
    def pairs(self) -> int:
        """How many (variant, document) pairs have been answered."""
        return sum(map(len, self._items.values()))

    def leader(self) -> tuple[Variant, float, int] | None:
        """The best candidate, its score and the number of documents: those that every candidate has answered.

        None before there is such a document. A batch ends short answers first, and those are no fair sample.
        """
        items = self._running
        common = set.intersection(*map(set, items.values())) if items else set()
        best: tuple[Variant, float, int] | None = None
        for variant, answered in items.items() if common else ():
            score = self._scores.aggregate([answered[position] for position in sorted(common)])
            if score == score and (best is None or self._scores.metric.better(score, best[1])):
                best = variant, score, len(common)
        return best
