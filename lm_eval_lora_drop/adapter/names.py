"""What the names in an adapter's weights file say: which module, in which decoder layer, which part of the adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.variant import Keep, Variant

PREFIX = "base_model.model."
TRAINED = ".modules_to_save."
ATTENTION = "attention"
MLP = "mlp"
# The first numbered part of a name is the decoder layer; a later one may be an expert of it.
IN_LAYER = re.compile(r"(?P<stack>.*?[^.]+)\.(?P<index>\d+)\.")
_LORA = re.compile(r"\.(?P<part>lora_[A-Za-z_]+|token_adapter\.trainable_tokens_[a-z]+)(?:\.(?P<value>.+))?$")
# What PEFT puts between the name of a module and that of its own weight.
_WRAPPER = re.compile(r"\.(?:base_layer|original_module|token_adapter)(?=\.)")
# What wrappers of a model put into the names of its tensors -> what does: never a part of a model's own names, ...
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    PREFIX: "a second PeftModel",
}
# ... or so in some models.
_AMBIGUOUS = {"language_model.": "a vision-language model", "module.": "DistributedDataParallel"}
_FACTORS = {"lora_A": "A", "lora_embedding_A": "A", "lora_B": "B", "lora_embedding_B": "B", "lora_diag": "diag"}
_VOCABULARY = ("embed_tokens", "embed_in", "wte", "word_embeddings")
_HEADS = ("lm_head", "embed_out")
# What acts before layer 0, tables of positions (`wpe`, `embed_positions`) and norms of embeddings among them.
_BEFORE = re.compile(r"emb|wte|wpe|project_in")


def kind_of(path: str) -> str:
    """What a module at `path` within a decoder layer belongs to: `attention`, else `mlp`.

    Every decoder layer is an attention (or what stands for it) and a feed-forward part; the latter is not always a
    module of its own (OPT has `fc1` and `fc2` in the layer itself).
    """
    return ATTENTION if any("attn" in part or "attention" in part for part in path.lower().split(".")) else MLP


@dataclass(frozen=True)
class TensorName:
    """One name of the weights file. `layer` is None outside the decoder layers; `module` is the module's full name."""

    name: str
    module: str
    layer: int | None
    stack: str | None
    part: str
    """`lora_A`, `lora_B`, `lora_embedding_A`, ...; "" for what is no LoRA."""
    value: str
    """What of the part: `weight`, or `bias` (`lora_bias`)."""
    depth: int
    """How many wrappers lie inside: LoRA on several parameters of one module is nested (`target_parameters`)."""
    saved_as: str | None
    """The entry of `modules_to_save` that it belongs to."""

    @property
    def is_lora(self) -> bool:
        """Whether it is a part of a LoRA, or a trained token."""
        return bool(self.part)

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias of B (`lora_bias`)."""
        return self.part in ("lora_B", "lora_embedding_B") and self.value == "bias"

    @property
    def is_trained_whole(self) -> bool:
        """Whether it is fully trained: a module of `modules_to_save`, or tokens."""
        return self.saved_as is not None or self.is_token

    @property
    def is_token(self) -> bool:
        """Whether it is what was trained of single tokens."""
        return self.part.startswith("token_adapter")

    @property
    def is_embedding(self) -> bool:
        """Whether it acts before layer 0."""
        return self.layer is None and self._last not in _HEADS and bool(_BEFORE.search(self.module))

    @property
    def is_of_vocabulary(self) -> bool:
        """Whether it belongs to the table of tokens or the head, which may share one weight."""
        return self.layer is None and self._last in (*_VOCABULARY, *_HEADS)

    @property
    def _last(self) -> str:
        return self.module.rpartition(".")[2]

    def vocabulary(self, shape: tuple[int, ...]) -> int | None:
        """How many tokens an embedding or head has of which this is a part of that shape; None where it does not tell.

        A (r, tokens) of an embedding, B (tokens, r) of a head, or the whole weight (tokens, width).
        """
        if len(shape) != 2 or not self.is_of_vocabulary:
            return None
        if self.part == "lora_embedding_A":
            return shape[1]
        return shape[0] if not self.part or (self._last in _HEADS and self.part == "lora_B") else None

    def keep(self, kept: Variant) -> Keep | None:
        """How the variant keeps it; None where it is dropped."""
        if not self.is_lora and self.saved_as is None:
            # A base weight that was saved along (a resized embedding): not a part of the adapter that can be dropped.
            return Keep()
        layer = self.layer if self.layer is not None else 0 if self.is_embedding else kept.num_layers - 1
        inside = IN_LAYER.sub("", f"{self.module}.", count=1).rstrip(".")
        kinds = (kind_of(inside),) if self.layer is not None else ()
        return kept.keep_at(layer, self._last, kinds)

    def renamed(self, wrapped: set[str]) -> str:
        """Its name where only the modules `wrapped` have LoRA or were trained: a base weight saved along loses its
        wrapper."""
        if self.is_lora or self.module in wrapped:
            return self.name
        return _WRAPPER.sub("", self.name)


def read_names(names: Iterable[str], config: Mapping[str, Any]) -> list[TensorName]:
    """What each name of a weights file says, in their order; `config` is the adapter's configuration."""
    return [_read(name, config) for name in names]


