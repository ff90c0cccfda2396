"""The words between the planner, the runner and the scorer. Nothing here knows a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@dataclass(frozen=True)
class Document:
    """A validation document with the requests that the harness would make of it.

    `doc_id` is its index in the split it was drawn from; `requests` has one `Instance` per request (several for
    multiple choice), all of one request type; `key` is a digest of request type and arguments, so that an answer in the
    journal belongs to exactly these prompts.
    """

    doc_id: int
    doc: Any
    requests: tuple[Instance, ...]
    key: str


@dataclass(frozen=True)
class Work:
    """One document and the boundaries (each 0..L) it is still to be answered under."""

    document: Document
    boundaries: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What the model said to one document under one boundary: one response per request, as the harness has them.

    A response is a string (generate_until), a pair of log-likelihood and is-greedy (loglikelihood), or a
    log-likelihood (loglikelihood_rolling).
    """

    boundary: int
    document: Document
    responses: tuple[Any, ...]


Runner = Callable[[Sequence[Work]], Iterator[list[Answer]]]
"""Answers all work, in an order of its own, batch by batch: what has been yielded is safe to write down."""
