"""What happens during a run, as typed events, and how listeners hear of it.

A search tells a `Broadcast`; lower rooms do not know who listens (progress bar, figure, tracker).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)


class ScoreFunction(Protocol):
    """How items become a score: what a listener needs to show an interim result."""

    metric: MetricSpec

    def aggregate(self, items: Sequence[Any]) -> float:
        """The score over items, NaN where none has a value."""


@dataclass(frozen=True)
class SweepStarted:
    """A sweep begins: `candidates` on `documents` documents; `known` pairs came from the journal at `journal`."""

    task: str
    candidates: tuple[Variant, ...]
    documents: int
    scores: ScoreFunction
    journal: Path
    known: Sequence[tuple[Variant, int, Any]]


@dataclass(frozen=True)
class RoundStarted:
    """A round of a sweep begins: this process will answer `pairs` more (variant, document) pairs; `running` are the
    candidates that every document of the round is answered under, now or before."""

    pairs: int
    running: tuple[Variant, ...]


@dataclass(frozen=True)
class Answered:
    """Pairs (variant, position of the document, item) have been answered and written down."""

    pairs: Sequence[tuple[Variant, int, Any]]


@dataclass(frozen=True)
class SweepEnded:
    """No more pairs will come, also where an error ended the sweep."""


@dataclass(frozen=True)
class Decided:
    """A task's variant is known."""

    task: str
    record: TaskRecord


@dataclass(frozen=True)
class Finished:
    """The run is over, and this stands in its results file."""

    record: RunRecord


Event: TypeAlias = SweepStarted | RoundStarted | Answered | SweepEnded | Decided | Finished


class Listener(Protocol):
    """Somebody who wants to know."""

    def hear(self, event: Event) -> None:
        """Called for every event, in order, on every process."""


class Broadcast:
    """Tells all listeners. One that fails costs a warning and hears no more: a picture must not end a sweep."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def tell(self, event: Event) -> None:
        """Pass an event on."""
        for listener in list(self._listeners):
            try:
                listener.hear(event)
            except Exception as error:  # noqa: BLE001
                self._listeners.remove(listener)
                log.warning("%s failed and is ignored from here on: %s", type(listener).__name__, error)
