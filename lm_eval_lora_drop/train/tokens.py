"""Examples as token ids and labels: the prompt as the harness encodes it, loss on the answer and its end alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.train.examples import Example

IGNORED = -100
"""The label that cross entropy skips."""
_ANCHOR = "\n"


@dataclass(frozen=True)
class TokenizedExample:
    """`input_ids` of prompt and answer; `labels` are the same with `IGNORED` in place of the prompt. Both have the same
    length. `cut` is the number of prompt tokens that were cut off at the left to fit."""

    doc_id: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: int


@dataclass(frozen=True)
class AnswerEnd:
    """What a generated answer stands between: white space that the template puts before it, the tokens that end it."""

    lead: str
    ids: tuple[int, ...]


def answer_end(tokenizer: Any, *, chat: bool) -> AnswerEnd:
    """How an answer ends: with the end-of-text token, or under a chat template with what ends the assistant's turn.

    Many templates end a turn with a token that is not the end of text (`<end_of_turn>`, `<|eot_id|>`); generation stops
    at it because the model's generation settings name it.

    Raises:
        ArgumentError: the tokenizer has no end-of-text token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ArgumentError(
            "The tokenizer has no end-of-text token, so an answer could never end. Set eos_token in it."
        )
    if not chat:
        return AnswerEnd("", (eos,))
    mark = "LORADROPANSWER"
    question = [{"role": "user", "content": "question"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": mark}], tokenize=False)
    before, _, after = whole.rpartition(mark)
    lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids: list[int] = []
    for token in tokenizer(after, add_special_tokens=False).input_ids:
        ids.append(token)
        if token in special:
            return AnswerEnd(lead if lead.isspace() else "", tuple(ids))
    return AnswerEnd(lead if lead.isspace() else "", (eos,))


def encode(tokenizer: Any, example: Example, end: AnswerEnd, max_length: int) -> TokenizedExample | None:
    """The token ids of an example, None where the answer alone does not fit or cannot be written after the prompt.

    Generated answers: the prompt's tokens are exactly those that the model reads at evaluation, also where prompt and
    answer together would be split otherwise (a token across the border would never be seen there); if too long, its
    left is cut, as the harness cuts it. Scored answers: as the harness splits context and continuation
    (`TemplateLM._encode_pair`).
    """
    pair = _generated(tokenizer, example, end) if example.generates else _scored(tokenizer, example)
    if pair is None:
        return None
    prompt, answer = pair
    room = max_length - len(answer)
    if room < 1 or not answer:
        return None
    cut = max(0, len(prompt) - room)
    kept = prompt[cut:]
    return TokenizedExample(example.doc_id, (*kept, *answer), (*[IGNORED] * len(kept), *answer), cut)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """As `HFLM.tok_encode`: the tokenizer's own special tokens, unless the text brings its first one along."""
    bos = tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    return list(tokenizer(text, add_special_tokens=special).input_ids)


def _generated(tokenizer: Any, example: Example, end: AnswerEnd) -> tuple[list[int], list[int]] | None:
    prompt = _ids(tokenizer, example.prompt)
    text = end.lead + example.answer
    together = _ids(tokenizer, example.prompt + text)
    if together[: len(prompt)] == prompt:
        answer = together[len(prompt) :]
    else:
        # Tokens merge across the border. The answer by itself, or after a line break where a tokenizer would put a
        # space before a text's first word; whichever reads back as the same text.
        whole = tokenizer.decode(together, clean_up_tokenization_spaces=False)
        anchor = tokenizer(_ANCHOR, add_special_tokens=False).input_ids
        anchored = tokenizer(_ANCHOR + text, add_special_tokens=False).input_ids
        ways = [tokenizer(text, add_special_tokens=False).input_ids]
        if anchored[: len(anchor)] == anchor:
            ways.append(anchored[len(anchor) :])
        right = (ids for ids in ways if tokenizer.decode([*prompt, *ids], clean_up_tokenization_spaces=False) == whole)
        found = next(right, None)
        if found is None:
            return None
        answer = list(found)
    return prompt, [*answer, *end.ids]


def _scored(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    context = example.prompt.rstrip()
    continuation = example.prompt[len(context) :] + example.answer
    if not context:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [first], list(tokenizer(continuation, add_special_tokens=False).input_ids)
    prompt = _ids(tokenizer, context)
    return prompt, _ids(tokenizer, context + continuation)[len(prompt) :]
