"""Is the adapter applied? What is wrong with one that loads and runs all the same.

An adapter whose weights are not finite, are all zero, or do not get into the model gives scores like any other. So does
one whose base weights PEFT changes when it loads it: without its LoRA a layer is then not the base model's. Everything
but `compare_answers` is found on the files and on a model without weights, before minutes of loading.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer

from lm_eval_lora_drop.adapter.files import AdapterFiles, check_against, load_tensors
from lm_eval_lora_drop.adapter.names import TRAINED, TensorName, lora_products, read_names
from lm_eval_lora_drop.adapter.places import tie_again
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.text import shown
from lm_eval_lora_drop.variant import Variant, format_integers

# Initialisations of LoRA that PEFT carries out again when it loads the adapter, and that change the base weights; of
# the first PEFT can convert what was trained.
_CONVERTIBLE_INITS = ("pissa", "olora", "corda", "lora_ga")
_CHANGING_INITS = (*_CONVERTIBLE_INITS, "loftq")
_PEFT_ONLY = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "layer_replication": "layer_replication",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trained tokens",
    "kasa_config": "KaSA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
}


@dataclass(frozen=True)
class Health:
    """Where an adapter acts: decoder layers whose LoRA is not zero, and whether it acts before or behind the layers."""

    acting: frozenset[int]
    below: bool
    above: bool

    def why_base(self, kept: Variant) -> str | None:
        """Why `kept` is the base model although it keeps layers; None where it is not, or keeps none."""
        acts = self.acting & kept.kept_layers
        below = self.below and 0 in kept.kept_layers
        above = self.above and kept.num_layers - 1 in kept.kept_layers
        if kept.is_base or acts or below or above:
            return None
        where = format_integers(self.acting) or "none"
        return f"{kept.label} is the base model: the adapter has LoRA in layers {where} only"


def check_weights(files: AdapterFiles) -> Health:
    """Read the weights once: finite, complete, and not zero everywhere.

    Raises:
        AdapterError: they are not.
    """
    values = load_tensors(files)
    tensors = read_names(files.shapes, files.config)
    broken = [tensor.name for tensor in tensors if not bool(torch.isfinite(values[tensor.name]).all())]
    if broken:
        raise AdapterError(
            f"peft={files.source}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values, the first is "
            f"{broken[0]}. Its training diverged, or the file is damaged: take an earlier checkpoint."
        )
    acting = [
        tensor
        for tensor in tensors
        if (tensor.is_trained_whole or tensor.part == "lora_magnitude_vector" or tensor.is_bias)
        and bool(values[tensor.name].any())
    ]
    loras = lora_products(tensors, files.source)
    acting += [
        parts["B"]
        for parts in loras.values()
        if all(bool(values[parts[role].name].any()) for role in ("A", "B", "diag") if role in parts)
    ]
    if not acting:
        raise AdapterError(
            f"peft={files.source} changes nothing: in each of its {len(loras)} LoRA modules A or B is zero, as before "
            "training. Give an adapter that was trained."
        )
    return Health(
        acting=frozenset(tensor.layer for tensor in acting if tensor.layer is not None),
        below=any(tensor.is_embedding for tensor in acting),
        above=any(tensor.layer is None and not tensor.is_embedding for tensor in acting),
    )


def resize_vocabulary(files: AdapterFiles, model: Any) -> None:
    """Give a base model's embedding as many tokens as the adapter's has, as lm_eval does by the tokenizer's."""
    tokens = files.vocabulary
    if tokens is not None and tokens != model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(tokens, mean_resizing=False)


def check_on(files: AdapterFiles, base: str) -> Any:
    """Try the adapter on the base model without weights; returns both, on the meta device.

    Raises:
        AdapterError: as `skeleton_of`, `check_against`, `load_without_weights` and `check_loadable`.
    """
    skeleton = skeleton_of(transformers.AutoConfig.from_pretrained(base), base)
    resize_vocabulary(files, skeleton)
    check_against(files, skeleton, base)
    model = load_without_weights(files, skeleton)
    check_loadable(files, model)
    return model


