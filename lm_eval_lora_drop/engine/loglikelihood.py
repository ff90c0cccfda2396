"""Log-likelihoods under every variant from one forward: rows branch off, nothing is decoded.

Encoding, truncation and scoring are HFLM's (`TemplateLM.loglikelihood`, `HFLM._loglikelihood_tokens`). Logits are
computed where a continuation is scored and nowhere else: with 31 variants those of every position would not fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lm_eval_lora_drop.engine.memory import halve
from lm_eval_lora_drop.engine.session import Session
from lm_eval_lora_drop.engine.states.branching import Branches, NotShareable, forward
from lm_eval_lora_drop.engine.states.prefix import Prefix, common_prefix, weight
from lm_eval_lora_drop.engine.states.tree import Segment, Tree
from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.harness.facts.batches import padded
from lm_eval_lora_drop.harness.model import HarnessModel, encode_scored, encode_windows
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

TOKENS = 8192
"""Rows times tokens of a batch: enough for full speed, and intermediate results stay small."""
LOGITS = 1 << 28
"""Bytes of logits that a batch may take, roughly."""

LogLikelihood = tuple[float, bool]
"""A log-likelihood, and whether greedy decoding gives the same tokens."""


@dataclass(frozen=True)
class Span:
    """A continuation to be scored: the model reads `inputs`, whose last `len(targets)` positions predict `targets`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def spans(lm: HarnessModel, request: Instance) -> list[Span]:
    """The spans whose log-likelihoods add up to the answer: one, or one per window of a rolling request (none for "").

    Raises:
        NotShareable: a continuation without tokens, or longer than the model takes; the harness itself refuses both.
    """
    if request.request_type == "loglikelihood_rolling":
        pairs = encode_windows(lm, request.args[0])
    else:
        pairs = [encode_scored(lm, *request.args[:2])]
    found = [
        Span(tuple((context + continuation)[-(lm.max_length + 1) :][:-1]), tuple(continuation))
        for context, continuation in pairs
    ]
    for span in found:
        if not 0 < len(span.targets) <= len(span.inputs):
            raise NotShareable(f"a continuation of {len(span.targets)} tokens for {len(span.inputs)} tokens of input")
    return found


def why_not_scored(lm: HarnessModel, request: Instance) -> str | None:
    """Why HFLM refuses to score a continuation (in an assertion without words); None where it does not."""
    try:
        context, continuation = encode_scored(lm, *request.args[:2])
    except (AssertionError, IndexError):
        context, continuation = [], []
    if not continuation:
        return f"the continuation {request.args[1]!r} has no tokens behind its context"
    if not context:
        return f"the context {request.args[0]!r} has no tokens besides white space, which goes to the continuation"
    if len(continuation) > lm.max_length:
        return f"a continuation has {len(continuation)} tokens, and the model takes max_length={lm.max_length}"
    return None


def loglikelihoods(session: Session, work: Sequence[Work]) -> Iterator[list[Answer]]:
    """Answer work batch by batch, long documents first. Where memory runs out, batches have half the rows from then."""
    by_variants: dict[tuple[Variant, ...], list[Work]] = {}
    for item in work:
        by_variants.setdefault(item.variants, []).append(item)
    for variants, items in by_variants.items():
        yield from _loglikelihoods(session, items, variants)


def _loglikelihoods(session: Session, work: Sequence[Work], variants: tuple[Variant, ...]) -> Iterator[list[Answer]]:
    lm, branches = session.lm, session.branches
    asked = [(item, [spans(lm, request) for request in item.document.requests]) for item in work]
    asked.sort(key=lambda pair: -max((len(span.inputs) for parts in pair[1] for span in parts), default=0))
    waiting = deque(
        (item, place, span) for item, wanted in asked for place, parts in enumerate(wanted) for span in parts
    )
    # By (document, place of the request, variant): the sum over its spans so far.
    totals: dict[tuple[int, int, Variant], LogLikelihood] = {}
    lacking = {id(item): sum(map(len, wanted)) for item, wanted in asked}
    empty = [item for item, _ in asked if not lacking[id(item)]]
    if empty:
        yield [_answer(item, variant, totals) for item in empty for variant in variants]
    # Every scored position is left to be read.
    unscored = min((len(span.inputs) - len(span.targets) for _, _, span in waiting), default=0)
    common = common_prefix({span.inputs for _, _, span in waiting}, unscored)
    prefix = cache(lambda: Prefix(lm, common, variants, branches.settings, branches) if common else None)
    budget = Budget(lm, len(variants), session.batch_size, len(common))
    while waiting:
        count = budget.take(span for _, _, span in waiting)
        batch = [waiting[index] for index in range(count)]
        scored: dict[tuple[Variant, int], LogLikelihood] = {}
        fits = session.attempt(
            lambda: scored.update(score(lm, [span for *_, span in batch], variants, branches, prefix()))  # noqa: B023
        )
        if not fits:
            budget.rows = halve(count * len(variants))
            continue
        session.counters.most_rows = max(session.counters.most_rows, count * len(variants))
        answers = []
        for index, (item, place, _) in enumerate(batch):
            waiting.popleft()
            for variant in variants:
                total, greedy = totals.get((id(item), place, variant), (0.0, True))
                more, more_greedy = scored[variant, index]
                totals[id(item), place, variant] = (total + more, greedy and more_greedy)
            lacking[id(item)] -= 1
            if not lacking[id(item)]:
                answers += [_answer(item, variant, totals) for variant in variants]
        if answers:
            yield answers


