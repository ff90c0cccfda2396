"""The plain pass: one variant after another by the harness class's own methods; the shared pass is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.facts.generation import generation_arguments
from lm_eval_lora_drop.harness.facts.requests import no_answer_cache
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.sweep.backend import Runner, Work
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BATCHES_BETWEEN_YIELDS = 4


def plain_runner(
    lm: HarnessModel, layers: AdapterLayers, keep: Callable[[Variant], AbstractContextManager[Any]] | None = None
) -> Runner:
    """A runner that answers with one variant after another, those that keep the most layers first.

    `keep` has the model keep a variant's LoRA, where that is not `layers.keep`.

    What has been answered is handed over every few batches, so that little is lost when the run is killed.
    """

    keep = keep or layers.keep

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        size = lm.batch_size if isinstance(lm.batch_size, int) else 16
        for variant in sorted({variant for item in work for variant in item.variants}, key=_largest_first):
            asked = [item.document for item in work if variant in item.variants]
            for document in filter(_samples, asked):
                with keep(variant), _by_itself(lm):
                    yield [Answer(variant, document, tuple(_draw(lm, document, size)))]
            documents = [document for document in asked if not _samples(document)]
            # Longest prompts first, as the harness itself orders them: each hand-over is then of similar lengths.
            documents.sort(key=lambda document: -sum(len(str(request.args[0])) for request in document.requests))
            step = size * BATCHES_BETWEEN_YIELDS
            for start in range(0, len(documents), step):
                chunk = documents[start : start + step]
                requests = [request for document in chunk for request in document.requests]
                with keep(variant), _by_itself(lm):
                    responses = iter(lm.harness_answers(requests[0].request_type, requests, disable_tqdm=True))
                yield [
                    Answer(variant, document, tuple(next(responses) for _ in document.requests)) for document in chunk
                ]

    return run


def _samples(document: Document) -> bool:
    """Whether HFLM draws the answers to a document's requests at random."""
    return any(
        request.request_type == "generate_until" and generation_arguments(request.args[1])["do_sample"]
        for request in document.requests
    )


def _draw(lm: HarnessModel, document: Document, size: int) -> Iterator[Any]:
    """Answers to a document whose task samples: each repeat of each request with random numbers of its own.

    They depend on the prompt and the number of the repeat alone: a run that was killed goes on to the same answers,
    whatever the batch size, and all variants are given the same numbers (common random numbers), so that their paired
    difference is that of the variants.
    """
    before = lm.batch_size_per_gpu
    for start in range(0, len(document.requests), document.repeats):
        for first in range(0, document.repeats, size):
            numbers = range(first, min(first + size, document.repeats))
            rows = [document.requests[start + number] for number in numbers]
            # One batch of HFLM's, so that a row of it is a repeat.
            lm.batch_size_per_gpu = len(rows)
            try:
                with _seeded(lm, [_seed(*pair) for pair in zip(rows, numbers, strict=True)]):
                    yield from lm.harness_answers(rows[0].request_type, rows, disable_tqdm=True)
            finally:
                lm.batch_size_per_gpu = before


def _seed(request: Instance, number: int) -> int:
    return int(short(digest(request.args, number), 15), 16)


@contextmanager
def _seeded(lm: HarnessModel, seeds: Sequence[int]) -> Iterator[None]:
    """Row by row from generators of their own; what else is random from the first. The run's own random numbers, with
    which the evaluated split is answered, stay as they were."""
    device = lm.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeds[0])
        with _RowByRow([torch.Generator(device).manual_seed(seed) for seed in seeds]):
            yield


class _RowByRow(TorchFunctionMode):
    """Draws the next token of each row (`torch.multinomial`, in transformers' `_sample`) by the row's generator."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.multinomial or len(args) != 1 or len(args[0]) != len(self._generators):
            return func(*args, **kwargs)
        pairs = zip(args[0], self._generators, strict=True)
        return torch.stack([func(row, generator=generator, **kwargs) for row, generator in pairs])


def _largest_first(variant: Variant) -> tuple[int, str]:
    return -len(variant.kept_layers), str(variant)


@contextmanager
def _by_itself(lm: HarnessModel) -> Iterator[None]:
    """Let `lm` answer for the sweep alone.

    Its answers must not get into the harness's answer cache, which does not know variants. And it must not wait for
    other processes, as HFLM does at every call where there are several: they make other calls than this one.
    """
    hook, world_size = lm.cache_hook, lm._world_size
    lm.cache_hook, lm._world_size = no_answer_cache(), 1
    try:
        yield
    finally:
        lm.cache_hook, lm._world_size = hook, world_size


@contextmanager
def batches_of(lm: HarnessModel, rows: int) -> Iterator[None]:
    """Let HFLM answer `rows` requests in a batch."""
    before = lm.batch_size_per_gpu
    lm.batch_size_per_gpu = rows
    try:
        yield
    finally:
        lm.batch_size_per_gpu = before
