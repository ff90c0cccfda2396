"""What a record holds of the test split under several variants (`evaluate=`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.record.metric import MetricSpec


@dataclass(frozen=True, kw_only=True)
class PairedRecord:
    """A paired difference with its 95 % interval and two-sided p-value (`statistics.significance`); positive is better,
    whatever the metric's direction. `documents` (clusters, where the task names them) have a value on both sides."""

    difference: float
    low: float
    high: float
    p_value: float
    documents: int


@dataclass(frozen=True, kw_only=True)
class EvaluatedScoreRecord:
    """One metric of one variant on the test split, as the harness would have it of a run of its own.

    `items[i]` is what the aggregation takes of document i (None: no value); empty where JSON cannot hold them.
    `to_full` is the difference to the full adapter: None on its own row, without it, or where nothing can be compared.
    """

    metric: MetricSpec
    score: float | None
    stderr: float | None
    items: tuple[Any, ...] = ()
    to_full: PairedRecord | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedVariantRecord:
    """One variant on the test split. `outputs[i]` are its responses to document i, one list for each request; there
    only where the run saves samples, and for all variants but the chosen one, whose samples the harness saves."""

    variant: str
    scores: tuple[EvaluatedScoreRecord, ...]
    outputs: tuple[Any, ...] = ()

    def score_of(self, metric: MetricSpec) -> EvaluatedScoreRecord | None:
        """The score by this metric behind this filter, None where there is none."""
        key = (metric.name, metric.filter)
        return next((one for one in self.scores if (one.metric.name, one.metric.filter) == key), None)


@dataclass(frozen=True, kw_only=True)
class EvaluatedRecord:
    """The test split under several variants (`evaluate=`), the chosen one first. Nothing is chosen by it.

    `doc_ids` are the documents' indices in the split, `clusters` what belongs together (None: every document stands
    alone), `engine` how the others were answered.
    """

    doc_ids: tuple[int, ...]
    rows: tuple[EvaluatedVariantRecord, ...]
    engine: str
    clusters: tuple[str | None, ...] | None = None

    def row(self, variant: str) -> EvaluatedVariantRecord | None:
        """The row of this notation, None where there is none."""
        return next((one for one in self.rows if one.variant == variant), None)
