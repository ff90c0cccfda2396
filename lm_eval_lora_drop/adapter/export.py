"""Writes an adapter anew with the LoRA of some decoder layers only, as a standard PEFT adapter.

Works on the files: the base model is not loaded (`merge_adapter` alone does that). Where PEFT's `layers_to_transform`
can say which layers are left, the configuration says it that way; where it cannot (LoRA on the embedding too, a pattern
as `target_modules`), every module is named in full. Tensors are copied as they are, in their dtype.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter.card import Exported, model_card
from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.boundary import LayerSet
from lm_eval_lora_drop.errors import AdapterError, ArgumentError

_PREFIX = "base_model.model."
# The first numbered part of a name is the decoder layer; a later one may be an expert of it.
_IN_LAYER = re.compile(r"(?P<stack>.*?[^.]+)\.(?P<index>\d+)\.")
_LORA = re.compile(r"\.(?:lora_[A-Za-z_]+|token_adapter\.trainable_tokens_[a-z]+)(?:\..+)?$")
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "word_embeddings_layernorm")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt")


@dataclass(frozen=True)
class _Tensor:
    """What a name in the weights file says. `layer` is None outside the layers; `module` is the module's full name."""

    name: str
    module: str
    layer: int | None
    stack: str | None
    is_lora: bool
    saved_as: str | None
    """The entry of `modules_to_save` that it belongs to."""

    def stays(self, kept: LayerSet) -> bool:
        if not self.is_lora and self.saved_as is None:
            # A base weight that was saved along (a resized embedding): not a part of the adapter that can be dropped.
            return True
        if self.layer is not None:
            return self.layer in kept.layers
        is_embedding = any(part in _EMBEDDINGS for part in self.module.split("."))
        return kept.keeps_embedding if is_embedding else kept.keeps_head

    def name_among(self, wrapped: set[str]) -> str:
        """Its name where only the modules `wrapped` have LoRA: a base weight saved along loses its wrapper."""
        module = self.module.removesuffix(".base_layer")
        return self.name if module in wrapped else self.name.replace(f"{module}.base_layer.", f"{module}.")


