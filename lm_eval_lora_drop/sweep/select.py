"""Which boundary is taken, once the scores are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.metric import MetricSpec

SELECTIONS = ("best", "one_se")


def best_boundary(scores: Mapping[int, float], metric: MetricSpec) -> int:
    """The boundary of the best score; the larger K where scores tie. Scores that are NaN do not take part.

    Raises:
        ArgumentError: no boundary has a score.
    """
    scored = {boundary: score for boundary, score in scores.items() if not math.isnan(score)}
    if not scored:
        raise ArgumentError(
            f"sweep_metric must have a value for some validation document, and the task gave none of {metric}: no "
            "boundary has a score. Choose another metric."
        )
    return max(scored, key=lambda boundary: (metric.sign * scored[boundary], boundary))


def choose(select: str, scores: Mapping[int, float], metric: MetricSpec, best_stderr: float) -> int:
    """The boundary by the rule `select`.

    `best` takes the best score. `one_se` takes the smallest K whose score lies within one standard error of the best
    (the one-standard-error rule of Breiman et al., 1984, Classification and Regression Trees, section 3.4.3); where the
    standard error is unknown it is the best.
    """
    best = best_boundary(scores, metric)
    if select == "best" or math.isnan(best_stderr):
        return best
    limit = scores[best] - metric.sign * best_stderr
    return min(boundary for boundary, score in scores.items() if not metric.better(limit, score) and score == score)
