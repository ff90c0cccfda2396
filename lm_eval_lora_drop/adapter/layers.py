"""The LoRA of each decoder layer of a PEFT model: find it, keep a part of it, restore it, fold it into the weights.

Nothing here rewrites model code. Dropping uses PEFT's own switch on single modules, after which a module computes
exactly what its base layer computes; a strength is PEFT's own scaling, a lower rank are other numbers in A and B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora.layer import Embedding, Linear, LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from lm_eval_lora_drop.adapter.fold import Survival, folded, truncate
from lm_eval_lora_drop.adapter.names import ATTENTION, MLP, kind_of
from lm_eval_lora_drop.adapter.places import TiedParameter, find_decoder_layers, find_followers, split_outside
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Keep, Variant

__all__ = ["AdapterLayers", "AdapterModule", "find_decoder_layers"]

# A LoraLayer or an AuxiliaryTrainingWrapper; both are mixed into a torch Module, which their types do not say.
AdapterModule: TypeAlias = Any
_ADAPTER_MODULES = (LoraLayer, AuxiliaryTrainingWrapper)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Factors:
    """A LoRA product as trained or cut: `scaling` x `up` @ `down`, down (r, in), up (out, r)."""

    scaling: float
    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class AdapterLayers:
    """The parts of the loaded adapters, by where they act.

    `modules[i]` are the adapters' modules inside decoder layer i (none where an adapter leaves a layer out); `below`
    are those on what runs before layer 0 (the embeddings), `above` those on what runs after layer L-1 (final norm,
    `lm_head`). A module is a LoRA layer or the wrapper of a fully trained one (`modules_to_save`).
    """

    model: PeftModel
    decoder_layers: nn.ModuleList
    modules: tuple[tuple[AdapterModule, ...], ...]
    below: tuple[AdapterModule, ...]
    above: tuple[AdapterModule, ...]
    # id of a trained embedding -> the heads that are tied to it: they are kept and dropped with it.
    followers: dict[int, list[TiedParameter]]
    # id of a module -> the last part of its name, and what else it is called.
    _called: dict[int, tuple[str, tuple[str, ...]]]
    # (id of a module, adapter) -> what was trained, while it is scaled or cut: contexts may be nested.
    _trained: dict[tuple[int, str], Factors] = field(default_factory=dict)
    # (id of a module, adapter, rank) -> (A, B) cut to that rank.
    _cut: dict[tuple[int, str, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> AdapterLayers:
        """The adapters that are loaded in `model`.

        Raises:
            AdapterError: the model has no LoRA adapter, none in its decoder layers, or one that is merged.
        """
        if not isinstance(model, PeftModel):
            raise AdapterError(
                f"The model must be a PeftModel with a LoRA adapter, got {type(model).__name__}. A model with its "
                "adapter merged into the weights has no layers left to drop: load base model and adapter separately."
            )
        for name in model.active_adapters:
            _check_is_lora(model, name)
        base: Any = model.get_base_model()
        layers = find_decoder_layers(base)
        inside: list[list[AdapterModule]] = [[] for _ in layers]
        called: dict[int, tuple[str, tuple[str, ...]]] = {}
        for modules, layer in zip(inside, layers, strict=True):
            for path, module in layer.named_modules():
                if isinstance(module, _ADAPTER_MODULES) and id(module) not in called:
                    modules.append(module)
                    called[id(module)] = (path.rpartition(".")[2], (kind_of(path),))
        outside: list[AdapterModule] = []
        for path, module in base.named_modules():
            if isinstance(module, _ADAPTER_MODULES) and id(module) not in called:
                outside.append(module)
                called[id(module)] = (path.rpartition(".")[2], ())
        below, above = split_outside(base, layers, outside)
        followers = find_followers(base, (one for one in below if isinstance(one, ModulesToSaveWrapper)))
        found = cls(model, layers, tuple(map(tuple, inside)), tuple(below), tuple(above), followers, called)
        found.check()
        return found

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.decoder_layers)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of module that a variant may name, sorted: `attention`, `mlp`, and names such as `q_proj`."""
        return tuple(sorted({kind for name, more in self._called.values() for kind in (name, *more)}))

    @contextmanager
    def keep(self, variant: Variant) -> Iterator[None]:
        """Within the context only what `variant` keeps has its LoRA, as it says; afterwards all is as it was, bit for
        bit. Contexts may be nested: the innermost holds.

        Raises:
            ArgumentError: an adapter or a kind of module that there is not.
            AdapterError: a strength or a rank for a module that cannot have one.
        """
        names = self.adapter_names(variant.adapter)
        wanted = self.wanted(variant)
        with ExitStack() as undo:
            for module, keep in wanted:
                self._change(module, keep, names, undo)
            yield

    @contextmanager
    def merge(self, variant: Variant, dtype: torch.dtype | None = None) -> Iterator[Survival]:
        """As `keep`, with the kept LoRA of the decoder layers folded into the weights; restored bit for bit.

        Within the context weights have `dtype` (default: their own), and what is given tells how much of the LoRA it
        holds. The untouched weights wait in main memory: taking the LoRA out again by subtraction would leave rounding
        behind. Embeddings and `lm_head` are not folded, because they often share one weight; nor is LoRA with a bias of
        its own on a layer without one.

        Raises:
            AdapterError: the base model is quantised, the weights would not be finite, or as `keep`.
        """
        where = {id(module): index for index, modules in enumerate(self.modules) for module in modules}
        lora = [
            (where[id(module)], getattr(module, "parameter_name", self._called[id(module)][0]), module)
            for module, keep in self.wanted(variant)
            if keep is not None and id(module) in where and isinstance(module, LoraLayer) and _can_merge(module)
        ]
        self.check_mergeable([module for *_, module in lora])
        with self.keep(variant), torch.no_grad(), folded(lora, dtype) as survival:
            yield survival

    def check_mergeable(self, modules: Sequence[LoraLayer] | None = None) -> None:
        """Check that the LoRA of these modules (default: of all in the decoder layers) can be folded into the weights.

        Raises:
            AdapterError: a base weight is quantised, or is that of several layers; or the LoRA depends on the tokens.
        """
        if reason := why_whole_prompts(self.model):
            raise AdapterError(f"merge=true cannot be done: {reason}, and no weights do that. Leave merge out.")
        if modules is None:
            modules = [one for layer in self.modules for one in layer if isinstance(one, LoraLayer)]
        owners: dict[int, LoraLayer] = {}
        for module in modules:
            base: Any = module.get_base_layer()
            weight = getattr(base, getattr(module, "parameter_name", "weight"), None)
            if weight is None or weight.dtype not in _FLOATS:
                raise AdapterError(
                    f"merge=true folds LoRA into floating-point weights, got {getattr(weight, 'dtype', 'no weight')} "
                    f"in a {type(base).__name__}. Leave merge out for a quantised base model."
                )
            if owners.setdefault(id(weight), module) is not module:
                raise AdapterError(
                    "merge=true cannot fold the LoRA of several layers into the one weight that they share (as with "
                    "layer_replication). Leave merge out."
                )

    def count_parameters(self, variant: Variant) -> tuple[int, int]:
        """How many parameters of its adapter `variant` keeps and drops, fully trained modules included.

        A product cut from rank r to r' counts r'/r of its parameters as kept.
        """
        names = self.adapter_names(variant.adapter)
        kept = total = 0
        for module, keep in self.wanted(variant):
            for name in names:
                sizes = [
                    (parameter.numel(), part)
                    for part, parameter in module.named_parameters()
                    if not part.startswith(("base_layer.", "original_module.")) and name in part.split(".")
                ]
                total += sum(size for size, _ in sizes)
                if keep is None:
                    continue
                rank = _rank(module, name)
                for size, part in sizes:
                    cut = keep.rank is not None and rank is not None and part.startswith("lora_")
                    kept += size * min(keep.rank or 0, rank or 0) // (rank or 1) if cut else size
        return kept, total - kept

    def adapter_names(self, adapter: str) -> tuple[str, ...]:
        """The loaded adapters that a variant's `adapter` stands for: "" the active ones, else the one of that name.

        Raises:
            ArgumentError: none has that name.
        """
        if not adapter:
            return tuple(self.model.active_adapters)
        if adapter not in self.model.peft_config:
            raise ArgumentError(
                f"a variant's adapter must be one that is loaded ({', '.join(sorted(self.model.peft_config))}), got "
                f"{adapter!r}. Name one of these, or load it."
            )
        _check_is_lora(self.model, adapter)
        return (adapter,)

    def wanted(self, variant: Variant) -> list[tuple[AdapterModule, Keep | None]]:
        """Every module of the adapters and how `variant` keeps it, None where it drops it.

        Raises:
            ArgumentError: a kind of module that there is not.
            AdapterError: a strength or a rank for a module that cannot have one.
        """
        if variant.num_layers != self.num_layers:
            raise ValueError(f"a variant of {variant.num_layers} layers cannot be kept by a model of {self.num_layers}")
        named = {kind for keeps in variant.layers for keep in keeps for kind in keep.modules}
        if unknown := sorted(named - {ATTENTION, MLP, *self.kinds}):
            raise ArgumentError(
                f"a variant may name the kinds of module that the adapter has ({', '.join(self.kinds)}), got "
                f"{', '.join(unknown)}. Name one of these."
            )
        where = [
            *((module, 0) for module in self.below),
            *((module, index) for index, modules in enumerate(self.modules) for module in modules),
            *((module, self.num_layers - 1) for module in self.above),
        ]
        return [(module, self.kept(module, variant.layers[layer])) for module, layer in where]

    def kept(self, module: AdapterModule, keeps: Sequence[Keep]) -> Keep | None:
        """How a layer's `keeps` keep one of its modules, None where they drop it.

        Raises:
            AdapterError: a strength or a rank that the module cannot have.
        """
        name, kinds = self._called[id(module)]
        keep = Variant((tuple(keeps),)).keep_at(0, name, kinds)
        if keep is None or (keep.strength == 1 and keep.rank is None):
            return keep
        if not isinstance(module, LoraLayer):
            raise AdapterError(
                f"A strength or a rank can be given to LoRA only; {name} was trained whole (modules_to_save). Keep "
                "it as it is, or drop it: name kinds of module without it."
            )
        if keep.rank is not None and not _has_rank(module):
            raise AdapterError(
                f"A rank can be cut from LoRA on linear layers and embeddings; {name} is a {type(module).__name__}. "
                "Leave the rank out."
            )
        return keep

    def factors(self, module: AdapterModule, name: str, keep: Keep) -> Factors:
        """What adapter `name` adds in a LoRA module on a linear layer or an embedding, kept as `keep` says."""
        trained = self._trained.get((id(module), name)) or _factors(module, name)
        down, up = trained.down, trained.up
        if keep.rank is not None and keep.rank < down.shape[0]:
            key = (id(module), name, keep.rank)
            if key not in self._cut:
                self._cut[key] = truncate(down, up, keep.rank)
            down, up = (factor.to(down.device) for factor in self._cut[key])
        return Factors(trained.scaling * keep.strength, down, up)

    @contextmanager
    def change(self, module: AdapterModule, keeps: Sequence[Keep], adapter: str) -> Iterator[None]:
        """Within the context one module is as a layer's `keeps` of this adapter keep it.

        Raises:
            ArgumentError, AdapterError: as `keep`.
        """
        with ExitStack() as undo:
            self._change(module, self.kept(module, keeps), self.adapter_names(adapter), undo)
            yield

    def _change(self, module: AdapterModule, keep: Keep | None, names: tuple[str, ...], undo: ExitStack) -> None:
        has = not set(names).isdisjoint(_adapters_of(module))
        on = keep is not None and has
        if module.disable_adapters is on or (on and tuple(module.active_adapters) != names):
            # Switching a module on makes its adapter trainable.
            for parameter in module.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
        if on and tuple(module.active_adapters) != names:
            undo.callback(module.set_adapter, list(module.active_adapters))
            module.set_adapter(list(names))
        if module.disable_adapters is on:
            undo.callback(module.enable_adapters, not on)
            module.enable_adapters(on)
        for follower in self.followers.get(id(module), ()):
            weights: nn.Module = module.modules_to_save[names[0]] if on else module.original_module
            undo.callback(setattr, follower.owner, follower.name, getattr(follower.owner, follower.name))
            setattr(follower.owner, follower.name, weights.get_parameter(follower.part))
        if keep is None or not isinstance(module, LoraLayer):
            return
        for name in set(names) & _adapters_of(module):
            self._rescale(module, name, keep, undo)

    def _rescale(self, module: AdapterModule, name: str, keep: Keep, undo: ExitStack) -> None:
        key = (id(module), name)
        rank = _rank(module, name)
        cuts = keep.rank is not None and rank is not None and keep.rank < rank
        if key not in self._trained:
            if keep.strength == 1 and not cuts:
                return
            if rank is None:
                undo.callback(module.scaling.__setitem__, name, module.scaling[name])
                module.scaling[name] *= keep.strength
                return
            self._trained[key] = _factors(module, name)
            undo.callback(self._trained.pop, key)
        undo.callback(_set, module, name, _factors(module, name))
        _set(module, name, self.factors(module, name, keep))

    def check(self) -> None:
        """Check that the adapter can be divided: neither merged nor switched off.

        Raises:
            AdapterError: no LoRA in the decoder layers, or LoRA that is merged or switched off.
        """
        if not any(isinstance(module, LoraLayer) for modules in self.modules for module in modules):
            raise AdapterError(
                f"The adapter has no LoRA in its decoder layers (the model has {self.num_layers}): there is nothing to "
                "drop layer by layer."
            )
        modules = [module for module, _ in self.wanted(Variant.base(self.num_layers))]
        if any(isinstance(module, LoraLayer) and module.merged for module in modules):
            raise AdapterError(
                "The adapter is merged into the weights, so its layers cannot be dropped. Call unmerge_adapter() "
                "on the PeftModel first."
            )
        if off := sum(module.disable_adapters for module in modules):
            raise AdapterError(
                f"The adapter is switched off in {off} of {len(modules)} modules; an evaluation would switch it on. "
                "Call base_model.enable_adapter_layers() on the PeftModel first; boundary=base and layers=... evaluate "
                "without the adapter, or without it in some layers."
            )


