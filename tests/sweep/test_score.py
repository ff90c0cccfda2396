"""Scores are those that the harness itself gives for the same responses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from scipy import stats

from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import draw_cluster_counts
from lm_eval_lora_drop.statistics.paired import paired_difference
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.score import Scorer
from testing.doubles import make_documents, uniform
from testing.toy import CHOICE, make_task

CHOICES = [
    {"question": f"question {i}?", "answer": i % 3, "options": ["one", "two words", "three more words"]}
    for i in range(30)
]
LINES = [{"question": f"question {i}?", "answer": f"{i} is the answer"} for i in range(30)]


def respond(request: Any) -> Any:
    """A response of the right type that depends on the request alone."""
    number = uniform(request.args)
    if request.request_type == "generate_until":
        said = request.doc["answer"] if number < 0.6 else "no idea, 12"
        return f"Well: {said}" if number < 0.3 else said
    return -10 * number if request.request_type == "loglikelihood_rolling" else (-10 * number, number > 0.5)


class Responder(LM):
    """A harness model that says what `respond` says."""

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return [respond(request) for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until


def choice_task(metric: str) -> Any:
    direction = metric != "brier_score"
    config = {**CHOICE, "doc_to_choice": "{{options}}", "doc_to_target": "{{answer}}"}
    config["metric_list"] = [{"metric": metric, "higher_is_better": direction}]
    return make_task(splits={"test": CHOICES}, **config)


def generation_task(**config: Any) -> Any:
    return make_task(splits={"test": LINES}, **config)


def likelihood_task(output_type: str, metric: str) -> Any:
    return make_task(
        splits={"test": LINES},
        output_type=output_type,
        generation_kwargs=None,
        metric_list=[{"metric": metric, "higher_is_better": False}],
    )


TASKS: dict[str, Callable[[], Any]] = {
    "exact_match": generation_task,
    "filters": lambda: generation_task(
        filter_list=[
            {"name": "plain", "filter": [{"function": "take_first"}]},
            {
                "name": "after the colon",
                "filter": [{"function": "regex", "regex_pattern": "(?:Well: )?(.*)"}, {"function": "take_first"}],
            },
        ]
    ),
    "repeats and a vote": lambda: generation_task(
        repeats=3, filter_list=[{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}]
    ),
    "bleu": lambda: generation_task(metric_list=[{"metric": "bleu"}]),
    **{metric: lambda metric=metric: choice_task(metric) for metric in ("acc", "acc_norm", "brier_score")},
    "perplexity": lambda: likelihood_task("loglikelihood", "perplexity"),
    "word_perplexity": lambda: likelihood_task("loglikelihood_rolling", "word_perplexity"),
    "bits_per_byte": lambda: likelihood_task("loglikelihood_rolling", "bits_per_byte"),
}


@pytest.mark.parametrize("name", TASKS)
def test_score_and_closed_standard_error_are_the_harness_own(name: str) -> None:
    task = TASKS[name]()
    documents = make_documents(task, task.test_docs())
    for metric, filter_name in {(metric, f.name) for metric in task.aggregation() for f in task._filters}:
        scorer = Scorer(task, resolve_metric(task, f"{metric},{filter_name}"))
        items = [
            scorer.item(Answer(0, document, tuple(respond(request) for request in document.requests)))
            for document in documents
        ]
        fresh = TASKS[name]()
        theirs = evaluate(Responder(), {"toy": fresh}, bootstrap_iters=0)["results"]["toy"]
        assert scorer.aggregate(items) == theirs[f"{metric},{filter_name}"]
        assert all(request.resps == [] and not request.filtered_resps for d in documents for request in d.requests)
        if scorer.aggregation.is_mean:
            values = np.array(items, dtype=float)
            assert scorer.stderr(items) == pytest.approx(stats.sem(values))


def test_a_bootstrap_stands_in_where_there_is_no_closed_form() -> None:
    """For the mean the two agree, so the bootstrap is checked against the closed form on the same numbers."""
    rng = np.random.default_rng(3)
    logs = list(rng.normal(-2.0, 0.2, size=200))
    task = likelihood_task("loglikelihood", "perplexity")
    scorer = Scorer(task, resolve_metric(task, None))
    # Delta method: the standard error of exp(-mean) is exp(-mean) times that of the mean.
    expected = math.exp(-np.mean(logs)) * stats.sem(logs)
    assert scorer.stderr(logs) == pytest.approx(expected, rel=0.1)
    assert scorer.stderr(logs) == scorer.stderr(logs)


def test_any_callable_is_an_aggregation() -> None:
    def spread(items: list[float]) -> float:
        return max(items) - min(items)

    aggregation = Aggregation(spread)
    counts = np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]])
    assert aggregation.resample([1.0, 5.0, None], counts).tolist() == [4.0, 0.0, 0.0]


class Ratio:
    """A corpus metric: right parts over all parts."""

    def __call__(self, items: Any) -> float:
        return sum(right for right, _ in items) / sum(parts for _, parts in items)

    def from_totals(self, totals: np.ndarray) -> np.ndarray:
        return totals[:, 0] / totals[:, 1]


@pytest.mark.parametrize("function", [Ratio(), mean])
def test_resampling_by_sums_is_resampling_by_documents(function: Any) -> None:
    items: list[Any] = [[1, 4], [3, 4], None, [2, 7]] if isinstance(function, Ratio) else [0.5, 0.25, None, 1.0]
    counts = draw_cluster_counts(np.arange(4), 50, seed=1)
    counts[:, 0] += 1  # so that no resample is empty of values
    fast = Aggregation(function).resample(items, counts)
    slow = Aggregation(lambda given: function(given)).resample(items, counts)
    assert fast == pytest.approx(slow)


def test_the_difference_of_two_boundaries_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=300)
    first, second = list(hard + 0.1 + rng.normal(0, 0.1, 300)), list(hard + rng.normal(0, 0.1, 300))
    found = paired_difference(Aggregation(mean), first, second, sign=1, resamples=500)
    theirs = stats.ttest_rel(first, second)
    assert found.value / found.stderr == pytest.approx(theirs.statistic)
    assert found.stderr < 0.2 * stats.sem(first)
    by_bootstrap = paired_difference(Aggregation(lambda items: mean(items)), first, second, sign=1, resamples=500)
    assert by_bootstrap.stderr == pytest.approx(found.stderr, rel=0.1)
    turned = paired_difference(Aggregation(mean), first, second, sign=-1, resamples=500)
    assert turned.value == -found.value


def test_documents_that_lack_a_value_on_one_side_are_left_out_of_the_difference() -> None:
    found = paired_difference(Aggregation(mean), [1.0, None, 3.0, 5.0], [0.0, 9.0, None, 4.0], sign=1, resamples=10)
    assert (found.value, found.stderr, found.documents) == (1.0, 0.0, 2)


@pytest.mark.parametrize("name", ["mean", "perplexity", "lm_eval_lora_drop.metrics.corpus:BLEU_ZH"])
def test_an_aggregation_is_found_again_by_the_name_in_the_results_file(name: str) -> None:
    assert Aggregation.named(name).name == name


def test_an_aggregation_of_a_task_alone_has_a_name_too(tmp_path: Path) -> None:
    """The harness loads a task's functions from their file without entering the module anywhere."""
    from lm_eval.tasks._yaml_loader import load_yaml

    (tmp_path / "own.py").write_text("def total(items):\n    return sum(items)\n")
    (tmp_path / "task.yaml").write_text("aggregation: !function own.total\n")
    loaded = Aggregation(load_yaml(tmp_path / "task.yaml")["aggregation"])
    assert loaded.name.endswith(":total")
    assert loaded.score([1.0, None, 2.0]) == 3.0
    assert Aggregation(functools.partial(sum)).name == "functools:partial"


def test_code_that_a_results_file_names_is_not_imported_from_elsewhere() -> None:
    from lm_eval_lora_drop.errors import ArgumentError

    for name in ("os:system", "lm_eval_lora_dropx.a:b", "testing.toy:make_task", "lm_eval_lora_drop.nowhere:f", "no"):
        with pytest.raises(ArgumentError, match="only its task knows"):
            Aggregation.named(name)
