"""Log-likelihoods under every boundary from one forward: rows branch off, nothing is decoded.

Encoding, truncation and scoring are HFLM's (`TemplateLM.loglikelihood`, `HFLM._loglikelihood_tokens`). Logits are
computed where a continuation is scored and nowhere else: with 31 boundaries those of every position would not fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.utils_hf import pad_and_concat

from lm_eval_lora_drop.engine.branching import Branches, forward
from lm_eval_lora_drop.engine.memory import halve
from lm_eval_lora_drop.engine.prefix import Prefix, common_prefix, weight
from lm_eval_lora_drop.engine.session import Session
from lm_eval_lora_drop.engine.tree import Tree
from lm_eval_lora_drop.work import Answer, Work

TOKENS = 8192
"""Rows times tokens of a batch: enough for full speed, and intermediate results stay small."""
LOGITS = 1 << 28
"""Bytes of logits that a batch may take, roughly."""


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


def loglikelihoods(session: Session, work: Sequence[Work]) -> Iterator[list[Answer]]:
    """Answer work batch by batch, long documents first. Where memory runs out, batches have half the rows from then."""
    by_boundaries: dict[tuple[int, ...], list[Work]] = {}
    for item in work:
        by_boundaries.setdefault(tuple(sorted(item.boundaries, reverse=True)), []).append(item)
    for boundaries, items in by_boundaries.items():
        yield from _loglikelihoods(session, items, boundaries)


def _loglikelihoods(session: Session, work: Sequence[Work], boundaries: tuple[int, ...]) -> Iterator[list[Answer]]:
    lm = session.lm
    asked = [(item, [spans(lm, request) for request in item.document.requests]) for item in work]
    asked.sort(key=lambda pair: -max(len(span.inputs) for parts in pair[1] for span in parts))
    waiting = deque(
        (item, place, span) for item, wanted in asked for place, parts in enumerate(wanted) for span in parts
    )
    lacking = {id(item): sum(map(len, wanted)) for item, wanted in asked}
    totals: dict[tuple[int, int, int], tuple[float, bool]] = {}
    # Every scored position is left to be read.
    unscored = min((len(span.inputs) - len(span.targets) for _, _, span in waiting), default=0)
    common = common_prefix({span.inputs for _, _, span in waiting}, unscored)
    prefix = cache(lambda: Prefix(lm, common, boundaries, session.branches) if common else None)
    budget = Budget(lm, len(boundaries), session.batch_size, len(common))
    while waiting:
        count = budget.take(span for _, _, span in waiting)
        batch = [waiting[index] for index in range(count)]
        scored: dict[tuple[int, int], tuple[float, bool]] = {}
        fits = session.attempt(
            lambda: scored.update(score(lm, [span for *_, span in batch], boundaries, session.branches, prefix()))  # noqa: B023
        )
        if not fits:
            budget.rows = halve(count * len(boundaries))
            continue
        session.counters.most_rows = max(session.counters.most_rows, count * len(boundaries))
        answers = []
        for index, (item, place, _) in enumerate(batch):
            waiting.popleft()
            for boundary in boundaries:
                total, greedy = totals.get((id(item), place, boundary), (0.0, True))
                more, more_greedy = scored[boundary, index]
                totals[id(item), place, boundary] = (total + more, greedy and more_greedy)
            lacking[id(item)] -= 1
            if not lacking[id(item)]:
                answers += [_answer(item, boundary, totals) for boundary in boundaries]
        if answers:
            yield answers


def _answer(item: Work, boundary: int, totals: Mapping[tuple[int, int, int], tuple[float, bool]]) -> Answer:
    requests = item.document.requests
    found = [totals[id(item), place, boundary] for place in range(len(requests))]
    rolling = requests[0].request_type == "loglikelihood_rolling"
    return Answer(boundary, item.document, tuple(total for total, _ in found) if rolling else tuple(found))


@dataclass
class Budget:
    """How many spans make a batch: bounded by tokens, by logits and, if given, by rows.

    The first `known` tokens of each are not read again, but copied.
    """

    lm: Any
    boundaries: int
    rows: int | None
    known: int = 0

    def take(self, candidates: Iterable[Span]) -> int:
        """How many of these to take, from the first; at least one."""
        vocabulary = self.lm.model.config.get_text_config(decoder=True).vocab_size
        inputs: set[tuple[int, ...]] = set()
        longest = logits = count = 0
        for span in candidates:
            inputs.add(span.inputs)
            longest = max(longest, len(span.inputs))
            rows = len(inputs) * self.boundaries
            logits += len(span.targets) * self.boundaries * vocabulary * 4
            tokens = rows * weight(longest, self.known)
            if count and (tokens > TOKENS or logits > LOGITS or rows > (self.rows or rows)):
                break
            count += 1
        return count


def score(
    lm: Any, batch: Sequence[Span], boundaries: Sequence[int], branches: Branches, prefix: Prefix | None = None
) -> dict[tuple[int, int], tuple[float, bool]]:
    """Log-likelihood and is-greedy of every span under every boundary.

    All spans begin with `prefix`, if there is one, and their scored positions lie behind it.

    Returns:
        (boundary, index of the span) -> (log-likelihood, whether greedy decoding gives the targets).
    """
    # Spans with the same input (choices of one token behind one prompt) share a row.
    inputs = list(dict.fromkeys(span.inputs for span in batch))
    document_of = {tokens: index for index, tokens in enumerate(inputs)}
    falling = sorted(boundaries, reverse=True)
    tree = Tree(branches.num_layers, len(inputs) * len(falling))
    rows = [tree.add(falling) for _ in inputs]
    route = tree.route([row for group in rows for row in group], lm.device)
    document = np.repeat(np.arange(len(inputs)), len(falling))
    known = prefix.length if prefix else 0
    longest = max(map(len, inputs)) - known
    padded = pad_and_concat(longest, [torch.tensor(tokens[known:], device=lm.device) for tokens in inputs])
    # Where each input's scored positions begin: the longest of its continuations decides.
    begins = [len(tokens) for tokens in inputs]
    for span in batch:
        index = document_of[span.inputs]
        begins[index] = min(begins[index], len(span.inputs) - len(span.targets))
    states = route.outputs.tolist()
    # By state, so that those with LoRA on in the head come first.
    picked = sorted(
        (state, position - known)
        for index, state in zip(document, states, strict=True)
        for position in range(begins[index], len(inputs[index]))
    )
    at_head = sum(state < route.with_lora[-1] for state, _ in picked)
    with torch.inference_mode(), _only(lm, picked):
        logits = forward(
            lm,
            branches,
            route,
            at_head,
            input_ids=padded[torch.from_numpy(document[route.inputs]).to(lm.device)],
            past_key_values=prefix.cache(tree) if prefix else None,
            use_cache=prefix is not None,
        )[:, 0]
        scores = torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype)
    place = {where: index for index, where in enumerate(picked)}
    greedy = scores.argmax(-1).tolist()
    found = {}
    for index, span in enumerate(batch):
        targets = torch.tensor(span.targets, device=scores.device)
        first_row = document_of[span.inputs] * len(falling)
        for boundary, state in zip(falling, states[first_row : first_row + len(falling)], strict=True):
            first = place[state, len(span.inputs) - len(span.targets) - known]
            here = scores[first : first + len(span.targets)]
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
