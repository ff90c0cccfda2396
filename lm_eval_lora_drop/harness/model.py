"""lm-eval's HFLM as far as engine and probe use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lm_eval_lora_drop.harness.encoding import Encoder

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance


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
    add_bos_token: bool | None
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
