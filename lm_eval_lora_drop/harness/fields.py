"""What of a document is its own: the fields that its prompt shows, and the key of what it belongs together with."""

from __future__ import annotations

import hashlib
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta
from lm_eval.api.task import Task
from lm_eval.utils import apply_template, env

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.prompts import has_several_inputs, shown_text

CLUSTER_KEY = "cluster"
"""The entry of a task's metadata that names what documents belong together by."""


class _Reads(UserDict[str, Any]):
    """A document that notes which of its fields are read. No dict: `**` would pass such a one by."""

    def __init__(self, doc: Mapping[str, Any]) -> None:
        self.read: set[str] = set()
        super().__init__(doc)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def shown_fields(task: Task, docs: Iterable[Any]) -> tuple[str, ...]:
    """The names of the fields that a prompt of this task shows, without the answer's; () where it is not
    known.

    For a template they are the variables in it; a function is run on each of `docs` and watched.
    """
    config = task.config
    several_inputs = has_several_inputs(task)
    parts: list[tuple[Any, Callable[[Any], Any]]] = []
    if not several_inputs:  # there the text is the label: which of the choices is right
        parts.append((config.doc_to_text, task.doc_to_text))
    if several_inputs or task.OUTPUT_TYPE == "multiple_choice":
        parts.append((config.doc_to_choice, task.doc_to_choice))
    if several_inputs or task.OUTPUT_TYPE == "loglikelihood_rolling" or config.doc_to_text == "":
        parts.append((config.doc_to_target, task.doc_to_target))
    found: set[str] = set()
    for doc in docs:
        if isinstance(doc, Mapping):
            for template, call in parts:
                found |= _read(template, call, doc)
    return tuple(sorted(found))


def own_texts(doc: Any, fields: tuple[str, ...], task: Task) -> tuple[str, ...]:
    """The text of each of `fields`, everything within it joined; without fields, the prompt's part of the document."""
    if not fields:
        return (shown_text(task, doc),)
    return tuple("\n".join(_leaves(doc.get(name))) for name in fields)


def cluster_of(task: Task) -> Callable[[Any], str | None]:
    """What gives a document's cluster: `metadata: {cluster: ...}` of the task, a field's name or a Jinja template.

    Documents with the same key belong together (rows of one dialogue). With a blank key one stands alone.

    Raises:
        ArgumentError: calling it on a document that lacks a field of the template.
    """
    template = (task.config.metadata or {}).get(CLUSTER_KEY)
    if template is None:
        return lambda _doc: None

    def key(doc: Any) -> str | None:
        try:
            if not isinstance(template, str):
                raise ArgumentError("it is no text")
            text = str(doc[template]) if template in doc else apply_template(template, doc)
            if template == text and "{" not in template:
                raise ArgumentError("it is neither a field nor a template")
        except (ArgumentError, jinja2.TemplateError) as error:
            raise ArgumentError(
                f"metadata.cluster of task {task.config.task} must be a field of its documents or a Jinja template "
                f"over them, got {template!r} ({error}). The fields are {', '.join(map(str, doc))}."
            ) from error
        text = text.strip()
        return None if not text else text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()

    return key


def _read(template: Any, call: Callable[[Any], Any], doc: Mapping[str, Any]) -> set[str]:
    if isinstance(template, str):
        if template in doc:
            return {template}
        return {name for name in meta.find_undeclared_variables(env.parse(template)) if name in doc}
    if isinstance(template, (int, list, dict)):
        return set()
    reads = _Reads(doc)
    try:
        call(reads)
    except Exception:  # noqa: BLE001 - a task's own code, which may insist on a dict; then nothing can be told
        return set()
    return {name for name in reads.read if name in doc}


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, (str, int, float)):
        yield str(value)
