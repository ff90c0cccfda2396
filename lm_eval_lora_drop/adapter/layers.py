"""The LoRA of each decoder layer of a PEFT model: find it, drop it, restore it, fold it into the weights.

Nothing here rewrites model code. Dropping uses PEFT's own switch on single modules, after which a module computes
exactly what its base layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from lm_eval_lora_drop.boundary import LayerSet
from lm_eval_lora_drop.errors import AdapterError

# A LoraLayer or an AuxiliaryTrainingWrapper; both are mixed into a torch Module, which their types do not say.
AdapterModule: TypeAlias = Any
_ADAPTER_MODULES = (LoraLayer, AuxiliaryTrainingWrapper)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class AdapterLayers:
    """The parts of one loaded adapter, by where they act.

    `modules[i]` are the adapter's modules inside decoder layer i (none where the adapter leaves a layer out); `below`
    are those on what comes before layer 0 (the embeddings), `above` those on what comes after layer L-1 (final norm,
    `lm_head`). A module is a LoRA layer or the wrapper of a fully trained one (`modules_to_save`).
    """

    model: PeftModel
    decoder_layers: nn.ModuleList
    modules: tuple[tuple[AdapterModule, ...], ...]
    below: tuple[AdapterModule, ...]
    above: tuple[AdapterModule, ...]

    @classmethod
    def of(cls, model: nn.Module) -> AdapterLayers:
        """The adapter that is active in `model`.

        Raises:
            AdapterError: the model has no LoRA adapter, none in its decoder layers, or one that is merged.
        """
        if not isinstance(model, PeftModel):
            raise AdapterError(
                f"The model must be a PeftModel with a LoRA adapter, got {type(model).__name__}. A model with its "
                "adapter merged into the weights has no layers left to drop: load base model and adapter separately."
            )
        for name in model.active_adapters:
            kind = model.peft_config[name].peft_type
            if kind != PeftType.LORA:
                raise AdapterError(
                    f"Layers can only be dropped from LoRA adapters; {name!r} is {PeftType(kind).value}."
                )
        base: Any = model.get_base_model()
        layers = find_decoder_layers(base)
        inside: list[list[AdapterModule]] = [[] for _ in layers]
        below: list[AdapterModule] = []
        above: list[AdapterModule] = []
        layer_of = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}
        first = {id(module) for module in _modules_of(base.get_input_embeddings())}
        last = {id(module) for module in _modules_of(base.get_output_embeddings())}
        passed_layers = False
        # Transformers defines modules in the order of the forward pass: what comes before the layers acts before them.
        for module in base.modules():
            passed_layers = passed_layers or module is layers
            if not isinstance(module, _ADAPTER_MODULES):
                continue
            if id(module) in layer_of:
                inside[layer_of[id(module)]].append(module)
            elif id(module) in first or not (passed_layers or id(module) in last):
                below.append(module)
            else:
                above.append(module)
        found = cls(model, layers, tuple(map(tuple, inside)), tuple(below), tuple(above))
        found._check()
        return found

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.decoder_layers)

    @contextmanager
    def keep(self, kept: LayerSet) -> Iterator[None]:
        """Within the context only `kept` keeps its LoRA; afterwards every module is as it was."""
        wanted = self._wanted(kept)
        changed = [(module, on) for module, on in wanted if module.disable_adapters is on]
        flags = [(parameter, parameter.requires_grad) for module, _ in changed for parameter in module.parameters()]
        try:
            for module, on in changed:
                module.enable_adapters(on)
            yield
        finally:
            for module, on in changed:
                module.enable_adapters(not on)
            # Switching a module on makes its adapter trainable.
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    @contextmanager
    def merge(self, kept: LayerSet) -> Iterator[None]:
        """As `keep`, with the kept LoRA of the decoder layers folded into the weights; restored bit for bit.

        The untouched weights wait in main memory: taking the LoRA out again by subtraction would leave rounding behind.
        Embeddings and `lm_head` are not folded, because they often share one weight.

        Raises:
            AdapterError: the base model is quantised.
        """
        lora = [
            module for index in sorted(kept.layers) for module in self.modules[index] if isinstance(module, LoraLayer)
        ]
        for module in lora:
            self._check_mergeable(module)
        saved: list[tuple[LoraLayer, dict[str, torch.Tensor]]] = []
        with self.keep(kept), torch.no_grad():
            try:
                for module in lora:
                    state = module.get_base_layer().state_dict()
                    copy = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
                    saved.append((module, copy))
                    module.merge()
                yield
            finally:
                for module, copy in reversed(saved):
                    if module.merged:
                        module.unmerge()
                    module.get_base_layer().load_state_dict(copy)

    def count_parameters(self, kept: LayerSet) -> tuple[int, int]:
        """How many adapter parameters `kept` keeps and drops, fully trained modules included."""
        counts = {True: 0, False: 0}
        for module, on in self._wanted(kept):
            counts[on] += self._size(module)
        return counts[True], counts[False]

    def _wanted(self, kept: LayerSet) -> list[tuple[AdapterModule, bool]]:
        if kept.num_layers != self.num_layers:
            raise ValueError(f"a set out of {kept.num_layers} layers cannot be kept by a model of {self.num_layers}")
        return [
            *((module, kept.keeps_embedding) for module in self.below),
            *((module, index in kept.layers) for index, modules in enumerate(self.modules) for module in modules),
            *((module, kept.keeps_head) for module in self.above),
        ]

    def _size(self, module: AdapterModule) -> int:
        return sum(
            parameter.numel()
            for name, parameter in module.named_parameters()
            if not name.startswith(("base_layer.", "original_module."))
            and not set(self.model.active_adapters).isdisjoint(name.split("."))
        )

    def _check(self) -> None:
        if not any(isinstance(module, LoraLayer) for modules in self.modules for module in modules):
            raise AdapterError(
                f"The adapter has no LoRA in its decoder layers (the model has {self.num_layers}): there is nothing to "
                "drop layer by layer."
            )
        for module, _ in self._wanted(LayerSet.below(0, self.num_layers)):
            if isinstance(module, LoraLayer) and module.merged:
                raise AdapterError(
                    "The adapter is merged into the weights, so its layers cannot be dropped. Call unmerge_adapter() "
                    "on the PeftModel first."
                )

    @staticmethod
    def _check_mergeable(module: LoraLayer) -> None:
        weight = getattr(module.get_base_layer(), "weight", None)
        if weight is None or weight.dtype not in _FLOATS:
            raise AdapterError(
                f"merge=true folds LoRA into floating-point weights, got {getattr(weight, 'dtype', 'no weight')} in a "
                f"{type(module.get_base_layer()).__name__}. Leave merge out for a quantised base model."
            )


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal language model, whatever the architecture calls it.

    It is the outermost list with as many members as the configuration has layers, so that lists within a layer (the
    experts of a mixture) are not taken for it.

    Raises:
        AdapterError: the model has no such list.
    """
    number = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(name.count("."), m) for name, m in model.get_decoder().named_modules() if isinstance(m, nn.ModuleList)]
    fitting = [(depth, module) for depth, module in lists if len(module) == number]
    if not fitting:
        raise AdapterError(
            f"{type(model).__name__} has no list of {number} decoder layers, so no boundary can be drawn. Evaluate it "
            "with --model hf."
        )
    return min(fitting, key=lambda pair: pair[0])[1]


def _modules_of(module: nn.Module | None) -> Iterator[nn.Module]:
    return iter(()) if module is None else module.modules()
