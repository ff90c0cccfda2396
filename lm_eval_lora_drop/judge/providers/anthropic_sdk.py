"""Anthropic's messages. The SDK 2.x takes no `temperature`; such options are refused before the first call."""

from __future__ import annotations

import inspect
from typing import Any

from lm_eval_lora_drop.judge.cache import Reply
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import CallError, Provider, failed_status, missing_sdk, refuse_options
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

        self._client = anthropic.AsyncAnthropic(
            api_key=judge.key or "none",
            # Otherwise ANTHROPIC_AUTH_TOKEN of the environment would be sent along, also to a server of one's own.
            auth_token=None,
            base_url=judge.base_url or "https://api.anthropic.com",
            timeout=timeout,
            max_retries=0,
        )
        self._request: dict[str, Any] = {"model": judge.model, "max_tokens": judge.max_tokens, **judge.options}
        self._structured = judge.structured and native_schema

    async def ask(self, question: Question) -> Reply:
        """One message."""
        import anthropic

        request = {**self._request, "messages": [{"role": "user", "content": question.prompt}]}
        if self._structured:
            schema = {"type": "json_schema", "schema": dict(question.schema)}
            request["output_config"] = {**request.get("output_config", {}), "format": schema}
        try:
            answer = await self._client.messages.create(**request)
            text = "".join(block.text for block in answer.content if block.type == "text")
            stops = {"refusal": "refusal", "max_tokens": "length"}
            return Reply(
                text=text,
                model=str(answer.model),
                stop=stops.get(answer.stop_reason or "", "stop"),
                input_tokens=answer.usage.input_tokens,
                output_tokens=answer.usage.output_tokens,
                raw=answer.model_dump_json(),
            )
        except anthropic.APIStatusError as error:
            raise failed_status(error.status_code, error.message, error.response.headers) from None
        except anthropic.APIConnectionError as error:
            raise CallError(f"{type(error).__name__}: {error}", retry=True, perhaps_billed=True) from None
        except Exception as error:  # noqa: BLE001  a body that is no message shows in many ways
            raise CallError(f"unusable response ({type(error).__name__})", retry=True, perhaps_billed=True) from None

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()
