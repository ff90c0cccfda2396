"""Every call that was ever made to a judge, in one SQLite file that several processes may use at the same time.

A call is written down before it is made, with what it can cost at most: a process that is killed leaves the note that
it may have been billed, and a disk that is full stops the program before the next call rather than after it. What comes
back is stored as it came, before anybody reads it, so that reading it anew costs nothing. A question is claimed while
it is being asked: a second process that wants the same answer waits for it instead of paying for it again.

Not diskcache, which keeps pickles (a file that runs code when it is read) and knows neither claims nor costs.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_path

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.judge.cache.owners import BEAT, HeartbeatMonitor, LockFile, this_kernel
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.text import logger

log = logger(__name__)

Made = TypeVar("Made")
POLL = 0.2
"""Seconds between two attempts at what another process holds."""
_SAY_AFTER, _SAY_EVERY = 2.0, 60.0
ENVIRONMENT = "LORA_DROP_JUDGE_CACHE"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, prompt TEXT NOT NULL, body TEXT,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS calls_by_key ON calls (key);
CREATE TABLE IF NOT EXISTS owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kernel TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    locks INTEGER NOT NULL, beat INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner INTEGER NOT NULL);
"""
_APPLICATION = 0x4C6F5241  # "LoRA": marks the file as ours


class CacheError(LoraDropError):
    """The file cannot be written or read any more: the disk is full, or it was taken away."""


class CacheBusyError(CacheError):
    """Another process holds the file at this moment: nothing is wrong with it, and the same call succeeds later."""


class BusyNotice:
    """Says that the cache is busy where somebody has to wait for it, once in a while."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._next = 0.0

    def say(self, busy: CacheBusyError) -> None:
        """Called at every attempt that found it busy."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._next = now, now + _SAY_AFTER
        if now >= self._next:
            self._next = now + _SAY_EVERY
            log.warning("%s; waiting for %.0f s. Let that process finish, or end it.", busy, now - self._since)


