"""Every call that was ever made to a judge, in one SQLite file; one process at a time asks.

A call is written down before it is made, with what it can cost at most: a process that is killed leaves the note that
it may have been billed, and a disk that is full stops the program before the next call rather than after it. What comes
back is stored as it came, so that reading it anew costs nothing. A process that wants to ask while another one does
waits for it: it then finds the answers that both need, and neither a server's limit on simultaneous calls nor a
spending cap is divided between them. The lock is the kernel's, which releases it however a process ends.

Not diskcache, which keeps pickles (a file that runs code when it is read) and knows no costs.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.text import logger

log = logger(__name__)

ENVIRONMENT = "LORA_DROP_JUDGE_CACHE"
_POLL = 0.2
"""Seconds between two attempts at what another process holds."""
_SAY_AFTER, _SAY_EVERY = 2.0, 60.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, "
    "prompt TEXT NOT NULL, body TEXT, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, "
    "time REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS calls_by_key ON calls (key)",
    # A file of another version of this program, whose columns are others, fails here and not at a paid answer.
    "SELECT key, judge, prompt, body, input_tokens, output_tokens, time FROM calls LIMIT 0",
)
_APPLICATION = 0x4C6F5241  # "LoRA": marks the file as ours


class CacheError(LoraDropError):
    """The file cannot be written or read any more: the disk is full, or it was taken away."""


class _Patience:
    """Waits for what another process holds, and logs that after two seconds and then once a minute."""

    def __init__(self, path: Path, why: str) -> None:
        self._path, self._why = path, why
        self._since = time.monotonic()
        self._next = self._since + _SAY_AFTER

    def wait(self) -> None:
        """Called after every attempt that failed."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SAY_EVERY
            waited = now - self._since
            log.warning(
                "the judges' cache %s is busy: another process %s; waiting for %.0f s. Let that process finish, or "
                "end it; no answer is lost.",
                self._path,
                self._why,
                waited,
            )
        time.sleep(_POLL)


def default_cache() -> Path:
    """LORA_DROP_JUDGE_CACHE, or a file in the user's cache folder. Raises ArgumentError."""
    given = os.environ.get(ENVIRONMENT)
    try:
        return Path(given).expanduser() if given else user_cache_path("lm-eval-lora-drop") / "judges.sqlite"
    except RuntimeError as error:
        raise ArgumentError(f"{ENVIRONMENT} must name a file; {given!r} cannot be one ({error}).") from error


def answer_key(judge: Judge, question: Question) -> str:
    """SHA-256 of everything that the answer depends on and that is known before asking.

    The first of several samples is the answer where one is asked for.
    """
    schema = question.schema if judge.structured else None
    return digest(judge.identity, question.prompt, schema, *([question.sample] if question.sample else []))


class Cache:
    """The file of calls, open as long as this object lives; every use is one statement, a transaction of its own.

    All methods wait while another process holds the file, and raise CacheError where it fails.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_cache()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError("it is no regular file")
            self._connection = sqlite3.connect(self.path, timeout=_POLL, isolation_level=None, check_same_thread=False)
            self._set_up()
        except (OSError, ValueError, sqlite3.Error, CacheError) as error:
            raise ArgumentError(
                f"{str(self.path)!r}: the judges' cache cannot be used ({error}). If it holds paid answers, restore or "
                f"repair it (sqlite3 FILE .recover); else name another file in {ENVIRONMENT}."
            ) from error

    def _set_up(self) -> None:
        ((application,),), ((tables,),) = (
            self._execute(statement)[0] for statement in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
        )
        if tables and application != _APPLICATION:
            raise OSError("it is another program's database")
        # With a write-ahead log a reader waits for nobody; `synchronous=FULL` outlives a power cut as well as a kill.
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
            self._execute(statement)
        if not tables:
            self._execute(f"PRAGMA application_id={_APPLICATION}")
        for statement in _SCHEMA:
            self._execute(statement)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within this, no other process (or thread) asks judges through this file; waits for one that does.

        Raises:
            ArgumentError: the folder takes no lock file, or its file system has no locks.
        """
        lock, patience = FileLock(f"{self.path}.lock"), _Patience(self.path, "asks judges")
        while not lock.is_locked:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                patience.wait()
            except (OSError, NotImplementedError) as error:
                raise ArgumentError(
                    f"{lock.lock_file}: the judges' cache cannot be locked ({error}), so two processes could pay for "
                    f"the same answers. Move it to a local disk and name it in {ENVIRONMENT}."
                ) from error
        try:
            yield
        finally:
            lock.release()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> tuple[list[Any], int]:
        """The rows of a statement, and the id of the row that it added."""
        patience = _Patience(self.path, "holds it")
        while True:
            try:
                with self._lock:
                    cursor = self._connection.execute(statement, values)
                    return cursor.fetchall(), cursor.lastrowid or 0
            except (OSError, sqlite3.Error) as error:
                if not (
                    isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))
                ):
                    verb = "read" if statement.startswith("SELECT") else "written"
                    raise CacheError(f"the judges' cache {self.path} cannot be {verb} ({error})") from error
            patience.wait()

    def bodies(self, key: str) -> list[str]:
        """The responses that were given to what `key` stands for, in the order in which they came."""
        return [body for body, _ in self._stored(key)]

    def answered_at(self, key: str) -> float | None:
        """When the first response to what `key` stands for was asked for, in seconds since 1970."""
        return next((when for _, when in self._stored(key)), None)

    def _stored(self, key: str) -> list[tuple[str, float]]:
        query = "SELECT body, time FROM calls WHERE key = ? AND body IS NOT NULL ORDER BY id"
        return self._execute(query, (key,))[0]

    def begin(self, key: str, judge: Judge, question: Question, tokens: tuple[int, int]) -> int:
        """Note a call that is about to be made and what it can take at most, in input and output tokens."""
        identity = json.dumps(judge.identity, ensure_ascii=False, default=str)
        return self._execute(
            "INSERT INTO calls (key, judge, prompt, input_tokens, output_tokens, time) VALUES (?, ?, ?, ?, ?, ?)",
            (key, _utf8(identity), _utf8(question.prompt), *tokens, time.time()),
        )[1]

    def keep(self, call: int, body: str, tokens: tuple[int, int]) -> None:
        """Store what came back and what it took; safe from a kill and from a power cut when this returns."""
        self._execute(
            "UPDATE calls SET body = ?, input_tokens = ?, output_tokens = ? WHERE id = ?", (_utf8(body), *tokens, call)
        )

    def forget(self, call: int) -> None:
        """Strike out a call that was refused, and so not billed."""
        self._execute("DELETE FROM calls WHERE id = ?", (call,))

    def used(self, keys: Iterable[str]) -> tuple[int, int, int]:
        """Calls, input and output tokens for these questions so far, by whatever process, kept or lost."""
        query = (
            "SELECT count(*), total(input_tokens), total(output_tokens) FROM calls "
            "WHERE key IN (SELECT value FROM json_each(?))"
        )
        ((calls, read, wrote),) = self._execute(query, (json.dumps(list(keys)),))[0]
        return calls, int(read), int(wrote)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
