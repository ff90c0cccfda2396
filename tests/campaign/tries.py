"""What the campaigns share: options, a state that survives a kill, a limit in CPU seconds, and rows of the one table."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.files import write_atomically

Row = tuple[str, int, int]
"""What was tried, how often, how often it failed."""


class TooLong(BaseException):
    """Raised in the middle of whatever took more CPU than it may; no `except Exception` swallows it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TooLong` inside after so many seconds of this process's CPU (a machine that is busy does not count)."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def options(about: str, name: str, **times: int) -> argparse.ArgumentParser:
    """The parser of a campaign: how often it tries what, its seed and its folder; `about` is the module's docstring."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    for what, default in times.items():
        parser.add_argument(f"--{what}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=_made, default=f".campaign/{name}")
    return parser


def _made(text: str) -> Path:
    Path(text).mkdir(parents=True, exist_ok=True)
    return Path(text)


def load(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Where a campaign in `folder` stands; empty lists and zero where it has not begun.

    Raises:
        SystemExit: the folder holds one with other settings.
    """
    file = folder / "state.json"
    if not file.exists():
        return {"settings": settings, "done": 0, "failures": []}
    found: dict[str, Any] = json.loads(file.read_text())
    if found["settings"] != settings:
        raise SystemExit(f"{folder} holds a campaign with {found['settings']}; name another --folder")
    return found


def left(folder: Path, state: dict[str, Any], times: int) -> Iterator[int]:
    """The numbers of the tries that are not done yet; one is done, and remembered, when the next is asked for."""
    for number in range(state["done"], times):
        yield number
        state["done"] = number + 1
        save(folder, state)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Remember where it stands."""
    write_atomically(folder / "state.json", json.dumps(state))


def print_table(rows: Sequence[Row], failures: Sequence[object] = ()) -> int:
    """The table, and what failed below it; 1 where anything did."""
    print("| tried | times | failed |\n|---|---|---|")
    for what, times, failed in rows:
        print(f"| {what} | {times:,} | {failed:,} |")
    for failure in failures[:20]:
        print(f"failed: {failure}")
    return int(any(failed for *_, failed in rows))
