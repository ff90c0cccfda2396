"""Scores a final number the way lm-eval's own gsm8k does."""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import get_metric

from lm_eval_lora_drop.metrics.filters import Written
from lm_eval_lora_drop.metrics.shape import shape

IGNORED = [",", "\\$", "(?s).*#### ", "\\.$"]  # as in lm-eval's gsm8k.yaml


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, float]:
    """`exact_match` for a filter that extracted a number, the shape for the one that kept the text."""
    if isinstance(results[0], Written):
        return shape(results[0].strip(), max_gen_toks)
    exact_match = get_metric("exact_match")
    return exact_match(
        predictions=[results[0]],
        references=[doc["answer"]],
        ignore_case=True,
        ignore_punctuation=False,
        regexes_to_ignore=IGNORED,
    )
