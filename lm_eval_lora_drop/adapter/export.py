"""Writes an adapter anew with what a variant keeps of it, as one plain PEFT adapter.

Works on the files: the base model is not loaded. What comes out is what PEFT, vLLM and llama.cpp's converter read
alike: one r, one alpha, no patterns, no rsLoRA; strengths and differing scalings are folded into B (fold.py), modules
that are dropped are left out. Where PEFT's `layers_to_transform` can say which modules are left, the configuration
says it that way; where it cannot (LoRA on the embedding too, a pattern as `target_modules`), every module is named in
full. Tensors that need no folding are copied bit for bit, in their dtype.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.card import CardResults, Exported, model_card
from lm_eval_lora_drop.adapter.files import AdapterFiles, load_tensors, new_folder
from lm_eval_lora_drop.adapter.fold import LoraPair, common_scaling
from lm_eval_lora_drop.adapter.names import IN_LAYER, TensorName, lora_products, one_stack, read_names
from lm_eval_lora_drop.adapter.patterns import first_pattern, match_patterns
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.files import adapter_sources, source_of
from lm_eval_lora_drop.record.schema import AdapterRecord
from lm_eval_lora_drop.variant import Keep, Variant

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt")


def export_adapter(
    source: str | Path,
    kept: Variant,
    destination: Path,
    *,
    origin: str = "It was given by hand.",
    evaluated: CardResults | None = None,
) -> Exported:
    """Write the adapter `source` (folder or Hub id) with what `kept` keeps of it to the new folder `destination`.

    Loaded by PEFT it answers as the variant does. `origin` is a sentence for the model card: where the choice came
    from; `evaluated` is what the variant scored, for the card too.

    Raises:
        AdapterError: not a LoRA adapter, one whose layers cannot be counted, or one that cannot be kept this way.
        ArgumentError: `destination` exists, or nothing would be left.
    """
    files = adapter_files.open_adapter(source_of(str(source), kept.adapter) if kept.adapter else str(source))
    with new_folder(destination) as folder:
        tensors = read_names(files.shapes, files.config)
        _check(files, tensors, kept)
        staying = {tensor: keep for tensor in tensors if (keep := tensor.keep(kept)) is not None}
        if not any(tensor.is_lora for tensor in staying):
            raise ArgumentError(
                f"no LoRA is left when {files.source} keeps {kept}: that is the base model. Use "
                f"{files.config.get('base_model_name_or_path') or 'the base model'} without an adapter, or keep a "
                "layer that has LoRA."
            )
        values = load_tensors(files)
        written, scale = _fold(files, staying, values)
        config = _config(files.config, tensors, staying) | scale
        _copy_tokenizer(files.folder, folder)
        save_file(written, folder / adapter_files.WEIGHTS, metadata={"format": "pt"})
        (folder / adapter_files.CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        exported = _account(files, tensors, staying, kept, destination, folder)
        # safetensors makes its files readable by their owner alone.
        shutil.copymode(folder / adapter_files.CONFIG, folder / adapter_files.WEIGHTS)
        (folder / "README.md").write_text(model_card(files.config, exported, origin, evaluated), encoding="utf-8")
    return exported


def adapter_of_choice(
    recorded: AdapterRecord, kept: Variant, given: str | Path | None, argument: str
) -> tuple[str, Variant]:
    """Where the adapter lies that a run's choice keeps a part of, its digest checked; and the choice as that of this
    adapter alone.

    Args:
        recorded: what the run wrote down of its adapter, or of several.
        given: where it lies now, or all of them as the run had them; None: where the run had it.
        argument: what a user gives another place with, for messages.

    Raises:
        ArgumentError: the run had a loaded model and no files, or several adapters and none by this name; or another
            adapter lies there.
        AdapterError: no LoRA adapter lies there.
    """
    digest, path = recorded.fingerprint, recorded.path
    if recorded.several:
        name = kept.adapter or next(iter(recorded.several))  # the base model is the same below all of them
        if name not in recorded.several:
            raise ArgumentError(
                f"the run had the adapters {', '.join(recorded.several)}, and its choice is of {name!r}. The file is "
                "damaged or was edited; evaluate again."
            )
        digest, path = recorded.several[name].fingerprint, recorded.several[name].path
        if given is not None:
            # The adapter by itself, or it among others.
            sources = adapter_sources(str(given))
            given = sources[""] if "" in sources else source_of(str(given), name)
    source = path if given is None else str(given)
    if source is None:
        raise ArgumentError(
            "the results name no adapter files: the run was given a loaded model. Save it with "
            f"model.save_pretrained(folder) and give the folder with {argument}."
        )
    # A loaded model's digest is over its tensors, not over files: there is nothing to compare it with.
    if path is not None:
        found = adapter_files.open_adapter(source).fingerprint()
        if found != digest:
            raise ArgumentError(
                f"{source} is not the adapter of this run: its digest is {found}, the run's was {digest}. Give the "
                f"right one with {argument}."
            )
    return source, replace(kept, adapter="") if recorded.several else kept


def _check(files: AdapterFiles, tensors: list[TensorName], kept: Variant) -> None:
    one_stack(tensors, files.source)
    highest = max(tensor.layer for tensor in tensors if tensor.layer is not None)
    if highest >= kept.num_layers:
        raise AdapterError(
            f"{files.source} has LoRA in layer {highest}, but the layers to keep were given for a model of "
            f"{kept.num_layers} decoder layers. Take the boundary from a run with this adapter."
        )
    if not kept.is_full:
        health.check_divisible(files)
    if not kept.is_plain:
        health.check_scalable(files, kept)


# Numbers.


def _fold(
    files: AdapterFiles, staying: Mapping[TensorName, Keep], values: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What is written, by name, and the configuration's entries on rank and scaling that go with it."""
    parts = lora_products(staying, files.source)
    scaling_of = scalings(files, [module for module, _ in parts])
    pairs: dict[tuple[TensorName, TensorName, TensorName | None], LoraPair] = {}
    for (module, _), named in parts.items():
        a, b, bias = named["A"], named["B"], named.get("bias")
        rank, scaling, of_parameter = scaling_of[module]
        pair = LoraPair(
            values[a.name],
            values[b.name],
            scaling,
            None if bias is None else values[bias.name],
            values[a.name].shape[0] // rank if of_parameter else None,
        )
        keep = staying[b]
        pairs[a, b, bias] = (pair if keep.rank is None else pair.cut(keep.rank)).scaled(keep.strength)
    scaling = common_scaling(list(pairs.values()))
    rank = max(pair.rank for pair in pairs.values())
    wrapped = {tensor.module for tensor in staying if tensor.is_lora or tensor.saved_as}
    written = {tensor.renamed(wrapped): values[tensor.name] for tensor in staying}
    for (a, b, bias), pair in pairs.items():
        if pair.experts and pair.rank != rank:
            raise AdapterError(
                f"{files.source} has LoRA of rank {pair.rank} on parameters of {a.module} and of rank {rank} "
                "elsewhere, and PEFT gives no way to fill up the smaller one. Keep either of them only."
            )
        done = pair.padded(rank).scaled(pair.scaling / scaling)
        written |= {a.name: done.a, b.name: done.b}
        if bias is not None and done.bias is not None:
            written[bias.name] = done.bias
    alpha = scaling * rank
    scale: dict[str, Any] = {
        "r": rank,
        "lora_alpha": round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return written, scale


def scalings(files: AdapterFiles, modules: Iterable[str]) -> dict[str, tuple[int, float, bool]]:
    """The rank and scaling of each module, and whether it is a parameter's: peft.tuners.lora, `_create_and_replace`."""
    config = files.config
    names = list(dict.fromkeys(modules))
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    parameters = _parameters(config, names)
    asked = [*names, *(name for found in parameters.values() for name in found)]
    matched = match_patterns([*ranks, *alphas], asked, files.source)
    found = {}
    for name in names:
        ours = parameters.get(name, [])
        if any(name in matching for matching in matched.values() for name in ours):
            raise AdapterError(
                f"{files.source} has a rank_pattern or alpha_pattern for parameters of {name}, which of whose LoRA is "
                "meant the files do not tell. It cannot be exported."
            )
        rank = int(first_pattern(ranks, matched, name) or config["r"])
        alpha = first_pattern(alphas, matched, name)
        alpha = config["lora_alpha"] if alpha is None else alpha
        found[name] = rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), bool(ours)
    return found


