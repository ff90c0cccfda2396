"""One bar for a whole sweep: pairs of variant and document, time left, and who leads."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from lm_eval_lora_drop.record.events import Answered, Event, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.show.listeners.interim import InterimScores
from lm_eval_lora_drop.text import decimals_for, number

SECONDS_BETWEEN_SCORES = 1.0


class ProgressBar:
    """A tqdm bar over this process's pairs; silent where `shown` is false (other ranks)."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bar: Any = None
        self._standing: InterimScores
        self._scored_at = 0.0

    def hear(self, event: Event) -> None:
        """Open, advance, close."""
        match event:
            case SweepStarted() if self._shown:
                self._standing = InterimScores(event)
                self._bar = tqdm(
                    total=len(event.candidates) * event.documents,
                    initial=len(event.known),
                    desc="sweep",
                    unit="pair",
                    dynamic_ncols=True,
                )
            case RoundStarted() if self._bar is not None:
                self._bar.total = self._bar.n + event.pairs
                self._bar.refresh()
            case Answered() if self._bar is not None and event.pairs:
                self._standing.add(event.pairs)
                now = time.monotonic()
                if now - self._scored_at > SECONDS_BETWEEN_SCORES:
                    self._scored_at = now
                    self._bar.set_postfix_str(self._leader(), refresh=False)
                self._bar.update(len(event.pairs))
            case SweepEnded() if self._bar is not None:
                self._bar.close()
                self._bar = None
            case _:
                pass

    def _leader(self) -> str:
        leader = self._standing.leader()
        if leader is None:
            return ""
        variant, score = leader
        return f"best {variant.label} ({number(score, decimals_for(None, score))})"
