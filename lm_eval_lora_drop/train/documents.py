"""Which documents a training may read: of the training split, none that a sweep or a test will read."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop import validation
from lm_eval_lora_drop.errors import ArgumentError

_NOT_WORDS = re.compile(r"\W+")


@dataclass(frozen=True)
class TrainingDocuments:
    """`chosen` are (index in the split, document) in drawn order. Not chosen: `held_out` for a sweep that draws from
    the same split, `leaked` because they stand in the evaluated or the validation split too, `repeated` in this one,
    `unfit` because they are too long."""

    split: str
    chosen: tuple[tuple[int, Any], ...]
    held_out: int
    leaked: int
    repeated: int
    unfit: int


def choose_documents(
    binding: validation.Binding,
    *,
    limit: int | None,
    seed: int,
    hold_out: int,
    fits: Callable[[int, Any], bool] = lambda *_: True,
) -> TrainingDocuments:
    """Draw up to `limit` documents of the training split, in an order that depends on `seed` alone; a larger limit
    continues a smaller one. A document (index, document) that does not fit is left out and counted.

    Left out are documents whose prompt is that of a document of the evaluated split, letters and digits compared, in
    any case. Where a sweep takes its validation documents from a split of its own, all of that split are left out in
    the same way. Where it takes them from the training split, the first `hold_out` documents of the order that
    `sweep_seed=0` draws are (see `validation.draw`), and everything that equals them.

    Raises:
        ArgumentError: the task has no training split, that split is the evaluated one, or nothing is left of it.
    """
    task = binding.task
    split = task.config.training_split
    if not task.has_training_docs():
        raise ArgumentError(
            f"{binding.name} must have a training split to be trained on, and has none. Name one as training_split in "
            "a task file of your own (docs/training.md)."
        )
    evaluated = task.config.test_split if task.has_test_docs() else task.config.validation_split
    if split == evaluated:
        raise ArgumentError(f"{binding.name} is evaluated on split {split!r}, so an adapter must not be trained on it.")
    docs = list(task.training_docs())
    forbidden = _keys(task, task.eval_docs)
    held: set[int] = set()
    if task.has_validation_docs() and task.config.validation_split not in (evaluated, split):
        forbidden |= _keys(task, task.validation_docs())
    else:
        drawn = validation.draw(binding, hold_out, 0) if hold_out else None
        held = {document.doc_id for document in drawn.documents} if drawn else set()
        forbidden |= _keys(task, (docs[index] for index in held))
    chosen: list[tuple[int, Any]] = []
    seen: set[str] = set()
    leaked = repeated = unfit = 0
    for index in random.Random(seed).sample(range(len(docs)), len(docs)):
        if len(chosen) == limit:
            break
        if index in held:
            continue
        key = _key(task, docs[index])
        if key in forbidden:
            leaked += 1
        elif key in seen:
            repeated += 1
        elif not fits(index, docs[index]):
            unfit += 1
        else:
            seen.add(key)
            chosen.append((index, docs[index]))
    if not chosen:
        raise ArgumentError(
            f"{binding.name}: nothing is left to train on. Split {split!r} has {len(docs)} documents; {len(held)} are "
            f"held out for the sweep, {leaked} stand in an evaluated split too, {unfit} are longer than max_length. "
            "Hold out fewer, raise max_length, or bring more documents."
        )
    return TrainingDocuments(str(split), tuple(chosen), len(held), leaked, repeated, unfit)


def _keys(task: Any, docs: Iterable[Any]) -> set[str]:
    return {_key(task, doc) for doc in docs}


def _key(task: Any, doc: Any) -> str:
    """Letters and digits of the prompt, whatever their case, width and spacing."""
    text = " ".join(validation._prompt_text(task, doc))
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