def _answer(item: Work, variant: Variant, totals: Mapping[tuple[int, int, Variant], LogLikelihood]) -> Answer:
    requests = item.document.requests
    found = [totals.get((id(item), place, variant), (0.0, True)) for place in range(len(requests))]
    rolling = requests[0].request_type == "loglikelihood_rolling"
    return Answer(variant, item.document, tuple(total for total, _ in found) if rolling else tuple(found))


@dataclass
class Budget:
    """How many spans make a batch: bounded by tokens, by logits and, if given, by rows.

    The first `known` tokens of each are not read again, but copied.
    """

    lm: HarnessModel
    variants: int
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
            rows = len(inputs) * self.variants
            logits += len(span.targets) * self.variants * vocabulary * 4
            tokens = rows * weight(longest, self.known)
            if count and (tokens > TOKENS or logits > LOGITS or rows > (self.rows or rows)):
                break
            count += 1
        return count


def score(
    lm: HarnessModel,
    batch: Sequence[Span],
    variants: Sequence[Variant],
    branches: Branches,
    prefix: Prefix | None = None,
) -> dict[tuple[Variant, int], LogLikelihood]:
    """Log-likelihood and is-greedy of every span under every variant.

    All spans begin with `prefix`, if there is one, and their scored positions lie behind it.

    Returns:
        (variant, index of the span) -> (log-likelihood, whether greedy decoding gives the targets).
    """
    # Spans with the same input (choices of one token behind one prompt) share their rows, one per variant.
    inputs = list(dict.fromkeys(span.inputs for span in batch))
    input_of = {tokens: index for index, tokens in enumerate(inputs)}
    tree = Tree(branches.settings, len(inputs) * len(variants))
    # (inputs, variants): rows of the tree.
    rows = np.array([tree.add(variants) for _ in inputs])
    tree.settle()
    route = tree.route(rows.ravel().tolist())
    # (rows,): which input a row reads.
    read_by = np.zeros(rows.size, np.int64)
    read_by[rows] = np.arange(len(inputs))[:, None]
    # Positions are counted behind the prefix from here on.
    known = prefix.length if prefix else 0
    longest = max(map(len, inputs)) - known
    # (inputs, longest), padded on the right, where causal attention lets nothing see it.
    batch_ids = padded(longest, [torch.tensor(tokens[known:]) for tokens in inputs])

    # Where each input's scored positions begin: the longest of its continuations decides.
    begins = [len(tokens) for tokens in inputs]
    for span in batch:
        index = input_of[span.inputs]
        begins[index] = min(begins[index], len(span.inputs) - len(span.targets))
    # (inputs, variants): states of the last layer, all different where no two variants are the same everywhere.
    states = route.outputs.numbers.reshape(rows.shape)
    # What the head is shown, by state: (state, position), the positions of a state one after the other.
    picked = sorted(
        {
            (int(state), position - known)
            for index, own in enumerate(states)
            for state in own
            for position in range(begins[index], len(inputs[index]))
        }
    )
    place = {where: index for index, where in enumerate(picked)}
    with torch.inference_mode(), _only(lm, picked):
        logits = forward(
            lm,
            branches,
            route,
            _segments_of(route.segments[-1], [state for state, _ in picked]),
            input_ids=batch_ids[torch.from_numpy(read_by[route.inputs])].to(lm.device),
            cache=prefix.cache(tree) if prefix else None,
            use_cache=prefix is not None,
        )[:, 0]
        # (picked, vocabulary)
        scores = torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype)
        # For each (span, variant) its targets and the rows of `scores` that predict them, in two flat lists: the
        # device is asked once.
        where: list[int] = []
        targets: list[int] = []
        for span in batch:
            for state in states[input_of[span.inputs]].tolist():
                first = place[state, len(span.inputs) - len(span.targets) - known]
                where += range(first, first + len(span.targets))
                targets += span.targets
        at = torch.tensor([where, targets], device=scores.device)
        own, best = scores[at[0], at[1]], scores.argmax(-1)[at[0]]
        # (2, targets) to (2, spans x variants): log-likelihoods, and how many targets are not the likeliest token.
        # Summed as torch sums half precision: in single, then rounded to the scores' dtype.
        wide = torch.promote_types(own.dtype, torch.float32)
        each = torch.stack([own.to(wide), (best != at[1]).to(wide)])
        lengths = torch.tensor([len(span.targets) for span in batch for _ in variants], device=scores.device)
        sums = torch.segment_reduce(each.T.contiguous(), "sum", lengths=lengths, axis=0).T
        totals, misses = torch.stack([sums[0].to(own.dtype).to(wide), sums[1]]).tolist()
    asked = [(variant, index) for index in range(len(batch)) for variant in variants]
    return {key: (total, missed == 0) for key, total, missed in zip(asked, totals, misses, strict=True)}


def _segments_of(segments: Sequence[Segment], states: Sequence[int]) -> tuple[Segment, ...]:
    """The segments of a list of ascending states: each state counts as often as it occurs."""
    return tuple(
        Segment(one.setting, int(np.searchsorted(states, one.start)), int(np.searchsorted(states, one.stop)))
        for one in segments
    )


@contextmanager
def _only(lm: HarnessModel, picked: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Let `lm_head` see nothing but these (state, position): logits come out as (picked, 1, vocabulary).

    Scaling and capping of logits stay the model's own, because they come after the head.
    """
    states, positions = np.array(picked, np.int64).reshape(-1, 2).T

    def pick(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # With the layers on several devices the head's is not that of the inputs.
        hidden = args[0]
        at = torch.from_numpy(np.stack([states, positions])).to(hidden.device)
        return (hidden[at[0], at[1]][:, None], *args[1:])

    handle = lm.model.get_base_model().get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
