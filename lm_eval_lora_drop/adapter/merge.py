"""Writes the base model with what a variant keeps of an adapter folded into its weights: a plain Transformers model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter.card import CardResults, Exported, model_card
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import AdapterFiles, new_folder
from lm_eval_lora_drop.adapter.fold import Survival, fold
from lm_eval_lora_drop.adapter.health import resize_vocabulary, skeleton_of
from lm_eval_lora_drop.adapter.names import IN_LAYER, read_names
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def merge_adapter(
    source: str | Path,
    kept: Variant,
    destination: Path,
    *,
    pretrained: str | None = None,
    dtype: str = "auto",
    origin: str = "It was given by hand.",
    evaluated: CardResults | None = None,
    force: bool = False,
    to_force: str = "--force",
    draw: Callable[[Survival, Path], Sequence[Path]] = lambda *_: (),
) -> Exported:
    """Write the base model with what `kept` keeps folded into its weights to the new folder `destination`.

    `pretrained` is the base model, if not the one that the adapter names; `dtype` that of the weights (`DTYPES`);
    `origin` and `evaluated` as for `export_adapter`. Sums are made in single precision and rounded once; with `force`
    also where less than half of the LoRA is left then (`fold.Survival`); `to_force` is what a user types for that.
    `draw` draws the survival into a folder and returns the figures, for the model card.

    Raises:
        AdapterError: as `export_adapter`; no base model is known, it is quantised, or the adapter cannot be folded in.
        ArgumentError: as `export_adapter`, an unknown dtype, or too little of the LoRA would be left.
    """
    check_dtype(dtype)
    files = adapter_files.open_adapter(str(source))
    base = files.base_model(pretrained)
    with new_folder(destination) as folder:
        from transformers import AutoConfig, AutoTokenizer

        # Beside what it becomes, on the disk that the user has chosen; removed with the folder around both.
        adapter = folder.parent / "adapter"
        try:
            config = AutoConfig.from_pretrained(base)
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"the base model {base} cannot be read ({_first_line(error)}). Give it with --pretrained."
            ) from error
        _check_mergeable(files, kept, base, config)
        exported = export_adapter(source, kept, adapter, origin=origin)
        survival = _merge(base, adapter_files.open_adapter(str(adapter)), folder, dtype, to_force, force=force)
        has_tokenizer = any(adapter.glob("tokenizer*"))
        AutoTokenizer.from_pretrained(str(adapter) if has_tokenizer else base).save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        exported = dataclasses.replace(
            exported, destination=destination, size=size, merged_into=base, survival=survival
        )
        figures = [path.name for path in draw(survival, folder)]
        card = model_card(files.config, exported, origin, evaluated, figures)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return exported


def check_dtype(dtype: str) -> None:
    """Raise ArgumentError unless `dtype` is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ArgumentError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype[:80]!r}.")


def _merge(base: str, adapter: AdapterFiles, folder: Path, dtype: str, to_force: str, *, force: bool) -> Survival:
    import torch
    from peft import PeftModel
    from peft.tuners.lora.layer import LoraLayer
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    except (OSError, ValueError, ImportError) as error:
        raise AdapterError(f"the base model {base} cannot be loaded ({_first_line(error)}).") from error
    resize_vocabulary(adapter, model)
    try:
        peft_model: Any = PeftModel.from_pretrained(model, str(adapter.folder))
        lora = [
            (int(layer["index"]) if (layer := IN_LAYER.match(name)) else None, _kind(name, module), module)
            for name, module in peft_model.get_base_model().named_modules()
            if isinstance(module, LoraLayer)
        ]
        with torch.no_grad():
            survival = fold(lora)
        # What is folded in already stays as it is; trained modules take the place of the base model's.
        merged = peft_model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise AdapterError(
            f"PEFT cannot fold the adapter into {base}: {_first_line(error)}. Export without --merge."
        ) from error
    if warning := survival.check(to_force, force):
        log.warning(warning)
    merged.save_pretrained(folder)
    return survival


def _check_mergeable(files: AdapterFiles, kept: Variant, base: str, config: Any) -> None:
    """Refuse what cannot be folded into weights so that the merged model answers as the variant does."""
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        kind = (quantised if isinstance(quantised, Mapping) else vars(quantised)).get("quant_method", "unknown")
        kind = getattr(kind, "value", kind)
        raise AdapterError(
            f"{base} is quantised ({kind}): folding LoRA into its weights would round them anew, and the merged model "
            "would answer differently from base and adapter. Give the model that it was made from with --pretrained "
            "(answers then differ as the two bases do), or export without --merge and load base and adapter."
        )
    if files.config.get("alora_invocation_tokens"):
        raise AdapterError(
            f"{files.source} is an activated LoRA: it acts from certain tokens of a prompt on, and no weights do that. "
            "Export without --merge."
        )
    if files.config.get("layer_replication"):
        raise AdapterError(
            f"{files.source} has layer_replication: replicated layers share one weight, which cannot take the LoRA of "
            "each. Export without --merge."
        )
    names = [tensor for tensor in read_names(files.shapes, files.config) if tensor.is_lora or tensor.saved_as]
    tensors = [tensor for tensor in names if tensor.keep(kept) is not None]
    biased = {tensor.module for tensor in tensors if tensor.is_bias}
    if biased and (without := _without_bias(config, base, biased)):
        raise AdapterError(
            f"{files.source} was trained with lora_bias=True, and {without} of {base} has no bias that it could be "
            "folded into. Export without --merge."
        )
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    if tied and (found := sorted({t.module for t in tensors if t.is_of_vocabulary})):
        raise AdapterError(
            f"{files.source} changes {', '.join(found)}, and {base} uses one weight for its embedding and its lm_head: "
            "folded in, the change would act on both. Export without --merge."
        )


def _without_bias(config: Any, base: str, modules: set[str]) -> str | None:
    named = dict(skeleton_of(config, base).named_modules())
    return next((name for name in sorted(modules) if getattr(named.get(name), "bias", None) is None), None)


def _kind(name: str, module: Any) -> str:
    """The last part of a module's name; of LoRA on a parameter, the parameter's."""
    return str(getattr(module, "parameter_name", None) or name.rpartition(".")[2])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
