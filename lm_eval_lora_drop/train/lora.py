"""The base model and its fresh LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from lm_eval_lora_drop.adapter.places import find_decoder_layers
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.options import ALL_LAYERS
from lm_eval_lora_drop.train.settings import TrainingSettings
from lm_eval_lora_drop.variant import format_integers


def load_tokenizer(base: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """The base model's tokenizer.

    Raises:
        ArgumentError: no such model here or on the Hub.
    """
    if not Path(base).is_dir() and base.startswith(("/", "./", "../", "~")):
        raise ArgumentError(f"model must be a folder or a Hub id; there is no folder {base}. Check the path.")
    try:
        AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
        return AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentError(
            f"model={base} cannot be loaded: {reason} Check the path, the name or the network."
        ) from error


def precision(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    """What the base model's products are computed in.

    Raises:
        ArgumentError: bfloat16 was asked for and the device has none.
    """
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        # Elsewhere a CPU computes in bfloat16 too, but slower than in float32.
        able = device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
    if settings.precision == "bfloat16" and not able and device.type == "cuda":
        raise ArgumentError("precision=bfloat16 needs a GPU that has it (Ampere or newer). Use precision=float32.")
    wanted = able if settings.precision == "auto" else settings.precision == "bfloat16"
    return torch.bfloat16 if wanted else torch.float32


def load_base(base: str, revision: str | None, dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The base model for causal language modelling, on the CPU; a trainer moves it."""
    return AutoModelForCausalLM.from_pretrained(
        base, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
    )


def add_lora(model: Any, settings: TrainingSettings, base_name: str, seed: int) -> PeftModel:
    """A LoRA on the wanted layers, initialised by `seed`.

    Raises:
        ArgumentError: the model has no such layers or modules.
    """
    layers = find_decoder_layers(model)
    wanted = settings.trained_layers(len(layers))
    partial = settings.layers != ALL_LAYERS
    named = list(settings.target_modules)
    # PEFT takes `all-linear` and a list of layers not together: it wants the modules' names then.
    targets: str | list[str] = named or (_linear_names(layers) if partial else "all-linear")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        layers_to_transform=list(wanted) if partial else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        peft = get_peft_model(model, config)
    except ValueError as error:
        raise ArgumentError(f"target_modules must name modules of the model: {error}") from error
    # PEFT reads layer numbers out of modules' names by a pattern; what it found is compared with the layers themselves.
    found = {index for index, layer in enumerate(layers) if any(isinstance(one, LoraLayer) for one in layer.modules())}
    if found != set(wanted):
        raise AdapterError(
            f"LoRA was to be trained on layers {format_integers(wanted)}, but PEFT put it on "
            f"{format_integers(found) or 'none'}: it does not know how this architecture numbers its layers. Train "
            f"with layers={ALL_LAYERS}."
        )
    peft.peft_config["default"].base_model_name_or_path = base_name
    return peft


def check_lora(base: str, revision: str | None, settings: TrainingSettings, *, trust_remote_code: bool) -> None:
    """Put the LoRA of a training on the base model without its weights (PyTorch's meta device).

    Raises:
        ArgumentError: the model has no such layers or modules as the settings name.
    """
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        # How many layers cka names is known; which ones makes no difference to what is checked here.
        add_lora(model, settings.resolved(range(len(find_decoder_layers(model)))), base, 0)


def _linear_names(layers: Any) -> list[str]:
    """The last parts of the names of all linear modules in the decoder layers: what `all-linear` means there."""
    return sorted(
        {
            name.rpartition(".")[2]
            for layer in layers
            for name, module in layer.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D))
        }
    )
