"""Generation requests of a sweep: from work to jobs for the decoder, from what it says to answers.

Before answers are handed over, one of each kind of end is compared to its end (`WholeAnswers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from lm_eval_lora_drop.endings import is_out_of_memory
from lm_eval_lora_drop.engine.check import QUANTISED, is_quantised, rounding
from lm_eval_lora_drop.engine.decode import Completion, Decoder, Job
from lm_eval_lora_drop.engine.memory import halve, rows_that_fit
from lm_eval_lora_drop.engine.requests import Rules
from lm_eval_lora_drop.engine.session import Session
from lm_eval_lora_drop.engine.states.arguments import accepted
from lm_eval_lora_drop.engine.states.branching import NotShareable
from lm_eval_lora_drop.engine.states.lengths import lengths
from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.harness.facts.batches import stop_criteria
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant

GROWTH = 1.25
"""By how much an answer must be longer than the longest of its kind so far to be compared as well: a handful are."""


@dataclass
class _Owner:
    """One document's work and, by variant, the texts of its requests so far (place -> text)."""

    work: Work
    texts: dict[Variant, dict[int, str]] = field(default_factory=dict)


def generate(session: Session, work: Sequence[Work]) -> Iterator[list[Answer]]:
    """Answer work batch by batch. Where memory runs out, what was being answered is begun again with half the rows."""
    # Requests of one document may have different rules: an answer is there when the last of them is.
    by_rules: dict[Rules, list[tuple[_Owner, int]]] = {}
    for owner in map(_Owner, work):
        for place, request in enumerate(owner.work.document.requests):
            by_rules.setdefault(Rules.of(session.lm, request.args[1]), []).append((owner, place))
    for rules, requests in by_rules.items():
        yield from _generate(session, requests, rules)


def _generate(session: Session, asked: Sequence[tuple[_Owner, int]], rules: Rules) -> Iterator[list[Answer]]:
    lm = session.lm
    prompts = [owner.work.document.requests[place].args[0] for owner, place in asked]
    jobs = [Job(number, owner.work.variants) for number, (owner, _) in enumerate(asked)]
    longest = max(len(lm.tok_encode(prompt)) for prompt in prompts)
    compared = session.counters.compared
    whole = None if compared is None else WholeAnswers(lm, rules, session.layers.keep, compared)
    rows = session.batch_size or rows_that_fit(lm, session.row_size, longest + rules.max_new_tokens)
    while jobs:
        rows = min(rows, sum(len(job.variants) for job in jobs))
        decoder = Decoder(lm, prompts, jobs, rules, session.branches, rows)
        enough = max(1, rows // 4)
        done = False
        while not done:
            fits = session.attempt(lambda: decoder.run(enough))  # noqa: B023
            done = not fits or not decoder.busy
            answers = []
            for completion in whole.compared(decoder) if whole else decoder.take():
                owner, place = asked[completion.prompt]
                document = owner.work.document
                texts = owner.texts.setdefault(completion.variant, {})
                texts[place] = completion.text
                if len(texts) == len(document.requests):
                    answers.append(Answer(completion.variant, document, tuple(texts[i] for i in range(len(texts)))))
            session.counters.most_rows = max(session.counters.most_rows, decoder.most_rows)
            if answers:
                yield answers
        jobs = decoder.unfinished()
        # Its buffers go before the next decoder's are made.
        del decoder
        if jobs:
            rows = halve(rows)


class WholeAnswers:
    """Compares answers to their ends with the model as it is, without branches and cache: of each kind of end the
    first, and those that are longer by `GROWTH` than any before; of each length that an answer crosses (a window) too.

    One forward over prompt and answer says what greedy decoding says after each token, and HFLM's own criteria where it
    ends at batch size 1.

    Args:
        keep: the context in which the model answers under a variant.
        longest: by kind, the tokens of the longest answer that was compared; it grows.
    """

    def __init__(
        self,
        lm: HarnessModel,
        rules: Rules,
        keep: Callable[[Variant], AbstractContextManager[None]],
        longest: dict[str, int],
    ) -> None:
        self._lm = lm
        self._rules = rules
        self._keep = keep
        self._longest = longest
        self._lengths = lengths(lm)

    def compared(self, decoder: Decoder) -> list[Completion]:
        """What the decoder has finished.

        Raises:
            NotShareable: the model, as it is, would have generated something else or ended elsewhere.
        """
        finished = decoder.take()
        for completion in sorted(finished, key=lambda one: -len(one.tokens)):
            prompt = decoder.prompt(completion.prompt)
            new = [
                kind
                for kind in self._kinds(prompt, completion)
                if len(completion.tokens) > GROWTH * self._longest.get(kind, 0)
            ]
            if not new:
                continue
            try:
                with self._keep(completion.variant):
                    wrong = self._difference(prompt, completion.tokens)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # The decoder holds most of it; the next answer of this kind is compared.
                continue
            if wrong is not None:
                raise NotShareable(
                    f"{completion.text!r}, ended by its {completion.ended_by} (prompt of {len(prompt)} tokens), {wrong}"
                )
            self._longest.update(dict.fromkeys(new, len(completion.tokens)))
        return finished

    def _kinds(self, prompt: Sequence[int], completion: Completion) -> list[str]:
        crossed = [one for one in self._lengths if len(prompt) <= one < len(prompt) + len(completion.tokens)]
        return [completion.ended_by, *(f"length {one}" for one in crossed)]

    def _difference(self, prompt: Sequence[int], generated: Sequence[int]) -> str | None:
        ids = torch.tensor([[*prompt, *generated]])
        autocast = self._lm.mixed_precision_dtype
        with torch.inference_mode(), torch.autocast(self._lm.device.type, autocast, enabled=autocast is not None):
            # Before each token generated, (tokens, vocabulary).
            there = ids.to(self._lm.device)
            # As `generate` numbers them: without numbers some models (RoBERTa) begin at another one.
            positions = torch.arange(there.shape[1] - 1, device=there.device)[None]
            given: dict[str, Any] = {
                "input_ids": there[:, :-1],
                "position_ids": positions,
                "logits_to_keep": len(generated),
            }
            logits = self._lm.model(**accepted(self._lm, **given)).logits[0, -len(generated) :].float()
        lacks = logits.max(-1).values - logits.gather(-1, there[0, len(prompt) :, None].to(logits.device))[:, 0]
        # One wait for the device: both in one copy.
        *lacking, largest = torch.cat([lacks, logits.abs().max()[None]]).tolist()
        # Two logits differ by up to twice what one does.
        allowed = 2 * (rounding(self._lm, largest) + (QUANTISED * max(1.0, largest) if is_quantised(self._lm) else 0))
        # NaN is never below any bound.
        if not all(one <= allowed for one in lacking):
            worst = next((i for i, one in enumerate(lacking) if math.isnan(one)), lacking.index(max(lacking)))
            token = self._lm.tok_decode([generated[worst]], skip_special_tokens=False)
            return (
                f"is not the model's own: token {worst + 1} of {len(generated)}, {token!r}, lies "
                f"{lacking[worst]:.3g} below the likeliest, where {allowed:.3g} is rounding"
            )
        # Of a text on the host: each token is looked at.
        criteria = stop_criteria(self._lm.tokenizer, self._rules.stops, len(prompt))
        for length, newest in enumerate(generated, 1):
            met = bool(self._rules.stops) and bool(criteria(ids[:, : len(prompt) + length], None))
            if met or newest in self._rules.end_tokens or length >= self._rules.max_new_tokens:
                more = len(generated) - length
                return f"goes on for {more} tokens after its end" if more else None
        return f"ends after {len(generated)} tokens, which end nothing"
