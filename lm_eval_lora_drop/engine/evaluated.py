"""One variant, decoded without the rows that have finished: what the evaluated split is answered with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from lm_eval_lora_drop.adapter.layers import why_whole_prompts
from lm_eval_lora_drop.endings import is_out_of_memory
from lm_eval_lora_drop.engine.check import divergence, is_quantised
from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.generation import WholeAnswers
from lm_eval_lora_drop.engine.loglikelihood import why_not_scored
from lm_eval_lora_drop.engine.memory import halve
from lm_eval_lora_drop.engine.requests import Rules, needs_own_batch, why_not_greedy, why_not_rows
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.text import logger, shown
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logger(__name__)

CHECKED = 4
"""Requests that HFLM and the decoder both answer before the decoder answers any alone."""
WORTH = 4
"""Batches that there must be for the decoder to be tried: one is HFLM's for the check, one each is timed."""


def why_left_to_harness(lm: HarnessModel, requests: Sequence[Instance]) -> str | None:
    """Why only the harness's own `generate_until` may answer these requests; None where the outputs are the same.

    In fp32 they are. In half precision and with quantised weights a batch of another shape flips near-ties (LLM.int8
    finds its outlier columns over the whole batch), and the evaluated split shall give the numbers of `--model hf`.
    """
    if is_quantised(lm):
        return "the model's weights are quantised"
    dtype = lm.model.get_base_model().dtype
    if dtype != torch.float32 or lm.mixed_precision_dtype is not None:
        return f"the model computes in {dtype}"
    if not isinstance(lm.batch_size, int):
        return "the batch size is automatic"
    if reason := why_whole_prompts(lm.model) or why_not_rows(lm):
        return reason
    for request in requests:
        if reason := why_not_greedy(lm, request.args[1]):
            return reason
        if not lm.tok_encode(request.args[0]):
            return "a prompt has no tokens"
    return None


def why_refused(lm: HarnessModel, request_type: str, requests: Sequence[Instance], error: Exception) -> str | None:
    """What to say where HFLM ended in `error`: it takes a request or its arguments as they are with no adapter either.
    None where that is not known."""
    for request in requests if request_type == "loglikelihood" else ():
        if reason := why_not_scored(lm, request):
            return (
                f"document {request.doc_id} of {request.task_name or 'the task'} cannot be scored, with --model hf "
                f"either: {reason}. Correct the task, or give a larger max_length if the model has one."
            )
    # What we raised ourselves says what to do; it is not the harness that refuses.
    if request_type != "generate_until" or isinstance(error, (IndexError, LoraDropError)):
        return None
    arguments = shown(requests[0].args[1], 200)
    return (
        f"{requests[0].task_name or 'the task'} cannot be answered, with --model hf either, under the arguments "
        f"{arguments} and the model's generation_config.json: {shown(error, 300)}. Correct the task's "
        "generation_kwargs, --gen_kwargs or that file."
    )


