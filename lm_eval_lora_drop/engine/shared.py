"""All boundaries at once: the runner of a sweep. `tree` says why that is possible, docs/engine.md how fast it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.generation import generate
from lm_eval_lora_drop.engine.loglikelihood import loglikelihoods
from lm_eval_lora_drop.engine.memory import peak_memory
from lm_eval_lora_drop.engine.requests import why_not_greedy, why_not_rows
from lm_eval_lora_drop.engine.session import Counters, Session
from lm_eval_lora_drop.work import Answer, Document, Runner, Work

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_KINDS = {
    "generate_until": generate,
    "loglikelihood": loglikelihoods,
    "loglikelihood_rolling": loglikelihoods,
}


def why_not_shared(lm: Any, layers: AdapterLayers, documents: Sequence[Document]) -> str | None:
    """Why these documents need the plain pass, in a few words; None where the shared pass can answer them."""
    if reason := why_not_rows(lm):
        return reason
    config = lm.model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) for name in _EXPERTS):
        return "the model is a mixture of experts, which sorts tokens by expert"
    if len(layers.model.active_adapters) != 1:
        return "several adapters are active"
    if layers.below:
        return "the adapter changes the input embedding"
    for module in (*(m for modules in layers.modules for m in modules), *layers.above):
        reason = _why_not_sliced(module)
        if reason:
            return reason
    for document in documents:
        for request in document.requests:
            if len(request.args) > 2 or request.request_type not in _KINDS:
                return "the task's requests are not text alone"
            if request.request_type == "generate_until" and (reason := why_not_greedy(lm, request.args[1])):
                return reason
    return None


def _why_not_sliced(module: Any) -> str | None:
    if not isinstance(module, LoraLayer):
        return "the adapter trains whole modules (modules_to_save)"
    if getattr(module, "lora_variant", None):
        return f"the adapter uses the LoRA variant {next(iter(module.lora_variant.values())).__class__.__name__}"
    base = module.get_base_layer()
    if not isinstance(base, torch.nn.Linear) and type(base).__name__ != "Conv1D":
        return f"the adapter sits on a {type(base).__name__}"
    return None


def shared_runner(
    lm: Any, layers: AdapterLayers, batch_size: int | None = None, counters: Counters | None = None
) -> Runner:
    """A runner that answers documents under all their boundaries in one go.

    `batch_size` is the number of rows (boundary x document) at a time; None leaves it to the engine. `counters` is
    filled in as work is done.
    """
    session_counters = counters if counters is not None else Counters()

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        session = Session(lm, layers, batch_size, session_counters)
        for kind, answer in _KINDS.items():
            asked = [item for item in work if item.boundaries and item.document.requests[0].request_type == kind]
            for answers in answer(session, asked):
                session_counters.rows += len(answers)
                session_counters.peak_bytes = peak_memory(lm.device)
                yield answers

    return run
