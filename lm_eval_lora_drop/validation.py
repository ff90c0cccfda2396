"""Binds requests to their lm-eval task, draws validation documents, refuses leakage.

The harness hands a model requests, not tasks: `Instance.task_name` is a name only. `bind_requests()` wraps the one
method through which every evaluation builds its requests (`lm_eval.api.task.Task.build_all_requests`) and notes on each
`Instance` where it came from, so that a sweep can build exactly the prompts of the run for other documents.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from lm_eval_lora_drop.work import Document

_NOTE = "lora_drop_binding"
_PROMPT_ARGUMENTS = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template")


@dataclass(frozen=True, eq=False)
class Binding:
    """A task as one evaluation uses it: the task and the arguments that shape its prompts."""

    task: Task
    prompt_arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The task's name in the results."""
        return str(self.task.config.task)


@dataclass(frozen=True)
class ValidationSet:
    """The documents a sweep reads, in the order in which they were drawn."""

    documents: tuple[Document, ...]
    split: str
    left_out: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Digest of all prompts and their order."""
        return hashlib.sha256("".join(document.key for document in self.documents).encode()).hexdigest()


_recent: dict[str, Binding] = {}


def bind_requests() -> None:
    """From now on, every request that lm-eval builds knows its task. Calling it again changes nothing."""
    original = Task.build_all_requests
    if getattr(original, _NOTE, False):
        return

    @functools.wraps(original)
    def build_all_requests(self: Task, **kwargs: Any) -> None:
        original(self, **kwargs)
        binding = Binding(self, {name: kwargs.get(name) for name in _PROMPT_ARGUMENTS})
        _recent[binding.name] = binding
        # After the original: with --cache_requests it pickles the instances, and a task must not get in there.
        for instance in self.instances:
            setattr(instance, _NOTE, binding)

    setattr(build_all_requests, _NOTE, True)
    Task.build_all_requests = build_all_requests


def binding_of(instance: Instance) -> Binding | None:
    """The task behind a request, or None for one that was made by hand."""
    return getattr(instance, _NOTE, None)


def recent_bindings() -> list[Binding]:
    """The tasks whose requests were built last, one per name."""
    return list(_recent.values())


def forget_bindings() -> None:
    """Start a new evaluation: `recent_bindings` is empty afterwards."""
    _recent.clear()


def draw(binding: Binding, limit: int, seed: int) -> ValidationSet | None:
    """Draw up to `limit` documents that are not evaluated: from the validation split, else from the training split.

    A drawn document whose prompt equals that of any document of the evaluated split (the whole split, whatever
    `--limit` says, so that the boundary does not depend on it) is left out and counted. The order depends on `seed`
    alone, and a larger `limit` continues a smaller one, so that a journal serves both.

    Returns:
        None where the task has no split besides the evaluated one, or nothing is left of it.
    """
    source = _source(binding.task)
    if source is None:
        return None
    split, docs = source[0], source[1] if hasattr(source[1], "__getitem__") else list(source[1])
    evaluated = {_prompt_text(binding.task, doc) for doc in binding.task.eval_docs}
    order = random.Random(seed).sample(range(len(docs)), len(docs))
    chosen: list[tuple[int, Any]] = []
    left_out = 0
    for doc_id in order:
        if len(chosen) == limit:
            break
        doc = docs[doc_id]
        if _prompt_text(binding.task, doc) in evaluated:
            left_out += 1
        else:
            chosen.append((doc_id, doc))
    if not chosen:
        return None
    warnings = []
    if len(chosen) < limit:
        warnings.append(f"only {len(chosen)} of the {limit} validation documents asked for exist in split {split!r}")
    with _own_fewshot(binding.task, seed):
        documents = tuple(_build(binding, doc_id, doc) for doc_id, doc in chosen)
    return ValidationSet(documents, split, left_out, tuple(warnings))


def references(binding: Binding, documents: Sequence[Document]) -> list[str]:
    """The reference answer of each document as the harness would append it to the prompt, delimiter included."""
    task = binding.task
    delimiter = getattr(task.config, "target_delimiter", " ") or ""
    answers = []
    for document in documents:
        target = task.doc_to_target(document.doc)
        if isinstance(target, list):
            target = target[0]
        if isinstance(target, int):
            target = task.doc_to_choice(document.doc)[target]
        answers.append(delimiter + str(target))
    return answers


def _source(task: Task) -> tuple[str, Any] | None:
    evaluated = task.config.test_split if task.has_test_docs() else task.config.validation_split
    if task.has_validation_docs() and task.config.validation_split != evaluated:
        return task.config.validation_split, task.validation_docs()
    if task.has_training_docs() and task.config.training_split != evaluated:
        return task.config.training_split, task.training_docs()
    return None


def _prompt_text(task: Task, doc: Any) -> tuple[str, ...]:
    """What the model would read of this document, without few-shot examples: the contexts of its requests."""
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    requests = task.construct_requests(doc=doc, ctx=context, metadata=(None, None, 1))
    return tuple(
        dict.fromkeys(str(request.args[0]) for request in (requests if isinstance(requests, list) else [requests]))
    )


def _build(binding: Binding, doc_id: int, doc: Any) -> Document:
    """The requests of one document, by the same two calls as `Task.build_all_requests`."""
    task, given = binding.task, binding.prompt_arguments
    if hasattr(task, "sampler"):
        task.sampler.eval_doc = doc
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        system_instruction=given["system_instruction"],
        apply_chat_template=bool(given["apply_chat_template"]),
        fewshot_as_multiturn=bool(given["fewshot_as_multiturn"]),
        chat_template=given["chat_template"],
        gen_prefix=task.doc_to_prefix(doc),
    )
    made = task.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(task.config["task"], doc_id, 1),
        apply_chat_template=bool(given["apply_chat_template"]),
        chat_template=given["chat_template"],
    )
    requests = tuple(made) if isinstance(made, list) else (made,)
    text = json.dumps([[request.request_type, *request.args] for request in requests], ensure_ascii=False, default=str)
    return Document(doc_id, doc, requests, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


class _NeverItself:
    """A few-shot sampler that never draws the document it is to explain. The harness passes `eval_doc` to its samplers
    only for the test split; validation documents may well come from the split the examples come from."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.eval_doc: Any = None

    def sample(self, n: int, eval_doc: Any = None, **kwargs: Any) -> Any:
        return self.sampler.sample(n, eval_doc=self.eval_doc if eval_doc is None else eval_doc, **kwargs)


@contextmanager
def _own_fewshot(task: Task, seed: int) -> Iterator[None]:
    """Draw few-shot examples by `seed`, and leave the task's own sequence of examples as it was."""
    if not hasattr(task, "sampler"):
        yield
        return
    original, state = task.sampler, task.sampler.rnd
    original.rnd = random.Random(seed)
    task.sampler = _NeverItself(original)
    try:
        yield
    finally:
        original.rnd = state
        task.sampler = original
