"""One bar for a whole sweep: pairs of variant and document, time left, and who leads.

On a terminal it is a line that is drawn anew, and log lines appear above it. Elsewhere (a file, `tail -f`, the log of a
batch job) it is a log line a minute.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from lm_eval_lora_drop.record.events import Answered, Event, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.show.listeners.interim import InterimScores
from lm_eval_lora_drop.text import decimals_for, logger, number

log = logger(__name__)

SECONDS_BETWEEN_SCORES = 1.0
SECONDS_BETWEEN_LINES = 60.0
LINE = "{desc}: {n_fmt} of {total_fmt} answers, {elapsed} passed, {remaining} left{postfix}"


class ProgressBar:
    """A tqdm bar over this process's pairs."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._handlers: list[logging.Handler] = []
        self._standing: InterimScores
        self._scored_at = 0.0

    def hear(self, event: Event) -> None:
        """Open, advance, close."""
        match event:
            case SweepStarted():
                self._open(event)
            case RoundStarted() if self._bar is not None:
                self._standing.begin_round(event.running)
                self._bar.total = self._bar.n + event.pairs
                if on_terminal():
                    self._bar.refresh()
            case Answered() if self._bar is not None and event.pairs:
                self._standing.add(event.pairs)
                now = time.monotonic()
                if now - self._scored_at > SECONDS_BETWEEN_SCORES:
                    self._scored_at = now
                    self._bar.set_postfix_str(self._leader(), refresh=False)
                self._bar.update(len(event.pairs))
            case SweepEnded() if self._bar is not None:
                for handler in self._handlers:
                    handler.removeFilter(self._above)
                self._bar.set_postfix_str(self._leader(), refresh=False)
                self._bar.close()
                self._bar = None
            case _:
                pass

    def _open(self, event: SweepStarted) -> None:
        self._standing = InterimScores(event)
        here = on_terminal()
        look = {"dynamic_ncols": True} if here else {"mininterval": SECONDS_BETWEEN_LINES, "bar_format": LINE}
        self._bar = tqdm(
            total=len(event.candidates) * event.documents,
            initial=len(event.known),
            desc="sweep",
            unit="pair",
            miniters=1,
            postfix=self._leader() or "first batch",
            file=sys.stderr if here else _LogLines(),
            **look,
        )
        loggers = map(logging.getLogger, (None, "lm_eval", __name__.partition(".")[0]))
        self._handlers = [handler for one in loggers for handler in one.handlers] if here else []
        for handler in self._handlers:
            handler.addFilter(self._above)

    def _above(self, _: logging.LogRecord) -> bool:
        """Clears the bar, which would begin the line of a log record; the next answer draws it below."""
        self._bar.clear()
        return True

    def _leader(self) -> str:
        leader = self._standing.leader()
        if leader is None:
            return ""
        variant, score, documents = leader
        return f"best {variant.label} ({number(score, decimals_for(None, score))}, n = {documents})"


class _LogLines(io.StringIO):
    """Makes a log line of every state of a bar."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info(text.strip())
        return len(text)


def on_terminal() -> bool:
    """Whether a line can be drawn anew: on a terminal, and in a notebook, which shows no log."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
