"""Generation requests of a sweep: from work to jobs for the decoder, from its texts to answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.memory import halve, rows_that_fit
from lm_eval_lora_drop.engine.requests import Rules
from lm_eval_lora_drop.engine.session import Session
from lm_eval_lora_drop.harness.work import Answer, Work
from lm_eval_lora_drop.variant import Variant


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
            for number, variant, text in decoder.take():
                owner, place = asked[number]
                document = owner.work.document
                texts = owner.texts.setdefault(variant, {})
                texts[place] = text
                if len(texts) == len(document.requests):
                    answers.append(Answer(variant, document, tuple(texts[i] for i in range(len(texts)))))
            session.counters.most_rows = max(session.counters.most_rows, decoder.most_rows)
            if answers:
                yield answers
        jobs = decoder.unfinished()
        # Its buffers go before the next decoder's are made.
        del decoder
        if jobs:
            rows = halve(rows)
