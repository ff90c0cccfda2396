"""Rows of all boundaries through one model: who has LoRA on in which layer, and where rows branch off.

Two facts carry the shared pass. With boundary K the layers below K see exactly what the whole adapter sees, so one
*trunk* with LoRA in every layer serves all of them, and the rows of boundary K branch off from its hidden state at
layer K and go on without LoRA. And once rows are ordered by falling K, "LoRA on" in layer i is a leading slice of the
batch, so the base weights are read once for all boundaries.

Both are done by wrapping `forward` of the decoder layers and LoRA modules of the loaded model, for as long as a context
lasts; no model code is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lm_eval_lora_drop.layers import AdapterLayers


class Branches:
    """The rows of a batch, while the wrappers are on.

    In a prefill the batch starts as the trunk (one row per document) and doubles, triples, ... at each branching layer.
    Otherwise `rows_with_lora[i]` says how many leading rows have LoRA on in layer i.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.rows_with_lora = [0] * num_layers
        self.trunk = 0
        self.branches: tuple[int, ...] = ()
        self.rows_at_head: int | None = None
        """Leading rows with LoRA on in the head, where it is shown others than the layers are."""
        self.layer_rows = 0
        """Work done so far: rows times layers, each token position of a row counting once per forward."""

    @contextmanager
    def prefill(self, documents: int, boundaries: Sequence[int]) -> Iterator[None]:
        """One forward over `documents` rows that ends with one group of them for each `slot`."""
        self.trunk = documents
        self.branches = tuple(sorted(k for k in set(boundaries) if k < self.num_layers))
        self.rows_with_lora = [documents] * self.num_layers
        try:
            yield
        finally:
            self.trunk, self.rows_at_head = 0, None

    def decode(self, boundaries: Sequence[int]) -> None:
        """The rows from now on, by their boundaries in falling order."""
        self.rows_with_lora = [sum(k > i for k in boundaries) for i in range(self.num_layers)]

    def slot(self, boundary: int, layer: int | None = None) -> int:
        """Which group of rows of the prefill belongs to `boundary` in `layer` (default: the last); 0 is the trunk."""
        if boundary > (self.num_layers - 1 if layer is None else layer):
            return 0
        return 1 + self.branches.index(boundary)

    @contextmanager
    def wrap(self, layers: AdapterLayers) -> Iterator[None]:
        """Put the wrappers on; afterwards the model is as it was."""
        restore: list[tuple[nn.Module, Callable[..., Any] | None]] = []

        def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
            # An instance attribute hides the method of the class; some tools have set one already.
            restore.append((module, module.__dict__.get("forward")))
            module.forward = forward

        try:
            for index, layer in enumerate(layers.decoder_layers):
                replace(layer, self._branching(layer.forward, index))
                for module in layers.modules[index]:
                    replace(module, self._sliced(module, index))
            for module in layers.above:
                # Kept by K = L alone, which is also who has LoRA on in the last layer.
                replace(module, self._sliced(module, None))
            yield
        finally:
            for module, forward in reversed(restore):
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

    def _branching(self, forward: Callable[..., Any], index: int) -> Callable[..., Any]:
        def branching(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.trunk:
                if index in self.branches:
                    hidden = torch.cat([hidden, hidden[: self.trunk]])
                times = hidden.shape[0] // self.trunk
                args = tuple(_repeat(value, self.trunk, times) for value in args)
                kwargs = {name: _repeat(value, self.trunk, times) for name, value in kwargs.items()}
            self.layer_rows += hidden.shape[0]
            return forward(hidden, *args, **kwargs)

        return branching

    def _rows_with_lora(self, index: int | None) -> int:
        if index is not None:
            return self.rows_with_lora[index]
        return self.rows_with_lora[-1] if self.rows_at_head is None else self.rows_at_head

    def _sliced(self, module: Any, index: int | None) -> Callable[..., torch.Tensor]:
        (adapter,) = module.active_adapters
        if adapter not in module.lora_A:
            forward: Callable[..., torch.Tensor] = module.get_base_layer().forward
            return forward
        down, up, scaling = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]

        def sliced(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            out: torch.Tensor = module.base_layer(x, *args, **kwargs)
            rows = self._rows_with_lora(index)
            if rows == 0:
                return out
            # As peft.tuners.lora.layer.Linear.forward: the LoRA path and the sum in its dtype, then the base layer's.
            if rows >= x.shape[0]:
                return (out + up(down(x.to(down.weight.dtype))) * scaling).to(out.dtype)
            out[:rows] += up(down(x[:rows].to(down.weight.dtype))) * scaling
            return out

        return sliced


def _repeat(value: Any, trunk: int, times: int) -> Any:
    """A tensor with one row per trunk row, repeated for the branches; anything else as it is."""
    if times == 1:
        return value
    if isinstance(value, torch.Tensor):
        if value.dim() > 1 and value.shape[0] == trunk:
            return value.repeat(times, *[1] * (value.dim() - 1))
        return value
    if isinstance(value, tuple):
        return tuple(_repeat(part, trunk, times) for part in value)
    return value
