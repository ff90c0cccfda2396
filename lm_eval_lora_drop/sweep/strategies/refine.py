"""Coarse to fine: of candidates in an order in which neighbours are alike, only those around the best are all asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.variant import Variant

STEP = 4
"""The first round asks every fourth candidate, and both ends."""


class Refine:
    """A plan in rounds: every fourth candidate, then those at half the step around the best so far, until both
    neighbours of the best have been asked. A candidate that is asked meets every document.

    `best` names the best of some candidates of the table, all of them answered: by the rule that chooses in the end, so
    that the choice is one whose neighbours are known.
    """

    eliminated: Mapping[Variant, int] = {}

    def __init__(self, table: Table, best: Callable[[Sequence[Variant]], Variant]) -> None:
        self._table = table
        self._best = best
        self._asked: set[int] = set()

    def rounds(self) -> Iterator[dict[Variant, Sequence[int]]]:
        """Rounds of variant -> positions of documents; the table must be filled before the next one is asked for."""
        candidates, last, step = self._table.candidates, len(self._table.candidates) - 1, STEP
        wanted = {*range(0, last, step), last}
        while wanted or step > 1:
            self._asked |= wanted
            asked = [candidates[place] for place in sorted(self._asked)]
            if wanted:
                yield dict.fromkeys(asked, range(self._table.documents))
            step = max(step // 2, 1)
            best = candidates.index(self._best(asked))
            wanted = {place for place in (best - step, best + step) if 0 <= place <= last} - self._asked

    def positions(self, variant: Variant) -> Sequence[int]:
        """The documents that a candidate met: all, or none."""
        asked = self._table.candidates.index(variant) in self._asked
        return range(self._table.documents) if asked else ()

    def to_record(self) -> None:
        """Nothing to add to the results file."""
