"""Leads the states of all rows through the layers of one model, each slice of a layer's batch with its own LoRA.

Before layer i a state is copied for each variant that begins to differ there (`tree` keeps the books). Within layer i
states are ordered by setting, so the base weights are read once for all, and what LoRA adds is added slice by slice:
`out[a:b] += scaling * up(down(x[a:b]))`.

Both are done by wrapping `forward` of the decoder layers and LoRA modules of the loaded model, for as long as a context
lasts; no model code is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from lm_eval_lora_drop.adapter.layers import AdapterLayers, AdapterModule
from lm_eval_lora_drop.engine.states.arguments import Path, accepted, pick, rows_per_input
from lm_eval_lora_drop.engine.states.settings import Settings
from lm_eval_lora_drop.engine.states.tree import Route, Segment
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.variant import Keep


class NotShareable(Exception):  # noqa: N818 (it says what the shared pass found, not that anybody erred)
    """The shared pass cannot answer this; the plain one can."""


@dataclass(frozen=True, eq=False)
class Addition:
    """What one adapter adds to a linear layer's output: `up(down(x)) * scaling`."""

    down: nn.Module
    up: torch.Tensor
    bias: torch.Tensor | None
    scaling: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, ..., in) to (rows, ..., out), in the adapter's dtype, as peft.tuners.lora.layer.Linear.forward."""
        low = self.down(x.to(self.up.dtype))
        return nn.functional.linear(low, self.up, self.bias) * self.scaling


