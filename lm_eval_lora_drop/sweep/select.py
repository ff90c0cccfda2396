"""Which candidate is taken, once the scores are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Aggregation

SELECTIONS = ("best", "one_se")


@dataclass(frozen=True)
class Choice:
    """Indices of the candidates chosen and best."""

    chosen: int
    best: int


def choose(select: str, rows: Sequence[Sequence[Any]], aggregation: Aggregation, sign: int, *, ordered: bool) -> Choice:
    """Interim."""
    scores = [sign * aggregation.score(row) for row in rows]
    known = [index for index, score in enumerate(scores) if not math.isnan(score)]
    if not known:
        raise ArgumentError(
            "sweep_metric must have a value for some validation document, and the task gave none of right"
        )
    best = max(known, key=lambda index: (scores[index], -index))
    return Choice(best, best)
