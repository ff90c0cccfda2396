"""What a sweep has been answered so far, on disk: a run that was killed continues where it was.

One file per task, fingerprint and process, `<task>-<12 digits of the fingerprint>.rank<r>.jsonl`: a header line, then
one line per (variant, document), with its part of its batch's seconds. Every line is a JSON object whose last field
`crc` is the CRC-32 of the text before it, so that a line that was altered is answered again. Floats are written so that
they come back bit for bit.
"""

from __future__ import annotations

import codecs
import errno
import glob
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.record.fingerprint import differences, library_versions, short, version_changes
from lm_eval_lora_drop.text import logger

SCHEMA = 1
_CRC = b', "crc": '
log = logger(__name__)


class Journal:
    """The journal of one task under one fingerprint; several processes append to a file each and read them all.

    `settings` is what the fingerprint was taken over: it stands in the header, so that a journal that does not belong
    here can say in what it differs.
    """

    def __init__(
        self, folder: Path, fingerprint: str, task: str, *, rank: int = 0, settings: Mapping[str, Any]
    ) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.task = task
        self.settings = json.loads(json.dumps(settings, default=str))
        # A task may be called `group/name`.
        self._task_name = re.sub(r"[^\w.-]+", "_", task)
        self._stem = f"{self._task_name}-{short(fingerprint)}"
        self.path = self.folder / f"{self._stem}.rank{rank}.jsonl"
        self._ready = False
        self._warned: set[Path] = set()

    @property
    def versions(self) -> dict[str, str]:
        """The releases that give the answers."""
        return {"lm_eval_lora_drop": __version__, **library_versions(vllm=self.settings.get("backend") == "vllm")}

    def read(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """(variant, key of the document) -> responses, from the files of all ranks.

        A torn last line (the process was killed while writing) and lines that cannot be read are left out with a
        warning.

        Raises:
            ArgumentError: a file of our name was written under other settings.
        """
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        # Not glob(): a folder or task name may hold brackets.
        files = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        ours = re.compile(re.escape(self._stem) + r"\.rank\d+\.jsonl")
        others = re.compile(re.escape(self._task_name) + r"-[0-9a-f]+\.rank\d+\.jsonl")
        for path in files:
            if ours.fullmatch(path.name):
                found.update(self._read_file(path))
        ignored = sum(bool(others.fullmatch(path.name)) and not ours.fullmatch(path.name) for path in files)
        if ignored:
            log.info("%s: %d journals of %s under other settings are ignored", self.folder, ignored, self.task)
        return found

    def seconds_per_pair(self, keys: Collection[str]) -> float | None:
        """What one answer took on average, over the lines about documents of these keys, all ranks'; None without any.

        Lines that came from elsewhere than a batch of the sweep (a check before trust) have no time.
        """
        times = []
        for path in sorted(self.folder.glob(f"{glob.escape(self._stem)}.rank*.jsonl")):
            for line in _lines(path.read_bytes())[1:]:
                try:
                    record = read_line(line)
                    if record["key"] in keys and record["seconds"] is not None:
                        times.append(float(record["seconds"]))
                except (ValueError, KeyError, TypeError):
                    continue
        return sum(times) / len(times) if times else None

    def append(self, answers: Sequence[Answer], seconds: float | None = None) -> None:
        """Write answers down for good: when this returns, they are on the disk. `seconds` is what all of them took.

        Raises:
            ArgumentError: the folder cannot be written.
        """
        lines = [
            {
                "variant": str(answer.variant),
                "doc_id": answer.document.doc_id,
                "key": answer.document.key,
                "responses": [encode(response) for response in answer.responses],
                "seconds": None if seconds is None else round(seconds / len(answers), 6),
            }
            for answer in answers
        ]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Two commands started at once may share the file: one header, and nobody cuts the other's line.
            with FileLock(f"{self.path}.lock"):
                if not self._ready:
                    self._prepare()
                self._write(lines)
        except OSError as error:
            raise ArgumentError(
                f"sweep_dir must be a folder that can be written, got {self.folder} ({error.strerror or error}). Give "
                "another one: sweep_dir=<folder>."
            ) from error

    def _prepare(self) -> None:
        """Make the file end in a whole line, and begin with a header."""
        if self.path.is_symlink():
            raise OSError(errno.ELOOP, "a journal is no symbolic link", str(self.path))
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            try:
                read_line(_lines(content[whole:])[0])
                self._append(b"\n")  # an editor took the last line's end
            except (ValueError, IndexError):
                os.truncate(self.path, whole)
        if whole == 0:
            header = {
                "schema": SCHEMA,
                "task": self.task,
                "fingerprint": self.fingerprint,
                "settings": self.settings,
                "versions": self.versions,
            }
            self._write([header])
        self._ready = True

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._append(b"".join(map(write_line, lines)))

    def _append(self, data: bytes) -> None:
        # A link that somebody left there does not lead it elsewhere.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())

    def _read_file(self, path: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
        content = path.read_bytes()
        lines = _lines(content)
        if not lines or (len(lines) == 1 and not content.endswith(b"\n")):  # killed while the header was written
            return {}
        self._check_header(path, lines[0])
        found = {}
        unreadable = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                record = read_line(line)
                responses = tuple(decode(response) for response in record["responses"])
                found[str(record["variant"]), str(record["key"])] = responses
            except (ValueError, KeyError, TypeError):
                unreadable.append(number)
        if unreadable:
            log.warning(
                "%s: %d of %d lines cannot be read (the first is line %d; a kill leaves an incomplete last one): they "
                "are ignored and answered again",
                path,
                len(unreadable),
                len(lines) - 1,
                unreadable[0],
            )
        return found

    def _check_header(self, path: Path, line: bytes) -> None:
        try:
            header = read_line(line)
            schema, fingerprint, settings = header["schema"], header["fingerprint"], header["settings"]
            versions = header.get("versions", {})
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"sweep_dir: the first line of {path} must be the header of a journal, and it cannot be read. "
                "Delete the file or give another sweep_dir."
            ) from error
        if schema != SCHEMA:
            raise ArgumentError(
                f"sweep_dir: {path} must have journal schema {SCHEMA}, got {schema}: it was written by another version "
                "of lm-eval-lora-drop. Delete the file or give another sweep_dir."
            )
        if fingerprint != self.fingerprint:
            found = differences(settings, self.settings)
            changes = "; ".join(f"{name}: {then!r} and {now!r}" for name, then, now in found)
            raise ArgumentError(
                f"sweep_dir: {path} holds answers that were given under other settings and is not used. What differs, "
                f"there and here: {changes or 'the fingerprint alone'}. Delete or rename the file, or give another "
                "sweep_dir."
            )
        warned, refused = version_changes(versions, self.versions)
        if refused:
            raise ArgumentError(
                f"sweep_dir: {path} holds answers of other releases ({'; '.join(refused)}), whose answers may differ, "
                "and is not used. Install those releases to continue it, delete the file, or give another sweep_dir."
            )
        if warned and path not in self._warned:
            self._warned.add(path)
            log.warning(
                "%s: answers of other releases (%s) are reused. They may differ at near ties; give another sweep_dir "
                "to answer again.",
                path,
                "; ".join(warned),
            )


def _lines(content: bytes) -> list[bytes]:
    """The lines of a journal, without the BOM, carriage returns and blank lines that editors and copies may add."""
    lines = (line.removesuffix(b"\r") for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    return [line for line in lines if line.strip()]


def write_line(content: Mapping[str, Any]) -> bytes:
    """A JSON object on one line, with the checksum of its text as the last field."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    # A model may emit half of a surrogate pair; it is kept as it came.
    body = text[:-1].encode("utf-8", "surrogatepass")
    return body + _CRC + b"%d}\n" % zlib.crc32(body)


def read_line(line: bytes) -> dict[str, Any]:
    """What `write_line` wrote.

    Raises:
        ValueError: it was altered.
    """
    body, found, rest = line.rpartition(_CRC)
    if not found or not rest.endswith(b"}") or not rest[:-1].isdigit() or int(rest[:-1][:11]) != zlib.crc32(body):
        raise ValueError("the checksum does not fit")
    content = json.loads(body.decode("utf-8", "surrogatepass") + "}")
    if not isinstance(content, dict):
        raise ValueError("no object")
    return content


def encode(response: Any) -> Any:
    """A response as JSON: it has no tuple, no NaN and no infinity; numpy's scalars are no JSON either."""
    if isinstance(response, (tuple, list)):
        return [encode(part) for part in response]
    if hasattr(response, "item"):
        response = response.item()
    if isinstance(response, float) and not math.isfinite(response):
        return {"float": repr(response)}
    return response


def decode(response: Any) -> Any:
    """What `encode` made of a response."""
    if isinstance(response, list):
        return tuple(decode(part) for part in response)
    if isinstance(response, dict):
        return float(response["float"])
    return response
