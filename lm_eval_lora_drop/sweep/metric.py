"""Which of a task's metrics a sweep optimises, and in which direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.work import MetricSpec
from lm_eval_lora_drop.text import did_you_mean, shown


def resolve_metric(task: Any, sweep_metric: str | None) -> MetricSpec:
    """The metric that `sweep_metric` names: `metric` or `metric,filter`; by default the task's first of each.

    `task` is an lm-eval task. Metrics that only a `process_results` function computes count if `metric_list` (or the
    `aggregation()` of a task written as a class) names them.

    Raises:
        ArgumentError: the task has no such metric or filter, no metric at all, or the metric has no direction.
    """
    name, _, filter_name = (part.strip() for part in (sweep_metric or "").partition(","))
    metrics = [metric for metric in task.aggregation() if metric != "bypass"]
    filters = [ensemble.name for ensemble in task._filters]
    if not metrics:
        raise ArgumentError(
            f"a sweep needs a metric, and task {task.task_name} has none (--predict_only removes a task's metrics). "
            "Leave --predict_only out, or give the boundary: boundary=K."
        )
    if name and name not in metrics:
        raise ArgumentError(f"sweep_metric must name a metric of task {task.task_name}, {_choices(name, metrics)}")
    if filter_name and filter_name not in filters:
        raise ArgumentError(
            f"sweep_metric must name a filter of task {task.task_name} after the metric, "
            f"{_choices(filter_name, filters)}"
        )
    name = name or metrics[0]
    direction = task.higher_is_better().get(name)
    if not isinstance(direction, bool):
        directed = [metric for metric in metrics if isinstance(task.higher_is_better().get(metric), bool)]
        raise ArgumentError(
            f"sweep_metric must be a metric with a direction, and {name} of task {task.task_name} has none "
            f"(higher_is_better: {direction}). "
            + (f"There are: {', '.join(directed)}." if directed else "Set higher_is_better in the task's metric_list.")
        )
    return MetricSpec(name, filter_name or filters[0], direction)


def _choices(came: str, there_are: Sequence[str]) -> str:
    return f"got {shown(came)!r}. There are: {', '.join(there_are)}.{did_you_mean(came, there_are)}"
