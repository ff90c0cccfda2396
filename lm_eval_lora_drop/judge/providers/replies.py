"""What a provider's response says, read from the body as it came over the wire.

The SDKs are not asked: they build what they are given into objects without checking it, or refuse a whole response for
a field that nobody needs. Here every field is looked at by itself, and one that is not as it should be is as if absent:
the text of an answer that has been paid for is not lost over a token count that is a word.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.judge.known_providers import provider_spec

_MOST_TOKENS = 10**9
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
"""What providers, and servers that speak their formats, call an answer that met a limit."""
_REFUSALS = frozenset(
    {"refusal", "content_filter", "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"}
)


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
    if provider in _FORMATS:
        return _reply(data, _FORMATS[provider])
    try:
        reply: Reply = importlib.import_module(provider_spec(provider).module).read_reply(data)
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    return reply


@dataclass(frozen=True)
class _Format:
    """Where a provider's response has what is looked for: names and places in lists, joined by dots.

    Without an `answer`, a value of type `kind`, it is no response; `said_no` is the text of a refusal.
    """

    answer: str
    text: str
    stop: str
    input: str
    output: tuple[str, ...]
    said_no: str = ""
    model: str = "model"
    kind: type = dict


_FORMATS = {
    "openai": _Format(
        answer="choices.0.message",
        text="choices.0.message.content",
        stop="choices.0.finish_reason",
        input="usage.prompt_tokens",
        output=("usage.completion_tokens",),
        said_no="choices.0.message.refusal",
    ),
    "anthropic": _Format(
        answer="content",
        text="content",
        stop="stop_reason",
        input="usage.input_tokens",
        output=("usage.output_tokens",),
        kind=object,
    ),
    "google": _Format(
        answer="candidates.0",
        text="candidates.0.content.parts",
        stop="candidates.0.finishReason",
        input="usageMetadata.promptTokenCount",
        # A response that was all thought, or blocked, names no candidate's tokens.
        output=("usageMetadata.candidatesTokenCount", "usageMetadata.thoughtsTokenCount"),
        said_no="promptFeedback.blockReason",
        model="modelVersion",
    ),
    "hf": _Format("text", "text", "stop", "input_tokens", ("output_tokens",), kind=object),
}


def _reply(data: Mapping[str, Any], places: _Format) -> Reply:
    answer, said_no = _at(data, places.answer), _at(data, places.said_no)
    said_no = said_no if isinstance(said_no, str) and said_no.strip() else ""
    if not said_no and (answer is None or not isinstance(answer, places.kind)):
        raise UnreadableError(_error_in(data) or f"no {places.answer} in it")
    reason, model = _at(data, places.stop), _at(data, places.model)
    written = [count for place in places.output if (count := _tokens(_at(data, place))) is not None]
    return Reply(
        text=said_no or _text(_at(data, places.text)),
        model=model[:200] if isinstance(model, str) and model else None,
        stop="refusal" if said_no or (isinstance(reason, str) and reason in _REFUSALS) else _stop(reason),
        input_tokens=_tokens(_at(data, places.input)),
        output_tokens=sum(written) if written else None,
    )


def _at(data: Any, place: str) -> Any:
    """What is at a place, None where there is nothing."""
    for step in place.split("."):
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and step.isdecimal() and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data


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


def _error_in(data: Mapping[str, Any]) -> str:
    error = data.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return f"an error under status 200: {said}" if isinstance(said, str) and said else ""


def _int(digits: str) -> int | None:
    return int(digits) if len(digits) <= 20 else None


def _float(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
