"""Scores a summary."""

from __future__ import annotations

from typing import Any

from lm_eval_lora_drop.metrics.rouge import rouge
from lm_eval_lora_drop.metrics.shape import shape

MAX_GEN_TOKS = 96  # as in the YAML


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE against the one reference, and the shape of the output."""
    prediction = results[0].strip()
    return {**rouge(prediction, doc["summary"]), **shape(prediction, MAX_GEN_TOKS)}
