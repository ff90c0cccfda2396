"""One variant, decoded without the rows that have finished: what the evaluated split is answered with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from lm_eval.api.instance import Instance
from tqdm import tqdm

from lm_eval_lora_drop.engine.check import parting
from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.memory import halve, out_of_memory
from lm_eval_lora_drop.engine.requests import Rules, why_not_greedy, why_not_rows
from lm_eval_lora_drop.variant import Variant
from lm_eval_lora_drop.work import HarnessModel

log = logging.getLogger(__name__)

CHECKED = 4
"""Requests that HFLM and the decoder both answer before the decoder answers the rest."""


def why_left_to_harness(lm: HarnessModel, requests: Sequence[Instance]) -> str | None:
    """Why only the harness's own `generate_until` may answer these requests; None where the outputs are the same.

    In fp32 they are. In half precision and with quantised weights a batch of another shape flips near-ties (LLM.int8
    finds its outlier columns over the whole batch), and the evaluated split shall give the numbers of `--model hf`.
    """
    if getattr(lm.model.config, "quantization_config", None) is not None:
        return "the model's weights are quantised"
    dtype = lm.model.get_base_model().dtype
    if dtype != torch.float32 or lm.mixed_precision_dtype is not None:
        return f"the model computes in {dtype}"
    if not isinstance(lm.batch_size, int):
        return "the batch size is automatic"
    if reason := why_not_rows(lm):
        return reason
    for request in requests:
        if reason := why_not_greedy(lm, request.args[1]):
            return reason
        if not lm.tok_encode(request.args[0]):
            return "a prompt has no tokens"
    return None


def answer_requests(lm: HarnessModel, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """Answer generation requests as HFLM does, with whatever layers are kept now.

    HFLM's batches run until their last row has finished; here finished rows leave and waiting ones take their place.
    A few requests are answered both ways first (`CHECKED`); where the answers part at more than a near tie, or where
    the model cannot be decoded this way, HFLM answers all the others too, and a warning says why. Running out of memory
    halves the batch.
    """
    few = _spread(requests)
    given = lm.harness_answers("generate_until", [requests[index] for index in few], disable_tqdm=True)
    answers: dict[int, str] = dict(zip(few, given, strict=True))
    others = [index for index in range(len(requests)) if index not in answers]
    reason = _why_not_trusted(lm, requests, answers) if others else None
    if reason is None:
        shown = tqdm(total=len(others), disable=disable_tqdm or lm.rank != 0, desc="Running generate_until requests")
        with shown as progress:
            try:
                for place, text in _decode(lm, [requests[index] for index in others]):
                    answers[others[place]] = text
                    lm.cache_hook.add_partial("generate_until", requests[others[place]].args, text)
                    progress.update()
            # Nobody can list what a model's own code may raise when its batch is not what it expects.
            except Exception as error:
                if out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        log.warning("left to HFLM's own generate_until: %s", reason)
    left = [index for index in others if index not in answers]
    if left:
        given = lm.harness_answers("generate_until", [requests[index] for index in left], disable_tqdm)
        answers.update(zip(left, given, strict=True))
    return [answers[index] for index in range(len(requests))]


def _spread(requests: Sequence[Instance]) -> list[int]:
    """The indices of `CHECKED` requests, from the shortest prompt to the longest, so that rows are padded."""
    by_length = sorted(range(len(requests)), key=lambda index: len(requests[index].args[0]))
    places = np.linspace(0, len(by_length) - 1, min(CHECKED, len(by_length))).round().astype(int)
    return [by_length[place] for place in places]


def _why_not_trusted(lm: HarnessModel, requests: Sequence[Instance], expected: Mapping[int, str]) -> str | None:
    """Why the decoder may not answer these requests: what it makes of some is not `expected`, by more than rounding."""
    few = list(expected)
    try:
        for place, text in _decode(lm, [requests[index] for index in few]):
            theirs = expected[few[place]]
            if text == theirs:
                continue
            by, allowed = parting(lm, requests[few[place]], text, theirs)
            if not by <= allowed:
                return (
                    f"a check found {text!r} where HFLM says {theirs!r} (document {requests[few[place]].doc_id}): "
                    f"their tokens are {by:.3g} apart in log-likelihood where {allowed:.3g} is rounding"
                )
    # As when all are answered.
    except Exception as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    return None


def _decode(lm: HarnessModel, requests: Sequence[Instance]) -> Iterator[tuple[int, str]]:
    """(index of the request, text) in the order in which they finish."""
    # There is one set of layers, the one kept now: any variant stands for it.
    kept = (Variant.full(lm.model.config.get_text_config(decoder=True).num_hidden_layers),)
    groups: dict[Rules, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(Rules.of(lm, request.args[1]), []).append(index)
    most = lm.batch_size
    for rules, indices in groups.items():
        prompts = [requests[index].args[0] for index in indices]
        jobs = [Job(place, kept) for place in range(len(prompts))]
        while jobs:
            rows = min(most, len(jobs))
            decoder = Decoder(lm, prompts, jobs, rules, None, rows)
            fits = True
            while fits and decoder.busy:
                try:
                    decoder.run(enough=1)
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    fits = False
                yield from ((indices[place], text) for place, _, text in decoder.take())
            jobs = decoder.unfinished()
            # Its buffers go before the next decoder's are made.
            del decoder
            if jobs:
                most = halve(rows)