class Branches:
    """The wrappers, and the route that the next forwards take."""

    def __init__(self, lm: HarnessModel, layers: AdapterLayers) -> None:
        self.settings = Settings(layers.num_layers, tied=bool(layers.followers))
        self.layer_rows = 0
        """Work done so far: states times layers, each counting once per forward."""
        self.layer_tokens = 0
        """The same, each token position counting once."""
        self._layers = layers
        self._head = lm.model.get_base_model().get_output_embeddings()
        self._rows_per_input: list[dict[Path, int]] = rows_per_input(lm, layers)
        self._route: Route | None = None
        self._at_head: tuple[Segment, ...] | None = None
        # Tokens of a state in the layer that runs now: it decides whether an input has a row per token or per state.
        self._tokens = 1
        # (id of a module, setting) and (id of a module, adapter, what is kept) -> what is added.
        self._additions: dict[tuple[int, int], tuple[Addition, ...]] = {}
        self._by_keep: dict[tuple[int, str, Keep | None], tuple[Addition, ...]] = {}

    @contextmanager
    def follow(self, route: Route, tokens: int, at_head: tuple[Segment, ...] | None = None) -> Iterator[None]:
        """Forwards within the context take this route, with `tokens` tokens per state.

        `at_head` are the segments of what the head is shown, where that is not the states of the last layer.
        """
        self._route, self._tokens, self._at_head = route, tokens, at_head
        try:
            yield
        finally:
            self._route = None

    @contextmanager
    def wrap(self) -> Iterator[None]:
        """Put the wrappers on; afterwards the model is as it was."""
        restore: list[tuple[nn.Module, Callable[..., Any] | None]] = []

        def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
            # An instance attribute hides the method of the class; some tools have set one already.
            restore.append((module, module.__dict__.get("forward")))
            module.forward = forward

        layers = self._layers
        try:
            for module in layers.below:
                replace(module, self._sliced(module, 0))
            for index, layer in enumerate(layers.decoder_layers):
                replace(layer, self._branching(layer.forward, index))
                for module in layers.modules[index]:
                    replace(module, self._sliced(module, index))
            for module in layers.above:
                replace(module, self._sliced(module, layers.num_layers - 1))
            for wrapper in layers.below:
                for follower in layers.followers.get(id(wrapper), ()):
                    replace(follower.owner, self._sliced(follower.owner, layers.num_layers - 1, tied=wrapper))
            yield
        finally:
            for module, forward in reversed(restore):
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

    def _branching(self, forward: Callable[..., Any], index: int) -> Callable[..., Any]:
        def branching(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            route = self._route
            assert route is not None
            coming = route.states[max(0, index - 1)]
            if hidden.dim() != 3 or hidden.shape[0] != coming:
                raise NotShareable(f"layer {index} is handed a tensor {tuple(hidden.shape)} for {coming} states")
            source, context = route.sources[index], route.contexts[index]
            if source is not None:
                hidden = hidden.index_select(0, source.on(hidden.device))
            if context is not None:
                rows, inputs = self._rows_per_input[index], len(route.inputs)
                args = tuple(pick(value, (place,), rows, inputs, context) for place, value in enumerate(args))
                kwargs = {name: pick(value, (name,), rows, inputs, context) for name, value in kwargs.items()}
            self._tokens = hidden.shape[1]
            self.layer_rows += hidden.shape[0]
            self.layer_tokens += hidden.shape[0] * hidden.shape[1]
            return forward(hidden, *args, **kwargs)

        return branching

    def _sliced(
        self, module: AdapterModule, index: int, tied: AdapterModule | None = None
    ) -> Callable[..., torch.Tensor]:
        """The forward of a module in or beside layer `index`; `tied` is the trained embedding that it goes with."""
        forward: Callable[..., Any] = module.forward
        simple = _is_simple(module)

        def sliced(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            route = self._route
            assert route is not None
            segments = route.segments[index]
            if module is self._head and self._at_head is not None:
                segments = self._at_head
            segments = _scaled(segments, _rows_per_state(x, segments[-1].stop, self._tokens))
            if not simple:
                return self._piecewise(module, forward, segments, x, *args, tied=tied, **kwargs)
            out: torch.Tensor = module.base_layer(x, *args, **kwargs)
            for additions, start, stop in self._merged(module, segments):
                for addition in additions:
                    out = _add(addition, x, out, start, stop)
            return out

        return sliced

    def _piecewise(
        self,
        module: AdapterModule,
        forward: Callable[..., Any],
        segments: Sequence[Segment],
        x: torch.Tensor,
        *args: Any,
        tied: AdapterModule | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The module's own forward, one segment after the other: for DoRA, embeddings and fully trained modules."""
        pieces = []
        for segment in segments:
            adapter, keeps, first = self.settings.meanings[segment.setting]
            with self._layers.change(tied or module, first if tied else keeps, adapter):
                piece = forward(x[segment.start : segment.stop], *args, **kwargs)
            if not isinstance(piece, torch.Tensor):
                raise NotShareable(f"a {type(module).__name__} gives more than one tensor")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _merged(
        self, module: AdapterModule, segments: Sequence[Segment]
    ) -> Iterator[tuple[tuple[Addition, ...], int, int]]:
        """(additions, start, stop) of neighbouring segments that do the same to this module, those with LoRA only."""
        found: list[tuple[tuple[Addition, ...], int, int]] = []
        for segment in segments:
            additions = self._additions_of(module, segment.setting)
            if found and found[-1][0] == additions and found[-1][2] == segment.start:
                found[-1] = (additions, found[-1][1], segment.stop)
            else:
                found.append((additions, segment.start, segment.stop))
        return (one for one in found if one[0])

    def _additions_of(self, module: AdapterModule, setting: int) -> tuple[Addition, ...]:
        key = (id(module), setting)
        if key not in self._additions:
            adapter, keeps, _ = self.settings.meanings[setting]
            keep = self._layers.kept(module, keeps)
            # Settings that differ elsewhere may do the same here; they then get the same object.
            same = (id(module), adapter, keep)
            if same not in self._by_keep:
                self._by_keep[same] = () if keep is None else tuple(self._make_additions(module, adapter, keep))
            self._additions[key] = self._by_keep[same]
        return self._additions[key]

    def _make_additions(self, module: AdapterModule, adapter: str, keep: Keep) -> Iterator[Addition]:
        for name in self._layers.adapter_names(adapter):
            if name not in module.lora_A:
                continue
            factors = self._layers.factors(module, name, keep)
            down, up = module.lora_A[name], module.lora_B[name]
            if factors.down.shape != down.weight.shape:
                rank, width = factors.down.shape
                down = nn.Linear(width, rank, bias=False, device="meta")
                down.weight = nn.Parameter(factors.down, requires_grad=False)
            yield Addition(down, factors.up, up.bias, factors.scaling)


def _add(addition: Addition, x: torch.Tensor, out: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    up = addition.up
    if out.dtype == up.dtype == torch.float32 and addition.bias is None and out.is_contiguous():
        # One product that adds in place saves two passes over a layer's widest results. In half precision it would
        # round once where PEFT rounds three times, and answers would flip against the plain pass.
        low = addition.down(x[start:stop].to(up.dtype))
        out[start:stop].flatten(end_dim=-2).addmm_(low.flatten(end_dim=-2), up.t(), alpha=addition.scaling)
        return out
    if stop - start == out.shape[0]:
        return (out + addition.of(x)).to(out.dtype)
    out[start:stop] = out[start:stop] + addition.of(x[start:stop])
    return out


def _rows_per_state(x: torch.Tensor, states: int, tokens: int) -> int:
    """How many rows of a module's input belong to one state: 1, or its tokens where the model has flattened them."""
    if x.shape[0] == states and (x.dim() != 2 or tokens == 1 or not x.is_floating_point()):
        return 1
    if x.dim() == 2 and x.shape[0] == states * tokens:
        return tokens
    raise NotShareable(f"a module is handed a tensor {tuple(x.shape)} for {states} states of {tokens} tokens")


def _scaled(segments: tuple[Segment, ...], rows: int) -> tuple[Segment, ...]:
    if rows == 1:
        return segments
    return tuple(Segment(one.setting, one.start * rows, one.stop * rows) for one in segments)


def _is_simple(module: AdapterModule) -> bool:
    """Whether what the module adds is a product of its input: plain LoRA on a linear layer."""
    if not isinstance(module, LoraLayer) or getattr(module, "lora_variant", None):
        return False
    base = module.get_base_layer()
    return isinstance(base, nn.Linear) or type(base).__name__ == "Conv1D"


def forward(
    lm: HarnessModel,
    branches: Branches | None,
    route: Route,
    at_head: tuple[Segment, ...] | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """Logits of a forward along `route` (without `branches`: of the model as it is), with the autocast of HFLM."""
    autocast = torch.autocast(
        device_type=lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
    )
    tokens = inputs["input_ids"].shape[1]
    with branches.follow(route, tokens, at_head) if branches else nullcontext(), autocast:
        logits: torch.Tensor = lm.model(**accepted(lm, **inputs)).logits
    return logits
