"""The two things that go wrong by the user's hand; everything else is a bug and keeps its own exception."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of SIGINT, as shells report it."""
_LONGEST = 1500
"""Characters of a message; the longest of our own, with lists of names, have some 800."""


class LoraDropError(Exception):
    """Base of the errors that carry a message for the user: the rule, what came, the way out.

    What came may be a file of megabytes: the middle of a message that is longer than anybody reads is left out, and
    one of many lines is made one.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)
        if text.count("\n") > 1:
            text = " ".join(text.split())
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 400]} ... {text[-300:]}")


class ArgumentError(LoraDropError, ValueError):
    """A model_arg, a command-line option or a config entry that cannot be used as written."""


class AdapterError(LoraDropError, ValueError):
    """An adapter or a base model that cannot be evaluated layer by layer."""


_after_interrupt: str | None = None


def on_interrupt(text: str) -> None:
    """From now on `text` says what Ctrl-C leaves of a run under `lm_eval`, and how to go on."""
    global _after_interrupt
    _after_interrupt = text


def end_lm_eval_in_one_line() -> None:
    """Have the command `lm_eval` end in one line, not in a traceback, after an error of ours or Ctrl-C.

    Called by what is asked for by name only, a model type or a task of ours; in a program of one's own, which calls
    `simple_evaluate`, nothing changes. Ctrl-C without `on_interrupt` is left alone, and so is everything with
    LMEVAL_LOG_LEVEL=DEBUG.
    """
    before = sys.excepthook
    if "lm_eval._cli" not in sys.modules or getattr(before, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        interrupted = kind is KeyboardInterrupt and _after_interrupt is not None
        if logging.getLogger("lm_eval").isEnabledFor(logging.DEBUG) or not (
            interrupted or isinstance(error, LoraDropError)
        ):
            before(kind, error, trace)
            return
        print(f"lm_eval: {f'interrupted. {_after_interrupt}' if interrupted else error}", file=sys.stderr, flush=True)
        if interrupted:
            raise SystemExit(INTERRUPTED)

    sys.excepthook = hook
