"""Scores answers as the harness would: the task's own filters, `process_results` and aggregation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import acc_all, acc_all_stderr, mean_stderr

from lm_eval_lora_drop.statistics.aggregation import Aggregation, draw_counts
from lm_eval_lora_drop.work import Answer, MetricSpec

RESAMPLES = 1000
RESAMPLES_OF_A_SLOW_AGGREGATION = 100  # what lm-eval takes for its own BLEU, chrF and TER


class Scorer:
    """Turns answers to a task's documents into items, and items into a score with its standard error."""

    def __init__(self, task: Any, metric: MetricSpec) -> None:
        self.metric = metric
        self.aggregation = Aggregation(task.aggregation()[metric.name])
        self._task = task
        self._filter = next(ensemble for ensemble in task._filters if ensemble.name == metric.filter)
        # A sweep asks once. Decoding is greedy, so what `repeats` would ask again has the same answer.
        self._repeats = int(getattr(task.config, "repeats", None) or 1)

    def item(self, answer: Answer) -> Any:
        """The value of one document that the aggregation takes; None where the task gives none, or NaN.

        A number for most metrics; for corpus metrics whatever the task hands to its aggregation.
        """
        document = answer.document
        # Copies: the task's own instances and the document's keep their state.
        instances = [
            Instance(
                request_type=request.request_type,
                doc=document.doc,
                arguments=request.arguments,
                idx=request.idx,
                metadata=request.metadata,
                resps=[response] * self._repeats,
            )
            for request, response in zip(document.requests, answer.responses, strict=True)
        ]
        self._filter.apply(instances)
        filtered = [instance.filtered_resps[self.metric.filter] for instance in instances]
        item = self._task.process_results(document.doc, filtered).get(self.metric.name)
        return None if isinstance(item, (float, np.floating)) and math.isnan(item) else item

    def aggregate(self, items: Sequence[Any]) -> float:
        """The task's score over `items`, those that are None left out; NaN where none is left."""
        return self.aggregation.score(items)

    def stderr(self, items: Sequence[Any]) -> float:
        """Standard error of the score: lm-eval's closed form where it has one, else a seeded bootstrap.

        NaN below two documents, where nothing can be said.
        """
        scored = [item for item in items if item is not None]
        if len(scored) < 2:
            return float("nan")
        if self.aggregation.is_mean:
            return float(mean_stderr(scored))
        if self.aggregation.function is acc_all:
            return float(acc_all_stderr(scored))
        return float(np.std(self.aggregation.resample(scored, draw_counts(len(scored), self.resamples, 0)), ddof=1))

    @property
    def resamples(self) -> int:
        """How many bootstrap resamples this aggregation is worth."""
        return RESAMPLES if self.aggregation.is_additive else RESAMPLES_OF_A_SLOW_AGGREGATION
