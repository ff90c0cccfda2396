"""Every answer a judge ever gave, in one SQLite file that several processes may use at the same time.

An answer is found by what was asked: prompt, judge, options. The model that the provider says it served is stored with
it and is part of the primary key, so answers of different models never overwrite each other. A call is claimed
before it is made: a second process that wants the same answer waits for it instead of paying for it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.questions import Question

ENVIRONMENT = "LORA_DROP_JUDGE_CACHE"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL, served_model TEXT NOT NULL, judge TEXT NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL,
    stop TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, raw TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (key, served_model));
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL);
"""


@dataclass(frozen=True)
class Reply:
    """What came back from a provider: `model` is the one named in the response, `raw` the whole body as JSON.

    `stop` is `stop`, `length` or `refusal`; token counts are None where the server gives none.
    """

    text: str
    model: str
    stop: str
    input_tokens: int | None
    output_tokens: int | None
    raw: str


def default_cache() -> Path:
    """LORA_DROP_JUDGE_CACHE, or a file in the user's cache folder."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else user_cache_path("lm-eval-lora-drop") / "judges.sqlite"


def answer_key(judge: Judge, question: Question) -> str:
    """SHA-256 of everything that the answer depends on and that is known before asking."""
    schema = question.schema if judge.structured else None
    asked = json.dumps([judge.identity, question.prompt, schema], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """The file of answers, open as long as this object lives; every use is one short transaction of its own."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_cache()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            # With a write-ahead log this outlives a killed process; only a power cut can lose the last answers.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ArgumentError(
                f"{self.path}: the judges' cache cannot be used ({error}). Name another file in {ENVIRONMENT}."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def get(self, key: str) -> Reply | None:
        """The first answer that was given to what `key` stands for."""
        with self._lock:
            row = self._connection.execute(
                "SELECT text, served_model, stop, input_tokens, output_tokens, raw FROM answers WHERE key = ? "
                "ORDER BY time LIMIT 1",
                (key,),
            ).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: str, judge: Judge, question: Question, reply: Reply) -> None:
        """Keep an answer and release the claim; safe from a kill of this process when this returns."""
        row = (
            key,
            reply.model,
            json.dumps(judge.identity, ensure_ascii=False, default=str),
            *(text.encode("utf-8", "replace").decode("utf-8") for text in (question.prompt, reply.text)),
            reply.stop,
            reply.input_tokens,
            reply.output_tokens,
            reply.raw.encode("utf-8", "replace").decode("utf-8"),
            time.time(),
        )
        with self._open() as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM claims WHERE key = ?", (key,))

    def claim(self, key: str, seconds: float) -> bool:
        """Whether this process may make the call; a claim ends with its process, or after `seconds`."""
        host, now = socket.gethostname(), time.time()
        with self._open() as connection:
            row = connection.execute("SELECT host, pid, until FROM claims WHERE key = ?", (key,)).fetchone()
            if row is not None and row[2] > now and (row[0] != host or _alive(row[1])):
                return False
            if connection.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                return False
            connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", (key, host, os.getpid(), now + seconds)
            )
        return True

    def release(self, key: str) -> None:
        """Give up a claim whose call brought no answer."""
        with self._open() as connection:
            connection.execute("DELETE FROM claims WHERE key = ?", (key,))


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there signal 0 is Ctrl-C; the claim's time limit must do
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
