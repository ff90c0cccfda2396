"""Batches of token ids as lm-eval's HFLM makes them and ends them. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lm_eval.models.utils_hf import pad_and_concat, stop_sequences_criteria

if TYPE_CHECKING:
    import torch


def padded(length: int, rows: Sequence[torch.Tensor], side: Literal["left", "right"] = "right") -> torch.Tensor:
    """`(rows, length)` token ids, padded with zeros."""
    return pad_and_concat(length, list(rows), side)


def stop_criteria(tokenizer: Any, stops: Sequence[str], prompt_length: int) -> Any:
    """HFLM's criteria for one row: called with `(1, tokens)` ids, true where the row has met one of `stops`."""
    return stop_sequences_criteria(tokenizer, list(stops), prompt_length, 1)
