"""How many rows a batch may have, and what to do when that was too many."""

from __future__ import annotations

import gc
import sys
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers.cache_utils import DynamicCache

from lm_eval_lora_drop.engine.decode import PREFILL_TOKENS
from lm_eval_lora_drop.engine.states.arguments import accepted
from lm_eval_lora_drop.engine.states.cache import columns_for, slots_for
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.text import logger

log = logger(__name__)

ROWS = 512
"""Rows per batch at most, unless told otherwise: enough for the matrix products to run at full speed."""
SHARE = 0.7
"""Of the free memory, what keys, values and logits may take; the rest is for intermediate results."""


@dataclass(frozen=True)
class RowSize:
    """What a row takes: bytes of keys and values for each of its tokens, and of logits."""

    token: int
    logits: int

    @classmethod
    def of(cls, lm: HarnessModel) -> RowSize:
        """Measured in a forward over two tokens: heads and their size may differ from layer to layer."""
        cache = DynamicCache()
        ids = torch.zeros((1, 2), dtype=torch.long, device=lm.device)
        with torch.inference_mode():
            logits = lm.model(**accepted(lm, input_ids=ids, cache=cache, use_cache=True)).logits
        layers: list[Any] = list(cache.layers)
        states = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        # Logits are there twice: as computed, and in single precision.
        return cls(sum(tensor.nbytes for tensor in states) // 2, 2 * 4 * logits.shape[-1])

    def bytes_of(self, rows: int, tokens: int) -> int:
        """The maximum that `rows` rows of `tokens` tokens take: their buffers with the spare room, and the prompts that
        are being read, whose keys and values are copied there."""
        reading = min(rows * tokens, max(tokens, PREFILL_TOKENS))
        return (slots_for(rows) * columns_for(tokens) + reading) * self.token + rows * self.logits

    def rows_in(self, memory: float, tokens: int) -> int:
        """How many rows of `tokens` tokens fit in `SHARE` of `memory` bytes, from 1 to `ROWS`."""
        room = SHARE * memory
        return max(1, bisect_right(range(ROWS + 1), room, key=lambda rows: self.bytes_of(rows, tokens)) - 1)


def rows_that_fit(lm: HarnessModel, size: RowSize, tokens: int) -> int:
    """How many rows of `tokens` tokens each can be decoded together in the memory that is free now, at most `ROWS`.

    As if every row had its own keys and values throughout; rows that share states need less. A CPU raises no error when
    memory runs out: the system ends the process, so the estimate is all there is.
    """
    return size.rows_in(free_memory(lm.device), tokens)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far: on a GPU by tensors, on a CPU by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def halve(rows: int) -> int:
    """Half as many rows for the next try, after whatever can be freed has been.

    Raises:
        MemoryError: there was a single row.
    """
    if rows == 1:
        raise MemoryError(
            "The sweep ran out of memory with a single document under a single boundary. Shorten the prompts "
            "(max_length=...) or the answers (--gen_kwargs max_gen_toks=...), or use sweep_engine=plain."
        )
    gc.collect()
    torch.cuda.empty_cache()
    log.warning("out of memory with %d rows per batch: going on with %d", rows, rows // 2)
    return rows // 2
