"""Answers of the evaluated split on disk, so that one that is known is not computed again.

A sweep that keeps the full adapter needs the answers of the full adapter's own run. Groups of requests
are kept whole, a file each: answers of half a group would change the batches, and with them the rounding, of the rest.
The harness's own cache (`--use_cache`) keys an answer by its request alone, so it cannot hold two variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.fingerprint import short
from lm_eval_lora_drop.record.journal import decode, encode, read_line, write_line
from lm_eval_lora_drop.text import logger

log = logger(__name__)


class KeptAnswers:
    """The groups of requests that were answered before, below one folder.

    A group's key is a digest of everything that changes its answers: the model, what is kept of its adapter, device,
    batch size, versions of the libraries, and every request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, requests: int) -> list[Any] | None:
        """The answers of a group of `requests` requests; None if absent, or if the file is damaged (a warning)."""
        path = self._path(key)
        try:
            content = read_line(path.read_bytes().removesuffix(b"\n"))
            if content["key"] != key or len(content["answers"]) != requests:
                raise ValueError("it is of another group")
            return [decode(answer) for answer in content["answers"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s): its %s requests are answered again.", path, error, requests)
            return None

    def put(self, key: str, answers: Sequence[Any]) -> None:
        """Keep the answers of a group.

        Raises:
            ArgumentError: the file cannot be written.
        """
        write_atomically(self._path(key), write_line({"key": key, "answers": [encode(one) for one in answers]}))

    def _path(self, key: str) -> Path:
        return self.folder / f"{short(key, 32)}.json"
