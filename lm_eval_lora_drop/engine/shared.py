"""All boundaries at once: the runner of a sweep (`branching` says why that is possible, docs/engine.md how fast it is).

A batch is a handful of documents under all the boundaries they still need. How many documents follows from a budget of
rows; running out of memory halves it and the batch is tried again.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from lm_eval_lora_drop.engine.branching import Branches
from lm_eval_lora_drop.engine.decode import generate
from lm_eval_lora_drop.engine.loglikelihood import Span, score, spans
from lm_eval_lora_drop.engine.requests import Rules, why_not_greedy, why_not_rows
from lm_eval_lora_drop.layers import AdapterLayers
from lm_eval_lora_drop.sweep.types import Answer, Document, Runner, Work

log = logging.getLogger(__name__)

ROWS = 512
"""Rows per batch by default: enough for the matrix products to run at full speed on a CPU, some GB of cache."""
LOGITS = 1 << 28
"""Bytes of logits that a log-likelihood batch may take, roughly."""


@dataclass
class Counters:
    """What a sweep cost, for benchmarks and the log."""

    batches: int = 0
    rows: int = 0
    layer_rows: int = 0
    halved: int = 0
    peak_bytes: int = field(default=0)


def why_not_shared(lm: Any, layers: AdapterLayers, documents: Sequence[Document]) -> str | None:
    """Why these documents need the plain pass, in a few words; None where the shared pass can answer them."""
    if reason := why_not_rows(lm):
        return reason
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
    """A runner that answers a batch of documents under all their boundaries in one go.

    `batch_size` is the number of rows (boundary x document) per batch; None leaves it to the engine. `counters` is
    filled in as work is done.
    """
    counters = counters if counters is not None else Counters()

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        branches = Branches(layers.num_layers)
        for group in _alike(lm, work):
            rows = batch_size or ROWS
            size = max(1, rows // len(group[0].boundaries))
            start = 0
            while start < len(group):
                batch = group[start : start + size]
                try:
                    with branches.wrap(layers):
                        answers = _KINDS[batch[0].document.requests[0].request_type](lm, batch, branches)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error):
                        raise
                    answers = None
                if answers is None:
                    size = _halve(len(batch), counters)
                    continue
                counters.batches += 1
                counters.rows += len(batch) * len(batch[0].boundaries)
                counters.layer_rows = branches.layer_rows
                counters.peak_bytes = peak_memory(lm.device)
                yield answers
                start += len(batch)

    return run


def _alike(lm: Any, work: Sequence[Work]) -> list[list[Work]]:
    """Work in groups that can share a batch: the same boundaries and rules; within a group, longest prompts first."""
    groups: dict[tuple[Any, ...], list[Work]] = {}
    for item in work:
        request = item.document.requests[0]
        rules = Rules.of(lm, request.args[1]) if request.request_type == "generate_until" else None
        groups.setdefault((item.boundaries, request.request_type, rules), []).append(item)
    for group in groups.values():
        group.sort(key=lambda item: -sum(len(str(request.args[0])) for request in item.document.requests))
    return list(groups.values())


def _generate(lm: Any, batch: Sequence[Work], branches: Branches) -> list[Answer]:
    boundaries = batch[0].boundaries
    prompts = [request.args[0] for item in batch for request in item.document.requests]
    rules = Rules.of(lm, batch[0].document.requests[0].args[1])
    texts = generate(lm, prompts, rules, boundaries, branches)
    return _gather(batch, lambda boundary, index: texts[boundary, index])


def _loglikelihood(lm: Any, batch: Sequence[Work], branches: Branches) -> list[Answer]:
    boundaries = batch[0].boundaries
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    wanted = [spans(lm, request) for item in batch for request in item.document.requests]
    flat = [(index, span) for index, parts in enumerate(wanted) for span in parts]
    for chunk in _by_logits(lm, flat, len(boundaries)):
        scored = score(lm, [span for _, span in chunk], boundaries, branches)
        for boundary in boundaries:
            for place, (index, _) in enumerate(chunk):
                total, greedy = found.get((boundary, index), (0.0, True))
                more, more_greedy = scored[boundary, place]
                found[boundary, index] = (total + more, greedy and more_greedy)
    rolling = batch[0].document.requests[0].request_type == "loglikelihood_rolling"
    return _gather(batch, lambda boundary, index: found[boundary, index][0] if rolling else found[boundary, index])


_KINDS: dict[str, Callable[[Any, Sequence[Work], Branches], list[Answer]]] = {
    "generate_until": _generate,
    "loglikelihood": _loglikelihood,
    "loglikelihood_rolling": _loglikelihood,
}


def _by_logits(lm: Any, flat: Sequence[tuple[int, Span]], boundaries: int) -> Iterator[list[tuple[int, Span]]]:
    """Cut into chunks whose logits under all boundaries fit the budget; always at least one span."""
    vocabulary = lm.model.config.get_text_config(decoder=True).vocab_size
    chunk: list[tuple[int, Span]] = []
    size = 0
    for entry in sorted(flat, key=lambda entry: -len(entry[1].inputs)):
        cost = len(entry[1].targets) * boundaries * vocabulary * 4
        if chunk and size + cost > LOGITS:
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += cost
    if chunk:
        yield chunk


def _gather(batch: Sequence[Work], response: Callable[[int, int], Any]) -> list[Answer]:
    answers = []
    for boundary in batch[0].boundaries:
        index = 0
        for item in batch:
            count = len(item.document.requests)
            answers.append(Answer(boundary, item.document, tuple(response(boundary, index + i) for i in range(count))))
            index += count
    return answers


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _halve(documents: int, counters: Counters) -> int:
    if documents == 1:
        raise MemoryError(
            "The sweep ran out of memory with a single document under all its boundaries. Compare fewer boundaries "
            "(sweep_boundaries=...), or use sweep_engine=plain."
        )
    gc.collect()
    torch.cuda.empty_cache()
    counters.halved += 1
    log.warning("out of memory with %d documents per batch: going on with %d", documents, documents // 2)
    return documents // 2


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far: on a GPU by tensors, on a CPU by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
