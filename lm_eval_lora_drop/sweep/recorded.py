"""A sweep as a results file holds it: scores can be drawn again from it, without a model and without the task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes
from lm_eval_lora_drop.sweep.select import (
    choose,
    choose_rows,
    contributions,
    on_common_documents,
    places_of,
    reads_documents,
)
from lm_eval_lora_drop.sweep.strategies.racing import Race, RacingSettings
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.sweep.tradeoffs.bounds import BoundedCriterion, parse_bounded
from lm_eval_lora_drop.sweep.tradeoffs.jointly import JointCriterion
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class RecordedSweep:
    """The candidates that met every document, in the sweep's order, with their items.

    `items`: `(candidates, documents)`. `full` is None where the full adapter did not meet every document. `ordered`
    says whether neighbours are alike. What racing eliminated earlier, or refine did not ask, is left out: `left_out`
    says what that is.
    `clusters`: which documents belong together, by name; None where each stands alone. `within` and `together` are what
    other tasks have to say in the choice, by bounds or jointly; None where they have none. `range`: of a document's
    score, None where it is not known.
    """

    candidates: tuple[Variant, ...]
    items: tuple[tuple[Any, ...], ...]
    chosen: Variant
    select: str
    sign: int
    full: Variant | None
    aggregation: Aggregation
    left_out: tuple[Variant, ...]
    ordered: bool
    clusters: tuple[str | None, ...] | None = None
    within: BoundedCriterion | None = None
    together: JointCriterion | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def from_record(cls, record: TaskRecord) -> RecordedSweep:
        """The sweep that a task's record holds.

        Raises:
            ArgumentError: it holds none, or no items, or its aggregation is known to its task alone, or it lacks what
                its rule needs of other tasks.
        """
        sweep, metric = record.sweep, record.metric
        if sweep is None or metric is None:
            raise ArgumentError(
                f"this needs a task whose variant was found by a sweep, got method={record.method!r}. Evaluate it with "
                "boundary=auto."
            )
        if not all(row.items for row in sweep.candidates):
            raise ArgumentError("this needs the items of every candidate, and the record holds none for some.")
        clusters = record.validation.clusters if record.validation else None
        if clusters is not None and len(clusters) != len(sweep.candidates[0].items):
            raise ArgumentError(
                f"validation.clusters must name one cluster for each document, got {len(clusters)} for "
                f"{len(sweep.candidates[0].items)} documents. The file is damaged or was edited; evaluate again."
            )
        variants = [Variant.parse(row.variant, record.num_layers) for row in sweep.candidates]
        carried = [index for index, row in enumerate(sweep.candidates) if row.eliminated_after is None]
        candidates = tuple(variants[index] for index in carried)
        rule = parse_bounded(sweep.select)
        within = None
        if rule is not None:
            within = BoundedCriterion.of(
                rule,
                sweep,
                record.also,
                record.candidate_parameters,
                record.num_layers,
                sign=metric.sign,
                clusters=cluster_codes(clusters) if clusters else None,
            )
        return cls(
            candidates=candidates,
            items=tuple(sweep.candidates[index].items for index in carried),
            chosen=Variant.parse(sweep.chosen, record.num_layers),
            select=sweep.select,
            sign=metric.sign,
            # Of several adapters the first; another one does not stand in for it when it was eliminated.
            full=next((one for one in [v for v in variants if v.is_full][:1] if one in candidates), None),
            aggregation=Aggregation.named(sweep.aggregation),
            left_out=(
                *(variant for index, variant in enumerate(variants) if index not in carried),
                *(Variant.parse(one, record.num_layers) for one in sweep.not_asked),
            ),
            ordered=sweep.ordered,
            clusters=clusters,
            within=within,
            together=JointCriterion.of(sweep),
            range=metric.range,
        )

    @cached_property
    def codes(self) -> Codes:
        """`(documents,)`: which documents belong together."""
        return cluster_codes(self.clusters or [None] * self.documents)

    @property
    def worst(self) -> float | None:
        """The worst value of a document, higher is better; None where the range is not known."""
        return None if self.range is None else min(self.sign * end for end in self.range)

    @property
    def units(self) -> int:
        """How many clusters there are: what is drawn, exchanged and counted as one."""
        return int(self.codes.max()) + 1

    @property
    def documents(self) -> int:
        """How many documents every candidate met."""
        return len(self.items[0])

    @cached_property
    def values(self) -> Floats:
        """`(candidates, documents)`: what each document contributes to each score, higher is better; NaN where a
        document has no value."""
        return contributions(self.items, self.aggregation, self.sign)

    def scores(self, counts: NDArray[np.integer[Any]]) -> Floats:
        """`(R, candidates)` scores, higher is better, of `R` resamples given as `(R, documents)` counts of documents.

        NaN where a resample holds no document with a value.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sign * np.stack([self.aggregation.resample(row, counts) for row in self.items], axis=1)

    def choose(self, scores: Floats, counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """`(R,)` rows chosen on `R` resamples by the sweep's own rule, from their `(R, candidates)` scores.

        What other tasks say stays as it was measured: only this task's documents are drawn again.
        """
        compared = reads_documents(self.select, self.items)
        values = self.values if compared else np.zeros((len(self.items), self.documents))
        values, scores, counts, codes = on_common_documents(self.items, values, scores, counts, self.codes, self.worst)
        if self.within is not None:
            return self.within.choose(scores)
        if self.together is not None:
            scores = self.together.combined(scores)
        places = places_of(self.candidates)
        return choose_rows(self.select, values, scores, counts, ordered=self.ordered, places=places, clusters=codes)[0]

    def race(self, seed: int, settings: RacingSettings | None = None) -> tuple[Variant, int]:
        """The candidate that racing would have chosen with this seed, and the (variant, document) pairs it would have
        asked."""
        table = Table(self.candidates, self.documents)
        table.set(
            (variant, position, item)
            for variant, row in zip(self.candidates, self.items, strict=True)
            for position, item in enumerate(row)
        )
        race = Race(
            table, self.aggregation, sign=self.sign, full=self.full, seed=seed, settings=settings, bounds=self.range
        )
        for _ in race.rounds():
            pass
        left = [row for row, variant in enumerate(self.candidates) if variant not in race.eliminated]
        rows = [self.items[row] for row in left]
        choice = choose("best", rows, self.aggregation, self.sign, ordered=self.ordered, worst=self.worst)
        pairs = sum(len(race.positions(variant)) for variant in self.candidates)
        return self.candidates[left[choice.chosen]], pairs
