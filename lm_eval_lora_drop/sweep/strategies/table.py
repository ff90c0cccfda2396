"""What is known of every (variant, document) pair while a sweep runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_lora_drop.variant import Variant


class Table:
    """Items by variant and by position of the document; a pair is unanswered until it is set.

    `candidates` stand in the caller's order, from the most kept to the least. An item may be None: answered, but
    without a value for the metric.
    """

    def __init__(self, candidates: Sequence[Variant], documents: int) -> None:
        self.candidates = tuple(candidates)
        self.documents = documents
        self._items: dict[Variant, dict[int, Any]] = {variant: {} for variant in self.candidates}

    def set(self, pairs: Iterable[tuple[Variant, int, Any]]) -> None:
        """Take in (variant, position, item)."""
        for variant, position, item in pairs:
            self._items[variant][position] = item

    def answered(self, variant: Variant, position: int) -> bool:
        """Whether the pair has been answered."""
        return position in self._items[variant]

    def items(self, variant: Variant, positions: Iterable[int] | None = None) -> list[Any]:
        """The variant's items in the order of the documents, those answered; or those at `positions`."""
        of = self._items[variant]
        return [of[position] for position in (sorted(of) if positions is None else positions)]

    def row(self, variant: Variant, positions: Iterable[int]) -> list[Any]:
        """The variant's items over all documents, None at those that are not among `positions`."""
        row: list[Any] = [None] * self.documents
        for position in positions:
            row[position] = self._items[variant][position]
        return row
