"""Matrix products on a CPU: of fp32 layers by oneDNN, where `torch.nn.Linear` calls MKL; of the output layer as one.

A sweep's batches are wide, so its time is that of the matrix products. PyTorch brings both libraries and gives
fp32 products to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN takes what there is. Their results
differ by rounding, as those of batches of another shape do.

A model hands the last positions of its states to the output layer, `states[:, -1:]`, and of such a strided batch torch
2.13 makes one product a row, in half precision with a copy of the weights for each. Of the same numbers laid out one
after the other it makes one product; in half precision the results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lm_eval_lora_drop.harness.model import HarnessModel


def available(lm: HarnessModel) -> bool:
    """Whether this model's products can be computed by oneDNN."""
    return (
        lm.device.type == "cpu"
        and lm.mixed_precision_dtype is None
        # On a base model in half precision PEFT keeps its LoRA in fp32, and a rounding of 1e-8 in it flips one of bf16.
        and all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in lm.model.parameters())
        and torch.backends.mkldnn.is_available()
        # What torch.compile emits for linear layers on CPUs; not every build has it.
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@contextmanager
def fast_products(lm: HarnessModel) -> Iterator[None]:
    """Within the context the model's fp32 linear layers compute by oneDNN, where that can be had, and the output layer
    is handed contiguous states."""
    replaced: list[Any] = []
    head = lm.model.get_base_model().get_output_embeddings() if lm.device.type == "cpu" else None
    hook = head.register_forward_pre_hook(_contiguous) if isinstance(head, nn.Module) else None
    try:
        if available(lm):
            module: Any
            for module in lm.model.modules():
                if _is_plain(module):
                    module.forward = _linear(module)
                    replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward
        if hook is not None:
            hook.remove()


def _contiguous(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.contiguous() if isinstance(one, torch.Tensor) else one for one in given)


def _is_plain(module: Any) -> bool:
    # Subclasses (quantised layers), layers that somebody has wrapped, and weights that are tensors of their own kind
    # (torchao's) compute in their own way.
    if type(module) is not nn.Linear or "forward" in module.__dict__ or type(module.weight) is not nn.Parameter:
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu" and module.weight.is_contiguous()


def _linear(module: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    product = torch.ops.mkldnn._linear_pointwise

    def linear(x: torch.Tensor) -> torch.Tensor:
        # Asked for each time: a tied head's weight depends on what is kept.
        weight, bias = module.weight, module.bias
        if x.dtype != torch.float32 or x.dim() < 2:
            return nn.functional.linear(x, weight, bias)
        out: torch.Tensor = product(x.contiguous(), weight, bias, "none", [], "")
        return out

    return linear
