"""The test split under the chosen part, the full adapter and the base model at once (`evaluate=`).

The oracle is three runs of their own, with boundary=K, boundary=full and boundary=base.
"""

import json
import math

import pytest

from lm_eval_lora_drop.record.schema import from_config
from testing.toy import CHOICE, evaluate, make_task

ALL = "chosen+full+base"
TEST = [{"question": f"Who wrote the {i}. letter", "answer": "e", "group": i // 2} for i in range(9)]
VALIDATION = [{"question": f"Where is number {i}", "answer": "e", "group": i} for i in range(6)]
SPLITS = {"test": TEST, "validation": VALIDATION}


def measured(doc, results):
    """Numbers that differ with nearly every answer, one of them missing now and then."""
    text = results[0] if isinstance(results[0], str) else results[0][0]
    found = {"length": len(text), "letters": len(set(text))}
    return found if len(text) % 5 else {"letters": found["letters"]}


def generating(name="toy", **config):
    metrics = [
        {"metric": "length", "aggregation": "mean", "higher_is_better": True},
        {"metric": "letters", "aggregation": "mean", "higher_is_better": False},
    ]
    return make_task(name, **{"splits": SPLITS, "process_results": measured, "metric_list": metrics, **config})


def choosing(name="choices"):
    docs = [{"question": f"Question {i}", "choices": [" yes", " no", " perhaps"], "label": i % 3} for i in range(14)]
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    return make_task(name, splits={"test": docs[:8], "validation": docs[8:]}, **{**CHOICE, "metric_list": metrics})


def rolling(name="rolling"):
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    return make_task(
        name,
        splits=SPLITS,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        generation_kwargs=None,
        metric_list=[metric, {**metric, "metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
    )


def filtered(name="filtered"):
    """Greedy, asked three times, two filters."""
    filters = [
        {"name": "three", "filter": [{"function": "take_first_k", "k": 3}]},
        {"name": "one", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
    ]
    return generating(name, repeats=3, filter_list=filters)


TASKS = {"generating": generating, "choosing": choosing, "rolling": rolling, "filtered": filtered}


def entry_of(results, task):
    json.dumps(results["config"]["lora_drop"])
    return from_config(results["config"], "here").tasks[task]


def rows_of(results, task):
    """Variant -> row of the test split."""
    evaluated = entry_of(results, task).evaluated
    assert evaluated is not None
    return {row.variant: row for row in evaluated.rows}


def same(ours, theirs):
    """Equal as JSON has it, numbers up to rounding."""
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, (int, float)):
        return ours is not None and math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6)
    return ours == theirs


def assert_as_separate(row, doc_ids, separate, task):
    """Each score of a row is the one that its own run has, document by document."""
    aggregated = separate["results"][task]
    assert row.scores
    for score in row.scores:
        samples = {s["doc_id"]: s for s in separate["samples"][task] if s["filter"] == score.metric.filter}
        assert sorted(samples) == list(doc_ids)
        theirs = [samples[doc_id].get(score.metric.name) for doc_id in doc_ids]
        assert same(score.items, theirs), (score.metric, score.items, theirs)
        assert same(score.score, aggregated[f"{score.metric.name},{score.metric.filter}"])
    told = {(s.metric.name, s.metric.filter) for s in row.scores}
    assert told == {tuple(key.split(",")) for key in aggregated if "," in key and "_stderr," not in key}


@pytest.mark.parametrize("kind", TASKS)
def test_every_document_is_scored_as_in_three_runs(make, tmp_path, kind):
    task = TASKS[kind]
    name = task().config.task
    together = evaluate(make(boundary="2", evaluate=ALL, sweep_dir=str(tmp_path / "test")), task())
    evaluated = entry_of(together, name).evaluated
    rows = rows_of(together, name)
    assert list(rows) == ["0-1", "0-3", "none"]
    answers = set()
    for variant, boundary in (("0-1", "2"), ("0-3", "full"), ("none", "base")):
        separate = evaluate(make(boundary=boundary), task())
        assert_as_separate(rows[variant], evaluated.doc_ids, separate, name)
        answers.add(str([sample["resps"] for sample in separate["samples"][name]]))
        if boundary == "2":
            assert together["results"] == separate["results"]
            assert together["samples"] == separate["samples"]
    assert len(answers) == 3, "the three must answer differently, or nothing is shown"
