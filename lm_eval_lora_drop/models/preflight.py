"""What can be found out about adapter and base model before the base model's weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.adapter.layers import find_decoder_layers
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.models.base import check_before_loading


def check_adapter(
    pretrained: str, peft: str | None, args: LoraDropArgs, model_args: Mapping[str, Any]
) -> tuple[AdapterFiles, transformers.PreTrainedModel]:
    """The adapter's files and the base model without its weights (on the meta device), which fit each other.

    Raises:
        ArgumentError: no adapter was named, or one of `args` asks for layers that the model does not have.
        AdapterError: not a LoRA adapter, one that does not fit the base model, or no decoder-only model.
    """
    if not peft:
        raise ArgumentError(
            "peft must name the LoRA adapter whose layers are to be kept or dropped (a folder or a Hub id), got none. "
            "Give --model_args pretrained=<base model>,peft=<adapter>, or use --model hf for a model without adapter."
        )
    revision = str(model_args.get("revision") or "main")
    trust_remote_code = bool(model_args.get("trust_remote_code", False))
    files = adapter_files.open_adapter(peft, revision)
    config = transformers.AutoConfig.from_pretrained(
        pretrained,
        revision=revision,
        subfolder=model_args.get("subfolder", ""),
        gguf_file=model_args.get("gguf_file"),
        trust_remote_code=trust_remote_code,
    )
    if getattr(config, "is_encoder_decoder", False) or model_args.get("backend") == "seq2seq":
        raise AdapterError(
            f"pretrained={pretrained} is an encoder-decoder model ({config.model_type}); boundaries count the layers "
            "of a decoder-only model. Evaluate it with --model hf."
        )
    with torch.device("meta"):
        make: Any = transformers.AutoModelForCausalLM.from_config
        skeleton: transformers.PreTrainedModel = make(config, trust_remote_code=trust_remote_code)
    adapter_files.check_against(files, skeleton, pretrained)
    check_before_loading(args, len(find_decoder_layers(skeleton)))
    return files, skeleton
