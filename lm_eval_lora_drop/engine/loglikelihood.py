"""Log-likelihoods under every boundary from one forward: rows branch off, nothing is decoded.

Encoding, truncation and scoring are HFLM's (`TemplateLM.loglikelihood`, `HFLM._loglikelihood_tokens`). Logits are
computed where a continuation is scored and nowhere else: with 31 boundaries those of every position would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.utils_hf import pad_and_concat

from lm_eval_lora_drop.engine.branching import Branches


@dataclass(frozen=True)
class Span:
    """A continuation to be scored: the model reads `inputs`, whose last `len(targets)` positions predict `targets`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def spans(lm: Any, request: Instance) -> list[Span]:
    """The spans whose log-likelihoods add up to the answer: one, or one per window of a rolling request."""
    if request.request_type == "loglikelihood_rolling":
        windows = utils.get_rolling_token_windows(
            token_list=lm.tok_encode(request.args[0]),
            prefix_token=lm.prefix_token_id,
            max_seq_len=lm.max_length,
            context_len=1,
        )
        pairs = [utils.make_disjoint_window(window) for window in windows]
    else:
        pairs = [_encode(lm, *request.args[:2])]
    return [
        Span(tuple((context + continuation)[-(lm.max_length + 1) :][:-1]), tuple(continuation))
        for context, continuation in pairs
    ]


def _encode(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As lm_eval.api.model.TemplateLM.loglikelihood: an empty context becomes the prefix token."""
    if context:
        pair: tuple[list[int], list[int]] = lm._encode_pair(context, continuation)
        return pair
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    return ([lm.prefix_token_id], tokens) if tokens[0] != lm.prefix_token_id else (tokens[:1], tokens[1:])


def score(
    lm: Any, batch: Sequence[Span], boundaries: Sequence[int], branches: Branches
) -> dict[tuple[int, int], tuple[float, bool]]:
    """Log-likelihood and is-greedy of every span under every boundary.

    Returns:
        (boundary, index of the span) -> (log-likelihood, whether greedy decoding gives the targets).
    """
    # Spans with the same input (choices of one token behind one prompt) share a row.
    inputs = list(dict.fromkeys(span.inputs for span in batch))
    row_of = {tokens: row for row, tokens in enumerate(inputs)}
    longest = max(map(len, inputs))
    padded = pad_and_concat(longest, [torch.tensor(tokens, device=lm.device) for tokens in inputs])
    # Where each input's scored positions begin: the longest of its continuations decides.
    begins = [len(tokens) for tokens in inputs]
    for span in batch:
        row = row_of[span.inputs]
        begins[row] = min(begins[row], len(span.inputs) - len(span.targets))
    with torch.inference_mode(), branches.prefill(len(inputs), boundaries):
        picked = [
            (slot * len(inputs) + row, position)
            for slot in sorted({branches.slot(boundary) for boundary in boundaries})
            for row, tokens in enumerate(inputs)
            for position in range(begins[row], len(tokens))
        ]
        branches.rows_at_head = sum(row < len(inputs) for row, _ in picked)
        with _only(lm, picked):
            logits = lm._model_call(padded)[:, 0]
        scores = torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype)
    place = {where: index for index, where in enumerate(picked)}
    greedy = scores.argmax(-1).tolist()
    found = {}
    for boundary in boundaries:
        base = branches.slot(boundary) * len(inputs)
        for index, span in enumerate(batch):
            row = base + row_of[span.inputs]
            first = place[row, len(span.inputs) - len(span.targets)]
            here = scores[first : first + len(span.targets)]
            targets = torch.tensor(span.targets, device=scores.device)
            total = float(here.gather(1, targets[:, None]).sum())
            found[boundary, index] = (total, greedy[first : first + len(span.targets)] == list(span.targets))
    return found


@contextmanager
def _only(lm: Any, picked: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Let `lm_head` see nothing but these (row, position): logits come out as (picked, 1, vocabulary).

    Scaling and capping of logits stay the model's own, because they come after the head.
    """

    rows, positions = (torch.tensor(column, device=lm.device) for column in zip(*picked, strict=True))

    def pick(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, positions][:, None], *args[1:])

    handle = lm.model.get_base_model().get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