def wait_while_busy(call: Callable[..., Made], *args: Any) -> Made:
    """The value of `call(*args)`, however long another process holds the file."""
    patience = BusyNotice()
    while True:
        try:
            return call(*args)
        except CacheBusyError as busy:
            patience.say(busy)
            time.sleep(POLL)


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
    """The file of calls, open as long as this object lives; every use is one short transaction of its own.

    All methods but the constructor raise CacheError where the file fails, CacheBusyError where another process holds
    it; the constructor waits.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_cache()
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._watch, self._waited_for = HeartbeatMonitor(), set[int]()
        self._ended = threading.Event()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError("it is no regular file")
            self._connection = sqlite3.connect(self.path, timeout=POLL, isolation_level=None, check_same_thread=False)
            wait_while_busy(self._set_up)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise ArgumentError(
                f"{str(self.path)!r}: the judges' cache cannot be used ({error}). If it holds paid answers, restore or "
                f"repair it (sqlite3 FILE .recover); else name another file in {ENVIRONMENT}."
            ) from error

    def _set_up(self) -> None:
        try:
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != _APPLICATION:
                raise OSError("it is another program's database")
            self._connection.execute("PRAGMA journal_mode=WAL")
            # With a write-ahead log this outlives a killed process; answers themselves are synced (see `keep`).
            self._connection.execute("PRAGMA synchronous=NORMAL")
            if not tables:
                self._connection.execute(f"PRAGMA application_id={_APPLICATION}")
            self._connection.executescript(_SCHEMA)
            # A file of another version of this program, whose columns are others, ends here and not at a paid answer.
            self._connection.execute(
                "SELECT key, judge, prompt, body, input_tokens, output_tokens, time FROM calls LIMIT 0"
            )
        except sqlite3.OperationalError as error:
            raise self._failure("opened", error) if _is_busy(error) else error from None

    def _failure(self, what: str, error: Exception) -> CacheError:
        if _is_busy(error):
            return CacheBusyError(f"the judges' cache {self.path} is busy: another process holds it")
        return CacheError(f"the judges' cache {self.path} cannot be {what} ({error})")

    def close(self) -> None:
        """Give up all claims and close the file."""
        self._ended.set()
        with self._lock:
            if self._owner is not None:
                try:
                    self._forget(self._connection, self._owner)
                except sqlite3.Error:  # the next process to come takes them over
                    log.debug("claims of owner %d remain, to be taken over", self._owner)
                LockFile.beside(self.path).drop(self._owner)
                self._owner = None
            self._connection.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except (OSError, sqlite3.Error) as error:
                raise self._failure("written", error) from error

    def bodies(self, key: str) -> list[str]:
        """The responses that were given to what `key` stands for, in the order in which they came."""
        return [body for body, _ in self._stored(key)]

    def answered_at(self, key: str) -> float | None:
        """When the first response to what `key` stands for was asked for, in seconds since 1970."""
        return next((when for _, when in self._stored(key)), None)

    def _stored(self, key: str) -> list[tuple[str, float]]:
        with self._lock:
            try:
                return self._connection.execute(
                    "SELECT body, time FROM calls WHERE key = ? AND body IS NOT NULL ORDER BY id", (key,)
                ).fetchall()
            except sqlite3.Error as error:
                raise self._failure("read", error) from error

    def begin(self, key: str, judge: Judge, question: Question, tokens: tuple[int, int]) -> int:
        """Note a call that is about to be made and what it can take at most, in input and output tokens."""
        identity = json.dumps(judge.identity, ensure_ascii=False, default=str)
        row = (key, _utf8(identity), _utf8(question.prompt), *tokens, time.time())
        with self._open() as connection:
            found = connection.execute(
                "INSERT INTO calls (key, judge, prompt, input_tokens, output_tokens, time) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            return int(found.lastrowid or 0)

    def keep(self, call: int, body: str) -> None:
        """Store what came back; safe from a kill of this process and from a power cut when this returns."""
        with self._lock:
            self._connection.execute("PRAGMA synchronous=FULL")
            try:
                with self._open() as connection:
                    connection.execute("UPDATE calls SET body = ? WHERE id = ?", (_utf8(body), call))
            finally:
                self._connection.execute("PRAGMA synchronous=NORMAL")

    def count(self, call: int, tokens: tuple[int, int]) -> None:
        """What a call took in the end, instead of what it can take at most."""
        with self._open() as connection:
            connection.execute("UPDATE calls SET input_tokens = ?, output_tokens = ? WHERE id = ?", (*tokens, call))

    def forget(self, call: int) -> None:
        """Strike out a call that was refused, and so not billed."""
        with self._open() as connection:
            connection.execute("DELETE FROM calls WHERE id = ?", (call,))

    def used(self, keys: Iterable[str]) -> tuple[int, int, int]:
        """Calls, input and output tokens for these questions so far, by whatever process, kept or lost."""
        keys, total = list(dict.fromkeys(keys)), [0, 0, 0]
        with self._lock:
            try:
                for start in range(0, len(keys), 500):
                    some = keys[start : start + 500]
                    marks = ",".join("?" * len(some))
                    row = self._connection.execute(
                        "SELECT count(*), total(input_tokens), total(output_tokens) FROM calls "  # noqa: S608  marks only
                        f"WHERE key IN ({marks})",
                        some,
                    ).fetchone()
                    total = [before + int(now) for before, now in zip(total, row, strict=True)]
            except sqlite3.Error as error:
                raise self._failure("read", error) from error
        return total[0], total[1], total[2]

    def claim(self, key: str) -> bool:
        """Whether this object may ask now: nobody else that is still there is asking the same. See `owners`."""
        with self._open() as connection:
            me = self._owner if self._owner is not None else self._enter(connection)
            row = connection.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] != me and not self._is_gone(connection, row[0]):
                return False
            if row is not None and row[0] == me:
                return False  # another question of ours with the same words
            connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, me))
        if self._owner is None:
            self._owner = me
            threading.Thread(target=self._beat, daemon=True, name="judge-cache-heartbeat").start()
        return True

    def release(self, key: str) -> None:
        """Give up a claim."""
        with self._open() as connection:
            connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def _enter(self, connection: sqlite3.Connection) -> int:
        """Become an owner, and clear away those that were killed: the lock is held before anybody can see the row."""
        for (owner,) in connection.execute(
            "SELECT id FROM owners WHERE id NOT IN (SELECT owner FROM claims)"
        ).fetchall():
            if self._lock_is_free(connection, owner):
                self._forget(connection, owner)
        row = (this_kernel(), socket.gethostname(), os.getpid())
        new = connection.execute("INSERT INTO owners (kernel, host, pid, locks, beat) VALUES (?, ?, ?, 0, 0)", row)
        me = int(new.lastrowid or 0)
        if LockFile.beside(self.path).hold(me):
            connection.execute("UPDATE owners SET locks = 1 WHERE id = ?", (me,))
        return me

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                with self._open() as connection:
                    connection.execute("UPDATE owners SET beat = beat + 1 WHERE id = ?", (self._owner,))
            except CacheError as error:  # a full disk; whoever asks next is told, and on this machine the lock speaks
                log.debug("no heartbeat: %s", error)

    def _lock_is_free(self, connection: sqlite3.Connection, owner: int) -> bool:
        """Whether the owner's process has ended, as far as locks can tell."""
        found = connection.execute("SELECT 1 FROM owners WHERE id = ? AND kernel = ? AND locks", (owner, this_kernel()))
        return found.fetchone() is not None and not LockFile.beside(self.path).is_held(owner)

    def _is_gone(self, connection: sqlite3.Connection, owner: int) -> bool:
        row = connection.execute("SELECT host, pid, beat FROM owners WHERE id = ?", (owner,)).fetchone()
        if row is not None:
            host, pid, beat = row
            dead = self._lock_is_free(connection, owner)
            if not dead and not self._watch.stands_still(owner, beat):
                if owner not in self._waited_for:
                    self._waited_for.add(owner)
                    log.info("waiting for answers that process %d on %s is asking for", pid, host)
                return False
            why = "is gone" if dead else "has no heartbeat"
            (number,) = connection.execute("SELECT count(*) FROM claims WHERE owner = ?", (owner,)).fetchone()
            log.warning("process %d on %s %s: its %d questions in flight are asked again", pid, host, why, number)
        self._forget(connection, owner)
        return True

    @staticmethod
    def _forget(connection: sqlite3.Connection, owner: int) -> None:
        connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))
        connection.execute("DELETE FROM owners WHERE id = ?", (owner,))


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
