"""OpenAI's chat completions, and every server that speaks them: vLLM, Ollama, llama.cpp."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import Provider, connection, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import exchange, without_environment
from lm_eval_lora_drop.judge.questions import Question

_OURS = ("model", "messages", "response_format", "stream", "n", "max_tokens", "max_completion_tokens", "timeout")


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client with its own connection pool."""
    try:
        import openai
    except ImportError:
        raise missing_sdk(judge, "openai") from None
    allowed = inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters
    refuse_options(judge, [name for name in allowed if name != "self"], f"openai {openai.__version__}", _OURS)
    return OpenAIJudge(judge, timeout)


class OpenAIJudge:
    """One model behind the chat completions interface."""

    def __init__(self, judge: Judge, timeout: float) -> None:
        import openai

        # Organisation and project of the environment belong to the official service.
        own = judge.base_url is not None
        common = connection(judge, timeout, "https://api.openai.com/v1", openai.DefaultAsyncHttpxClient)
        with without_environment("OPENAI_") if own else nullcontext():
            self._client = openai.AsyncOpenAI(**common)
        self._timeout = timeout
        self._request: dict[str, Any] = {
            "model": judge.model,
            # The newer name is the only one that reasoning models take; servers of one's own know the older one.
            ("max_tokens" if own else "max_completion_tokens"): judge.max_tokens,
            **judge.request_options,
        }
        self._structured = judge.structured

    async def ask(self, question: Question) -> bytes:
        """One chat completion."""
        request = {**self._request, "messages": [{"role": "user", "content": question.prompt}]}
        if self._structured:
            schema = {"name": "verdict", "schema": dict(question.schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return await exchange(self._client.chat.completions.create(**request), self._timeout)

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()
