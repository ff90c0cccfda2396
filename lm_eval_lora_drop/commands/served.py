"""Asks an OpenAI-compatible server (vLLM, SGLang, llama.cpp, TGI, Transformers) what `lora-drop check` compares."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from lm_eval_lora_drop.adapter.agreement import Served
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.providers.wire import CallError, bounded_client, exchange, without_environment
from lm_eval_lora_drop.judge.redact import Redactor
from lm_eval_lora_drop.text import shown, visible

KEY = "LORA_DROP_SERVER_KEY"
"""The environment variable with the server's key: one of its own, so that no other service's key is sent to it."""
_TIMEOUT = 120.0


def ask_server(url: str, model: str, prompts: Sequence[str], tokens: int) -> tuple[Served, Served]:
    """All prompts, greedily, and all of them again: how far the server differs from itself is the noise.

    What is sent, and where, is printed first. No redirect is followed.

    Raises:
        ArgumentError: the URL cannot be used, the openai package is not installed, or the server does not answer.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ArgumentError(
            f"--server must be a URL such as http://localhost:8000/v1, got {shown(url.rpartition('@')[2])!r}."
        )
    if parts.username or parts.password or parts.query:
        raise ArgumentError(f"--server must hold no key, user or query. Put the key into the variable {KEY}.")
    base = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
    key = os.environ.get(KEY, "")
    sent = f"the key in {KEY}" if key else f"no key ({KEY} is not set)"
    print(
        f"Sent to {visible(base)}: {len(prompts)} prompts, twice, for model {visible(model)}; {sent}.", file=sys.stderr
    )
    try:
        return asyncio.run(_ask_twice(base, key, model, prompts, tokens))
    except CallError as error:
        said = visible(Redactor([key]).message(" ".join(str(error).split())))[:300]
        raise ArgumentError(
            f"--server {visible(base)} does not answer as an OpenAI-compatible server: {said}. `lora-drop check` asks "
            f"for completions (POST {visible(base)}/completions) of the model {shown(model)!r}."
        ) from None


async def _ask_twice(base: str, key: str, model: str, prompts: Sequence[str], tokens: int) -> tuple[Served, Served]:
    try:
        import openai
    except ImportError:
        raise ArgumentError("--server needs openai: pip install 'lm-eval-lora-drop[judges]'.") from None
    # Organisation and project of the environment belong to the official service.
    with without_environment("OPENAI_"):
        client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base,
            max_retries=0,
            timeout=_TIMEOUT,
            http_client=bounded_client(openai.DefaultAsyncHttpxClient, timeout=_TIMEOUT),
        )
    try:
        request = {"model": model, "max_tokens": tokens, "temperature": 0.0}
        first = await _ask_all(client, request, prompts)
        return first, await _ask_all(client, request, prompts)
    finally:
        await client.close()


async def _ask_all(client: Any, request: dict[str, Any], prompts: Sequence[str]) -> Served:
    """With log-probabilities of the prompts where the server has them: what refuses the question is asked without."""
    texts, ended, logprobs = [], [], []
    more: dict[str, Any] = {"echo": True, "logprobs": 1}
    for prompt in prompts:
        try:
            choice, read = await _complete(client, prompt, request | more)
        except CallError as error:
            if not more or not str(error).startswith(("HTTP 400", "HTTP 422", "HTTP 500", "HTTP 501")):
                raise
            more = {}
            choice, read = await _complete(client, prompt, request)
        # A server that passes over `echo` gives the continuation alone.
        texts.append(choice["text"].removeprefix(prompt) if more else choice["text"])
        ended.append(choice.get("finish_reason") == "stop")
        logprobs.append(_of_prompt(choice.get("logprobs"), read))
    known = [one for one in logprobs if one is not None]
    return Served(tuple(texts), tuple(ended), tuple(known) if len(known) == len(prompts) else None)


async def _complete(client: Any, prompt: str, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The choice, and how many tokens the prompt has for the server."""
    body = await exchange(client.completions.create(prompt=prompt, **request), _TIMEOUT)
    try:
        answer = json.loads(body)
        choice: dict[str, Any] = answer["choices"][0]
        if not isinstance(choice["text"], str):
            raise TypeError("text")
        return choice, (answer.get("usage") or {}).get("prompt_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CallError(f"an answer without choices[0].text: {body[:200].decode('utf-8', 'replace')}") from None


def _of_prompt(found: Any, read: Any) -> tuple[float, ...] | None:
    """The log-probabilities of the prompt's tokens from the second on; None where the answer does not have them."""
    values = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(values, list) or not isinstance(read, int) or not 2 <= read <= len(values):
        return None
    # The first token has no context, so no log-probability: that tells an echoed prompt from a continuation.
    if values[0] is not None or not all(isinstance(one, (int, float)) for one in values[1:read]):
        return None
    return tuple(map(float, values[1:read]))
