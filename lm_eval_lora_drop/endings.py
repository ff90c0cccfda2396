"""How a command ends that is stopped from outside or has no memory left: in one line that says what is kept."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
from types import FrameType, TracebackType

from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.text import never_raise_on_print, shown, visible


class TerminatedBySignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where SIGINT raises `KeyboardInterrupt`: what survives the one survives the other."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


_NO_MEMORY = re.compile("can't allocate memory|not enough memory|ALLOC_FAILED")
_after_interrupt: str | None = None


def on_interrupt(text: str) -> None:
    """From now on `text` says what the end of a run under `lm_eval` leaves, and how to go on."""
    global _after_interrupt
    _after_interrupt = text


def raise_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise `TerminatedBySignal` in the main thread of this process, where nobody handles or
    ignores them.

    `nohup` ignores SIGHUP, and a program of one's own may handle either: both are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    mine = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != mine:  # a forked worker: it ends as it would have without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise TerminatedBySignal(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this process, or its device, had no memory left; torch raises errors of its own, which it need not be
    imported for."""
    return bool(
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)))
    )


def last_line(error: BaseException, kept: str) -> tuple[str, int] | None:
    """What to say of an error that ends a command, and the exit status; None for a bug, which keeps its traceback.

    `kept` says what the command leaves for the next time.
    """
    if isinstance(error, KeyboardInterrupt):
        # 128 and the number of the signal, as shells report it.
        number = error.number if isinstance(error, TerminatedBySignal) else signal.SIGINT
        return f"{error if isinstance(error, TerminatedBySignal) else 'interrupted'}. {kept}", 128 + number
    if is_out_of_memory(error):
        said = shown(error, 200) or type(error).__name__
        return f"out of memory ({said}). {kept} Use smaller batches (--batch_size 1, sweep_batch_size=8).", 1
    return (visible(str(error)), 1) if isinstance(error, LoraDropError) else None


def end_lm_eval_in_one_line() -> None:
    """Have the command `lm_eval` end in one line, not in a traceback, after an error of ours, a signal, or without
    memory; and have nothing that it prints fail for the terminal's encoding.

    Called by what is asked for by name only, a model type or a task of ours; in a program of one's own, which calls
    `simple_evaluate`, nothing changes. Without `on_interrupt` signals and memory are left alone, and so is everything
    with LMEVAL_LOG_LEVEL=DEBUG.
    """
    before = sys.excepthook
    if "lm_eval._cli" not in sys.modules or getattr(before, "__module__", None) == __name__:
        return
    never_raise_on_print()
    raise_on_signals()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = last_line(error, _after_interrupt or "")
        if (
            found is None
            or logging.getLogger("lm_eval").isEnabledFor(logging.DEBUG)
            or (_after_interrupt is None and not isinstance(error, LoraDropError))
        ):
            before(kind, error, trace)
            return
        print(f"lm_eval: {found[0]}", file=sys.stderr, flush=True)
        raise SystemExit(found[1])

    sys.excepthook = hook
