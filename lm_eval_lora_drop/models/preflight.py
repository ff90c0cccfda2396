"""What can be found out about adapter and base model before the base model's weights are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.adapter.layers import AdapterLayers, find_decoder_layers
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.models.base import check_before_loading
from lm_eval_lora_drop.work import AdapterShape

log = logging.getLogger(__name__)


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
            "Give --model_args pretrained=<base model>,peft=<adapter>, or use --model hf for a model without adapter."
        )
    revision = str(model_args.get("revision") or "main")
    trust_remote_code = bool(model_args.get("trust_remote_code", False))
    files = adapter_files.open_adapter(peft_source, revision)
    found = health.check_weights(files)
    config = transformers.AutoConfig.from_pretrained(
        pretrained,
        revision=revision,
        subfolder=model_args.get("subfolder", ""),
        gguf_file=model_args.get("gguf_file"),
        trust_remote_code=trust_remote_code,
    )
    if model_args.get("backend") == "seq2seq":
        raise AdapterError(
            "backend=seq2seq loads an encoder-decoder model; boundaries count the layers of a decoder-only model "
            f"(this is a {config.model_type}). Leave backend out, or evaluate with --model hf."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise AdapterError(
            f"pretrained={pretrained} is an encoder-decoder model ({config.model_type}); boundaries count the layers "
            "of a decoder-only model. Evaluate it with --model hf."
        )
    with torch.device("meta"):
        make: Any = transformers.AutoModelForCausalLM.from_config
        skeleton: transformers.PreTrainedModel = make(config, trust_remote_code=trust_remote_code)
    adapter_files.check_against(files, skeleton, pretrained)
    model = health.load_without_weights(files, skeleton)
    shape = shape_of(model)
    check_before_loading(args, shape)
    given = args.spec.resolve(shape.num_layers)
    if given is None or not given.is_full:
        health.check_divisible(files)
    if given is not None:
        # Kinds of module, strengths and ranks that this adapter cannot have.
        layers = AdapterLayers.of(model)
        layers.adapter_names(given.adapter)
        layers.wanted(given)
    if given is not None and (reason := found.why_base(given)):
        log.warning("%s. Every answer will be the base model's.", reason)
    return files, model


def shape_of(model: peft.PeftModel) -> AdapterShape:
    """Decoder layers, kinds of module with LoRA, and largest rank of the adapter in a loaded model."""
    # PEFT may have built the stack of layers anew (layer_replication).
    base: Any = model.get_base_model()
    lora = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return AdapterShape(
        num_layers=len(find_decoder_layers(base)),
        modules=tuple(sorted({name.rpartition(".")[2] for name in lora})),
        rank=max((int(rank) for module in lora.values() for rank in module.r.values()), default=0),
    )
