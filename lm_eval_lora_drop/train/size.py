"""What a training writes, reckoned before a weight is loaded: from the base model's configuration and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_lora_drop.train.lora import add_lora
from lm_eval_lora_drop.train.settings import TrainingSettings

_FLOAT32 = 4
_ADAMW = 2 * _FLOAT32
"""Bytes of optimiser state for each parameter: its two running means."""
_AT_ONCE = 3
"""Checkpoints that stand side by side while the third is written; then the oldest is removed."""


@dataclass(frozen=True)
class DiskUsage:
    """Bytes: `adapter` stays, `checkpoints` are there beside it until the training ends."""

    adapter: int
    checkpoints: int


def training_size(
    base: str, revision: str | None, settings: TrainingSettings, tokenizer: Any, *, trust_remote_code: bool
) -> DiskUsage:
    """What one training that removes its checkpoints at the end writes, without what is small (records, logs).

    Raises:
        ArgumentError: the model has no such layers or modules as the settings name.
    """
    parameters = _parameters(
        base, revision, settings.rank, settings.layers, settings.target_modules, trust_remote_code=trust_remote_code
    )
    checkpoint = (_FLOAT32 + _ADAMW) * parameters + _written(tokenizer)
    return DiskUsage(_FLOAT32 * parameters, min(settings.checkpoints, _AT_ONCE) * checkpoint)


@lru_cache(maxsize=64)
def _parameters(
    base: str, revision: str | None, rank: int, layers: str, target_modules: tuple[str, ...], *, trust_remote_code: bool
) -> int:
    """Counted on a model without memory (PyTorch's meta device), with the LoRA that a training would put on it."""
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
    settings = TrainingSettings(rank=rank, layers=layers, target_modules=target_modules)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        peft = add_lora(model, settings, base, 0)
    return sum(one.numel() for one in peft.parameters() if one.requires_grad)


def _written(tokenizer: Any) -> int:
    """Bytes of the tokenizer that every checkpoint carries; 0 for one that is not of the `tokenizers` library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return 0 if backend is None else len(backend.to_str(pretty=True).encode())
