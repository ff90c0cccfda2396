"""One boundary, decoded without the rows that have finished: what the evaluated split is answered with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from tqdm import tqdm

from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.requests import Rules, why_not_greedy, why_not_rows


def why_not_single(lm: Any, requests: Sequence[Instance]) -> str | None:
    """Why only the harness's own `generate_until` may answer these requests; None where the outputs are the same.

    In fp32 they are. In half precision a batch of another shape flips near-ties, and the evaluated split shall give the
    numbers of `--model hf`.
    """
    dtype = lm.model.get_base_model().dtype
    if dtype != torch.float32 or lm.mixed_precision_dtype is not None:
        return f"the model computes in {dtype}"
    if not isinstance(lm.batch_size, int):
        return "the batch size is automatic"
    if reason := why_not_rows(lm):
        return reason
    return next((reason for request in requests if (reason := why_not_greedy(lm, request.args[1]))), None)


def answer_requests(lm: Any, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """Answer generation requests as HFLM does, with whatever layers are kept now.

    HFLM's batches run until their last row has finished; here finished rows leave and waiting ones take their place.
    """
    answers: list[str] = [""] * len(requests)
    groups: dict[Rules, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(Rules.of(lm, request.args[1]), []).append(index)
    shown = tqdm(total=len(requests), disable=disable_tqdm or lm.rank != 0, desc="Running generate_until requests")
    with shown as progress:
        for rules, indices in groups.items():
            prompts = [requests[index].args[0] for index in indices]
            # There is one set of layers, the one kept now: any number stands for it.
            jobs = [Job(place, (0,)) for place in range(len(prompts))]
            decoder = Decoder(lm, prompts, jobs, rules, None, min(lm.batch_size, len(prompts)))
            while decoder.busy:
                decoder.run(enough=1)
                for place, _, text in decoder.take():
                    answers[indices[place]] = text
                    lm.cache_hook.add_partial("generate_until", requests[indices[place]].args, text)
                    progress.update()
    return answers
