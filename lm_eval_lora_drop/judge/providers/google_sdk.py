"""Gemini on google-genai, and on google-generativeai where only that is installed: it has ended, but is in use."""

from __future__ import annotations

import asyncio
import importlib
import time
import warnings
from contextlib import nullcontext
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import Provider, missing_sdk, refuse_options
from lm_eval_lora_drop.judge.providers.wire import LONGEST, bounded_client, current, exchange, without_environment
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
    """A client with its own connection pool, of the newer SDK where both are installed."""
    try:
        from google import genai
    except ImportError:
        return _open_generativeai(judge, timeout)
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


def _open_generativeai(judge: Judge, timeout: float) -> Provider:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a paragraph about its end, at every import
            from google import generativeai  # type: ignore[attr-defined]  # it may not be here
    except ImportError:
        raise missing_sdk(judge, "google-genai") from None
    allowed = generativeai.types.GenerationConfig.__dataclass_fields__
    refuse_options(judge, allowed, f"google-generativeai {generativeai.__version__}", _OURS)
    return GenerativeaiJudge(judge, timeout)


class GenerativeaiJudge:
    """One Gemini model through google-generativeai, over its REST transport.

    That is synchronous, on requests: a call runs in a thread, and its session is given an adapter with the bounds of
    `wire` (size, redirects, a deadline for the whole response, kept up to one pause between two bytes of at most the
    time-out). The SDK knows no JSON schema, so a structured answer is asked for as JSON alone.
    """

    def __init__(self, judge: Judge, timeout: float) -> None:
        from google import generativeai  # type: ignore[attr-defined]
        from google.ai import generativelanguage  # type: ignore[import-not-found, attr-defined, unused-ignore]
        from google.auth.api_key import Credentials

        # `generativeai.configure` is for the whole process: judges with different keys or servers could not share it.
        key: Any = Credentials(judge.key or "none")  # type: ignore[no-untyped-call, unused-ignore]
        own = judge.base_url is not None
        endpoint = {"api_endpoint": (judge.base_url or "").rstrip("/")} if own else None
        with without_environment("GOOGLE_", "GEMINI_") if own else nullcontext():
            client = generativelanguage.GenerativeServiceClient(
                credentials=key, transport="rest", client_options=endpoint
            )
        # The SDK has no public way to its session (its stubs are looked up by it, so it cannot be another one).
        self._session = client.transport._session
        # Refreshing a key after a 401 would be further calls, unseen.
        self._session._max_refresh_attempts = 0
        adapter = _bounded_adapter(timeout)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._model = generativeai.GenerativeModel(judge.model)
        self._model._client = client
        self._timeout = timeout
        self._config: dict[str, Any] = {"max_output_tokens": judge.max_tokens, **judge.request_options}
        if judge.structured:
            self._config["response_mime_type"] = "application/json"

    async def ask(self, question: Question) -> bytes:
        """One generateContent."""
        options = {"timeout": self._timeout, "retry": None}
        call = asyncio.to_thread(
            self._model.generate_content, question.prompt, generation_config=self._config, request_options=options
        )
        return await exchange(call, self._timeout)

    async def close(self) -> None:
        """Close the session's connections."""
        self._session.close()


def _bounded_adapter(timeout: float) -> Any:
    """An adapter of requests that reads what `wire.bounded_client` would, and notes it for `wire.exchange`."""
    from requests import Response
    from requests.adapters import HTTPAdapter

    class BoundedAdapter(HTTPAdapter):
        def send(  # type: ignore[override,unused-ignore]  # its options are passed on as they come
            self,
            request: Any,
            stream: bool = False,  # noqa: ARG002
            **options: Any,
        ) -> Response:
            end = time.monotonic() + timeout
            request.headers["Accept-Encoding"] = "identity"
            # The SDK asks for enumerations as numbers ($alt=json;enum-encoding=int); `replies` reads their names.
            request.url = request.url.partition("?")[0]
            seen = current()
            response = super().send(request, stream=True, **options)
            try:
                seen.status, seen.headers = response.status_code, {k.lower(): v for k, v in response.headers.items()}
                encoding = seen.headers.get("content-encoding", "identity").strip().lower()
                if encoding not in ("", "identity", "gzip", "deflate"):
                    seen.refused = f"a body compressed by {encoding[:40]!r}, which was not asked for"
                    raise ValueError(seen.refused)
                body = bytearray()
                # One byte at a time would be read at the server's pace; read1 takes what is there.
                for chunk in iter(lambda: response.raw.read1(1 << 16, decode_content=True), b""):
                    body += chunk
                    if len(body) > LONGEST:
                        seen.refused = f"a body of more than {LONGEST:,} bytes"
                        raise ValueError(seen.refused)
                    if time.monotonic() > end:
                        raise TimeoutError(f"no complete response within {timeout:g} s")
                if response.raw.length_remaining:
                    raise ValueError(f"{response.raw.length_remaining} bytes of the body are missing")
            finally:
                response.close()
            seen.body = bytes(body)
            response._content = seen.body
            response._content_consumed = True
            # Nobody is to follow it: the key would go along.
            response.headers.pop("location", None)
            return response

    return BoundedAdapter()


def _http_library() -> Any:
    """The one that google-genai was installed with; newer releases take either and prefer httpx2."""
    try:
        return importlib.import_module("httpx2")
    except ImportError:
        return importlib.import_module("httpx")