def _adapters_of(module: AdapterModule) -> set[str]:
    if isinstance(module, LoraLayer):
        return set(module.scaling)
    adapters: set[str] = set(module._adapters)
    return adapters


def _parameters(module: AdapterModule, name: str) -> tuple[nn.Parameter, nn.Parameter] | None:
    """The parameters A (r, in) and B (out, r) of an adapter in a module; None where it has others."""
    if name in getattr(module, "lora_embedding_A", {}):
        return module.lora_embedding_A[name], module.lora_embedding_B[name]
    if name in module.lora_A and isinstance(module.lora_A[name], nn.Linear):
        return module.lora_A[name].weight, module.lora_B[name].weight
    return None


def _rank(module: AdapterModule, name: str) -> int | None:
    pair = _parameters(module, name) if isinstance(module, LoraLayer) else None
    return None if pair is None else pair[0].shape[0]


def _factors(module: AdapterModule, name: str) -> Factors:
    pair = _parameters(module, name)
    assert pair is not None
    return Factors(module.scaling[name], pair[0].data, pair[1].data)


def _set(module: AdapterModule, name: str, factors: Factors) -> None:
    pair = _parameters(module, name)
    assert pair is not None
    module.scaling[name] = factors.scaling
    pair[0].data, pair[1].data = factors.down, factors.up


def _has_rank(module: AdapterModule) -> bool:
    """Whether what the module adds is one product B A, on a linear layer or an embedding."""
    is_linear = isinstance(module, (Linear, Embedding)) or isinstance(module.get_base_layer(), nn.Linear)
    return is_linear and all(_parameters(module, name) is not None for name in module.scaling)


def _can_merge(module: AdapterModule) -> bool:
    biased = any(getattr(module, "lora_bias", {}).values())
    return not biased or getattr(module.get_base_layer(), "bias", None) is not None


def why_whole_prompts(model: Any) -> str | None:
    """Why each request must be read by itself and from its beginning, in a few words; None where rows may be shared."""
    configs = [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []
    if any(getattr(config, "alora_invocation_tokens", None) for config in configs):
        return "the LoRA acts from certain tokens of a prompt on (activated LoRA)"
    if any(getattr(config, "arrow_config", None) for config in configs):
        return "a router chooses the LoRA token by token (Arrow)"
    return None


def _check_is_lora(model: PeftModel, name: str) -> None:
    kind = model.peft_config[name].peft_type
    if kind != PeftType.LORA:
        raise AdapterError(f"Layers can only be dropped from LoRA adapters; {name!r} is {PeftType(kind).value}.")
