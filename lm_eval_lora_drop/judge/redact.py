"""Keeps keys out of everything that is written: answers, results, logs, error messages.

A server may quote the key that it was sent: whole, cut, URL-encoded (in a link) or in base64 (in a header). So every
run of `PART` or more characters that also stands in one of these forms of a key is replaced. A key shorter than that is
replaced in messages only, and as a whole word: within an answer it would be found in innocent text.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus

PART = 8
MASK = "[key]"
_NOISY = ("openai", "anthropic", "google_genai", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "urllib3")


class Redactor:
    """Replaces what is left of `keys` in texts. Takes time linear in the text."""

    def __init__(self, keys: Iterable[str]) -> None:
        keys = [key for key in keys if key]
        forms = {form for key in keys if len(key) >= PART for form in _forms(key)}
        self._parts = {form[i : i + PART] for form in forms for i in range(len(form) - PART + 1)}
        short = [re.escape(key) for key in keys if len(key) < PART]
        self._short = re.compile(rf"(?<!\w)(?:{'|'.join(short)})(?!\w)") if short else None

    def message(self, text: str) -> str:
        """A log line, an error or a reason. Redact first and cut afterwards: half a key is found less surely."""
        text = self.answer(text)
        return self._short.sub(MASK, text) if self._short else text

    def answer(self, text: str) -> str:
        """What a judge said; no longer than `text` but by the masks."""
        if not self._parts:
            return text
        kept, copied, until = [], 0, 0
        for place in range(len(text) - PART + 1):
            if text[place : place + PART] in self._parts:
                if place >= until:  # a new run, else the run grows
                    kept += [text[copied:place], MASK]
                copied = until = place + PART
        return "".join(kept) + text[copied:]

    def body(self, raw: bytes) -> str:
        """A provider's whole response, unchanged where it holds nothing secret.

        JSON is searched string by string, behind its escapes; what is no JSON as it stands.
        """
        text = raw.decode("utf-8", "replace")
        if not self._parts:
            return text
        try:
            value = json.loads(text, object_pairs_hook=_single)
            clean = _map_strings(value, self.answer)
            return text if clean == value else json.dumps(clean, ensure_ascii=True)
        except (ValueError, RecursionError):
            return self.answer(text)


def _forms(key: str) -> Iterator[str]:
    yield key
    for encoded in (quote(key, safe=""), quote_plus(key)):
        yield encoded
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)
    data = key.encode("utf-8", "surrogatepass")
    yield data.hex()
    for before in range(3):
        # Where the key begins within a group of three bytes changes every letter; those at its ends depend on others.
        whole = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        inner = whole[(0, 2, 3)[before] : len(whole) - (1 if (before + len(data)) % 3 else 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that has a name twice is searched as text, since a dict would hide the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(name): _map_strings(item, change) for name, item in value.items()}
    return value


@contextmanager
def quiet_sdks() -> Iterator[None]:
    """The SDKs and their HTTP libraries log headers and bodies at DEBUG; while judges are asked they do not."""
    before = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logger.level))
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
