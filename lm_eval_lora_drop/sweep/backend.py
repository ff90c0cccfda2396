"""What a sweep asks of a model: the work it hands over, and the methods of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.model import Encoder
from lm_eval_lora_drop.variant import AdapterShape, Variant


@dataclass(frozen=True)
class Work:
    """One document and the variants it is still to be answered under."""

    document: Document
    variants: tuple[Variant, ...]


Runner = Callable[[Sequence[Work]], Iterator[list[Answer]]]
"""Answers all work, in an order of its own, batch by batch: what has been yielded is safe to write down."""


@dataclass(frozen=True)
class Pass:
    """How a backend answers a sweep: by `runner`, whose kind is `engine` (shared, plain, vllm).

    `check` is what a check before trust found, for the record; its `answers` are good for the sweep.
    """

    runner: Runner
    engine: str
    check: dict[str, Any] | None = None
    answers: tuple[Answer, ...] = ()


class Peers(Protocol):
    """The processes that work together."""

    @property
    def rank(self) -> int:
        """0..world_size-1."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def has_silent_ones(self) -> bool:
        """Whether others compute with this one that do nothing more once the harness has its answers."""

    def all_gather_object(self, obj: Any) -> list[Any]:
        """The objects of all ranks, in the order of their ranks, on every rank."""


class ProbeFinding(Protocol):
    """What a search needs of a probe's result."""

    boundary: int
    warnings: tuple[str, ...]

    def table(self) -> str:
        """For the log."""

    def to_json(self) -> dict[str, Any]:
        """For the results file."""


class Backend(Encoder, Protocol):
    """What a search needs of a model."""

    @property
    def shape(self) -> AdapterShape:
        """Of the adapter that is loaded."""

    def peers(self) -> Peers:
        """The processes that evaluate together."""

    def prepare(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> Pass:
        """How a sweep of `candidates` over `documents` is answered; every process calls it in step."""

    def memory(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> str:
        """What a sweep of `candidates` over `documents` would take of the memory, in words."""

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What changes an answer, apart from the request and the variant; with the keys adapter, base and dtype."""

    def count_parameters(self, kept: Variant) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""

    def layer_scores(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
        """How much each decoder layer matters by several scores, on (prompt, reference) pairs.

        Raises:
            ArgumentError: the backend sees no layers.
        """

    def probe(self, pairs: Sequence[tuple[str, str]]) -> ProbeFinding:
        """The probe of (prompt, reference) pairs.

        Raises:
            ArgumentError: the backend sees no layers.
        """