def export_adapter(
    source: str | Path, kept: LayerSet, destination: Path, *, origin: str = "It was given by hand."
) -> Exported:
    """Write the adapter `source` (folder or Hub id) with the LoRA of `kept` only to the new folder `destination`.

    Loaded by PEFT it answers as `boundary=K` does. `origin` is a sentence for the model card: where K came from.

    Raises:
        AdapterError: not a LoRA adapter, or one whose layers cannot be told apart.
        ArgumentError: `destination` exists, or nothing would be left.
    """
    files = adapter_files.open_adapter(str(source))
    _check_destination(destination)
    _check_config(files)
    tensors = [_read_name(name, files.config) for name in files.shapes]
    _check_layers(files, tensors, kept)
    staying = [tensor for tensor in tensors if tensor.stays(kept)]
    if not any(tensor.is_lora for tensor in staying):
        raise ArgumentError(
            f"no LoRA is left when {files.source} keeps layers {kept.spec}: that is the base model. Use "
            f"{files.config.get('base_model_name_or_path') or 'the base model'} without an adapter, or keep a layer "
            "that has LoRA."
        )
    config = _shortened_config(files.config, tensors, staying, kept)
    values = _load(files)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Whoever sees the folder sees all of it, also after a crash.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        _copy_tokenizer(files.folder, folder)
        wrapped = {tensor.module for tensor in staying if tensor.is_lora}
        renamed = {tensor.name_among(wrapped): values[tensor.name] for tensor in staying}
        save_file(renamed, folder / adapter_files.WEIGHTS, metadata={"format": "pt"})
        (folder / adapter_files.CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        exported = _account(files, values, tensors, staying, kept, destination, folder)
        # safetensors makes its files readable by their owner alone.
        shutil.copymode(folder / adapter_files.CONFIG, folder / adapter_files.WEIGHTS)
        (folder / "README.md").write_text(model_card(files.config, exported, origin), encoding="utf-8")
        _check_destination(destination)
        os.rename(folder, destination)
    return exported


def merge_adapter(
    source: str | Path,
    kept: LayerSet,
    destination: Path,
    *,
    pretrained: str | None = None,
    dtype: str = "auto",
    origin: str = "It was given by hand.",
) -> Exported:
    """Write the base model with the kept LoRA folded into its weights, a plain Transformers model, to `destination`.

    `pretrained` is the base model, if not the one that the adapter names; `dtype` that of the weights.

    Raises:
        AdapterError: as `export_adapter`, or no base model is known.
        ArgumentError: as `export_adapter`.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = adapter_files.open_adapter(str(source))
    base = pretrained or files.config.get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{files.source} does not name its base model. Give it with --pretrained.")
    _check_destination(destination)
    with tempfile.TemporaryDirectory(prefix="lora-drop-") as scratch:
        adapter = Path(scratch) / "adapter"
        exported = export_adapter(source, kept, adapter, origin=origin)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        merged.save_pretrained(destination)
        has_tokenizer = any(adapter.glob("tokenizer*"))
        AutoTokenizer.from_pretrained(str(adapter) if has_tokenizer else base).save_pretrained(destination)
        (destination / "README.md").write_text(
            model_card(files.config, exported, origin, merged_into=base), encoding="utf-8"
        )
    return exported


def _check_destination(destination: Path) -> None:
    if os.path.lexists(destination):
        raise ArgumentError(f"{destination} exists already; an adapter is written to a new folder only. Name another.")


def _check_config(files: AdapterFiles) -> None:
    for field, none in (("bias", "none"), ("target_parameters", None), ("layer_replication", None)):
        if files.config.get(field, none) not in (none, None, [], {}):
            raise AdapterError(
                f"{files.source} was trained with {field}={files.config[field]}, which PEFT cannot load for some "
                "layers only, so it cannot be exported in part. Only the whole adapter can be shipped."
            )


def _read_name(name: str, config: Mapping[str, Any]) -> _Tensor:
    path = name.removeprefix(_PREFIX)
    lora = _LORA.search(path)
    module = path[: lora.start()] if lora else path.rpartition(".")[0]
    layer = _IN_LAYER.match(f"{module}.")
    saved = None if lora else _saved_module(module, config.get("modules_to_save") or ())
    return _Tensor(
        name=name,
        module=saved or module,
        layer=int(layer["index"]) if layer else None,
        stack=layer["stack"] if layer else None,
        is_lora=lora is not None,
        saved_as=saved,
    )


def _saved_module(module: str, entries: Iterable[str]) -> str | None:
    """The full name of the module that an entry of `modules_to_save` named, if `module` is or lies in one."""
    parts = module.split(".")
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    # As PEFT does it: without regard to dots, so that `norm` also names `post_attention_layernorm`.
    return next((path for path in paths if any(path.endswith(entry) for entry in entries)), None)


def _check_layers(files: AdapterFiles, tensors: list[_Tensor], kept: LayerSet) -> None:
    stacks = sorted({tensor.stack for tensor in tensors if tensor.stack})
    if len(stacks) != 1:
        raise AdapterError(
            f"{files.source} must have LoRA in one stack of decoder layers, but its tensors lie in "
            f"{', '.join(stacks) or 'none'}: which of them a boundary counts is not clear from the files."
        )
    highest = max(tensor.layer for tensor in tensors if tensor.layer is not None)
    if highest >= kept.num_layers:
        raise AdapterError(
            f"{files.source} has LoRA in layer {highest}, but the layers to keep were given for a model of "
            f"{kept.num_layers} decoder layers. Take the boundary from a run with this adapter."
        )


def _shortened_config(
    config: Mapping[str, Any], tensors: list[_Tensor], staying: list[_Tensor], kept: LayerSet
) -> dict[str, Any]:
    """The configuration under which PEFT makes exactly the modules of `staying`."""
    short = dict(config)
    lora = list(dict.fromkeys(t.module for t in staying if t.is_lora and "token_adapter" not in t.name))
    layers = sorted({t.layer for t in staying if t.is_lora and t.layer is not None})
    targets = config.get("target_modules")
    # PEFT applies layers_to_transform neither to a pattern nor to a module named in full, and never to an embedding.
    by_layer = (
        isinstance(targets, list)
        and not any(tensor.module in targets for tensor in tensors)
        and all(_IN_LAYER.match(f"{module}.") for module in lora)
    )
    if by_layer:
        short["layers_to_transform"] = layers
    else:
        short |= {"target_modules": lora, "layers_to_transform": None, "layers_pattern": None}
    for patterns in ("rank_pattern", "alpha_pattern"):
        short[patterns] = {
            pattern: value
            for pattern, value in (config.get(patterns) or {}).items()
            if any(re.match(rf"(.*\.)?({pattern})$", module) for module in lora)
        }
    if config.get("modules_to_save"):
        short["modules_to_save"] = list(dict.fromkeys(t.saved_as for t in staying if t.saved_as)) or None
    if config.get("trainable_token_indices") and not kept.keeps_embedding:
        short["trainable_token_indices"] = None
    return short


def _load(files: AdapterFiles) -> dict[str, torch.Tensor]:
    if (files.folder / adapter_files.WEIGHTS).is_file():
        return load_file(files.folder / adapter_files.WEIGHTS)
    loaded: dict[str, torch.Tensor] = torch.load(
        files.folder / adapter_files.PICKLED, map_location="cpu", weights_only=True
    )
    # Tied tensors of a pickled file share memory, which safetensors refuses.
    return {name: tensor.clone().contiguous() for name, tensor in loaded.items()}


def _copy_tokenizer(source: Path, destination: Path) -> None:
    for pattern in _TOKENIZER:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, destination / file.name)


def _account(
    files: AdapterFiles,
    values: Mapping[str, torch.Tensor],
    tensors: list[_Tensor],
    staying: list[_Tensor],
    kept: LayerSet,
    destination: Path,
    folder: Path,
) -> Exported:
    weights = next(
        path for name in (adapter_files.WEIGHTS, adapter_files.PICKLED) if (path := files.folder / name).is_file()
    )
    part = {name: values[name].numel() for name in (t.name for t in tensors if t.is_lora or t.saved_as)}
    left = sum(part.get(tensor.name, 0) for tensor in staying)
    return Exported(
        source=files.source,
        source_fingerprint=files.fingerprint(),
        destination=destination,
        kept=kept,
        parameters=left,
        dropped_parameters=sum(part.values()) - left,
        size=(folder / adapter_files.WEIGHTS).stat().st_size,
        source_size=weights.stat().st_size,
    )
