"""OpenAI's chat completions, and every server that speaks them: vLLM, Ollama, llama.cpp."""

from __future__ import annotations

import inspect
from typing import Any

from lm_eval_lora_drop.judge.cache import Reply
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import CallError, Provider, failed_status, missing_sdk, refuse_options
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

        # A server of one's own wants no key, the SDK wants one: any word will do. Organisation and project of the
        # environment belong to the official service only.
        own = judge.base_url is not None
        self._client = openai.AsyncOpenAI(
            api_key=judge.key or "none",
            base_url=judge.base_url or "https://api.openai.com/v1",
            timeout=timeout,
            max_retries=0,
        )
        self._request: dict[str, Any] = {
            "model": judge.model,
            # The newer name is the only one that reasoning models take; servers of one's own know the older one.
            ("max_tokens" if own else "max_completion_tokens"): judge.max_tokens,
            **judge.options,
        }
        self._structured = judge.structured

    async def ask(self, question: Question) -> Reply:
        """One chat completion."""
        import openai

        request = {**self._request, "messages": [{"role": "user", "content": question.prompt}]}
        if self._structured:
            schema = {"name": "verdict", "schema": dict(question.schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            answer = await self._client.chat.completions.create(**request)
            choice = answer.choices[0]
            refusal, usage = choice.message.refusal, answer.usage
            return Reply(
                text=refusal or choice.message.content or "",
                model=str(answer.model),
                stop="refusal" if refusal or choice.finish_reason == "content_filter" else _stop(choice.finish_reason),
                input_tokens=usage.prompt_tokens if usage else None,
                output_tokens=usage.completion_tokens if usage else None,
                raw=answer.model_dump_json(),
            )
        except openai.APIStatusError as error:
            gone = error.code == "insufficient_quota"
            raise failed_status(error.status_code, error.message, error.response.headers, quota_is_gone=gone) from None
        except openai.APIConnectionError as error:  # time-outs are among them
            raise CallError(f"{type(error).__name__}: {error}", retry=True, perhaps_billed=True) from None
        except Exception as error:  # noqa: BLE001  a body that is no chat completion shows in many ways
            raise CallError(f"unusable response ({type(error).__name__})", retry=True, perhaps_billed=True) from None

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()


def _stop(reason: str | None) -> str:
    return "length" if reason == "length" else "stop"
