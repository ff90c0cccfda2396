"""One variant at a time, through the harness class's own methods: what the shared pass is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lm_eval.api.model import CacheHook

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.harness.work import Answer, HarnessModel, Runner, Work
from lm_eval_lora_drop.variant import Variant

BATCHES_BETWEEN_YIELDS = 4


def plain_runner(lm: HarnessModel, layers: AdapterLayers) -> Runner:
    """A runner that answers with one variant after another, those that keep the most layers first.

    What has been answered is handed over every few batches, so that little is lost when the run is killed.
    """

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        size = lm.batch_size if isinstance(lm.batch_size, int) else 16
        for variant in sorted({variant for item in work for variant in item.variants}, key=_largest_first):
            documents = [item.document for item in work if variant in item.variants]
            # Longest prompts first, as the harness itself orders them: each hand-over is then of similar lengths.
            documents.sort(key=lambda document: -sum(len(str(request.args[0])) for request in document.requests))
            step = size * BATCHES_BETWEEN_YIELDS
            for start in range(0, len(documents), step):
                chunk = documents[start : start + step]
                requests = [request for document in chunk for request in document.requests]
                with layers.keep(variant), _by_itself(lm):
                    responses = iter(lm.harness_answers(requests[0].request_type, requests, disable_tqdm=True))
                yield [
                    Answer(variant, document, tuple(next(responses) for _ in document.requests)) for document in chunk
                ]

    return run


def _largest_first(variant: Variant) -> tuple[int, str]:
    return -len(variant.kept_layers), str(variant)


@contextmanager
def _by_itself(lm: HarnessModel) -> Iterator[None]:
    """Let `lm` answer for the sweep alone.

    Its answers must not get into the harness's answer cache, which does not know variants. And it must not wait for
    other processes, as HFLM does at every call where there are several: they make other calls than this one.
    """
    hook, world_size = lm.cache_hook, lm._world_size
    lm.cache_hook, lm._world_size = CacheHook(None), 1
    try:
        yield
    finally:
        lm.cache_hook, lm._world_size = hook, world_size


@contextmanager
def batches_of(lm: HarnessModel, rows: int) -> Iterator[None]:
    """Let HFLM answer so many requests at a time."""
    before = lm.batch_size_per_gpu
    lm.batch_size_per_gpu = rows
    try:
        yield
    finally:
        lm.batch_size_per_gpu = before
