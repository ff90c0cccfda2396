"""A task as an evaluation uses it, a document with the requests of its prompts, and what a model answered to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


@dataclass(frozen=True, eq=False)
class Binding:
    """A task as one evaluation uses it: the task and the arguments that shape its prompts. `doc_ids` are the indices in
    the evaluated split of the documents that were named (`--samples`); None where none were."""

    task: Task
    prompt_arguments: dict[str, Any]
    doc_ids: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """The task's name in the results."""
        return str(self.task.config.task)


@dataclass(frozen=True)
class Document:
    """A document of a task's validation or evaluated split with the requests that the harness makes of it.

    `doc_id` is its index in the split; `requests` has one `Instance` per request (several for multiple choice), all of
    one request type; `key` is a digest of request type and arguments, so that an answer in the journal belongs to
    exactly these prompts. `cluster` names what it belongs together with (None: stands alone).
    Where the task samples, each request stands `repeats` times in a row: the number of a repeat is its place.
    """

    doc_id: int
    doc: Any
    requests: tuple[Instance, ...]
    key: str
    cluster: str | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Answer:
    """What the model said to one document under one variant: one response per request, as the harness has them.

    A response is a string (generate_until), a pair of log-likelihood and is-greedy (loglikelihood), or a
    log-likelihood (loglikelihood_rolling).
    """

    variant: Variant
    document: Document
    responses: tuple[Any, ...]
