"""Digests: the one place where it is said what identifies a model, a file, a prompt, a setting.

All are SHA-256, written with the name of the algorithm in front.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

PREFIX = "sha256:"
_LIBRARIES = ("lm_eval", "torch", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes", "vllm")
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


def described(value: Any) -> Any:
    """A setting of any type as JSON has it, the same in every process: no address, no order of a set."""
    if isinstance(value, Enum):
        return described(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted((described(part) for part in value), key=str)
    if callable(getattr(value, "to_dict", None)) and not isinstance(value, type):
        return described(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, functools.partial):
        return [described(part) for part in (value.func, value.args, value.keywords)]
    if inspect.isroutine(value):  # which module: a task's own has its path for a name
        return value.__qualname__
    text = repr(value)
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}" if " at 0x" in text else text


def differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, there and here of every leaf of two nested settings that differs: `adapter.fingerprint`, 'a', 'b'."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield name, there, here


def short(fingerprint: str, length: int = 12) -> str:
    """The first digits, for file names."""
    return fingerprint.removeprefix(PREFIX)[:length]


def library_versions(*, vllm: bool = True) -> dict[str, str]:
    """The installed versions of what computes the numbers; without vLLM's where another backend does."""
    found = {}
    for name in _LIBRARIES:
        if name == "vllm" and not vllm:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What stands in the way of answers that other releases gave: (worth a warning, to be refused).

    Another major version is refused, another minor one is warned of, and a patch or another build of the same release
    counts as the same. Below 1.0 the second number counts as the major one and the third as the minor one, as semantic
    versioning has it. A library that is installed on one side only was not used.
    """
    warned, refused = [], []
    for name in sorted({*then, *now}):
        if name not in then or name not in now or then[name] == now[name]:
            continue
        change = f"{name} {then[name]}, now {now[name]}"
        try:
            one, other = (Version(text) for text in (then[name], now[name]))
        except InvalidVersion:
            warned.append(change)
            continue
        places = 1 if one.major or other.major else 2
        if _padded(one)[:places] != _padded(other)[:places]:
            refused.append(change)
        elif _padded(one)[: places + 1] != _padded(other)[: places + 1]:
            warned.append(change)
    return warned, refused


def _padded(one: Version) -> tuple[int, int, int]:
    return one.major, one.minor, one.micro