def skeleton_of(config: Any, pretrained: str, **options: Any) -> transformers.PreTrainedModel:
    """The base model `pretrained` without weights, on the meta device.

    Raises:
        AdapterError: Transformers has no text-only model of this kind.
    """
    try:
        with torch.device("meta"):
            make: Any = transformers.AutoModelForCausalLM.from_config
            skeleton: transformers.PreTrainedModel = make(config, **options)
    except ValueError as error:
        raise AdapterError(
            f"pretrained={pretrained} is a {config.model_type} model, which Transformers has no text-only model for "
            "(AutoModelForCausalLM), so its decoder layers are not known. Evaluate it with --model hf-multimodal, or "
            "give the text model that it was made from."
        ) from error
    return skeleton


def load_without_weights(files: AdapterFiles, skeleton: transformers.PreTrainedModel) -> peft.PeftModel:
    """The adapter on its base model, both on the meta device, by PEFT's own rules; `skeleton` is changed.

    Raises:
        AdapterError: PEFT refuses the adapter, or passes over some of its tensors, or leaves some of its modules unset.
    """
    # A PeftConfig says in a warning which entries it does not know, and PEFT will say so again.
    with warnings.catch_warnings(), _quiet("peft"):
        warnings.simplefilter("ignore")
        try:
            config: Any = peft.PeftConfig.from_pretrained(str(files.folder))
            config.init_lora_weights = False
            with torch.device("meta"):
                model = peft.PeftModel(skeleton, config)
                empty = {name: torch.empty(shape) for name, shape in files.shapes.items()}
                result: Any = peft.set_peft_model_state_dict(model, empty)
        except Exception as error:  # nobody can list what PEFT raises for a configuration that it cannot carry out
            raise AdapterError(
                f"peft={files.source}: PEFT {peft.__version__} cannot load it ({' '.join(str(error).split())[:300]})."
            ) from error
    unset = sorted(name for name in result.missing_keys if "lora_" in name)
    # MonteCLoRA's sampler is for training; without weights PEFT does not make it. What was trained of a resized
    # embedding it saves twice, and reads once.
    unread = sorted(
        name
        for name in result.unexpected_keys
        if ".lora_monteclora_sampler." not in name and name.replace(TRAINED, ".") not in files.shapes.keys() - {name}
    )
    if unset or unread:
        hint = (
            f" Names in a file of PEFT begin with base_model.model., its own with {next(iter(files.shapes))[:40]}."
            if not any(name.startswith("base_model.model.") for name in files.shapes)
            else " Were weights and configuration saved together?"
        )
        raise AdapterError(
            f"peft={files.source} does not get into the model: PEFT reads {len(files.shapes) - len(unread)} of its "
            f"{len(files.shapes)} tensors and leaves {len(unset)} unset (the first: {(unset or unread)[0]}).{hint}"
        )
    return model


def check_loadable(files: AdapterFiles, model: peft.PeftModel) -> None:
    """Try on the meta device what `--model hf` does once the adapter is on: it ties the weights of the model again.

    Raises:
        AdapterError: that fails, as it does where an adapter has wrapped the tied head or trains tokens of the tied
            embedding; or PEFT initialises the adapter in a way that needs more than its files.
    """
    init: Any = files.config.get("init_lora_weights")
    if isinstance(init, str) and not init.lower().startswith(("pissa", "olora", "lora_ga", "loftq")):
        try:  # on something small: a model on the meta device has nothing to initialise
            make: Any = peft.LoraConfig
            small = make(r=1, target_modules=["0"], init_lora_weights=init)
            with torch.random.fork_rng(devices=[]):  # sampled answers are those of --model hf
                peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), small)
        except Exception as error:
            raise AdapterError(
                f"peft={files.source} says init_lora_weights={init}: PEFT {peft.__version__} carries that out again "
                f"when it loads it, which fails ({shown(error, 200)}), with --model hf too. {_CONVERT}."
            ) from error
    tie_again(model, f"peft={files.source}")


_CONVERT = "Convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"


def check_divisible(files: AdapterFiles) -> None:
    """Refuse an adapter whose layers without LoRA are not those of the base model; whole it can be evaluated.

    Raises:
        AdapterError: PEFT changes base weights when it loads the adapter, or it brings biases of the base model.
    """
    biases = trained_biases(files.config, read_names(files.shapes, files.config))
    _check_divisible(f"peft={files.source}", files.config, biases)


def check_model_divisible(model: peft.PeftModel) -> None:
    """The same for the adapters of a model that is loaded already.

    Raises:
        AdapterError: as `check_divisible`.
    """
    for name, config in model.peft_config.items():
        settings = config.to_dict()
        biases: list[str] = []
        if settings.get("bias") == "all":
            biases = [one for one, _ in model.named_parameters() if "bias" in one and "lora_" not in one]
        elif settings.get("bias") == "lora_only":
            biases = [one for one, m in model.named_modules() if isinstance(m, LoraLayer) and m.bias is not None]
        _check_divisible(f"the adapter {name!r}", settings, biases)


