"""Sweeps that are killed: does the next one go on where it stood, with the same table, asking nothing twice?
A runner that answers by a rule stands for the model; planning, journal, scoring and choice are the real ones, in
processes forked from this one. Each is killed by SIGKILL at a random moment, some in the middle of writing a line.
Every pair of document and candidate that is asked is noted before it is answered, so that what was asked twice can be
counted: at most the batch that was in flight at each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.sweep.backend import Work
from testing import doubles
from testing.doubles import exact_match_rule

BATCH = 3
"""Documents a batch; a kill can cost the answers of one batch."""
ACCURACY = {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 0.9, 5: 0.7, 6: 0.6}


class NotingRunner:
    """Answers by rule, and notes each pair in a file as soon as it is asked; slow enough to be killed within."""

    def __init__(self, asked: Path, seconds: float) -> None:
        self._file = os.open(asked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seconds = seconds
        self._rule = exact_match_rule(ACCURACY)

    def __call__(self, work: Sequence[Work]) -> Iterator[list[Answer]]:
        for start in range(0, len(work), BATCH):
            answers = []
            for item in work[start : start + BATCH]:
                for variant in item.variants:
                    assert variant.boundary is not None
                    os.write(self._file, f"{variant.boundary} {item.document.doc_id}\n".encode())
                    answers.append(Answer(variant, item.document, self._rule(variant.boundary, item.document)))
            time.sleep(self._seconds)
            yield answers


def sweep(task: Any, documents: Any, folder: Path, strategy: str, seconds: float) -> str:
    """One sweep to its end; the record as text, without what tells a resumed one from another."""
    runner = NotingRunner(folder / "asked.txt", seconds)
    found = doubles.sweep(task, folder, runner, documents=documents, strategy=strategy)
    return json.dumps(plain(msgspec.to_builtins(found)), sort_keys=True)


def killed(task: Any, documents: Any, folder: Path, strategy: str, draw: random.Random) -> bool:
    """Start a sweep in a process of its own and kill it; whether the kill came before its end."""
    child = os.fork()
    if not child:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            if draw.random() < 0.3:
                _die_while_writing(draw.randint(1, 12))
            sweep(task, documents, folder, strategy, 0.002)
        finally:
            os._exit(0)
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_while_writing(after: int) -> None:
    """SIGKILL between two halves of what the journal hands to the system, the so-manieth time it writes."""
    fdopen, left = os.fdopen, [after]

    class Torn:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> int:
            self._file.write(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

    def opened(*args: Any, **named: Any) -> Any:
        left[0] -= 1
        file = fdopen(*args, **named)
        return Torn(file) if left[0] == 0 else file

    os.fdopen = opened  # type: ignore[assignment]
