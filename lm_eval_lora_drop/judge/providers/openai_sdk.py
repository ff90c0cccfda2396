"""OpenAI's chat completions, and every server that speaks them: vLLM, Ollama, llama.cpp."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import MessagesJudge, Provider, connection, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import without_environment

_OURS = (
    "self",
    "model",
    "messages",
    "response_format",
    "stream",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "timeout",
)


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client with its own connection pool."""
    try:
        import openai
    except ImportError:
        raise missing_sdk(judge, "openai") from None
    allowed = inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters
    refuse_options(judge, allowed, f"openai {openai.__version__}", _OURS)
    own = judge.base_url is not None
    common = connection(judge, timeout, "https://api.openai.com/v1", openai.DefaultAsyncHttpxClient)
    with without_environment("OPENAI_", unless=not own):
        client = openai.AsyncOpenAI(**common)
    # The newer name is the only one that reasoning models take; servers of one's own know the older one.
    limit = {("max_tokens" if own else "max_completion_tokens"): judge.max_tokens}
    return MessagesJudge(judge, timeout, client, client.chat.completions.create, limit, _under_schema)


def _under_schema(schema: Mapping[str, Any], _request: Mapping[str, Any]) -> dict[str, Any]:
    verdict = {"name": "verdict", "schema": dict(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": verdict}}
