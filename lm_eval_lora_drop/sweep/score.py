"""Scores answers as the harness would: the task's own filters, `process_results` and aggregation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.harness.facts.aggregations import acc_all, questions_of
from lm_eval_lora_drop.harness.facts.scoring import metrics_of
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, codes_at, draw_cluster_counts, mean_stderr
from lm_eval_lora_drop.sweep.metric import missing_value

RESAMPLES = 1000
RESAMPLES_OF_A_SLOW_AGGREGATION = 100  # what lm-eval takes for its own BLEU, chrF and TER


class Scorer:
    """Turns answers to a task's documents into items, and items into a score with its standard error."""

    def __init__(self, task: Any, metric: MetricSpec) -> None:
        self.metric = metric
        self.aggregation = Aggregation(task.aggregation()[metric.name])
        self._task = task
        self._missing = missing_value(task, metric.name)

    def item(self, answer: Answer) -> Any:
        """The value of one document that the aggregation takes; where the task gives none, or NaN, what its metadata
        says a missing value counts as, else None.

        A number for most metrics; for corpus metrics whatever the task hands to its aggregation.
        """
        item = metrics_of(self._task, answer, self.metric.filter).get(self.metric.name)
        return self._missing if item is None or (isinstance(item, float) and math.isnan(item)) else item

    def aggregate(self, items: Sequence[Any]) -> float:
        """The task's score over `items`, those that are None left out; NaN where none is left."""
        return self.aggregation.score(items)

    def stderr(self, items: Sequence[Any], clusters: Codes | None = None) -> float:
        """`standard_error` of the score."""
        return standard_error(self.aggregation, items, clusters)

    @property
    def resamples(self) -> int:
        """How many bootstrap resamples this aggregation is worth."""
        return resamples_of(self.aggregation)


def standard_error(aggregation: Aggregation, items: Sequence[Any], clusters: Codes | None = None) -> float:
    """Of a score: lm-eval's closed form where it has one, else a seeded bootstrap; by cluster where `clusters`,
    `(items,)`, says which documents belong together.

    NaN below two documents (two clusters), where nothing can be said.
    """
    if aggregation.is_mean:
        return mean_error(items, clusters)
    scored, codes = _known(items, clusters)
    if not len(codes) or codes.max() < 1:
        return float("nan")
    if aggregation.function is acc_all:
        # By question: lm-eval's own closed form throws the questions of all paragraphs together by their number.
        questions = questions_of(scored)
        right = [acc_all([scored[place] for place in places]) for places in questions]
        firsts = [places[0] for places in questions]
        return mean_error(right, None if clusters is None else codes_at(codes, firsts))
    return float(np.std(aggregation.resample(scored, draw_cluster_counts(codes, resamples_of(aggregation), 0)), ddof=1))


def resamples_of(aggregation: Aggregation) -> int:
    """How many bootstrap resamples an aggregation is worth."""
    return RESAMPLES if aggregation.is_additive else RESAMPLES_OF_A_SLOW_AGGREGATION


def mean_error(items: Sequence[Any], clusters: Codes | None = None) -> float:
    """Standard error of the mean of `items`, those that are None left out; NaN below two documents (two clusters)."""
    scored, codes = _known(items, clusters)
    return mean_stderr(np.array(scored, dtype=np.float64), codes) if scored else float("nan")


def _known(items: Sequence[Any], clusters: Codes | None) -> tuple[list[Any], Codes]:
    """The items that are not None, and which of them belong together."""
    known = [place for place, item in enumerate(items) if item is not None]
    codes = cluster_codes([None] * len(known)) if clusters is None else codes_at(clusters, known)
    return [items[place] for place in known], codes
