"""Cuts wmt22 into a training and a validation split; for studies that train on it."""

from __future__ import annotations

from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics import data

SEGMENTS = 2037
FIRST_VALIDATION = 1535
"""The first segment of a new document. Segments of one document follow each other, documents of all four domains
alternate: no document lies on both sides, and both sides have all domains."""


def load(**kwargs: Any) -> Any:
    """The splits of `lora_drop_wmt23_en_zh`, wmt22 cut in two: `train` 1,535 segments, `validation` the other 502.

    Raises:
        ArgumentError: wmt22 is not whole, so that the cut would be elsewhere, or cannot be read.
    """
    loaded = data.load(**kwargs)
    segments = loaded["validation"]
    if len(segments) != SEGMENTS:
        raise ArgumentError(
            f"wmt22 en-zh must have its {SEGMENTS} segments to be cut between two documents, got {len(segments)}. Give "
            "the whole test set, in its order."
        )
    loaded["train"] = segments.select(range(FIRST_VALIDATION))
    loaded["validation"] = segments.select(range(FIRST_VALIDATION, SEGMENTS))
    return loaded
