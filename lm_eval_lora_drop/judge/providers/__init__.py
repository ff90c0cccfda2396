"""The providers, each through its official SDK, asynchronous; a call brings the response's body as it came.

Retries are made in one place only, `lm_eval_lora_drop.judge.ask`, and the SDKs' are turned off: google-genai does
not honour Retry-After, two layers of retries would multiply, and the spending cap must see every call. For the same
reasons they are not tenacity's: a server's Retry-After holds for all calls to it, and each attempt needs its money
set aside first.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.known_providers import provider_spec
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers.wire import CallError, bounded_client, exchange
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.judge.redact import Redactor
from lm_eval_lora_drop.text import logger

log = logger(__name__)

_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SAID = 300
"""Characters of an error that are kept."""


class Provider(Protocol):
    """A client of one judge."""

    async def ask(self, question: Question) -> bytes:
        """One call, no retries: the body of the response, to be read by `replies.read_body`. Raises CallError only."""
        ...

    async def close(self) -> None:
        """Free the connections."""
        ...


def open_provider(judge: Judge, timeout: float, redactor: Redactor) -> Provider:
    """The client of `judge`, made inside a running event loop; `timeout` in seconds per call.

    Raises:
        ArgumentError: the SDK is not installed, or does not take one of the judge's options.
    """
    module = importlib.import_module(provider_spec(judge.provider).module)
    if judge.base_url is not None:
        sent = f"the key in {judge.key_variable} is sent" if judge.key else "no key is sent"
        log.info("judge %s: %s to %s", judge.name, sent, judge.base_url)
    try:
        return _RedactingProvider(module.open_provider(judge, timeout), judge, redactor)
    except ArgumentError:
        raise
    except Exception as error:  # noqa: BLE001  whatever an HTTP library raises over a proxy, SOCKS or certificates
        given = [name for name in _NETWORK if os.environ.get(name) or os.environ.get(name.lower())]
        cause = re.sub(r"//[^/@\s]*@", "//", redactor.message(" ".join(str(error).split())))[:_SAID]
        raise ArgumentError(
            f"judge {judge.name}: no connection can be made with the network settings {', '.join(given) or 'given'} "
            f"({type(error).__name__}: {cause}). Correct or unset them."
        ) from None


class _RedactingProvider:
    """A client whose errors repeat no key: some servers quote it in theirs."""

    def __init__(self, provider: Provider, judge: Judge, redactor: Redactor) -> None:
        self._provider, self._judge, self._redactor = provider, judge, redactor
        self.close = provider.close

    async def ask(self, question: Question) -> bytes:
        try:
            return await self._provider.ask(question)
        except CallError as error:
            said = self._redactor.message(str(error))
            if error.permanent and self._judge.key is None and said.startswith(("HTTP 401", "HTTP 403")):
                said = f"no key was sent; name its variable in api_key_env ({said})"
            error.args = (said[:_SAID],)
            raise


class MessagesJudge:
    """One model behind `create(model=, messages=, ...)`, as the SDKs of OpenAI and Anthropic have it.

    `limit` is the option for the most tokens, and `under_schema(schema, request)` gives the options for an answer in
    JSON.
    """

    def __init__(
        self,
        judge: Judge,
        timeout: float,
        client: Any,
        create: Callable[..., Awaitable[Any]],
        limit: Mapping[str, int],
        under_schema: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        self.close = client.close
        self._create, self._timeout = create, timeout
        self._request: dict[str, Any] = {"model": judge.model, **limit, **judge.request_options}
        self._under_schema = under_schema if judge.structured else None

    async def ask(self, question: Question) -> bytes:
        """One call."""
        request = {**self._request, "messages": [{"role": "user", "content": question.prompt}]}
        if self._under_schema:
            request |= self._under_schema(question.schema, request)
        return await exchange(self._create(**request), self._timeout)


def connection(judge: Judge, timeout: float, official: str, client: type) -> dict[str, Any]:
    """What the clients of OpenAI and Anthropic, which one generator makes, are given alike; `client` is the SDK's own.

    A server of one's own often wants no key, the SDKs want one: any word will do.
    """
    return {
        "api_key": judge.key or "none",
        "base_url": judge.base_url or official,
        "timeout": timeout,
        "max_retries": 0,
        "http_client": bounded_client(client, timeout=timeout),
    }


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
