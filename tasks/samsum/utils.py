"""Scores a summary."""

from __future__ import annotations

from typing import Any

from lm_eval_lora_drop.metrics.rouge import rouge
from lm_eval_lora_drop.metrics.shape import shape


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, float]:
    """ROUGE against the one reference, and the shape of the output."""
    prediction = results[0].strip()
    return {**rouge(prediction, doc["summary"]), **shape(prediction, max_gen_toks)}
