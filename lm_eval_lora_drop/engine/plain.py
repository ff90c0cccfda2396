"""One boundary at a time, through the harness class's own methods: what the shared pass is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import CacheHook

from lm_eval_lora_drop.boundary import LayerSet
from lm_eval_lora_drop.layers import AdapterLayers
from lm_eval_lora_drop.sweep.types import Answer, Runner, Work

BATCHES_BETWEEN_YIELDS = 4


def plain_runner(lm: Any, layers: AdapterLayers) -> Runner:
    """A runner that answers with one boundary after another, the largest first.

    `lm` has `harness_answers(request_type, requests, disable_tqdm)` (models/hf.py), which answers under whatever layers
    are kept, and `batch_size`. What has been answered is handed over every few batches, so that little is lost when
    the run is killed.
    """

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        size = lm.batch_size if isinstance(lm.batch_size, int) else 16
        for boundary in sorted({boundary for item in work for boundary in item.boundaries}, reverse=True):
            documents = [item.document for item in work if boundary in item.boundaries]
            # Longest prompts first, as the harness itself orders them: each hand-over is then of similar lengths.
            documents.sort(key=lambda document: -sum(len(str(request.args[0])) for request in document.requests))
            step = size * BATCHES_BETWEEN_YIELDS
            for start in range(0, len(documents), step):
                chunk = documents[start : start + step]
                requests = [request for document in chunk for request in document.requests]
                with layers.keep(LayerSet.below(boundary, layers.num_layers)), _without_cache(lm):
                    responses = iter(lm.harness_answers(requests[0].request_type, requests, disable_tqdm=True))
                yield [
                    Answer(boundary, document, tuple(next(responses) for _ in document.requests)) for document in chunk
                ]

    return run


@contextmanager
def _without_cache(lm: Any) -> Iterator[None]:
    """Answers under other boundaries must not get into the harness's answer cache: it does not know boundaries."""
    hook = lm.cache_hook
    lm.cache_hook = CacheHook(None)
    try:
        yield
    finally:
        lm.cache_hook = hook
