"""One call over the wire through an SDK's own client, bounded in time and in size, and what came back as it came.

The SDKs build requests, sign them and know their service; what they make of the response is not used. Their HTTP client
(httpx, or httpx2 in newer releases) is given to them with three limits that they do not have:

- a body is read up to `LONGEST` bytes, decompressed by one method at most, so that a small response cannot fill memory;
- redirects are not followed: the SDKs send keys in headers of their own, which would go along to another server;
- the whole call ends after the time-out, where theirs begins anew with every byte.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

LONGEST = 2_000_000
"""Bytes of a response; an answer of ours has a thousand."""


@dataclass
class Exchange:
    """What one call brought: `body` is None until it is there whole; `refused` says why it never will be."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    refused: str = ""


class CallError(Exception):
    """A call that brought no answer. The message holds no request headers.

    `retry`: another attempt may succeed; `permanent`: no other question to this judge will either. `retry_after` in
    seconds, as the server asked. `perhaps_billed`: the request may have been served although nothing came back.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool = False,
        permanent: bool = False,
        retry_after: float | None = None,
        perhaps_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.permanent = permanent
        self.retry_after = retry_after
        self.perhaps_billed = perhaps_billed


_current: ContextVar[Exchange] = ContextVar("current_exchange")


def current() -> Exchange:
    """The exchange that an HTTP client is part of; a thread that asyncio started has it too."""
    return _current.get()


def bounded_client(base: type, **settings: Any) -> Any:
    """An asynchronous client of the SDK's HTTP library; `base` is its `AsyncClient` or the SDK's subclass of it."""

    class BoundedClient(base):
        async def send(self, request: Any, **options: Any) -> Any:
            request.headers["Accept-Encoding"] = "identity"
            response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
            seen = _current.get()
            seen.status, seen.headers = response.status_code, {k.lower(): v for k, v in response.headers.items()}
            try:
                body = await _read(response, seen)
            finally:
                await response.aclose()
            seen.body = body
            kept = {k: v for k, v in seen.headers.items() if k not in ("content-encoding", "transfer-encoding")}
            kept.pop("content-length", None)
            return type(response)(response.status_code, headers=kept, content=body, request=request)

    return BoundedClient(**settings)


async def _read(response: Any, seen: Exchange) -> bytes:
    # One chunk of gzip grows a thousandfold at most; several layers, or other methods, have no such bound.
    encoding = seen.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "deflate"):
        seen.refused = f"a body compressed by {encoding[:40]!r}, which was not asked for"
        raise ValueError(seen.refused)
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > LONGEST:
            seen.refused = f"a body of more than {LONGEST:,} bytes"
            raise ValueError(seen.refused)
    return bytes(body)


async def exchange(call: Awaitable[Any], timeout: float) -> bytes:
    """The body of a successful response to `call`, an SDK's request; `timeout` in seconds for all of it.

    Raises:
        CallError: nothing came, not all of it, or an error. Nothing else, but for cancellation.
    """
    seen = Exchange()
    _current.set(seen)
    trouble, sent, permanent = "the SDK made no call", False, False
    try:
        await asyncio.wait_for(call, timeout)
    except asyncio.TimeoutError:
        trouble, sent = f"no complete response within {timeout:g} s", True
    except Exception as error:  # noqa: BLE001  SDKs, HTTP libraries and parsers raise what they like; the body decides
        trouble, sent = _cause(error), not _never_connected(error)
        permanent = any(word in trouble for word in ("CERTIFICATE_VERIFY_FAILED", "407 Proxy", "UnsupportedProtocol"))
    if seen.refused:
        raise CallError(seen.refused, retry=True, perhaps_billed=True)
    if seen.body is None:
        raise CallError(trouble, retry=not permanent, permanent=permanent, perhaps_billed=sent)
    if 200 <= seen.status < 300:
        return seen.body
    raise _failed(seen)


def _cause(error: BaseException) -> str:
    """The first of a chain of exceptions in one line: an SDK's own says "Connection error." and no more."""
    kinds = [type(error).__name__]
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
        kinds.append(type(error).__name__)
    said = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))
    return f"{' < '.join(dict.fromkeys(kinds))}: {said}"


def _never_connected(error: BaseException | None) -> bool:
    """Whether the request was never sent, so that it cannot have been billed."""
    while error is not None:
        if type(error).__name__ in (
            "ConnectError",
            "ConnectTimeout",
            "PoolTimeout",
            "ProxyError",
            "UnsupportedProtocol",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _failed(seen: Exchange) -> CallError:
    """What an HTTP status means for this call and for this judge."""
    said = (seen.body or b"")[:20_000].decode("utf-8", "replace")
    if 300 <= seen.status < 400:
        where = seen.headers.get("location", "nowhere")
        return CallError(
            f"HTTP {seen.status}: redirects to {where}, which is not followed; set base_url to it", retry=True
        )
    quota_is_gone = seen.status == 429 and "insufficient_quota" in said
    retry = (seen.status in (408, 409, 425, 429) or seen.status >= 500) and not quota_is_gone
    return CallError(
        f"HTTP {seen.status}: {said}",
        retry=retry and seen.headers.get("x-should-retry", "").lower() != "false",
        permanent=seen.status in (401, 402, 403, 404) or quota_is_gone,
        retry_after=_retry_after(seen.headers),
    )


def _retry_after(headers: dict[str, str]) -> float | None:
    """Seconds, from `retry-after-ms`, or from `retry-after` as seconds or as an HTTP date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")[:100]
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time()
            except (TypeError, ValueError, OverflowError, OSError, IndexError):
                continue
        if seconds == seconds:  # not NaN
            return max(0.0, seconds)
    return None


@contextmanager
def without_environment(*prefixes: str, unless: bool = False) -> Iterator[None]:
    """Makes an SDK's client that takes nothing from the environment: organisation, project, headers, other keys.

    These belong to the official service, so they stay for it (`unless`). Each release of an SDK reads more of them, so
    they are taken away by prefix rather than one by one, for the moment in which the client is made.
    """
    hidden = {} if unless else {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
