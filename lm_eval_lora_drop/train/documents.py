"""Which documents a training may read: of the training split, none that a sweep or a test will read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.record.schema import LeftOut, Reason
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.documents.leaks import Guard
from lm_eval_lora_drop.sweep.documents.similarity import Index

_BATCH = 256


@dataclass(frozen=True)
class TrainingDocuments:
    """`chosen` are (index in the split, document) in drawn order. Not chosen: `held_out` for a sweep that draws from
    the same split, `leaked` because they are (nearly) documents
    of the evaluated or the validation split, `repeated` because they are (nearly) one chosen before,
    `unfit` because they are too long."""

    split: str
    chosen: tuple[tuple[int, Any], ...]
    held_out: int
    leaked: int
    repeated: int
    unfit: int


def check_trainable(binding: Binding) -> str:
    """The split that the task is trained on.

    Raises:
        ArgumentError: it has none, or is evaluated on it.
    """
    task = binding.task
    split = task.config.training_split
    if not task.has_training_docs():
        raise ArgumentError(
            f"{binding.name} has no training split. Name one as training_split in "
            "a task file of your own (docs/howto/train.md)."
        )
    if split == validation.evaluated_split(task):
        raise ArgumentError(f"{binding.name} is evaluated on split {split!r}, so an adapter must not be trained on it.")
    return str(split)


def validation_documents(binding: Binding, limit: int) -> list[tuple[int, Any]]:
    """What a sweep with `sweep_seed=0` and `sweep_limit=limit` reads: (index in its split, document)."""
    drawn = validation.select(binding.task, limit, 0) if limit else None
    return [(one, drawn.docs[one]) for one in drawn.doc_ids] if drawn is not None else []


def choose_documents(
    binding: Binding,
    *,
    limit: int | None,
    seed: int,
    hold_out: int,
    fits: Callable[[int, Any], bool] = lambda *_: True,
) -> TrainingDocuments:
    """Draw up to `limit` documents of the training split, in an order that depends on `seed` alone; a larger limit
    continues a smaller one. A document (index, document) that does not fit is left out and counted.

    Left out are documents that are, or nearly are, a document of the evaluated split or one drawn before; what "nearly"
    promises is said in `sweep.documents.leaks`. Where a sweep takes its validation documents from a split of its own,
    what is nearly one of that split is left out too. Where it takes them from the training split, everything is that
    `sweep_seed=0` with `sweep_limit` up to `hold_out` reads or passes over, and what is nearly one of those.

    Raises:
        ArgumentError: the task has no training split, that split is the evaluated one, or nothing is left of it.
    """
    task = binding.task
    split = check_trainable(binding)
    docs = task.training_docs()
    if not hasattr(docs, "__getitem__"):
        docs = list(docs)
    guard = Guard(task, docs, validation.order(len(docs), seed))
    held: set[int] = set()
    if validation.draws_from(task) == split:
        drawn = validation.select(task, hold_out, 0) if hold_out else None
        if drawn is not None:
            held = {*drawn.doc_ids, *(one.doc_id for one in drawn.left_out)}
        read_by_sweeps = [docs[index] for index in sorted(held)]
    else:
        read_by_sweeps = list(task.validation_docs())
    forbidden = Index([guard.text(doc) for doc in read_by_sweeps], guard.wording)
    chosen: list[tuple[int, Any]] = []
    leaked = repeated = unfit = 0
    rest = guard.pass_through()
    # In batches: comparing documents one by one takes far longer.
    while len(chosen) != limit and (batch := list(itertools.islice(rest, _BATCH))):
        fine = [one for one in batch if not isinstance(one, LeftOut) and one not in held]
        swept = dict(zip(fine, forbidden.matches([guard.text(docs[one]) for one in fine]), strict=True))
        for one in batch:
            if len(chosen) == limit:
                break
            if isinstance(one, LeftOut):
                if one.doc_id not in held:
                    leaked += one.reason in (Reason.EVALUATED, Reason.NEARLY_EVALUATED)
                    repeated += one.reason in (Reason.TWICE, Reason.NEARLY_TWICE)
            elif one in held:
                continue
            elif swept[one] is not None:
                leaked += 1
            elif not fits(one, docs[one]):
                unfit += 1
            else:
                chosen.append((one, docs[one]))
    if not chosen:
        raise ArgumentError(
            f"{binding.name}: no document remains for training. Split {split!r} has {len(docs)} documents; {len(held)} "
            f"are held out for the sweep, {leaked} are (nearly) documents of another split, {unfit} are longer than "
            "max_length. Hold out fewer, raise max_length, or bring more documents."
        )
    return TrainingDocuments(split, tuple(chosen), len(held), leaked, repeated, unfit)
