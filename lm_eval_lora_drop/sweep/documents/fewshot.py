"""Few-shot examples for validation documents: none that is evaluated, none that belongs together with the document.

The harness passes `eval_doc` to its samplers for the test split only; validation documents may well come from the split
that the examples come from. A pool of examples may hold evaluated documents too: where a task names no split for it and
has no training split, the harness even takes the evaluated one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.harness.fewshot import ExamplePool, examples_from, num_examples
from lm_eval_lora_drop.record.schema import LeftOut, Reason
from lm_eval_lora_drop.sweep.documents.leaks import Guard
from lm_eval_lora_drop.sweep.documents.similarity import DocumentText, Match, alike

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Cluster = Callable[[Any], str | None]


class SafeExamples:
    """Stands in for a task's sampler: draws as that does, and draws more where an example may not be shown."""

    def __init__(self, pool: ExamplePool, guard: Guard, cluster: Cluster, instead: Sequence[Any]) -> None:
        """`instead`: documents to show where the pool has no others; all of them may be shown."""
        self._pool = pool
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
            drawn = self._pool.draw(wanted, doc, **kwargs)
            if drawn is None:
                return self._whatever_there_is(n, doc)
            fit = self._fit(drawn, doc)
            if len(fit) >= n:
                return fit[:n]
            wanted *= 2

    def look_ahead(self, docs: Sequence[Any], n: int) -> None:
        """Compare the examples that `docs` will be given, all at once: one after another takes far longer."""
        self._pool.restart()
        drawn: list[Any] = []
        for doc in docs:
            if (some := self._pool.draw(n, doc)) is None:
                break
            drawn += some
        else:
            self._compare([self._guard.text(one) for one in drawn])
        self._pool.restart()

    def left_out(self) -> tuple[LeftOut, ...]:
        """The examples that were drawn and not shown because they are evaluated, by their index among the examples."""
        if not self._shown:
            return ()
        pool = self._pool.examples()
        found = []
        for fields, doc in self._shown.items():
            match = self._known[fields]
            assert match is not None
            index = next((number for number, one in enumerate(pool) if one == doc), -1)
            reason = Reason.EXAMPLE if match.equal else Reason.NEARLY_EXAMPLE
            found.append(LeftOut(index, reason, match.position, match.similarity))
        return tuple(sorted(found, key=lambda one: one.doc_id))

    def _whatever_there_is(self, n: int, doc: Any) -> list[Any]:
        fit = self._fit(self._pool.shuffled(self._pool.examples()), doc)
        if len(fit) < n:
            more = self._pool.shuffled(self._instead)
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

    def _compare(self, texts: Sequence[DocumentText]) -> None:
        new = list({text.fields: text for text in texts if text.fields not in self._known}.values())
        self._known.update(
            (text.fields, match) for text, match in zip(new, self._guard.evaluated.matches(new), strict=True)
        )


@contextmanager
def own_examples(
    task: Task, seed: int, guard: Guard, cluster: Cluster, docs: Sequence[Any], from_evaluated: bool
) -> Iterator[SafeExamples | None]:
    """Draw few-shot examples by `seed`, and leave the task's own sequence of examples as it was.

    `docs`: the documents that the examples are for. `from_evaluated`: the task takes its examples from the evaluated
    split, so that none of them may be shown. Gives None where the task shows no examples.
    """
    number = num_examples(task)
    if number == 0:
        yield None
        return
    examples = SafeExamples(ExamplePool(task, seed, empty=from_evaluated), guard, cluster, docs)
    with examples_from(task, examples):
        examples.look_ahead(docs, number)
        yield examples