def _parameters(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, list[str]]:
    """For each module the full names of its parameters that `target_parameters` names, by PEFT's rule."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for target in config.get("target_parameters") or ():
            full = f"{module}.{target.rpartition('.')[2]}"
            if full == target or full.endswith(f".{target}"):
                found.setdefault(module, []).append(full)
    return found


# The configuration.


def _config(config: Mapping[str, Any], tensors: list[TensorName], staying: Iterable[TensorName]) -> dict[str, Any]:
    """The configuration under which PEFT makes exactly the modules of `staying`."""
    short = dict(config)
    staying = list(staying)
    parameters = _parameters(config, {t.module for t in tensors if t.is_lora})
    mine = [t for t in staying if t.part.startswith("lora_") and t.module not in parameters]
    lora = list(dict.fromkeys(t.module for t in mine))
    layers = sorted({t.layer for t in mine if t.layer is not None})
    every = {t.module: t.layer for t in tensors if t.part.startswith("lora_") and t.module not in parameters}
    targets = config.get("target_modules")
    fewer: list[str] | None = None
    # PEFT applies layers_to_transform neither to a pattern nor to a module named in full, and never to an embedding.
    if isinstance(targets, list) and lora and not any(module in targets for module in every):
        fewer = [target for target in targets if any(module.endswith(f".{target}") for module in lora)]
        made = [
            module
            for module, layer in every.items()
            if layer in layers and any(module.endswith(f".{target}") for target in fewer)
        ]
        if set(made) != set(lora) or not all(IN_LAYER.match(f"{module}.") for module in lora):
            fewer = None
    if fewer is not None:
        short |= {"target_modules": fewer, "layers_to_transform": layers}
    else:
        short |= {"target_modules": lora, "layers_to_transform": None, "layers_pattern": None}
    if parameters:
        left = {t.module for t in staying if t.is_lora}
        short["target_parameters"] = [name for module in parameters if module in left for name in parameters[module]]
    if config.get("bias") not in (None, "none") and not health.trained_biases(config, tensors):
        short["bias"] = "none"
    if config.get("modules_to_save"):
        short["modules_to_save"] = list(dict.fromkeys(t.saved_as for t in staying if t.saved_as)) or None
    tokens, with_tokens = config.get("trainable_token_indices"), {t.module for t in staying if t.is_token}
    if isinstance(tokens, dict):  # by the name of the module
        tokens = {name: some for name, some in tokens.items() if any(module.endswith(name) for module in with_tokens)}
    if config.get("trainable_token_indices"):
        short["trainable_token_indices"] = tokens if with_tokens else None
    return short


# Files.


def _copy_tokenizer(source: Path, destination: Path) -> None:
    for pattern in _TOKENIZER:
        for file in source.glob(pattern):
            if _lies_in(file, source):
                shutil.copyfile(file, destination / file.name)


def _account(
    files: AdapterFiles,
    tensors: list[TensorName],
    staying: Mapping[TensorName, Keep],
    kept: Variant,
    destination: Path,
    folder: Path,
) -> Exported:
    part = {t: math.prod(files.shapes[t.name]) for t in tensors if t.is_lora or t.saved_as}
    left = sum(number for tensor, number in part.items() if tensor in staying)
    return Exported(
        source=files.source,
        source_fingerprint=files.fingerprint(),
        destination=destination,
        kept=kept,
        parameters=left,
        dropped_parameters=sum(part.values()) - left,
        size=(folder / adapter_files.WEIGHTS).stat().st_size,
        source_size=files.weights.stat().st_size,
        peft_only=health.known_to_peft_only(files.config, list(staying)),
    )


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether `file` is a file of `folder`, and no link out of it; the Hub's cache links to its own `blobs`."""
    target = file.resolve()
    homes = [folder.resolve()]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parents[1] / "blobs")
    return target.is_file() and any(target.is_relative_to(home) for home in homes)
