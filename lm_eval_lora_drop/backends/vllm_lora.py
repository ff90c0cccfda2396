"""A LoRA adapter as vLLM takes it: refused in time, cut to what is kept, and how many at once.

To vLLM a variant is an ordinary adapter with fewer modules and other numbers in it: it clears what an adapter does not
bring (`vllm/lora/model_manager.py`, `activate_adapter`). It reads adapters from folders only, so each variant is
exported once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn
from vllm import LLM, EngineArgs, SamplingParams
from vllm.config.lora import LoRAConfig
from vllm.inputs import TokensPrompt
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import is_base_embedding_weights, parse_fine_tuned_lora_name

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.adapter.agreement import PromptOutputs
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import AdapterFiles, open_adapter
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

WAY_OUT = (
    "Evaluate it with --model hf-lora-drop, or export base model and kept layers merged (lora-drop export --merge) and "
    "evaluate that with --model vllm."
)
# What PEFT obeys and a vLLM that does not know it would pass over in silence. PEFT's other switches are called use_*.
_OBEYED_BY_PEFT = (
    *("modules_to_save", "lora_bias", "layer_replication", "alora_invocation_tokens"),
    *("trainable_token_indices", "target_parameters", "arrow_config"),
)
# What an export expresses by one r and one alpha.
FOLDED_IN_EXPORT = ("alpha_pattern", "rank_pattern", "use_rslora")
NAME_LENGTH = 100
"""Longer notations of a variant become a digest in the name of its folder: a file name has at most 255 bytes."""
SHARE_OF_MEMORY = 0.1
"""Of the device's memory, what the adapters of a sweep may take; vLLM's cache loses that much."""


def check_supported(files: AdapterFiles, rank: int) -> None:
    """Ask the installed vLLM's own rules about an adapter; it would ask them at the first request only.

    Raises:
        AdapterError: it would refuse the adapter, or answer differently from PEFT without a word.
    """
    config = files.config
    known = {field.name for field in dataclasses.fields(PEFTHelper)}
    reasons = [
        f"It does not know {name}={config[name]}."
        for name in sorted({*_OBEYED_BY_PEFT, *(name for name in config if name.startswith("use_"))})
        if config.get(name) and name not in known and name not in FOLDED_IN_EXPORT
    ]
    try:
        PEFTHelper.from_dict(dict(config)).validate_legal(LoRAConfig(max_lora_rank=rank))
        for name in files.shapes:
            if not is_base_embedding_weights(name):
                parse_fine_tuned_lora_name(name)
    except ValueError as error:
        reasons.append(str(error))
    if reasons:
        raise AdapterError(f"vLLM cannot take peft={files.source}: {' '.join(reasons)} {WAY_OUT}")


def check_outside(files: AdapterFiles, layers: AdapterLayers, embedding_modules: Mapping[str, str]) -> None:
    """Refuse LoRA outside the decoder layers, except on an embedding that vLLM's model takes it on.

    `embedding_modules` is the attribute of that name of vLLM's model class: module name -> input or output embeddings.
    An adapter's part on `lm_head` works for generation only: the rows of prompt log-probabilities meet the adapters of
    the sampled rows (vllm/lora/punica_wrapper, `add_lora_logits`).

    Raises:
        AdapterError: there is some.
    """
    outside = {id(module) for module in (*layers.below, *layers.above)}
    names = {name.rpartition(".")[2] for name, module in layers.model.named_modules() if id(module) in outside}
    allowed = {name for name, kind in embedding_modules.items() if kind == "input_embeddings"}
    if refused := sorted(names - allowed):
        also = "".join(f" and on {name}" for name in sorted(allowed))
        raise AdapterError(
            f"vLLM cannot take peft={files.source}: it has LoRA on {', '.join(refused)}, and for this architecture "
            f"vLLM answers every kind of request rightly with LoRA in the decoder layers{also} only. {WAY_OUT}"
        )


def target_modules(files: AdapterFiles) -> dict[str, Any]:
    """`lora_target_modules`, the last parts of the names of the modules that have LoRA, so that vLLM sets up no others;
    nothing where they are unclear, or where this vLLM does not take it.

    On CPU log-likelihoods need this: vLLM would wrap `lm_head` as well, see `check_outside`.
    """
    names = {parse_fine_tuned_lora_name(name)[0] for name in files.shapes if not is_base_embedding_weights(name)}
    if any(".experts" in name for name in names):
        # vLLM has another name for the experts of a mixture.
        return {}
    if "lora_target_modules" not in {field.name for field in dataclasses.fields(EngineArgs)}:
        return {}
    return {"lora_target_modules": sorted({name.rpartition(".")[2] for name in names})}


def choose_rank(files: AdapterFiles, asked: Any) -> int:
    """The `max_lora_rank` for an adapter: as asked, else the smallest that vLLM has and the adapter fits in.

    No variant has a higher rank than the full adapter.

    Raises:
        ArgumentError: vLLM does not have `asked`, or it is less than the adapter's rank.
        AdapterError: the adapter's rank is above all that vLLM has.
    """
    needed = max([int(files.config["r"]), *(files.config.get("rank_pattern") or {}).values()])
    ranks = get_args(next(field.type for field in dataclasses.fields(LoRAConfig) if field.name == "max_lora_rank"))
    fitting = [rank for rank in ranks if rank >= needed]
    if not fitting:
        raise AdapterError(
            f"vLLM cannot take peft={files.source}: its rank is {needed}, the largest that vLLM has is {max(ranks)}. "
            f"{WAY_OUT}"
        )
    if asked is None:
        return int(min(fitting))
    if asked not in fitting:
        raise ArgumentError(
            f"max_lora_rank must be one of {', '.join(map(str, fitting))} for an adapter of rank {needed}, got {asked}."
            " Leave it out: the smallest that fits is taken."
        )
    return int(asked)


def slot_size(model: nn.Module, rank: int, itemsize: int) -> int:
    """Bytes that vLLM sets aside for one adapter, on every linear layer at the full `rank`, whatever the adapter uses.

    `model` is the base model, with the adapter or without, `itemsize` the size of a value: rank * (inputs + outputs)
    values per layer.
    """
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in name]
    return rank * itemsize * sum(module.in_features + module.out_features for module in linear)


def adapters_at_once(wanted: int, size: int, memory: int) -> int:
    """How many of `wanted` adapters vLLM shall hold at once (`max_loras`); `size` of one and `memory` in bytes."""
    fitting = max(1, int(SHARE_OF_MEMORY * memory) // max(size, 1))
    if fitting < wanted:
        log.info(
            "%d adapters of %d MiB would take more than a tenth of the memory: %d at once, the others wait. "
            "max_loras=%d has them all at once.",
            wanted,
            size >> 20,
            fitting,
            wanted,
        )
    return min(wanted, fitting)


def answers_of(base: str, adapter: Path, asked: Sequence[list[int]], tokens: int, dtype: str) -> PromptOutputs:
    """What vLLM answers to prompts (token ids) with an exported adapter, for `lora-drop check`.

    Raises:
        AdapterError: vLLM takes neither the adapter nor LoRA for this model.
    """
    files = open_adapter(str(adapter))
    rank = choose_rank(files, None)
    check_supported(files, rank)
    lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, **target_modules(files)}
    try:
        engine = LLM(base, dtype=dtype, enforce_eager=True, **lora)
        request = LoRARequest(adapter.name, 1, str(adapter))
        outputs = engine.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in asked],
            SamplingParams(temperature=0, max_tokens=tokens, prompt_logprobs=0),
            lora_request=request,
            use_tqdm=False,
        )
    except ValueError as error:
        raise AdapterError(f"vLLM refuses {adapter} on {base}: {' '.join(str(error).split())[:300]}") from error
    logprobs = tuple(
        tuple(position[token].logprob for token, position in zip(ids[1:], output.prompt_logprobs[1:], strict=True))
        for ids, output in zip(asked, outputs, strict=True)
    )
    return PromptOutputs(logprobs, tuple(tuple(output.outputs[0].token_ids) for output in outputs))


class AdapterShelf:
    """The adapter as each variant keeps it, as folders for vLLM.

    They stay in `folder` for the next run, under the adapter's fingerprint.
    """

    def __init__(self, files: AdapterFiles, layers: AdapterLayers, folder: Path) -> None:
        self._files = files
        self._layers = layers
        self._fingerprint = files.fingerprint().removeprefix("sha256:")[:16]
        self._folder = folder / self._fingerprint / __version__
        self._requests: dict[Variant, LoRARequest | None] = {}

    def request(self, kept: Variant) -> LoRARequest | None:
        """What a request must carry to be answered with what `kept` keeps; None for the base model."""
        if kept not in self._requests:
            has_lora = self._layers.count_parameters(kept)[0] > 0
            self._requests[kept] = self._new_request(kept) if has_lora else None
        return self._requests[kept]

    def _new_request(self, kept: Variant) -> LoRARequest:
        # vLLM knows an adapter by its number in one place and by its name in another: no two adapters that meet in one
        # engine may share either.
        name = f"{self._fingerprint} {kept}"
        number = 1 + int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
        return LoRARequest(name, number, str(self._folder_of(kept)))

    def _folder_of(self, kept: Variant) -> Path:
        if kept.is_full and not self._needs_folding():
            return self._files.folder
        name = str(kept)
        if len(name) > NAME_LENGTH:
            name = hashlib.sha256(name.encode()).hexdigest()[:16]
        folder = self._folder / name
        if not folder.is_dir():
            try:
                export_adapter(self._files.folder, kept, folder, origin=f"Cut from {self._files.source} for vLLM.")
            except (OSError, ArgumentError):
                # Another process has been quicker.
                if not folder.is_dir():
                    raise
        return folder

    def _needs_folding(self) -> bool:
        """Whether vLLM would read the adapter's scalings otherwise than PEFT does (`check_supported`)."""
        return any(self._files.config.get(name) for name in FOLDED_IN_EXPORT)
