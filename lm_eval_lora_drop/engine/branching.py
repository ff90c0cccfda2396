"""Leads the states of all rows through the layers of one model, LoRA on for a leading slice of each layer's batch.

With boundary K the layers below K see exactly what the whole adapter sees, so one *trunk* with LoRA in every layer
serves all boundaries, and the row of boundary K branches off at layer K and goes on without LoRA (`tree` keeps the
books). States with LoRA come first in a layer's batch, so the base weights are read once for all boundaries.

Both are done by wrapping `forward` of the decoder layers and LoRA modules of the loaded model, for as long as a context
lasts; no model code is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.tree import Route


class Branches:
    """The wrappers, and the route that the next forwards take."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.layer_rows = 0
        """Work done so far: states times layers, each counting once per forward."""
        self.layer_tokens = 0
        """The same, each token position counting once."""
        self._route: Route | None = None
        self._inputs = 0
        self._head = 0

    @contextmanager
    def follow(self, route: Route, rows_at_head: int | None = None) -> Iterator[None]:
        """Forwards within the context take this route; `rows_at_head` as far as the head is shown other rows."""
        self._route = route
        self._inputs = len(route.inputs)
        self._head = route.with_lora[-1] if rows_at_head is None else rows_at_head
        try:
            yield
        finally:
            self._route = None

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
            assert self._route is not None
            source, context = self._route.sources[index], self._route.contexts[index]
            if source is not None:
                hidden = hidden.index_select(0, source.to(hidden.device))
            if context is not None:
                args = tuple(self._pick(value, context) for value in args)
                kwargs = {name: self._pick(value, context) for name, value in kwargs.items()}
            self.layer_rows += hidden.shape[0]
            self.layer_tokens += hidden.shape[0] * hidden.shape[1]
            return forward(hidden, *args, **kwargs)

        return branching

    def _pick(self, value: Any, context: torch.Tensor) -> Any:
        """Of a tensor with one row per input, the rows of this layer's states; anything else as it is."""
        if isinstance(value, torch.Tensor):
            if value.dim() > 1 and value.shape[0] == self._inputs:
                return value.index_select(0, context.to(value.device))
            return value
        if isinstance(value, tuple):
            return tuple(self._pick(part, context) for part in value)
        return value

    def _sliced(self, module: Any, index: int | None) -> Callable[..., torch.Tensor]:
        (adapter,) = module.active_adapters
        if adapter not in module.lora_A:
            forward: Callable[..., torch.Tensor] = module.get_base_layer().forward
            return forward
        down, up, scaling = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
        # One product that adds in place, for the usual `up`; it saves two passes over a layer's widest results.
        in_place = type(up) is nn.Linear and up.bias is None

        def sliced(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            assert self._route is not None
            out: torch.Tensor = module.base_layer(x, *args, **kwargs)
            rows = self._head if index is None else self._route.with_lora[index]
            if rows == 0:
                return out
            if in_place and out.dtype == up.weight.dtype and out.is_contiguous() and rows <= x.shape[0]:
                low = down(x[:rows].to(down.weight.dtype))
                out[:rows].flatten(end_dim=-2).addmm_(low.flatten(end_dim=-2), up.weight.t(), alpha=scaling)
                return out
            # As peft.tuners.lora.layer.Linear.forward: the LoRA path and the sum in its dtype, then the base layer's.
            if rows >= x.shape[0]:
                return (out + up(down(x.to(down.weight.dtype))) * scaling).to(out.dtype)
            out[:rows] += up(down(x[:rows].to(down.weight.dtype))) * scaling
            return out

        return sliced


def forward(
    lm: Any, branches: Branches | None, route: Route, rows_at_head: int | None = None, **inputs: Any
) -> torch.Tensor:
    """Logits of a forward along `route` (without `branches`: of the model as it is), with the autocast of HFLM."""
    autocast = torch.autocast(
        device_type=lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
    )
    with branches.follow(route, rows_at_head) if branches else nullcontext(), autocast:
        logits: torch.Tensor = lm.model(**inputs).logits
    return logits
