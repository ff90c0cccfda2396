"""lm-eval's aggregations, and the names by which a results file calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.metrics import acc_all, bits_per_byte, mean, nanmean, perplexity, weighted_perplexity
from lm_eval.api.registry import AGGREGATION_REGISTRY as AGGREGATIONS

__all__ = [
    "AGGREGATIONS",
    "acc_all",
    "bits_per_byte",
    "mean",
    "nanmean",
    "perplexity",
    "questions_of",
    "weighted_perplexity",
]


def questions_of(items: Sequence[Any]) -> list[list[int]]:
    """For each question of `acc_all`, the places of its answers among `items`."""
    found: dict[Any, list[int]] = {}
    for place, (_, doc) in enumerate(items):
        found.setdefault((doc["idx"]["paragraph"], doc["idx"]["question"]), []).append(place)
    return list(found.values())
