"""Digests: the one place where it is said what identifies a model, a file, a prompt, a setting.

All are SHA-256, written with the name of the algorithm in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PREFIX = "sha256:"
_LIBRARIES = ("lm_eval", "torch", "transformers", "peft", "accelerate", "vllm")
_BLOCK = 1 << 22


def digest(*parts: object) -> str:
    """Over the JSON of `parts`; what JSON does not know counts as its text."""
    return digest_text(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str))


def digest_text(text: str) -> str:
    """Over a text; half of a surrogate pair, as models emit, counts as it is."""
    return PREFIX + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(file: Path) -> str:
    """Over a file's content."""
    # hashlib.file_digest would do, from Python 3.11 on.
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return PREFIX + found.hexdigest()


def digest_blocks(blocks: Iterable[bytes | memoryview]) -> str:
    """Over bytes that come in pieces, as the tensors of a model do."""
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return PREFIX + found.hexdigest()


def short(fingerprint: str, length: int = 12) -> str:
    """The first digits, for file names."""
    return fingerprint.removeprefix(PREFIX)[:length]


def library_versions() -> dict[str, str]:
    """The installed versions of what computes the numbers."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
