"""What stored responses mean: the verdict, or why there is none and what to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lm_eval_lora_drop.judge.cache import Cache, answer_key
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers.replies import Reply, UnreadableError, read_body
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.judge.reading import survives_cut


@dataclass(frozen=True)
class ReadReply:
    """A reply and what it means: None is no verdict."""

    reply: Reply
    value: Any


def known_answer(cache: Cache, judge: Judge, question: Question) -> ReadReply | None:
    """The first stored answer that can be read."""
    for body in cache.bodies(answer_key(judge, question)):
        try:
            return read_answer(judge, question, body)
        except UnreadableError:
            continue
    return None


def calls_needed(cache: Cache, judge: Judge, question: Question) -> list[Question]:
    """The prompts that would be sent for a question now, if each is answered by a verdict."""
    for asked in (question, question.again()):
        known = known_answer(cache, judge, asked)
        if known is None:
            return [asked]
        if known.value is not None:
            break
    return []


def read_answer(judge: Judge, question: Question, body: str) -> ReadReply:
    """What a response says. Raises UnreadableError where it is no answer of this provider at all."""
    reply = read_body(judge.provider, body)
    if reply.stop == "refusal":
        return ReadReply(reply, None)
    # Not every server says that it cut an answer off.
    cut = reply.stop == "length" or reply.output_tokens == judge.max_tokens
    value = None if cut and not survives_cut(reply.text) else question.read(reply.text)
    return ReadReply(replace(reply, stop="length" if cut else "stop"), value)


def usage(judge: Judge, body: str) -> tuple[int | None, int | None]:
    """The token counts of a response, whatever else is wrong with it."""
    try:
        reply = read_body(judge.provider, body)
    except UnreadableError:
        return None, None
    return reply.input_tokens, reply.output_tokens


def no_verdict_reason(judge: Judge, answer: ReadReply) -> str:
    """Why an answer has no verdict, in a few words."""
    reply = answer.reply
    if reply.stop == "refusal":
        return "refused"
    reason = "no verdict in the answer" if reply.text.strip() else "empty answer"
    return reason + (f" (cut off at max_tokens={judge.max_tokens})" if reply.stop == "length" else "")


def likely_cause(judge: Judge, answer: ReadReply) -> str:
    """The likely cause of an answer without a verdict, and what to change."""
    if answer.reply.stop == "refusal":
        return "The provider refuses these texts; use another model."
    if answer.reply.stop == "length":
        return (
            "A reasoning model spends max_tokens on its thoughts: set max_tokens of this judge to "
            f"{max(4096, 4 * judge.max_tokens)}, or a lower effort in its options."
        )
    if not answer.reply.text.strip():
        return "The model answers nothing: check its options, and that it is a chat model."
    return "It answers in prose: set structured: true if the server supports JSON schemas, or use another model."
