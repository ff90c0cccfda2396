"""Where a task's few-shot examples come from, and something else in its place for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def num_examples(task: Task) -> int:
    """How many examples the task shows in a prompt."""
    return int(task.config.num_fewshot or 0) if hasattr(task, "sampler") else 0


class ExamplePool:
    """A task's examples, drawn by its own sampler with random numbers from `seed`; none at all where `empty`."""

    def __init__(self, task: Task, seed: int, *, empty: bool) -> None:
        self._sampler: Any = None if empty else task.sampler
        self._seed = seed
        self._random = random.Random(seed)

    def restart(self) -> None:
        """Draw from the beginning again."""
        self._random = random.Random(self._seed)
        if self._sampler is not None:
            self._sampler.rnd = self._random

    def draw(self, n: int, doc: Any, **kwargs: Any) -> list[Any] | None:
        """`n` examples for `doc`; None where there are fewer."""
        if self._sampler is None:
            return None
        try:
            return list(self._sampler.sample(n, eval_doc=doc, **kwargs))
        except (AssertionError, ValueError):  # lm-eval's samplers, asked for more than there are
            return None

    def examples(self) -> list[Any]:
        """All of them."""
        return list(self._sampler.fewshot_docs()) if hasattr(self._sampler, "fewshot_docs") else []

    def shuffled(self, docs: Sequence[Any]) -> list[Any]:
        """`docs` in the order of the pool's next random numbers."""
        order = list(docs)
        self._random.shuffle(order)
        return order


@contextmanager
def examples_from(task: Task, sampler: Any) -> Iterator[None]:
    """Have `sampler` draw the task's examples, by `sample(n, eval_doc=..., **kwargs)`; then the task's own one again,
    from where it stood."""
    original, state = task.sampler, task.sampler.rnd
    try:
        task.sampler = sampler
        yield
    finally:
        original.rnd = state
        task.sampler = original
