"""Short ways to say what a record of a sweep over boundaries holds."""

from __future__ import annotations

from typing import Any

from lm_eval_lora_drop.record.schema import SweepRecord
from lm_eval_lora_drop.variant import Variant


def k_of(variant: str, num_layers: int) -> int:
    """K of a variant in its notation."""
    boundary = Variant.parse(variant, num_layers).boundary
    assert boundary is not None
    return boundary


def scores_by_k(entry: dict[str, Any]) -> dict[int, float]:
    """K -> score, from a task's entry in a results file, in the order of the candidates."""
    return {k_of(row["variant"], entry["num_layers"]): row["score"] for row in entry["sweep"]["candidates"]}


def rows_by_k(sweep: SweepRecord, num_layers: int) -> dict[int, Any]:
    """K -> candidate, in the order of the candidates."""
    return {k_of(row.variant, num_layers): row for row in sweep.candidates}