def _check_divisible(source: str, config: Mapping[str, Any], biases: Sequence[str]) -> None:
    init = config.get("init_lora_weights")
    changes = str(init) if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS) else None
    changes = "KaSA" if config.get("kasa_config") else changes
    if changes:
        convert = f"{_CONVERT}, or evaluate" if changes.lower().startswith(_CONVERTIBLE_INITS) else "Evaluate"
        raise AdapterError(
            f"{source} was made with {changes}: PEFT changes the base weights with it, so a layer without its LoRA is "
            f"not the base model's. {convert} the full adapter: boundary=full."
        )
    if biases:
        raise AdapterError(
            f"{source} was trained with bias={config['bias']} and brings {len(biases)} biases of the base model, which "
            "dropping a layer's LoRA does not give back. Evaluate the full adapter: boundary=full."
        )


def check_scalable(files: AdapterFiles, kept: Variant) -> None:
    """Refuse a strength or a rank for what is no plain product s B A.

    Raises:
        AdapterError: one of the kept modules is not such a product.
    """
    for tensor in read_names(files.shapes, files.config):
        keep = tensor.keep(kept)
        if keep is None or (keep.strength == 1 and keep.rank is None):
            continue
        asked = str(keep)
        if tensor.is_trained_whole:
            raise AdapterError(
                f"peft={files.source} trained {tensor.module} as a whole, which has neither strength nor rank, got "
                f"{asked} for it. Keep that layer whole or drop it."
            )
        odd = (
            files.config.get("target_parameters")
            or files.config.get("kasa_config")
            or files.config.get("use_bdlora")
            or files.config.get("monteclora_config")
            or len(files.shapes[tensor.name]) > 2
        )
        if keep.rank is not None and odd:
            raise AdapterError(
                f"peft={files.source} has LoRA on {tensor.module} that is no single matrix product, so its rank "
                f"cannot be cut, got {asked}. Give a strength, or keep its layers whole."
            )


def trained_biases(config: Mapping[str, Any], tensors: Iterable[TensorName]) -> list[str]:
    """The biases of the base model that an adapter brings (`bias=all`, `lora_only`)."""
    if config.get("bias") in (None, "none"):
        return []
    return [t.name for t in tensors if not t.is_lora and t.saved_as is None and t.value == "bias"]


def known_to_peft_only(config: Mapping[str, Any], tensors: Sequence[TensorName]) -> tuple[str, ...]:
    """What of an adapter vLLM and llama.cpp's converter do not take."""
    absent = set()
    if not any(tensor.saved_as for tensor in tensors):
        absent.add("modules_to_save")
    if not any(tensor.is_token for tensor in tensors):
        absent.add("trainable_token_indices")
    named = [said for name, said in _PEFT_ONLY.items() if config.get(name) and name not in absent]
    if any(not t.is_lora and t.saved_as is None and t.value == "weight" for t in tensors):
        named.append("an embedding of the base model saved along")
    return tuple(named)


_ROUNDINGS = 4 * 2.0**-23
"""Relative to a log-likelihood, a sum of single-precision terms."""


def compare_answers(full: Sequence[float], base: Sequence[float], noise: float = 0.0) -> str | None:
    """Why the adapter seems not to be applied; None where it does.

    `full` and `base` are the log-likelihoods of the same documents under the full adapter and the base model, in nats;
    `noise` is how far the same model differs from itself on a document at another batch shape.

    Raises:
        ValueError: not the same number of documents.
    """
    differences = [abs(one - other) for one, other in zip(full, base, strict=True)]
    # A few roundings of the number itself in single precision, which a noise of 0 on a handful of documents misses.
    rounding = _ROUNDINGS * max(map(abs, [*full, *base]), default=0.0)
    if not differences or max(differences) > max(noise, rounding):
        return None
    return (
        f"the full adapter and the base model answer alike: the log-likelihoods of {len(differences)} documents "
        f"differ by at most {max(differences):.1e}, which is rounding. The adapter is not applied, or changes nothing "
        "that matters here; every boundary will score the same."
    )


@contextlib.contextmanager
def _quiet(logger: str) -> Any:
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
