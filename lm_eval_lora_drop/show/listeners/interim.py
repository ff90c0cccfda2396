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
        self._items: dict[Variant, list[Any]] = {variant: [] for variant in sweep.candidates}
        self.add(sweep.known)

    def add(self, pairs: Sequence[tuple[Variant, int, Any]]) -> None:
        """Take up answered pairs."""
        for variant, _, item in pairs:
            self._items[variant].append(item)

    @property
    def pairs(self) -> int:
        """How many (variant, document) pairs have been answered."""
        return sum(map(len, self._items.values()))

    def leader(self) -> tuple[Variant, float] | None:
        """The best candidate and its score, None before there is one.

        Only candidates that have met as many documents as any other are comparable.
        """
        most = max(map(len, self._items.values()), default=0)
        best: tuple[Variant, float] | None = None
        for variant, items in self._items.items():
            if len(items) < most or not items:
                continue
            score = self._scores.aggregate(items)
            if score == score and (best is None or self._scores.metric.better(score, best[1])):
                best = variant, score
        return best
