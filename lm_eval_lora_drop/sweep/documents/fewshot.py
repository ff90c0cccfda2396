"""Few-shot examples for validation documents: none that is evaluated, none that belongs together with the document.

The harness passes `eval_doc` to its samplers for the test split only; validation documents may well come from the split
that the examples come from. A pool of examples may hold evaluated documents too: where a task names no split for it and
has no training split, the harness even takes the evaluated one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.task import Task

from lm_eval_lora_drop.record.schema import LeftOut, Reason
from lm_eval_lora_drop.sweep.documents.leaks import Guard
from lm_eval_lora_drop.sweep.documents.similarity import Match, Text, alike

Cluster = Callable[[Any], str | None]


class Examples:
    """Stands in for a task's sampler: draws as that does, and draws more where an example may not be shown."""

    def __init__(self, sampler: Any, guard: Guard, cluster: Cluster, instead: Sequence[Any]) -> None:
        """`instead`: documents to show where the sampler has no others; all of them may be shown."""
        self._sampler = sampler
        self._guard = guard
        self._cluster = cluster
        self._instead = instead
        self._known: dict[tuple[str, ...], Match | None] = {}  # by their fields: the evaluated documents they are
        self._shown: dict[tuple[str, ...], Any] = {}  # those that were drawn and are evaluated
        self.doc: Any = None
        self.fewer = False

    def sample(self, n: int, eval_doc: Any = None, **kwargs: Any) -> list[Any]:
        """`n` examples for `self.doc`; fewer where no more may be shown."""
        doc = self.doc if eval_doc is None else eval_doc
        wanted = n
        while True:
            try:
                drawn = list(self._sampler.sample(wanted, eval_doc=doc, **kwargs))
            except (AssertionError, ValueError):  # the harness's samplers, asked for more than there are
                return self._whatever_there_is(n, doc)
            fit = self._fit(drawn, doc)
            if len(fit) >= n:
                return fit[:n]
            wanted *= 2

    def look_ahead(self, docs: Sequence[Any], n: int) -> None:
        """Compare the examples that `docs` will be given, all at once: one after another takes far longer."""
        drawn = []
        for doc in docs:
            try:
                drawn += list(self._sampler.sample(n, eval_doc=doc))
            except (AssertionError, ValueError):
                return
        self._compare([self._guard.text(one) for one in drawn])

    def left_out(self) -> tuple[LeftOut, ...]:
        """The examples that were drawn and not shown because they are evaluated, by their index among the examples."""
        if not self._shown:
            return ()
        pool = list(self._sampler.fewshot_docs()) if hasattr(self._sampler, "fewshot_docs") else []
        found = []
        for fields, doc in self._shown.items():
            match = self._known[fields]
            assert match is not None
            index = next((number for number, one in enumerate(pool) if one == doc), -1)
            reason = Reason.EXAMPLE if match.equal else Reason.NEARLY_EXAMPLE
            found.append(LeftOut(index, reason, match.position, match.similarity))
        return tuple(sorted(found, key=lambda one: one.doc_id))

    def _whatever_there_is(self, n: int, doc: Any) -> list[Any]:
        pool = list(self._sampler.fewshot_docs()) if hasattr(self._sampler, "fewshot_docs") else []
        self._sampler.rnd.shuffle(pool)
        fit = self._fit(pool, doc)
        if len(fit) < n:
            more = list(self._instead)
            self._sampler.rnd.shuffle(more)
            shown = [self._guard.text(one).fields for one in fit]
            fit += [one for one in self._fit(more, doc) if self._guard.text(one).fields not in shown]
        self.fewer |= len(fit) < n
        return fit[:n]

    def _fit(self, drawn: Sequence[Any], doc: Any) -> list[Any]:
        mine, key = self._guard.text(doc), self._cluster(doc)
        texts = [self._guard.text(one) for one in drawn]
        self._compare(texts)
        fit = []
        for one, text in zip(drawn, texts, strict=True):
            if self._known[text.fields] is not None:
                self._shown.setdefault(text.fields, one)
            elif not alike(text, mine, self._guard.wording) and (key is None or self._cluster(one) != key):
                fit.append(one)
        return fit

    def _compare(self, texts: Sequence[Text]) -> None:
        new = list({text.fields: text for text in texts if text.fields not in self._known}.values())
        self._known.update(
            (text.fields, match) for text, match in zip(new, self._guard.evaluated.matches(new), strict=True)
        )


class _Nothing:
    """A sampler without examples."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)

    def sample(self, n: int, eval_doc: Any = None, **kwargs: Any) -> list[Any]:  # noqa: ARG002
        raise ValueError("no examples")

    def fewshot_docs(self) -> list[Any]:
        return []


@contextmanager
def own_examples(
    task: Task, seed: int, guard: Guard, cluster: Cluster, docs: Sequence[Any], from_evaluated: bool
) -> Iterator[Examples | None]:
    """Draw few-shot examples by `seed`, and leave the task's own sequence of examples as it was.

    `docs`: the documents that the examples are for. `from_evaluated`: the task takes its examples from the evaluated
    split, so that none of them may be shown. Gives None where the task shows no examples.
    """
    number = task.config.num_fewshot or 0
    if not hasattr(task, "sampler") or number == 0:
        yield None
        return
    original, state = task.sampler, task.sampler.rnd
    examples = Examples(_Nothing(seed) if from_evaluated else original, guard, cluster, docs)
    try:
        original.rnd = random.Random(seed)
        examples.look_ahead(docs, number)
        original.rnd = random.Random(seed)  # once more from the beginning
        task.sampler = examples
        yield examples
    finally:
        original.rnd = state
        task.sampler = original
