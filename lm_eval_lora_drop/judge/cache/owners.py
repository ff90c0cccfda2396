"""Who is asking what: a process of this program, and whether it is still there.

Each process that uses a cache holds a lock on one byte of a file beside it, for as long as it lives. The kernel lets go
of the lock when the process ends, however it ends, so that its claims can be taken over at once: there is no question
of a number that another process has got meanwhile, nor of a container that was started anew. Where locks cannot tell
(another machine, Windows, a file system without them) a heartbeat does: an owner whose beat stands still for `LEASE`
seconds by the onlooker's own clock is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

BEAT = 5.0
"""Seconds between two heartbeats."""
LEASE = 30.0
"""Seconds without one after which an owner is believed to be gone."""


def this_kernel() -> str:
    """The same for all processes whose locks see each other: containers of a machine share it, a reboot changes it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return socket.gethostname()


class LockFile:
    """One byte for each owner of one cache, at the owner's number.

    POSIX record locks: they are not inherited by a fork, so that a child which outlives its parent does not speak for
    it; and a process loses all of its locks with the first descriptor of the file that it closes, so this class holds
    one descriptor for each file and never closes it.
    """

    _open: dict[tuple[int, str], LockFile] = {}  # noqa: RUF012  shared on purpose: one descriptor for each process and file

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._mine: set[int] = set()

    @classmethod
    def beside(cls, cache: Path) -> LockFile:
        """The file that belongs to `cache`, opened once per process. Raises OSError."""
        path = Path(f"{cache.resolve()}-owners")
        key = (os.getpid(), str(path))
        if key not in cls._open:
            cls._open[key] = cls(path)
        return cls._open[key]

    def hold(self, owner: int) -> bool:
        """Take the owner's byte until this process ends or `drop`s it; whether locks work here."""
        self._mine.add(owner)
        return self._lock(owner)

    def drop(self, owner: int) -> None:
        """Let go of the byte."""
        self._mine.discard(owner)
        if sys.platform != "win32":
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, owner)

    def is_held(self, owner: int) -> bool:
        """Whether some living process holds the byte; asked of an owner on this kernel that said its lock works."""
        if owner in self._mine:
            return True
        if not self._lock(owner):
            return True
        self.drop(owner)
        return False

    def _lock(self, owner: int) -> bool:
        if sys.platform == "win32":
            return False
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, owner)
        except OSError:
            return False
        return True


class HeartbeatMonitor:
    """Sees whether heartbeats stand still, by this process's own clock: those of two machines differ."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def stands_still(self, owner: int, beat: int) -> bool:
        """Whether `beat` has been the same for `LEASE` seconds of watching."""
        now = time.monotonic()
        before = self._seen.get(owner)
        if before is None or before[0] != beat:
            self._seen[owner] = beat, now
            return False
        return now - before[1] > LEASE
