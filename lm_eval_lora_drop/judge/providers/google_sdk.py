"""Gemini on google-genai."""

from __future__ import annotations

import importlib
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import Provider, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import bounded_client, exchange, without_environment
from lm_eval_lora_drop.judge.questions import Question

_OURS = (
    "max_output_tokens",
    "response_mime_type",
    "response_schema",
    "response_json_schema",
    "http_options",
    "automatic_continuation",
    "should_return_http_response",
)


def open_provider(judge: Judge, timeout: float) -> Provider:
    """A client with its own connection pool."""
    try:
        from google import genai
    except ImportError:
        raise missing_sdk(judge, "google-genai") from None
    refuse_options(judge, genai.types.GenerateContentConfig.model_fields, f"google-genai {genai.__version__}", _OURS)
    return GenaiJudge(judge, timeout)


class GenaiJudge:
    """One Gemini model through google-genai."""

    def __init__(self, judge: Judge, timeout: float) -> None:
        from google import genai

        self._http = bounded_client(_http_library().AsyncClient, timeout=timeout)
        # Without retry options the SDK still repeats a call after a lost connection, seconds later and unseen.
        key = judge.key or "none"
        with without_environment("GOOGLE_", "GEMINI_", unless=judge.base_url is None):
            self._client = genai.Client(
                api_key=key,
                vertexai=False,
                http_options=genai.types.HttpOptions(
                    base_url=judge.base_url or "https://generativelanguage.googleapis.com/",
                    timeout=int(timeout * 1000),
                    retry_options=genai.types.HttpRetryOptions(attempts=1),
                    httpx_async_client=self._http,
                ),
            )
        self._model, self._timeout = judge.model, timeout
        config: dict[str, Any] = {"max_output_tokens": judge.max_tokens, **judge.request_options}
        if "automatic_continuation" in genai.types.GenerateContentConfig.model_fields:
            config["automatic_continuation"] = False  # newer releases would make further calls, unasked
        try:
            self._config = genai.types.GenerateContentConfig(**config)
        except ValueError as error:  # pydantic's, which has a paragraph for each option
            first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": type(error).__name__}
            option = ".".join(map(str, first["loc"]))
            raise ArgumentError(
                f"judge {judge.name}: option {option[:80]} does not fit google-genai: {first['msg']}."
            ) from error
        self._structured = judge.structured

    async def ask(self, question: Question) -> bytes:
        """One generateContent."""
        config = self._config
        if self._structured:
            schema = {"response_mime_type": "application/json", "response_json_schema": dict(question.schema)}
            config = config.model_copy(update=schema)
        call = self._client.aio.models.generate_content(model=self._model, contents=question.prompt, config=config)
        return await exchange(call, self._timeout)

    async def close(self) -> None:
        """Close both of the client's connection pools, and the one that it was given."""
        await self._client.aio.aclose()
        self._client.close()
        await self._http.aclose()


def _http_library() -> Any:
    """The one that google-genai was installed with; newer releases take either and prefer httpx2."""
    try:
        return importlib.import_module("httpx2")
    except ImportError:
        return importlib.import_module("httpx")
