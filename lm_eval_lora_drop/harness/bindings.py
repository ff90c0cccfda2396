"""Every request knows its task.

The harness hands a model requests, not tasks: `Instance.task_name` is a name only. `bind_requests()` wraps the one
method through which every evaluation builds its requests (`lm_eval.api.task.Task.build_all_requests`) and notes on each
`Instance` where it came from, so that a sweep can build exactly the prompts of the run for other documents.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.harness.prompts import build

_NOTE = "lora_drop_binding"
_PROMPT_ARGUMENTS = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template")


class RequestBindings:
    """The tasks of one evaluation, one per name; each model holds one of its own.

    A model needs it for the tasks of which no request reaches it (an answer cache had all the answers) or none yet
    (those of another type come in a later call). The harness builds all requests before it asks for the first answer.
    """

    def __init__(self) -> None:
        self._bindings: dict[str, Binding] = {}
        self._answering = False
        bind_requests()
        _watching.add(self)

    def begin(self) -> None:
        """Start a new evaluation: nothing has been built for it yet."""
        self._bindings.clear()
        self._answering = False

    def answering(self) -> None:
        """Answers are being asked for: whatever is built from here on belongs to another evaluation."""
        self._answering = True

    def add(self, binding: Binding) -> None:
        """Requests of this task were built; it takes the place of an earlier one of the same name."""
        if self._answering:
            self.begin()
        self._bindings[binding.name] = binding

    def __iter__(self) -> Iterator[Binding]:
        return iter(list(self._bindings.values()))

    def __len__(self) -> int:
        return len(self._bindings)


# Who is told. It holds no state of any run, and keeps no model alive.
_watching: weakref.WeakSet[RequestBindings] = weakref.WeakSet()


def bind_requests() -> None:
    """From now on, every request that lm-eval builds knows its task. Calling it again changes nothing."""
    original = Task.build_all_requests
    if getattr(original, _NOTE, False):
        return

    @functools.wraps(original)
    def build_all_requests(self: Task, **kwargs: Any) -> None:
        binding = Binding(self, {name: kwargs.get(name) for name in _PROMPT_ARGUMENTS}, kwargs.get("samples"))
        draws = getattr(getattr(self, "sampler", None), "rnd", None)
        before = draws.getstate() if draws is not None else None
        original(self, **kwargs)
        if kwargs.get("cache_requests") and not kwargs.get("rewrite_requests_cache") and _watching:
            after = draws.getstate() if draws is not None else None
            _refuse_stale(binding, kwargs, lambda: draws.setstate(before) if draws is not None else None)
            if draws is not None:
                draws.setstate(after)
        for bindings in list(_watching):
            bindings.add(binding)
        # After the original: with --cache_requests it pickles the instances, and a task must not get in there.
        for instance in self.instances:
            setattr(instance, _NOTE, binding)

    setattr(build_all_requests, _NOTE, True)
    Task.build_all_requests = build_all_requests


def _refuse_stale(binding: Binding, built: dict[str, Any], rewind: Callable[[], None]) -> None:
    """Compare the first document's requests with new ones: `--cache_requests` finds its file by the task's name alone.

    Raises:
        ArgumentError: they differ, in the prompt, the generation arguments or `repeats`.
    """
    task = binding.task
    where = {name: built[name] for name in ("limit", "samples", "rank", "world_size") if name in built}
    doc_id, doc = next(iter(task.doc_iterator(**where)))

    def new() -> list[Any]:
        rewind()
        document = build(binding, doc_id, doc)
        return [(request.args, task.config.repeats) for request in document.requests[:: document.repeats]]

    cached = [(one.args, one.repeats) for one in task.instances if one.doc_id == doc_id]
    # A prompt that has something random in it, beside its few-shot examples, cannot be compared.
    if cached != (now := new()) and now == new():
        raise ArgumentError(
            f"--cache_requests: the cached requests of {binding.name} are other ones than the task makes now (cached: "
            f"{str(cached[:1])[-300:]}; now: {str(now[:1])[-300:]}), and would be answered in their place. Give "
            "--cache_requests refresh."
        )


def binding_of(instance: Instance) -> Binding | None:
    """The task behind a request, or None for one that was made by hand."""
    return getattr(instance, _NOTE, None)
