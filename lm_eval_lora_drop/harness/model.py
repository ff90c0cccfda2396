"""lm-eval's HFLM as far as engine and probe use it, and texts as tokens as it splits them for a log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance


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


class HarnessModel(Encoder, Protocol):
    """What engine and probe use of lm-eval's HFLM (lm_eval/models/huggingface.py), typed, and nothing else of it.

    Names are HFLM's own, underscores included.
    """

    model: Any
    tokenizer: Any
    config: Any
    cache_hook: Any
    batch_size: Any
    batch_size_per_gpu: Any
    mixed_precision_dtype: torch.dtype | None
    truncation: bool
    backend: str
    softmax_dtype: torch.dtype | None
    think_end_token: str | int | None
    _world_size: int

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def rank(self) -> int:
        """0..world_size-1."""

    @property
    def world_size(self) -> int:
        """How many processes evaluate together."""

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a request names no limit."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Token ids to text."""

    def tok_batch_encode(self, strings: list[str], **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded token ids and attention mask, each (strings, length)."""

    def harness_answers(self, request_type: str, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """HFLM's own answers, under whatever layers are kept now (ours, in backends/hf.py)."""


@dataclass(frozen=True)
class EncodedReference:
    """One teacher-forced document: `inputs` end before the last of the `targets`, which are their continuation."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def encode(lm: Encoder, prompt: str, reference: str, tokens: int) -> EncodedReference | None:
    """The prompt and the first `tokens` tokens of the reference; None where the reference is empty."""
    context, continuation = encode_pair(lm, prompt, reference)
    targets = continuation[:tokens]
    if not targets:
        return None
    # Too long a prompt loses its beginning, as in the harness.
    inputs = (context + targets)[-(lm.max_length + 1) : -1]
    return EncodedReference(tuple(inputs), tuple(targets[-len(inputs) :]))


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


def encode_scored(lm: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As `TemplateLM.loglikelihood`: an empty context becomes the prefix token.

    Raises:
        IndexError: context and continuation are both empty.
    """
    if context:
        return lm._encode_pair(context, continuation)
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    return ([lm.prefix_token_id], tokens) if tokens[0] != lm.prefix_token_id else (tokens[:1], tokens[1:])


def encode_windows(lm: Encoder, text: str) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) of each window of a text whose log-likelihood is asked, as `loglikelihood_rolling`."""
    windows = get_rolling_token_windows(
        token_list=lm.tok_encode(text), prefix_token=lm.prefix_token_id, max_seq_len=lm.max_length, context_len=1
    )
    return [make_disjoint_window(window) for window in windows]