def lora_products(tensors: Iterable[TensorName], source: str) -> dict[tuple[str, int], dict[str, TensorName]]:
    """The LoRA of each (module, depth): its factors `A` and `B`, `diag` between them (KaSA), and `bias` of B.

    Raises:
        AdapterError: one has no A or no B.
    """
    found: dict[tuple[str, int], dict[str, TensorName]] = {}
    for tensor in tensors:
        if tensor.part.startswith("lora_") and tensor.part != "lora_magnitude_vector":
            # Variants have more than A and B (VeLoRA, MonteCLoRA), under names of their own.
            role = "bias" if tensor.is_bias else _FACTORS.get(tensor.part, tensor.name)
            found.setdefault((tensor.module, tensor.depth), {})[role] = tensor
    for (module, _), parts in found.items():
        if not parts.keys() >= {"A", "B"}:
            there = ", ".join(tensor.name for tensor in parts.values())
            raise AdapterError(
                f"peft={source} has only half of the LoRA of {module} ({there}). Copy the adapter again."
            )
    return found


def one_stack(tensors: Iterable[TensorName], source: str) -> None:
    """Check that all tensors lie in one stack of decoder layers.

    Raises:
        AdapterError: they lie in several, or in none.
    """
    stacks = sorted({tensor.stack for tensor in tensors if tensor.stack})
    if len(stacks) != 1:
        raise AdapterError(
            f"{source} must have LoRA in one stack of decoder layers, but its tensors lie in "
            f"{', '.join(stacks) or 'none'}: which of them a boundary counts is not clear from the files."
        )


def check_names(names: Collection[str], weights: str, source: str) -> None:
    """Check that no name has in it what a wrapper of the model has left there. `weights` is the adapter's weights file.

    Raises:
        AdapterError: one has.
    """
    # DDP puts its name before a PeftModel's.
    inside = {name.removeprefix(PREFIX) if name.startswith(PREFIX) else name.replace(PREFIX, "") for name in names}
    carried = {piece: by for piece, by in _WRAPPERS.items() if any(piece in name for name in inside)}
    if carried:
        example = next(name for name in names if any(piece in name.removeprefix(PREFIX) for piece in carried))
        raise _to_rename(carried, example, weights, source)


def check_wrapper(name: str, modules: Collection[str], config: Mapping[str, Any], weights: str, source: str) -> None:
    """The same for a name whose module is not among the base model's `modules`, and is without what a wrapper left.

    Raises:
        AdapterError: it is.
    """
    for piece, by in _AMBIGUOUS.items():
        if piece in name and _read(name.replace(piece, ""), config).module in modules:
            raise _to_rename({piece: by}, name, weights, source)


def _to_rename(carried: Mapping[str, str], name: str, weights: str, source: str) -> AdapterError:
    cut = f".removeprefix('{PREFIX}')"
    renamed = f"'{PREFIX}' + k{cut}" + "".join(f".replace('{piece}', '')" for piece in carried) + cut
    imported, load, save = "safetensors.torch", f"load_file('{weights}')", "save_file"
    if not weights.endswith(".safetensors"):
        imported, load, save = "torch", f"load('{weights}', weights_only=True)", "save"
    return AdapterError(
        f"peft={source}: the names of its tensors carry {' and '.join(map(repr, carried))} ({name}), left by "
        f"{' and '.join(carried.values())}, so PEFT does not read them. Rename them: "
        f'python -c "import {imported} as s; '
        f"s.{save}({{{renamed}: v for k, v in s.{load}.items()}}, '{weights}')\""
    )


def _read(name: str, config: Mapping[str, Any]) -> TensorName:
    path = name.removeprefix(PREFIX)
    lora = _LORA.search(path)
    module = path[: lora.start()] if lora else path.rpartition(".")[0]
    depth = 0
    while module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    layer = IN_LAYER.match(f"{module}.")
    # Where the vocabulary was resized PEFT saves an embedding in both forms: as it was, and as it was trained.
    is_base = lora is None and _WRAPPER.search(path) is not None
    module = _WRAPPER.sub("", f"{module}.").removesuffix(".") if is_base else module
    saved = None if lora or is_base else _saved_module(module, config.get("modules_to_save") or ())
    return TensorName(
        name=name,
        module=saved or module,
        layer=int(layer["index"]) if layer else None,
        stack=layer["stack"] if layer else None,
        part=lora["part"] if lora else "",
        value=(lora["value"] or "") if lora else path.rpartition(".")[2],
        depth=depth if lora else 0,
        saved_as=saved,
    )


def _saved_module(module: str, entries: Iterable[str]) -> str | None:
    """The full name of the module that an entry of `modules_to_save` named, if `module` is or lies in one."""
    parts = module.split(".")
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    # As PEFT does it: without regard to dots, so that `norm` also names `post_attention_layernorm`.
    return next((path for path in paths if any(path.endswith(entry) for entry in entries)), None)
