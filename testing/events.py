"""A sweep as its events tell it, answered by a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.record.events import Answered, Decided, Event, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import sweep_record, task_record

L = 10
DOCUMENTS = 8
CANDIDATES = tuple(Variant.below(k, L) for k in range(L, -1, -1))


class Mean:
    """Scores that are the mean of the items; None has no value."""

    def __init__(self, higher_is_better: bool = True) -> None:
        self.metric = MetricSpec("rouge_l", "none", higher_is_better)

    def aggregate(self, items: Sequence[Any]) -> float:
        known = [item for item in items if item is not None]
        return sum(known) / len(known) if known else float("nan")


def item(variant: Variant, position: int) -> float:
    """K = 7 is the best on every document, K = 0 the worst."""
    boundary = variant.boundary
    assert boundary is not None
    return 30.0 - abs(boundary - 7) + position % 2


def started(
    known: Sequence[tuple[Variant, int, Any]] = (), *, task: str = "samsum", scores: Any = None
) -> SweepStarted:
    return SweepStarted(task, CANDIDATES, DOCUMENTS, scores or Mean(), Path("journal.jsonl"), known)


def pairs(candidates: Sequence[Variant], positions: Sequence[int]) -> list[tuple[Variant, int, float]]:
    return [(variant, position, item(variant, position)) for position in positions for variant in candidates]


def whole_sweep(task: str = "samsum") -> Iterator[Event]:
    """Document by document, then the decision of `testing.recorded_runs`."""
    yield started(task=task)
    yield RoundStarted(len(CANDIDATES) * DOCUMENTS, CANDIDATES)
    for position in range(DOCUMENTS):
        yield Answered(pairs(CANDIDATES, [position]))
    yield SweepEnded()
    yield Decided(task, task_record(sweep_record()))