def answer_requests(lm: HarnessModel, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """Answer generation requests as HFLM does, with whatever layers are kept now.

    HFLM's batches run until their last row has finished; here finished rows leave and waiting ones take their place.
    How much that saves depends on the answers and on the machine, so it is tried: HFLM answers one batch, of which the
    decoder answers some again (`CHECKED`); where they part at more than a near tie, or where the model cannot be
    decoded this way, HFLM answers everything else too, and a warning says why. Then each answers a batch, and the
    faster one the rest: never slower than HFLM by more than this trial. Running out of memory halves the batch.
    """
    run = _Run(lm, requests, disable_tqdm)
    by_itself = needs_own_batch(lm, requests)
    if why_left_to_harness(lm, requests) is not None:
        run.by_harness(run.open, disable_tqdm)
    else:
        run.by_harness([index for index in run.open if by_itself[index]])
    # Of an automatic size nothing is left.
    size = max(lm.batch_size, CHECKED) if run.open else CHECKED
    if len(run.open) >= WORTH * size:
        reason = run.try_decoder(size)
        if reason is not None:
            log.warning("Falling back to HFLM.generate_until: %s", reason)
    run.by_harness(run.open, disable_tqdm)
    return [run.answers[index] for index in range(len(requests))]


class _Run:
    """The requests of one call and their answers so far."""

    def __init__(self, lm: HarnessModel, requests: Sequence[Instance], disable_tqdm: bool) -> None:
        self.answers: dict[int, str] = {}
        self._lm = lm
        self._requests = requests
        self._quiet = disable_tqdm or lm.rank != 0

    @property
    def open(self) -> list[int]:
        """The indices of the requests without an answer."""
        return [index for index in range(len(self._requests)) if index not in self.answers]

    def by_harness(self, indices: Sequence[int], disable_tqdm: bool = True) -> None:
        """Answered by HFLM itself."""
        if indices:
            asked = [self._requests[index] for index in indices]
            given = self._lm.harness_answers("generate_until", asked, disable_tqdm)
            self.answers.update(zip(indices, given, strict=True))

    def by_decoder(self, indices: Sequence[int], disable_tqdm: bool = True) -> None:
        """Answered by the decoder, each kept as it comes."""
        asked = [self._requests[index] for index in indices]
        with tqdm(total=len(asked), disable=disable_tqdm, desc="Running generate_until requests") as progress:
            for place, text in _decode(self._lm, asked, compared=True):
                self.answers[indices[place]] = text
                self._lm.cache_hook.add_partial("generate_until", asked[place].args, text)
                progress.update()

    def try_decoder(self, size: int) -> str | None:
        """A batch that is checked, a batch by each, and the rest by the decoder if it was the faster one; why the
        decoder cannot be trusted, if it cannot."""
        first = self._spread(size)
        self.by_harness(first)
        again = _shortest(self.answers, first)
        asked, expected = [self._requests[index] for index in again], [self.answers[index] for index in again]
        reason = why_not_trusted(self._lm, asked, expected)
        if reason is not None:
            return reason
        try:
            before = time.perf_counter()
            self.by_harness(self._spread(size))
            between = time.perf_counter()
            self.by_decoder(self._spread(size))
            if is_faster(time.perf_counter() - between, between - before):
                self.by_decoder(self.open, self._quiet)
        # Nobody can list what a model's own code may raise when its batch is not what it expects.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"
        return None

    def _spread(self, count: int) -> list[int]:
        """`count` of the open requests, from the shortest prompt to the longest, so that rows are padded."""
        by_length = sorted(self.open, key=lambda index: len(self._requests[index].args[0]))
        places = np.linspace(0, len(by_length) - 1, min(count, len(by_length))).round().astype(int)
        return [by_length[place] for place in places]


def is_faster(ours: float, theirs: float) -> bool:
    """Whether the decoder took fewer seconds for a batch than HFLM for one like it."""
    return ours < theirs


def _shortest(answers: Mapping[int, str], indices: Sequence[int]) -> list[int]:
    """The `CHECKED` of these with the shortest answers that say something: soon decoded to their end."""
    not_empty = [index for index in indices if answers[index]] or list(indices)
    return sorted(not_empty, key=lambda index: len(answers[index]))[:CHECKED]


def why_not_trusted(lm: HarnessModel, requests: Sequence[Instance], expected: Sequence[str]) -> str | None:
    """Why the decoder may not answer such requests: what it makes of these is not `expected`, by more than rounding."""
    try:
        for place, text in _decode(lm, requests):
            theirs = expected[place]
            if text == theirs:
                continue
            by, allowed = divergence(lm, requests[place], text, theirs)
            if not by <= allowed:
                return (
                    f"a check found {text!r} where HFLM says {theirs!r} (document {requests[place].doc_id}): "
                    f"their tokens are {by:.3g} apart in log-likelihood where {allowed:.3g} is rounding"
                )
    # As when all are answered.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    return None


def decode_requests(lm: HarnessModel, requests: Sequence[Instance]) -> list[str]:
    """All of them by the decoder, unchecked."""
    texts = dict(_decode(lm, requests))
    return [texts[index] for index in range(len(requests))]


def _decode(lm: HarnessModel, requests: Sequence[Instance], *, compared: bool = False) -> Iterator[tuple[int, str]]:
    """(index of the request, text) in the order in which they finish; `compared` as `WholeAnswers` does."""
    # There is one set of layers, the one kept now: any variant stands for it.
    kept = (Variant.full(lm.model.config.get_text_config(decoder=True).num_hidden_layers),)
    groups: dict[Rules, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(Rules.of(lm, request.args[1]), []).append(index)
    most = lm.batch_size
    for rules, indices in groups.items():
        prompts = [requests[index].args[0] for index in indices]
        jobs = [Job(place, kept) for place in range(len(prompts))]
        whole = WholeAnswers(lm, rules, lambda _: nullcontext(), {})
        while jobs:
            rows = min(most, len(jobs))
            decoder = Decoder(lm, prompts, jobs, rules, None, rows)
            fits = True
            while fits and decoder.busy:
                try:
                    decoder.run(enough=1)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    fits = False
                finished = whole.compared(decoder) if compared else decoder.take()
                yield from ((indices[one.prompt], one.text) for one in finished)
            jobs = decoder.unfinished()
            # Its buffers go before the next decoder's are made.
            del decoder
            if jobs:
                most = halve(rows)
