"""Which metric a sweep optimises."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.metric import MetricSpec, resolve_metric
from testing.toy import make_task

METRICS = [
    {"metric": "right", "aggregation": "mean", "higher_is_better": True},
    {"metric": "wrong", "aggregation": "mean", "higher_is_better": False},
    {"metric": "words", "aggregation": "mean", "higher_is_better": None},
]
FILTERS = [
    {"name": "strict", "filter": [{"function": "take_first"}]},
    {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": "(.*)"}, {"function": "take_first"}]},
]


@pytest.fixture(scope="module")
def task() -> Any:
    # Metrics that exist in a process_results function alone.
    return make_task(process_results=lambda doc, results: {}, metric_list=METRICS, filter_list=FILTERS)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, MetricSpec("right", "strict", True)),
        ("wrong", MetricSpec("wrong", "strict", False)),
        ("right,flexible", MetricSpec("right", "flexible", True)),
        (" wrong , flexible ", MetricSpec("wrong", "flexible", False)),
        (",flexible", MetricSpec("right", "flexible", True)),
    ],
)
def test_first_metric_and_first_filter_unless_named(task: Any, asked: str | None, found: MetricSpec) -> None:
    assert resolve_metric(task, asked) == found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rihgt", "got 'rihgt'. There are: right, wrong, words. Did you mean right?"),
        ("right,flex", "got 'flex'. There are: strict, flexible. Did you mean flexible?"),
        ("words", "words of task toy has none (higher_is_better: None). There are: right, wrong."),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(task: Any, asked: str, message: str) -> None:
    with pytest.raises(ArgumentError, match="sweep_metric") as caught:
        resolve_metric(task, asked)
    assert message in str(caught.value)


def test_a_task_without_a_metric_list_has_the_defaults_of_its_type() -> None:
    assert resolve_metric(make_task(metric_list=None), None) == MetricSpec("exact_match", "none", True, (0.0, 1.0))


def test_a_task_whose_metrics_were_removed_cannot_be_swept() -> None:
    task = make_task()
    task.override_metric("bypass")
    with pytest.raises(ArgumentError, match="--predict_only"):
        resolve_metric(task, None)
