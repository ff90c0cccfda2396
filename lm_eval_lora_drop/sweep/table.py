"""What is known of every (boundary, document) pair while a sweep runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class Table:
    """Items by boundary and by position of the document; a pair is unanswered until it is set.

    An item may be None: answered, but without a value for the metric.
    """

    def __init__(self, boundaries: Sequence[int], documents: int) -> None:
        self.boundaries = tuple(boundaries)
        self.documents = documents
        self._items: dict[int, dict[int, Any]] = {boundary: {} for boundary in boundaries}

    def set(self, pairs: Iterable[tuple[int, int, Any]]) -> None:
        """Take in (boundary, position, item)."""
        for boundary, position, item in pairs:
            self._items[boundary][position] = item

    def answered(self, boundary: int, position: int) -> bool:
        """Whether the pair has been answered."""
        return position in self._items[boundary]

    def seen(self, boundary: int) -> int:
        """How many documents the boundary has answered."""
        return len(self._items[boundary])

    def items(self, boundary: int, positions: Iterable[int] | None = None) -> list[Any]:
        """The boundary's items in the order of the documents, those answered; or those at `positions`."""
        of = self._items[boundary]
        return [of[position] for position in (sorted(of) if positions is None else positions)]

    def row(self, boundary: int, positions: Iterable[int]) -> list[Any]:
        """The boundary's items over all documents, None at those that are not among `positions`."""
        row: list[Any] = [None] * self.documents
        for position in positions:
            row[position] = self._items[boundary][position]
        return row
