"""What can be found out about adapter and base model before the base model's weights are read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import peft
import transformers
from peft.tuners.lora.layer import LoraLayer

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.adapter.layers import AdapterLayers, find_decoder_layers
from lm_eval_lora_drop.backends.checks import check_before_loading
from lm_eval_lora_drop.engine.probe.scores import spectra
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.files import adapter_sources
from lm_eval_lora_drop.options import LoraDropArgs
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import AdapterShape, VariantSpec, parse_layers

log = logger(__name__)


def check_adapter(
    pretrained: str, peft_source: str | None, args: LoraDropArgs, model_args: Mapping[str, Any]
) -> tuple[AdapterFiles, peft.PeftModel]:
    """The adapter's files, and the adapter on its base model without weights (on the meta device).

    Warns where the layers that are asked for have no LoRA.

    Raises:
        ArgumentError: no adapter was named, or one of `args` asks for layers that the model does not have.
        AdapterError: not a LoRA adapter, one that does not fit the base model, would not be applied, or cannot be
            dropped layer by layer; or no decoder-only model.
    """
    if not peft_source:
        raise ArgumentError(
            "peft must name the LoRA adapter whose layers are to be kept or dropped (a folder or a Hub id), got none. "
            "Give --model_args pretrained=<base model>,peft=<adapter>, or use --model hf for a model without one."
        )
    revision = str(model_args.get("revision") or "main")
    trust_remote_code = bool(model_args.get("trust_remote_code", False))
    files = adapter_files.open_adapter(peft_source, revision)
    found = health.check_weights(files)
    try:
        config = transformers.AutoConfig.from_pretrained(
            pretrained,
            revision=revision,
            subfolder=model_args.get("subfolder", ""),
            gguf_file=model_args.get("gguf_file"),
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ArgumentError(
            f"pretrained must name a base model (a folder or a Hub id), got {pretrained[:200]}, whose configuration "
            f"cannot be read: {said[:300]}"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise AdapterError(
            f"pretrained={pretrained} is an encoder-decoder model ({config.model_type}); boundaries count the layers "
            "of a decoder-only model. Evaluate it with --model hf."
        )
    skeleton = health.skeleton_of(config, pretrained, trust_remote_code=trust_remote_code)
    resize_as_hflm(files, skeleton, pretrained, model_args)
    adapter_files.check_against(files, skeleton, pretrained)
    model = health.load_without_weights(files, skeleton)
    health.check_loadable(files, model)
    shape = shape_of(model, files)
    check_before_loading(args, shape)
    given = args.spec.resolve(shape.num_layers)
    if given is None or not given.is_full:
        health.check_divisible(files)
    if given is not None:
        # Kinds of module, strengths and ranks that this adapter cannot have.
        layers = AdapterLayers.of(model)
        layers.adapter_names(given.adapter)
        layers.wanted(given)
    if args.merge:
        AdapterLayers.of(model).check_mergeable()
    if given is not None and (reason := found.why_base(given)):
        log.warning("%s. Every answer will be the base model's.", reason)
    return files, model


def resize_as_hflm(
    files: AdapterFiles, skeleton: transformers.PreTrainedModel, pretrained: str, model_args: Mapping[str, Any]
) -> None:
    """Give the embedding as many tokens as HFLM is going to: those of the tokenizer, where there is an adapter.

    Raises:
        ArgumentError: there is no such tokenizer.
    """
    given = model_args.get("tokenizer")
    gguf_file = model_args.get("gguf_file")
    if files.vocabulary is None and not files.config.get("trainable_token_indices"):
        return  # it has nothing whose shape depends on that
    if not given and gguf_file:
        return  # reading a tokenizer from GGUF takes as long as loading the model
    tokenizer = given
    if not given or isinstance(given, str):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                given or pretrained,
                revision=str(model_args.get("revision") or "main"),
                trust_remote_code=bool(model_args.get("trust_remote_code", False)),
                use_fast=model_args.get("use_fast_tokenizer", True),
                subfolder=model_args.get("subfolder") or "",
            )
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"tokenizer={given or pretrained} cannot be loaded ({' '.join(str(error).split())[:200]}). Give a "
                "folder or a Hub id with a tokenizer."
            ) from error
    assert tokenizer is not None
    if skeleton.config.get_text_config().vocab_size != len(tokenizer):
        skeleton.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def check_adapters(
    pretrained: str, peft_source: str | None, args: LoraDropArgs, model_args: Mapping[str, Any]
) -> dict[str, AdapterFiles]:
    """`check_adapter` for every adapter that `peft` names, by the name that variants call it by ("" where it is alone).

    Raises:
        ArgumentError: as `check_adapter`; or several adapters and a setting that does not say which is meant.
        AdapterError: as `check_adapter`; or adapters of different base models, or one that changes more than LoRA.
    """
    sources = adapter_sources(peft_source) if peft_source else {"": ""}
    if "" in sources:
        return {"": check_adapter(pretrained, sources[""], args, model_args)[0]}
    named = ", ".join(sources)
    spec, found = args.spec, {}
    wanted = (spec.layers or "").rpartition("@")[0] if spec.kind == "layers" else ""
    if spec.kind not in ("auto", "recorded", "base") and wanted not in sources:
        raise ArgumentError(
            f"peft names the adapters {named}, and {spec} does not say which of them is meant. Write "
            f"layers={next(iter(sources))}@0-14, or boundary=auto."
        )
    without = replace(args, boundary=VariantSpec("base"), layers=None)
    shapes, bases = [], {}
    for name, source in sources.items():
        mine = args if name == wanted else without
        if mine.layers is not None:  # alone an adapter has no name
            mine = replace(mine, layers=parse_layers(str(mine.layers.layers).rpartition("@")[2]))
        files, model = check_adapter(pretrained, source, mine, model_args)
        health.check_divisible(files)
        if trained := adapter_files.trained_besides_lora(files):
            raise AdapterError(
                f"peft={source} changes the base model besides its LoRA ({trained}), so it cannot be loaded beside "
                "other adapters. Evaluate it alone."
            )
        shapes.append(shape_of(model))
        if base := files.config.get("base_model_name_or_path"):
            bases[name] = str(base).rstrip("/").rpartition("/")[2].lower()
        found[name] = files
    if len(set(bases.values())) > 1:
        told = ", ".join(f"{name}: {found[name].config['base_model_name_or_path']}" for name in bases)
        raise AdapterError(
            f"adapters that are evaluated together must have one base model, got {told}. Evaluate them one by one; or, "
            "if these are the same model, write the same base_model_name_or_path into their adapter_config.json."
        )
    kinds = sorted({kind for shape in shapes for kind in shape.modules})
    union = AdapterShape(shapes[0].num_layers, tuple(kinds), max(shape.rank for shape in shapes), tuple(sources))
    check_before_loading(args, union)
    return found


def shape_of(model: peft.PeftModel, files: AdapterFiles | None = None) -> AdapterShape:
    """Decoder layers, kinds of module with LoRA, and largest rank of the adapter in a loaded model; `files` are its
    own."""
    # PEFT may have built the stack of layers anew (layer_replication).
    base: Any = model.get_base_model()
    lora = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return AdapterShape(
        num_layers=len(find_decoder_layers(base)),
        modules=tuple(sorted({name.rpartition(".")[2] for name in lora})),
        rank=max((int(rank) for module in lora.values() for rank in module.r.values()), default=0),
        adapters=tuple(model.peft_config) if len(model.peft_config) > 1 else (),
        spectra=functools.partial(spectra, files) if files else None,
    )
