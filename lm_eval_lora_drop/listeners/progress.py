"""One bar for a whole sweep: pairs of boundary and document, time left, and who leads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import best_boundary
from lm_eval_lora_drop.sweep.table import Table

SECONDS_BETWEEN_SCORES = 1.0


class Progress:
    """A tqdm bar over this process's pairs; `shares` processes divide a round between them."""

    def __init__(self, table: Table, scorer: Scorer, *, shown: bool, shares: int = 1) -> None:
        self._table = table
        self._scorer = scorer
        self._shares = shares
        self._items: dict[int, list[Any]] = {boundary: table.items(boundary) for boundary in table.boundaries}
        done = sum(len(items) for items in self._items.values())
        self._bar = tqdm(
            total=len(table.boundaries) * table.documents,
            initial=done,
            desc="sweep",
            unit="pair",
            disable=not shown,
            dynamic_ncols=True,
        )
        self._scored_at = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def start(self, wanted: Mapping[int, Sequence[int]]) -> None:
        """A round begins: what is known, and what it adds, is the new total."""
        if self._bar.disable:
            return
        self._items = {boundary: self._table.items(boundary) for boundary in self._table.boundaries}
        known = sum(len(items) for items in self._items.values())
        lacking = sum(
            not self._table.answered(boundary, position)
            for boundary, positions in wanted.items()
            for position in positions
        )
        self._bar.n = known
        self._bar.total = known + -(-lacking // self._shares)
        self._bar.refresh()

    def update(self, pairs: Sequence[tuple[int, int, Any]]) -> None:
        """Some pairs have been answered."""
        if self._bar.disable or not pairs:
            return
        for boundary, _, item in pairs:
            self._items[boundary].append(item)
        now = time.monotonic()
        if now - self._scored_at > SECONDS_BETWEEN_SCORES:
            self._scored_at = now
            running = sorted({boundary for boundary, _, _ in pairs})
            at = f"{running[0]}" if len(running) == 1 else f"{running[0]}-{running[-1]}"
            self._bar.set_postfix_str(f"K={at}{self._leader()}", refresh=False)
        self._bar.update(len(pairs))

    def _leader(self) -> str:
        # Only boundaries that have met as many documents as any other are comparable.
        most = max(len(items) for items in self._items.values())
        scores = {
            boundary: self._scorer.aggregate(items) for boundary, items in self._items.items() if len(items) == most
        }
        if all(score != score for score in scores.values()):
            return ""
        best = best_boundary(scores, self._scorer.metric)
        return f", best K={best} ({scores[best]:.4g})"
