"""Generation requests of a sweep: from work to jobs for the decoder, from its texts to answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.memory import halve, rows_that_fit
from lm_eval_lora_drop.engine.requests import Rules
from lm_eval_lora_drop.engine.session import Session
from lm_eval_lora_drop.work import Answer, Work


def generate(session: Session, work: Sequence[Work]) -> Iterator[list[Answer]]:
    """Answer work batch by batch. Where memory runs out, what was being answered is begun again with half the rows."""
    by_rules: dict[Rules, list[Work]] = {}
    for item in work:
        by_rules.setdefault(Rules.of(session.lm, item.document.requests[0].args[1]), []).append(item)
    for rules, items in by_rules.items():
        yield from _generate(session, items, rules)


def _generate(session: Session, work: Sequence[Work], rules: Rules) -> Iterator[list[Answer]]:
    lm = session.lm
    owners = [(item, place) for item in work for place in range(len(item.document.requests))]
    prompts = [request.args[0] for item in work for request in item.document.requests]
    jobs = [Job(index, tuple(sorted(item.boundaries, reverse=True))) for index, (item, _) in enumerate(owners)]
    longest = max(len(lm.tok_encode(prompt)) for prompt in prompts)
    rows = session.batch_size or rows_that_fit(lm, longest + rules.max_new_tokens)
    texts: dict[tuple[int, int], dict[int, str]] = {}
    while jobs:
        rows = min(rows, sum(len(job.boundaries) for job in jobs))
        decoder = Decoder(lm, prompts, jobs, rules, session.branches, rows)
        enough = max(1, rows // 4)
        done = False
        while not done:
            fits = session.attempt(lambda: decoder.run(enough))  # noqa: B023
            done = not fits or not decoder.busy
            answers = []
            for index, boundary, text in decoder.take():
                item, place = owners[index]
                responses = texts.setdefault((id(item), boundary), {})
                responses[place] = text
                if len(responses) == len(item.document.requests):
                    answers.append(Answer(boundary, item.document, tuple(responses[i] for i in range(len(responses)))))
            session.counters.most_rows = max(session.counters.most_rows, decoder.most_rows)
            if answers:
                yield answers
        jobs = decoder.unfinished()
        if jobs:
            del decoder
            rows = halve(rows)
