"""The providers, each through its official SDK, asynchronous, with the SDK's own time-outs.

Retries are made in one place only, `lm_eval_lora_drop.judge.ask`, and the SDKs' are turned off: google-genai does
not honour Retry-After, two layers of retries would multiply, and the spending cap must see every call.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Reply
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.questions import Question

_MODULES = {"openai": "openai_sdk", "anthropic": "anthropic_sdk", "google": "google_sdk", "hf": "local"}


class CallError(Exception):
    """A call that brought no answer. The message holds no request headers and so no key.

    `retry`: another attempt may succeed; `hopeless`: no other question to this judge will either. `retry_after` in
    seconds, as the server asked. `perhaps_billed`: the request may have been served although nothing came back.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool = False,
        hopeless: bool = False,
        retry_after: float | None = None,
        perhaps_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.hopeless = hopeless
        self.retry_after = retry_after
        self.perhaps_billed = perhaps_billed


class Provider(Protocol):
    """A client of one judge."""

    async def ask(self, question: Question) -> Reply:
        """One call, no retries. Raises CallError and nothing else."""
        ...

    async def close(self) -> None:
        """Free the connections."""
        ...


def open_provider(judge: Judge, timeout: float) -> Provider:
    """The client of `judge`, made inside a running event loop; `timeout` in seconds per call.

    Raises:
        ArgumentError: the SDK is not installed, or does not take one of the judge's options.
    """
    module = importlib.import_module(f"{__name__}.{_MODULES[judge.provider]}")
    return _Discreet(module.open_provider(judge, timeout), judge.key)


class _Discreet:
    """A client whose errors do not repeat the key: some servers quote it in theirs."""

    def __init__(self, provider: Provider, key: str | None) -> None:
        self._provider = provider
        self._key = key
        self.close = provider.close

    async def ask(self, question: Question) -> Reply:
        try:
            return await self._provider.ask(question)
        except CallError as error:
            if self._key:
                error.args = (str(error).replace(self._key, "[key]"),)
            raise


def failed_status(status: int, said: str, headers: object, *, quota_is_gone: bool = False) -> CallError:
    """What an HTTP status means for this call and for this judge."""
    retry_after = _retry_after(headers)
    asked = str(_header(headers, "x-should-retry") or "").lower()
    retry = (status in (408, 409, 429) or status >= 500) and not quota_is_gone and asked != "false"
    return CallError(
        f"HTTP {status}: {said[:300]}",
        retry=retry,
        hopeless=status in (401, 402, 403, 404) or quota_is_gone,
        retry_after=retry_after,
    )


def _header(headers: object, name: str) -> str | None:
    get = getattr(headers, "get", None)
    value = get(name) if get else None
    return None if value is None else str(value)


def _retry_after(headers: object) -> float | None:
    """Seconds, from `retry-after-ms`, or from `retry-after` as seconds or as an HTTP date."""
    import time
    from email.utils import parsedate_to_datetime

    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = _header(headers, name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            continue
    return None


def refuse_options(judge: Judge, allowed: Iterable[str], sdk: str, ours: Iterable[str]) -> None:
    """Raises ArgumentError for an option that the installed SDK does not take, or that is set elsewhere."""
    allowed, ours = set(allowed), set(ours)
    for name in judge.options:
        if name in ours:
            raise ArgumentError(f"judge {judge.name}: {name} is set by this program; options must not hold it.")
        if name not in allowed:
            way = " Where the service takes it all the same, put it into extra_body." if "extra_body" in allowed else ""
            raise ArgumentError(f"judge {judge.name}: the installed {sdk} takes no option {name}.{way}")


def missing_sdk(judge: Judge, package: str) -> ArgumentError:
    """What to install."""
    return ArgumentError(f"judge {judge.name} needs {package}: pip install 'lm-eval-lora-drop[judges]'.")
