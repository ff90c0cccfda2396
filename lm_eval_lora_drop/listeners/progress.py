"""One bar for a whole sweep: pairs of variant and document, time left, and who leads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lm_eval_lora_drop.record.events import Answered, Event, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.variant import Variant

SECONDS_BETWEEN_SCORES = 1.0


class ProgressBar:
    """A tqdm bar over this process's pairs; silent where `shown` is false (other ranks)."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bar: Any = None
        self._sweep: SweepStarted
        self._items: dict[Variant, list[Any]] = {}
        self._scored_at = 0.0

    def hear(self, event: Event) -> None:
        """Open, advance, close."""
        match event:
            case SweepStarted():
                self._open(event)
            case RoundStarted() if self._bar is not None:
                self._bar.total = self._bar.n + event.pairs
                self._bar.refresh()
            case Answered() if self._bar is not None and event.pairs:
                self._advance(event.pairs)
            case SweepEnded() if self._bar is not None:
                self._bar.close()
                self._bar = None
            case _:
                pass

    def _open(self, sweep: SweepStarted) -> None:
        if not self._shown:
            return
        self._sweep = sweep
        self._items = {variant: [] for variant in sweep.candidates}
        for variant, _, item in sweep.known:
            self._items[variant].append(item)
        self._bar = tqdm(
            total=len(sweep.candidates) * sweep.documents,
            initial=len(sweep.known),
            desc="sweep",
            unit="pair",
            dynamic_ncols=True,
        )

    def _advance(self, pairs: Sequence[tuple[Variant, int, Any]]) -> None:
        for variant, _, item in pairs:
            self._items[variant].append(item)
        now = time.monotonic()
        if now - self._scored_at > SECONDS_BETWEEN_SCORES:
            self._scored_at = now
            self._bar.set_postfix_str(self._leader(), refresh=False)
        self._bar.update(len(pairs))

    def _leader(self) -> str:
        # Only candidates that have met as many documents as any other are comparable.
        most = max(len(items) for items in self._items.values())
        metric = self._sweep.scores.metric
        best: tuple[float, Variant] | None = None
        for variant, items in self._items.items():
            if len(items) == most:
                score = self._sweep.scores.aggregate(items)
                if score == score and (best is None or metric.better(score, best[0])):
                    best = score, variant
        return f"best {best[1].label} ({best[0]:.4g})" if best else ""
