"""Gemini on google-genai, and on google-generativeai where only that is installed (it has ended, but is in use)."""

from __future__ import annotations

import json
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Reply
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import CallError, Provider, failed_status, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.questions import Question

_OURS = (
    "max_output_tokens",
    "response_mime_type",
    "response_schema",
    "response_json_schema",
    "http_options",
    "automatic_continuation",
)
_REFUSALS = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client of whichever SDK is installed, the newer one first."""
    try:
        from google import genai
    except ImportError:
        pass
    else:
        refuse_options(
            judge, genai.types.GenerateContentConfig.model_fields, f"google-genai {genai.__version__}", _OURS
        )
        return GenaiJudge(judge, timeout)
    try:
        from google import generativeai  # type: ignore[attr-defined]  # it may not be here
    except ImportError:
        raise missing_sdk(judge, "google-genai") from None
    allowed = generativeai.types.GenerationConfig.__dataclass_fields__
    refuse_options(judge, allowed, f"google-generativeai {generativeai.__version__}", _OURS)
    return GenerativeaiJudge(judge, timeout)


class GenaiJudge:
    """One Gemini model through google-genai."""

    def __init__(self, judge: Judge, timeout: float) -> None:
        from google import genai

        # Without retry options the SDK still repeats a call after a lost connection, seconds later and unseen.
        self._client = genai.Client(
            api_key=judge.key or "none",
            vertexai=False,
            http_options=genai.types.HttpOptions(
                base_url=judge.base_url or "https://generativelanguage.googleapis.com/",
                timeout=int(timeout * 1000),
                retry_options=genai.types.HttpRetryOptions(attempts=1),
            ),
        )
        self._model = judge.model
        config: dict[str, Any] = {"max_output_tokens": judge.max_tokens, **judge.options}
        if "automatic_continuation" in genai.types.GenerateContentConfig.model_fields:
            config["automatic_continuation"] = False  # newer releases would make further calls, unasked
        try:
            self._config = genai.types.GenerateContentConfig(**config)
        except ValueError as error:  # pydantic's
            raise ArgumentError(f"judge {judge.name}: options do not fit google-genai: {error}") from error
        self._structured = judge.structured

    async def ask(self, question: Question) -> Reply:
        """One generateContent."""
        from google.genai import errors

        config = self._config
        if self._structured:
            schema = {"response_mime_type": "application/json", "response_json_schema": dict(question.schema)}
            config = config.model_copy(update=schema)
        try:
            answer = await self._client.aio.models.generate_content(
                model=self._model, contents=question.prompt, config=config
            )
            usage = answer.usage_metadata
            blocked = answer.prompt_feedback.block_reason if answer.prompt_feedback else None
            if not answer.candidates and not blocked:
                raise ValueError("neither a candidate nor a reason why there is none")
            candidate = answer.candidates[0] if answer.candidates else None
            reason = candidate.finish_reason.name if candidate and candidate.finish_reason else ""
            parts = candidate.content.parts or [] if candidate and candidate.content else []
            thoughts = (usage.thoughts_token_count or 0) if usage else 0
            return Reply(
                text="".join(part.text for part in parts if part.text and not part.thought),
                model=str(answer.model_version or self._model),
                stop="refusal" if blocked or reason in _REFUSALS else "length" if reason == "MAX_TOKENS" else "stop",
                input_tokens=usage.prompt_token_count if usage else None,
                output_tokens=(usage.candidates_token_count or 0) + thoughts if usage else None,
                raw=answer.model_dump_json(exclude={"sdk_http_response", "parsed"}),
            )
        except errors.APIError as error:
            headers = getattr(error.response, "headers", None)
            raise failed_status(error.code, f"{error.status}: {error.message}", headers) from None
        except Exception as error:  # noqa: BLE001  aiohttp's, httpx's and pydantic's errors all come through
            raise CallError(f"{type(error).__name__}: no usable response", retry=True, perhaps_billed=True) from None

    async def close(self) -> None:
        """Close both of the client's connection pools."""
        await self._client.aio.aclose()
        self._client.close()


class GenerativeaiJudge:
    """One Gemini model through google-generativeai, over its REST transport."""

    def __init__(self, judge: Judge, timeout: float) -> None:
        from urllib.parse import urlsplit

        from google import generativeai  # type: ignore[attr-defined]

        endpoint = {"api_endpoint": urlsplit(judge.base_url).netloc} if judge.base_url else None
        # This SDK is configured for the whole process: two judges with different keys or servers cannot share it.
        generativeai.configure(api_key=judge.key or "none", transport="rest", client_options=endpoint)
        self._model = generativeai.GenerativeModel(judge.model)
        self._name, self._timeout, self._structured = judge.model, timeout, judge.structured
        self._config: dict[str, Any] = {"max_output_tokens": judge.max_tokens, **judge.options}

    async def ask(self, question: Question) -> Reply:
        """One generateContent, in a thread: the REST transport is synchronous."""
        import asyncio

        from google.api_core import exceptions

        config = dict(self._config)
        if self._structured:
            config["response_mime_type"] = "application/json"
        options = {"timeout": self._timeout, "retry": None}
        try:
            answer = await asyncio.to_thread(
                self._model.generate_content, question.prompt, generation_config=config, request_options=options
            )
            body = answer.to_dict()
            candidates = body.get("candidates") or [{}]
            reason = str(getattr(answer.candidates[0].finish_reason, "name", "")) if answer.candidates else "SAFETY"
            parts = candidates[0].get("content", {}).get("parts", [])
            usage = body.get("usage_metadata") or {}
            return Reply(
                text="".join(part.get("text", "") for part in parts),
                model=str(body.get("model_version") or self._name),
                stop="refusal" if reason in _REFUSALS else "length" if reason == "MAX_TOKENS" else "stop",
                input_tokens=usage.get("prompt_token_count"),
                output_tokens=usage.get("candidates_token_count"),
                raw=json.dumps(body, default=str),
            )
        except exceptions.GoogleAPICallError as error:
            headers = getattr(error.response, "headers", None)
            raise failed_status(int(error.code or 500), str(error.message), headers) from None
        except Exception as error:  # noqa: BLE001  requests' and the parser's errors come through
            raise CallError(f"{type(error).__name__}: no usable response", retry=True, perhaps_billed=True) from None

    async def close(self) -> None:
        """The SDK keeps no connection of its own."""
