"""Anthropic's messages. The SDK 2.x takes no `temperature`; such options are refused before the first call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import MessagesJudge, Provider, connection, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import without_environment

_OURS = ("self", "model", "messages", "max_tokens", "stream", "timeout")


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client with its own connection pool."""
    try:
        import anthropic
    except ImportError:
        raise missing_sdk(judge, "anthropic") from None
    allowed = inspect.signature(anthropic.resources.AsyncMessages.create).parameters
    refuse_options(judge, allowed, f"anthropic {anthropic.__version__}", _OURS)
    common = connection(judge, timeout, "https://api.anthropic.com", anthropic.DefaultAsyncHttpxClient)
    with without_environment("ANTHROPIC_", unless=judge.base_url is None):
        # Otherwise ANTHROPIC_AUTH_TOKEN of the environment would be sent along by releases before 2.12.
        client = anthropic.AsyncAnthropic(auth_token=None, **common)
    # Older releases of the SDK know no schemas.
    judge = replace(judge, structured=judge.structured and "output_config" in allowed)
    return MessagesJudge(
        judge, timeout, client, client.messages.create, {"max_tokens": judge.max_tokens}, _under_schema
    )


def _under_schema(schema: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    format_ = {"type": "json_schema", "schema": dict(schema)}
    return {"output_config": {**request.get("output_config", {}), "format": format_}}
