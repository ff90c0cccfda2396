"""What a model's forward takes, and what it hands to its decoder layers.

Transformers 5.24 renamed `past_key_values` to `cache`, models with code of their own keep the old name, and a decorator
may hide either. So the model is asked: the name is the one under which it fills a cache that it is given.

Which of the tensors that the layers are handed (masks, positions, biases) have one row, or several, per input: a
layer's batch has other states than the model has inputs, so what has a row per input must be picked for each state,
and nothing else. Sizes alone do not tell: MPT hands over an ALiBi bias (heads, 1, length), which looks like one row per
input when there are as many inputs as heads. So two small batches of different sizes are sent through the model, and
what grew with the batch has rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.states.upload import DeviceIndices
from lm_eval_lora_drop.harness.model import HarnessModel

Path = tuple[int | str, ...]
"""Where an argument stands: its position or name, then its place in a tuple."""
_SIZES = (2, 3)
_LENGTH = 5


TESTED = ("4.57.1", "5.24.0")
"""The lowest and the newest version of Transformers that this project was tested with."""
_CACHE_NAMES = ("cache", "past_key_values")


@dataclass(frozen=True)
class _Signature:
    """The inputs that a model's forward takes, and its name for the cache of keys and values (None: it has none)."""

    inputs: frozenset[str]
    cache: str | None


_SIGNATURES: WeakKeyDictionary[torch.nn.Module, _Signature] = WeakKeyDictionary()


def accepted(lm: HarnessModel, cache: Cache | None = None, **inputs: Any) -> dict[str, Any]:
    """Those of the inputs that the model's forward takes, the cache under the model's name for it.

    Raises:
        TypeError: a cache for a model of which `why_no_cache` says that it takes none.
    """
    signature = _signature(lm)
    if cache is not None:
        if signature.cache is None:
            raise TypeError(why_no_cache(lm))
        inputs[signature.cache] = cache
    return {name: value for name, value in inputs.items() if name in signature.inputs or name == signature.cache}


def why_no_cache(lm: HarnessModel) -> str | None:
    """Why the model's forward cannot be given keys and values; None where it can."""
    if _signature(lm).cache is not None:
        return None
    model = type(lm.model.get_base_model()).__name__
    return (
        f"{model}.forward() has no KV-cache argument known to this version: it fills neither "
        f"{'= nor '.join(_CACHE_NAMES)}= (tested with transformers {' to '.join(TESTED)}, "
        f"installed {transformers.__version__})"
    )


def _signature(lm: HarnessModel) -> _Signature:
    """Looked at once for each model, while nothing of ours is wrapped around its layers."""
    model = lm.model.get_base_model()
    if model not in _SIGNATURES:
        parameters = inspect.signature(model.forward).parameters
        ids = torch.zeros((1, 2), dtype=torch.long, device=lm.device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True, "attention_mask": torch.ones_like(ids)}
        inputs |= {"position_ids": torch.arange(2, device=lm.device)[None], "logits_to_keep": 1}
        known = {name: value for name, value in inputs.items() if name in parameters}
        if "input_ids" not in known:
            # A decorator hides the names: what the forward takes without an error, it takes.
            for name, value in inputs.items():
                if _runs(lm, {**known, name: value}):
                    known[name] = value
        names = [name for name in _CACHE_NAMES if name in parameters]
        if not names and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            names = [*_CACHE_NAMES]
        found = (name for name in names if _fills(lm, name, known))
        _SIGNATURES[model] = _Signature(frozenset(known), next(found, None))
    return _SIGNATURES[model]


def _fills(lm: HarnessModel, name: str, inputs: Mapping[str, Any]) -> bool:
    cache = DynamicCache()
    return _runs(lm, {**inputs, name: cache}) and int(cache.get_seq_length()) == 2


def _runs(lm: HarnessModel, inputs: Mapping[str, Any]) -> bool:
    try:
        with torch.inference_mode():
            lm.model(**inputs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001  nobody can list what a model's own code may raise
        return False
    return True


def rows_per_input(lm: HarnessModel, layers: AdapterLayers) -> list[dict[Path, int]]:
    """For each decoder layer the tensors it was handed: how many rows each has per input, 0 for none.

    The inputs are padded and have positions, so that the model makes its masks as it does for real ones.
    """
    seen: list[list[dict[Path, int]]] = [[] for _ in layers.decoder_layers]

    def note(index: int) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[index].append({path: tensor.shape[0] for path, tensor in tensors(args[1:], kwargs) if tensor.dim()})

        return hook

    _signature(lm)  # asks the model, whose calls are not to be noted below
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


def pick(value: Any, path: Path, rows: Mapping[Path, int], inputs: int, states: DeviceIndices) -> Any:
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
