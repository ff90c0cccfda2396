"""Anthropic's messages. The SDK 2.x takes no `temperature`; such options are refused before the first call."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import Provider, connection, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import exchange, without_environment
from lm_eval_lora_drop.judge.questions import Question

_OURS = ("model", "messages", "max_tokens", "stream", "timeout")


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client with its own connection pool."""
    try:
        import anthropic
    except ImportError:
        raise missing_sdk(judge, "anthropic") from None
    allowed = [
        name for name in inspect.signature(anthropic.resources.AsyncMessages.create).parameters if name != "self"
    ]
    refuse_options(judge, allowed, f"anthropic {anthropic.__version__}", _OURS)
    return AnthropicJudge(judge, timeout, native_schema="output_config" in allowed)


class AnthropicJudge:
    """One Claude model."""

    def __init__(self, judge: Judge, timeout: float, *, native_schema: bool) -> None:
        import anthropic

        # Headers of the environment belong to the official service.
        common = connection(judge, timeout, "https://api.anthropic.com", anthropic.DefaultAsyncHttpxClient)
        with without_environment("ANTHROPIC_") if judge.base_url is not None else nullcontext():
            # Otherwise ANTHROPIC_AUTH_TOKEN of the environment would be sent along by releases before 2.12.
            self._client = anthropic.AsyncAnthropic(auth_token=None, **common)
        self._timeout = timeout
        self._request: dict[str, Any] = {"model": judge.model, "max_tokens": judge.max_tokens, **judge.request_options}
        self._structured = judge.structured and native_schema

    async def ask(self, question: Question) -> bytes:
        """One message."""
        request = {**self._request, "messages": [{"role": "user", "content": question.prompt}]}
        if self._structured:
            schema = {"type": "json_schema", "schema": dict(question.schema)}
            request["output_config"] = {**request.get("output_config", {}), "format": schema}
        return await exchange(self._client.messages.create(**request), self._timeout)

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()
