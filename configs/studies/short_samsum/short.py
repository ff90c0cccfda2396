"""Keeps the short dialogues."""

from __future__ import annotations

from typing import Any

CHARACTERS = 300


def dialogues(split: Any) -> Any:
    """The documents of a split whose dialogue is short."""
    return split.filter(lambda row: len(row["dialogue"]) <= CHARACTERS)
