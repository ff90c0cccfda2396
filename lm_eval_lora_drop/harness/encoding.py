"""Prompt and reference as tokens, split as the harness splits a loglikelihood request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Encoder(Protocol):
    """How text becomes tokens: what scoring a reference's likelihood needs of a model."""

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as."""

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Text to token ids, as the harness does it."""

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Context and continuation, with trailing spaces moved as the harness moves them."""


@dataclass(frozen=True)
class Encoded:
    """One teacher-forced document: `inputs` end before the last of the `targets`, which are their continuation."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def encode(lm: Encoder, prompt: str, reference: str, tokens: int) -> Encoded | None:
    """The prompt and the first `tokens` tokens of the reference; None where the reference is empty."""
    context, continuation = encode_pair(lm, prompt, reference)
    targets = continuation[:tokens]
    if not targets:
        return None
    # Too long a prompt loses its beginning, as in the harness.
    inputs = (context + targets)[-(lm.max_length + 1) : -1]
    return Encoded(tuple(inputs), tuple(targets[-len(inputs) :]))


def encode_pair(lm: Encoder, prompt: str, reference: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt and of the reference (none where it is blank), as `TemplateLM.loglikelihood` splits them.

    A blank prompt, which the harness refuses, becomes part of the reference, as its trailing blanks always do.

    `lm` is an lm-eval HFLM.
    """
    if not reference.strip():
        return [], []
    if prompt.strip():
        context, continuation = lm._encode_pair(prompt, reference)
        return list(context), list(continuation)
    reference = prompt + reference
    continuation = list(lm.tok_encode(reference, add_special_tokens=False))
    if continuation[:1] == [lm.prefix_token_id]:
        return continuation[:1], continuation[1:]
    return [lm.prefix_token_id], continuation
