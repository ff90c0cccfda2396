"""What a provider's response says, read from the body as it came over the wire.

The SDKs are not asked: they build what they are given into objects without checking it, or refuse a whole response for
a field that nobody needs. Here every field is looked at by itself, and one that is not as it should be is as if absent:
the text of an answer that has been paid for is not lost over a token count that is a word.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.judge.known_providers import provider_spec

_MOST_TOKENS = 10**9
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
"""What providers, and servers that speak their formats, call an answer that met a limit."""
_GOOGLE_REFUSALS = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"})


@dataclass(frozen=True)
class Reply:
    """What a judge answered: `model` is the one named in the response, None where it names none.

    `stop` is `stop`, `length` or `refusal`; token counts are None where the response gives none that can be true.
    """

    text: str
    model: str | None
    stop: str
    input_tokens: int | None
    output_tokens: int | None


class UnreadableError(ValueError):
    """A body that is no answer of this provider: torn JSON, a page of a proxy, an error under status 200."""


def read_body(provider: str, body: str) -> Reply:
    """The answer in a response of `provider`.

    Raises:
        UnreadableError: there is none in it. Nothing else, whatever the body is.
    """
    try:
        data = json.loads(
            body.removeprefix("\ufeff"), parse_int=_int, parse_float=_float, parse_constant=lambda _: None
        )
    except (ValueError, RecursionError):
        raise UnreadableError("no valid JSON") from None
    if not isinstance(data, dict):
        raise UnreadableError("no JSON object")
    if provider in _READERS:
        return _READERS[provider](data)
    try:
        reply: Reply = importlib.import_module(provider_spec(provider).module).read_reply(data)
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    return reply


def _openai(data: Mapping[str, Any]) -> Reply:
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise UnreadableError(_error_in(data) or "no message in it")
    refusal = message.get("refusal")
    said_no = refusal if isinstance(refusal, str) and refusal.strip() else ""
    reason = choice.get("finish_reason")  # type: ignore[union-attr]  # a message was found in it
    stop = "refusal" if said_no or reason == "content_filter" else _stop(reason)
    usage = _dict(data.get("usage"))
    return Reply(
        text=said_no or _text(message.get("content")),
        model=_name(data.get("model")),
        stop=stop,
        input_tokens=_tokens(usage.get("prompt_tokens")),
        output_tokens=_tokens(usage.get("completion_tokens")),
    )


def _anthropic(data: Mapping[str, Any]) -> Reply:
    if "content" not in data or data.get("type") == "error":
        raise UnreadableError(_error_in(data) or "no content in it")
    reason, usage = data.get("stop_reason"), _dict(data.get("usage"))
    return Reply(
        text=_text(data["content"]),
        model=_name(data.get("model")),
        stop="refusal" if reason == "refusal" else _stop(reason),
        input_tokens=_tokens(usage.get("input_tokens")),
        output_tokens=_tokens(usage.get("output_tokens")),
    )


def _google(data: Mapping[str, Any]) -> Reply:
    candidates = data.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else None
    blocked = isinstance(_dict(data.get("promptFeedback")).get("blockReason"), str)
    if not isinstance(candidate, dict) and not blocked:
        raise UnreadableError(_error_in(data) or "neither a candidate nor a reason why there is none")
    reason = _dict(candidate).get("finishReason")
    refused = blocked or (isinstance(reason, str) and reason in _GOOGLE_REFUSALS)
    usage = _dict(data.get("usageMetadata"))
    wrote, thoughts = _tokens(usage.get("candidatesTokenCount")), _tokens(usage.get("thoughtsTokenCount"))
    return Reply(
        text=_text(_dict(_dict(candidate).get("content")).get("parts")),
        model=_name(data.get("modelVersion")),
        stop="refusal" if refused else _stop(reason),
        input_tokens=_tokens(usage.get("promptTokenCount")),
        # A response that was all thought, or blocked, names no candidate's tokens.
        output_tokens=None if wrote is None and thoughts is None else (wrote or 0) + (thoughts or 0),
    )


def _hf(data: Mapping[str, Any]) -> Reply:
    return Reply(
        text=_text(data.get("text")),
        model=_name(data.get("model")),
        stop=_stop(data.get("stop")),
        input_tokens=_tokens(data.get("input_tokens")),
        output_tokens=_tokens(data.get("output_tokens")),
    )


_READERS: dict[str, Callable[[Mapping[str, Any]], Reply]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "google": _google,
    "hf": _hf,
}


def _stop(reason: Any) -> str:
    return "length" if isinstance(reason, str) and reason.lower() in _CUT_OFF else "stop"


def _text(content: Any) -> str:
    """Text, parts of text (thoughts left out), or JSON that the server has parsed already, as text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    if isinstance(content, dict):
        return _part(content) or json.dumps(content)
    return str(content) if isinstance(content, int | float) and not isinstance(content, bool) else ""


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if (
        not isinstance(part, dict)
        or part.get("thought") is True
        or part.get("type") not in (None, "text", "output_text")
    ):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _tokens(value: Any) -> int | None:
    """A count that can be one: a whole number from 0 to a thousand millions."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _error_in(data: Mapping[str, Any]) -> str:
    error = data.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return f"an error under status 200: {said}" if isinstance(said, str) and said else ""


def _int(digits: str) -> int | None:
    return int(digits) if len(digits) <= 20 else None


def _float(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
