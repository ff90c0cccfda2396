"""A sweep as a results file holds it: scores can be drawn again from it, without a model and without the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats
from lm_eval_lora_drop.sweep.racing import Race, RacingSettings
from lm_eval_lora_drop.sweep.table import Table


@dataclass(frozen=True)
class RecordedSweep:
    """The boundaries that met every document, the largest K first, with their items.

    What racing retired earlier is left out: `retired` says what that is.
    """

    boundaries: tuple[int, ...]
    items: tuple[tuple[Any, ...], ...]
    stderr: Floats
    chosen: int
    select: str
    sign: int
    num_layers: int
    aggregation: Aggregation
    retired: tuple[int, ...]

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> RecordedSweep:
        """Read a task's entry of the results file (`config.lora_drop.tasks.<task>`).

        Raises:
            ArgumentError: the entry holds no sweep, or its aggregation is known to the task alone.
        """
        sweep = entry.get("sweep")
        if not sweep or not sweep.get("items"):
            raise ArgumentError(
                f"this needs a task whose boundary was found by a sweep, got method={entry.get('method')!r}. Evaluate "
                "it with boundary=auto."
            )
        rows = sorted(sweep["boundaries"], key=lambda row: -row["boundary"])
        carried = [row for row in rows if row["retired_after"] is None]
        return cls(
            boundaries=tuple(row["boundary"] for row in carried),
            items=tuple(tuple(sweep["items"][str(row["boundary"])]) for row in carried),
            stderr=np.array([math.nan if row["stderr"] is None else row["stderr"] for row in carried]),
            chosen=sweep["chosen"],
            select=sweep["select"],
            sign=1 if entry["higher_is_better"] else -1,
            num_layers=entry["num_layers"],
            aggregation=Aggregation.named(sweep["aggregation"]),
            retired=tuple(row["boundary"] for row in rows if row["retired_after"] is not None),
        )

    @property
    def documents(self) -> int:
        """How many documents every boundary met."""
        return len(self.items[0])

    @property
    def full(self) -> int | None:
        """The row of full, None where it was no candidate."""
        return self.boundaries.index(self.num_layers) if self.num_layers in self.boundaries else None

    def scores(self, counts: NDArray[np.integer[Any]]) -> Floats:
        """`(R, B)` scores, higher is better, of `R` resamples given as `(R, N)` counts of documents.

        NaN where a resample holds no document with a value.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sign * np.stack([self.aggregation.resample(row, counts) for row in self.items], axis=1)

    def choose(self, scores: Floats, stderr: Floats) -> NDArray[np.int64]:
        """`(R,)` rows chosen from `(R, B)` scores by the sweep's own rule; the larger K where they tie.

        `stderr` is that of each boundary's score, `(B,)`, for `one_se`.
        """
        comparable = np.where(np.isnan(scores), -np.inf, scores)
        # argmax takes the first of equals, and the largest K stands first.
        best = comparable.argmax(axis=1)
        if self.select == "best":
            return best
        limit = comparable[np.arange(len(scores)), best] - np.nan_to_num(stderr[best])
        within = comparable >= limit[:, None]
        return np.asarray(within.shape[1] - 1 - within[:, ::-1].argmax(axis=1))

    def race(self, seed: int, settings: RacingSettings | None = None) -> tuple[int, int]:
        """The boundary that racing would have chosen with this seed, and the (boundary, document) pairs it would have
        asked."""
        table = Table(self.boundaries, self.documents)
        table.set(
            (boundary, position, item)
            for boundary, row in zip(self.boundaries, self.items, strict=True)
            for position, item in enumerate(row)
        )
        race = Race(
            table,
            self.aggregation,
            sign=self.sign,
            num_layers=self.num_layers,
            seed=seed,
            select=self.select,
            settings=settings,
        )
        for _ in race.rounds():
            pass
        scores = self.scores(np.ones((1, self.documents), dtype=np.int64))
        scores[:, [boundary in race.retired for boundary in self.boundaries]] = np.nan
        pairs = sum(len(race.positions(boundary)) for boundary in self.boundaries)
        return self.boundaries[int(self.choose(scores, self.stderr)[0])], pairs
