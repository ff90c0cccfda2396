"""Writes each decision into the log: the sweep's table and what may be said of the choice."""

from __future__ import annotations

from lm_eval_lora_drop.record.events import Decided, Event
from lm_eval_lora_drop.show.verdict.sweep_text import MOST_ROWS, sweep_table
from lm_eval_lora_drop.show.verdict.trade_text import trade_table
from lm_eval_lora_drop.text import logger

log = logger(__name__)


class LogTable:
    """Logs the table of every sweep."""

    def hear(self, event: Event) -> None:
        """A decision that rests on a sweep is shown."""
        if isinstance(event, Decided) and event.record.sweep is not None:
            rows = len(event.record.sweep.candidates)
            log.info(
                "%s: %d of %d candidates\n%s",
                event.task,
                min(MOST_ROWS, rows),
                rows,
                sweep_table(event.record),
            )
            if event.record.also:
                log.info("%s\n%s", event.task, trade_table(event.record))
