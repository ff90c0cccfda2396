"""Draws validation documents: in an order that the seed alone decides, and none that is evaluated."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.harness.documents import Binding, Document
from lm_eval_lora_drop.harness.fields import cluster_of
from lm_eval_lora_drop.harness.prompts import build
from lm_eval_lora_drop.harness.splits import draws_from, evaluated_split, shows_evaluated
from lm_eval_lora_drop.record.schema import LeftOut, ValidationRecord
from lm_eval_lora_drop.sweep.documents import fewshot
from lm_eval_lora_drop.sweep.documents.leaks import Guard

if TYPE_CHECKING:
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class ValidationSet:
    """The documents a sweep reads, in the order in which they were drawn, and what was left out on the way."""

    documents: tuple[Document, ...]
    split: str
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Digest of all prompts and their order."""
        return hashlib.sha256("".join(document.key for document in self.documents).encode()).hexdigest()


@dataclass(frozen=True)
class Selection:
    """Which documents of a split are drawn, by their indices in it, and which were left out on the way."""

    split: str
    docs: Sequence[Any]
    doc_ids: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    guard: Guard


def order(size: int, seed: int) -> list[int]:
    """All indices of a split of `size` documents, in the order in which they are drawn."""
    return random.Random(seed).sample(range(size), size)


def select(task: Task, limit: int, seed: int, *, evaluated_task: Task | None = None) -> Selection | None:
    """Choose up to `limit` documents, without building their prompts; see `draw`."""
    split = draws_from(task)
    if split is not None:
        docs = task.validation_docs() if split == task.config.validation_split else task.training_docs()
    elif evaluated_task is not None and evaluated_split(task) is not None:
        # Nothing of this task is evaluated, so it may give what it has.
        split, docs = str(evaluated_split(task)), task.eval_docs
    else:
        return None
    if not hasattr(docs, "__getitem__"):
        docs = list(docs)
    guard = Guard(task, docs, order(len(docs), seed), evaluated_task=evaluated_task)
    chosen: list[int] = []
    left_out: list[LeftOut] = []
    for one in guard.pass_through():
        if isinstance(one, LeftOut):
            left_out.append(one)
        else:
            chosen.append(one)
            if len(chosen) == limit:
                break
    return Selection(split, docs, tuple(chosen), tuple(left_out), guard)


def draw(binding: Binding, limit: int, seed: int, *, evaluated_task: Task | None = None) -> ValidationSet | None:
    """Draw up to `limit` documents that are not evaluated: from the validation split, else from the training split.

    A document that is, or nearly is, one of the evaluated split (the whole split, whatever `--limit` says, so that the
    choice does not depend on it) or one drawn before is left out and listed; `leaks` says what exactly is promised.
    The same holds for the few-shot examples of their prompts. The order depends on `seed` alone, and a larger `limit`
    continues a smaller one, so that a journal serves both.

    Where another task is evaluated, `evaluated_task`, it is that one's evaluated split that is kept out, and where
    `binding` has neither validation nor training split its test split serves.

    Returns:
        None where the task has no split besides the evaluated one, or nothing is left of it.

    Raises:
        ArgumentError: the task's `metadata.cluster` does not fit its documents.
    """
    task = binding.task
    selection = select(task, limit, seed, evaluated_task=evaluated_task)
    if selection is None or not selection.doc_ids:
        return None
    docs = [selection.docs[index] for index in selection.doc_ids]
    cluster = cluster_of(task)
    from_evaluated = evaluated_task is None and shows_evaluated(task)
    left_out, warnings = selection.left_out, []
    if len(docs) < limit:
        reasons = Counter(one.reason for one in left_out)
        why = "".join(f"; {number} left out: {reason.value}" for reason, number in reasons.items())
        warnings.append(
            f"only {len(docs)} of the {limit} validation documents asked for exist in split {selection.split!r}{why}"
        )
    with fewshot.own_examples(task, seed, selection.guard, cluster, docs, from_evaluated) as examples:
        documents = []
        for doc_id, doc in zip(selection.doc_ids, docs, strict=True):
            if examples is not None:
                examples.doc = doc
            documents.append(build(binding, doc_id, doc, cluster(doc)))
        if examples is not None:
            left_out += examples.left_out()
            if from_evaluated:
                warnings.append(
                    f"the task takes its few-shot examples from the evaluated split {evaluated_split(task)!r}; the "
                    f"validation documents are shown documents of split {selection.split!r} instead"
                )
            if examples.fewer:
                warnings.append(
                    f"some validation documents have fewer than {task.config.num_fewshot} few-shot examples: the task "
                    "has no more that are not evaluated"
                )
    return ValidationSet(tuple(documents), selection.split, left_out, tuple(warnings))


def drawn_documents(
    binding: Binding, source: Binding, drawn: ValidationSet, documents: Sequence[Document]
) -> ValidationRecord:
    """What is written down of the `documents` a choice for `binding` was made on, which are those of `source`."""
    clusters = tuple(document.cluster for document in documents)
    return ValidationRecord(
        split=drawn.split,
        doc_ids=tuple(document.doc_id for document in documents),
        left_out=drawn.left_out,
        clusters=clusters if any(clusters) else None,
        task=None if source is binding else source.name,
    )
