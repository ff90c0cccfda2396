"""Which tensors a model hands to its decoder layers have one row (or several) per input: masks, positions, biases.

A layer's batch has other states than the model has inputs, so what has a row per input must be picked for each state,
and nothing else. Sizes alone do not tell: MPT hands over an ALiBi bias (heads, 1, length), which looks like one row per
input when there are as many inputs as heads. So two small batches of different sizes are sent through the model, and
what grew with the batch has rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.states.upload import Places
from lm_eval_lora_drop.harness.work import HarnessModel

Path = tuple[int | str, ...]
"""Where an argument stands: its position or name, then its place in a tuple."""
_SIZES = (2, 3)
_LENGTH = 5


def accepted(lm: HarnessModel, **inputs: Any) -> dict[str, Any]:
    """Those of the inputs that the model's forward has by name, as Transformers' own `generate` chooses them."""
    known = inspect.signature(lm.model.get_base_model().forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def rows_per_input(lm: HarnessModel, layers: AdapterLayers) -> list[dict[Path, int]]:
    """For each decoder layer the tensors it was handed: how many rows each has per input, 0 for none.

    The inputs are padded and have positions, so that the model makes its masks as it does for real ones.
    """
    seen: list[list[dict[Path, int]]] = [[] for _ in layers.decoder_layers]

    def note(index: int) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[index].append({path: tensor.shape[0] for path, tensor in tensors(args[1:], kwargs) if tensor.dim()})

        return hook

    with ExitStack() as undo, torch.inference_mode():
        for index, layer in enumerate(layers.decoder_layers):
            undo.callback(layer.register_forward_pre_hook(note(index), with_kwargs=True).remove)
        for size in _SIZES:
            ids = torch.zeros((size, _LENGTH), dtype=torch.long, device=lm.device)
            mask = torch.ones_like(ids)
            mask[0, 0] = 0
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            lm.model(**accepted(lm, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False))
    return [_growing(*shapes) for shapes in seen]


def _growing(small: Mapping[Path, int], large: Mapping[Path, int]) -> dict[Path, int]:
    found = {}
    for path in small.keys() & large.keys():
        each = small[path] // _SIZES[0]
        found[path] = each if (small[path], large[path]) == (each * _SIZES[0], each * _SIZES[1]) else 0
    return found


def tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, torch.Tensor]]:
    """All tensors among a layer's arguments, those in tuples included, and where they stand."""
    waiting: list[tuple[Path, Any]] = [*(((place,), value) for place, value in enumerate(args))]
    waiting += [((name,), value) for name, value in kwargs.items()]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield path, value
        elif type(value) is tuple:
            waiting += [((*path, place), part) for place, part in enumerate(value)]


def pick(value: Any, path: Path, rows: Mapping[Path, int], inputs: int, states: Places) -> Any:
    """Of an argument with rows per input those of `states` (one input each), in tuples too; anything else as it is.

    Arguments lie where the model made them, which need not be the layer's device.

    What was not seen by `rows_per_input` has rows where its first dimension is the number of inputs.
    """
    if isinstance(value, torch.Tensor) and value.dim():
        each = rows.get(path, 1 if value.dim() > 1 else 0)
        if each == 0 or value.shape[0] != each * inputs:
            return value
        if each == 1:
            return value.index_select(0, states.on(value.device))
        # (inputs * each, ...), as Bloom's ALiBi bias with a row per head.
        return value.unflatten(0, (inputs, each)).index_select(0, states.on(value.device)).flatten(0, 1)
    if type(value) is tuple:
        return tuple(pick(part, (*path, place), rows, inputs, states) for place, part in enumerate(value))
    return value
