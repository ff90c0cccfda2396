"""How a base model is quantised for a benchmark: lm-eval's `load_in_4bit=True` is gone with Transformers 5."""

from __future__ import annotations

from typing import Any

import torch
import transformers

KINDS = (
    "bitsandbytes nf4", "bitsandbytes nf4, double", "bitsandbytes fp4", "bitsandbytes LLM.int8",
    "torchao int8 weight only", "torchao int8 dynamic",
)  # fmt: skip


def quantisation(kind: str) -> Any:
    """The `quantization_config` of one of `KINDS`."""
    package, _, name = kind.partition(" ")
    if package == "bitsandbytes":
        bits: dict[str, dict[str, Any]] = {
            "nf4": {"bnb_4bit_quant_type": "nf4"},
            "nf4, double": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "fp4": {"bnb_4bit_quant_type": "fp4"},
        }
        four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
        given = {"load_in_8bit": True} if name == "LLM.int8" else {**four, **bits[name]}
        return transformers.BitsAndBytesConfig(**given)
    from torchao import quantization

    made = {"int8 weight only": "Int8WeightOnlyConfig", "int8 dynamic": "Int8DynamicActivationInt8WeightConfig"}
    return transformers.TorchAoConfig(getattr(quantization, made[name])())
