"""Keeps keys out of everything that is written: panel files, answers, results, logs, error messages.

A server may quote the key that it was sent: whole, cut, URL-encoded (in a link) or in base64 (in a header). So every
run of `PART` or more characters that also stands in one of these forms of a key is replaced. A key shorter than that is
replaced in messages only, and as a whole word: within an answer it would be found in innocent text.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus

from lm_eval_lora_drop.errors import ArgumentError

PART = 8
MASK = "[key]"
_NOISY = ("openai", "anthropic", "google_genai", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "urllib3")

_KEY_LIKE = re.compile(
    r"(^key|[^a-z]key|apikey|token|secret|auth|authorization|passwd|password|cookie|credentials?)$", re.IGNORECASE
)
_HARMLESS = frozenset(
    ("api-version", "anthropic-beta", "anthropic-version", "openai-beta", "http-referer", "x-title", "user-agent")
)
"""Headers and query parameters that may stand in a panel file: every other one can be a key, whatever its name."""
_CACHE_KEYS = frozenset(("prompt_cache_key",))
"""End in `key` and are none."""
_SECRET = re.compile(r"(?:Bearer|Basic) \S|(?:sk|pk|rk|gsk|xai|hf|AIza|ghp|glpat)[-_]?[A-Za-z0-9_-]{16}")
_REFERENCE = re.compile(r"\$(?:\{([A-Z_][A-Z0-9_]{0,99})\}|([A-Z_][A-Z0-9_]{0,99}))")
_OTHER_TOOLS = re.compile(
    "(?:ACTIONS|AWS|AZURE_(?:CLIENT|STORAGE)|BITBUCKET|CI|CIRCLE|CLEARML|CLOUDFLARE|COMET|CONDA|DATABASE|DOCKER|GH|GIT|"
    "GITHUB|GITLAB|GOOGLE_APPLICATION|GPG|HF|HUGGINGFACE|HUGGING|KAGGLE|KUBE|MLFLOW|MYSQL|NEPTUNE|NPM|"
    "PG|POSTGRES|PYPI|REDIS|SLACK|SSH|STRIPE|TRACKIO|TWINE|UV|WANDB)(?:_|$)"
)
"""First words of variables that belong to other tools: their tokens open more than a model."""


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
        """A provider's whole response, unchanged where it holds nothing secret; JSON is searched without escapes."""
        text = raw.decode("utf-8", "replace")
        if not self._parts:
            return text
        try:
            plain = json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            plain = text
        # The text as well: of a name that comes twice, reading keeps the second value only.
        return text if self.answer(plain) == plain and self.answer(text) == text else self.answer(plain)


def _forms(key: str) -> Iterator[str]:
    yield key
    yield json.dumps(key)[1:-1]
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


def checked_options(given: Any) -> dict[str, Any]:
    """A judge's `options` as plain data without a key in them. Raises ArgumentError."""
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ArgumentError("options must be a mapping of request options.")
    try:
        # Once through JSON: a YAML file can hold dates, NaN, and a list that contains itself.
        options: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ArgumentError("options must be texts, numbers, true, false, lists and mappings.") from None
    for block in sent_blocks(options):
        for name, value in block.items():
            if (variable := variable_in(value)) is not None:
                checked_variable(variable)
            elif name.lower() not in _HARMLESS or not isinstance(value, str):
                raise ArgumentError(
                    f"the value of {name[:40]} may be a key, and panel files, caches and results are shared. "
                    f"Put it into an environment variable and name that: {name[:40]}: $MY_VARIABLE."
                )
    _refuse_keys(options)
    return options


def sent_blocks(options: Any) -> list[dict[str, Any]]:
    """The mappings whose values are sent as headers or in the address. Raises ArgumentError for another kind."""
    found: list[dict[str, Any]] = []
    for name, value in options.items() if isinstance(options, dict) else ():
        if name not in ("extra_headers", "extra_query", "headers"):
            found += sent_blocks(value)
        elif not isinstance(value, dict):
            raise ArgumentError(f"{name} must map names to texts, e.g. {name}: {{api-version: '2024-10-21'}}.")
        else:
            found.append(value)
    return found


def variable_in(value: Any) -> str | None:
    """The environment variable that an option's value names, as $NAME or ${NAME}."""
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return (found[1] or found[2]) if found else None


def checked_variable(name: Any) -> str:
    """The name of an environment variable that a panel file may send. Raises ArgumentError.

    The value is not repeated in errors: somebody may have put the key itself here.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name):
        raise ArgumentError("api_key_env must be the name of an environment variable, e.g. OPENAI_API_KEY.")
    if _OTHER_TOOLS.match(name):
        raise ArgumentError(
            f"api_key_env must not send another tool's secret to a judge; {name} belongs to one. If that is "
            f"what you want, copy it under a name of its own: export JUDGE_KEY=${name}, api_key_env: JUDGE_KEY."
        )
    return name


def _refuse_keys(options: Any) -> None:
    for name, value in options.items() if isinstance(options, dict) else enumerate(options):
        named = isinstance(name, str) and name not in _CACHE_KEYS and _KEY_LIKE.search(name) is not None
        if (named and variable_in(value) is None) or (isinstance(value, str) and _SECRET.match(value)):
            name = str(name)
            raise ArgumentError(f"{name[:40]} does not belong into a panel file. Name its variable in api_key_env.")
        if isinstance(value, dict | list):
            _refuse_keys(value)
