"""Draws a sweep beside its journal, once the choice is made."""

from __future__ import annotations

from pathlib import Path

from lm_eval_lora_drop.record.events import Decided, Event
from lm_eval_lora_drop.text import logger

log = logger(__name__)


class SweepFigure:
    """Draws the sweep of every task that had one."""

    def hear(self, event: Event) -> None:
        """Draw a decision that rests on a sweep."""
        if not isinstance(event, Decided) or event.record.sweep is None or event.record.journal is None:
            return
        # matplotlib takes a second to import, which a run without a sweep should not pay.
        from lm_eval_lora_drop.show.figures.candidates import save_figures_of

        stem = Path(event.record.journal).with_suffix("")
        for file in save_figures_of(event.task, event.record, stem, ("png", "svg"))[::2]:
            log.debug("%s: figure %s", event.task, file)
