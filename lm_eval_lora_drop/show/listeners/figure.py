"""Draws a sweep beside its journal, once the choice is made."""

from __future__ import annotations

from pathlib import Path

from lm_eval_lora_drop.record.events import Decided, Event
from lm_eval_lora_drop.text import logger

log = logger(__name__)


class SweepFigure:
    """Draws the sweep of every task that had one."""

    def hear(self, event: Event) -> None:
        """A decision that rests on a sweep is drawn."""
        if not isinstance(event, Decided) or event.record.sweep is None or event.record.journal is None:
            return
        # matplotlib takes a second to import, which a run without a sweep should not pay.
        from lm_eval_lora_drop.show.figures.family import figure_of
        from lm_eval_lora_drop.show.figures.style import save_figure

        files = save_figure(figure_of(event.task, event.record), Path(event.record.journal).with_suffix(""))
        log.info("%s: figure %s", event.task, files[0])
        if event.record.also:
            from lm_eval_lora_drop.show.figures.trade import trade_figure

            stem = Path(event.record.journal).with_suffix("")
            files = save_figure(trade_figure(event.task, event.record), stem.with_name(f"{stem.name}-trade"))
            log.info("%s: figure %s", event.task, files[0])
