"""Tasks that sample and ask several times, and metrics whose function gives several: as the harness scores them."""

import json
import shutil
from collections import Counter

import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.errors import ArgumentError
from testing.records import scores_by_k
from testing.toy import evaluate, make_task

SAMPLED = {"until": ["\n"], "max_gen_toks": 3, "do_sample": True, "temperature": 1.0}
KEPT = [{"name": "all", "filter": [{"function": "take_first_k", "k": 6}]}]
ROWS = [{"question": f"Question {number}?", "answer": "e"} for number in range(5)]

SPLITS = {"test": [{"question": f"Which {number}?", "answer": "e"} for number in range(3)], "validation": ROWS}


def different(doc, results):
    """How many answers to a document differ: 1 where one was asked for and copied."""
    return {"different": len(set(results[0])), "asked": len(results[0])}


def different_task(**config):
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("different", "asked")]
    settings = {"generation_kwargs": SAMPLED, "repeats": 6, "filter_list": KEPT, "process_results": different}
    return make_task(**{"splits": SPLITS, "metric_list": metrics, **settings, **config})


def swept(results):
    return results["config"]["lora_drop"]["tasks"]["toy"]


def test_a_task_that_samples_is_asked_as_often_as_the_harness_asks(make):
    settings = {"max_gen_toks": 3, "temperature": 1.2}
    entry = swept(evaluate(make(boundary="auto"), different_task(generation_kwargs=settings)))
    # The harness on the very documents that were swept on, as its test split.
    there = different_task(generation_kwargs=settings, splits={"test": ROWS})
    theirs = evaluate(make(HFLM), there)["results"]["toy"]["different,all"]
    assert scores_by_k(entry)[4] == pytest.approx(theirs, abs=0.5)
    assert min(theirs, *scores_by_k(entry).values()) > 5


def test_greedy_repeats_are_copied_and_all_of_them_reach_the_filter(make, tmp_path):
    task = different_task(generation_kwargs={**SAMPLED, "do_sample": False, "temperature": 0.0})
    results = evaluate(make(boundary="auto", sweep_metric="asked"), task)
    assert set(scores_by_k(swept(results)).values()) == {6.0}
    assert results["results"]["toy"]["different,all"] == 1.0
    assert {len(line["responses"]) for line in journaled(tmp_path)} == {1}


def journaled(folder):
    (journal,) = (folder / "sweeps").glob("*.jsonl")
    return [json.loads(line) for line in journal.read_text().splitlines()[1:]]


def test_draws_depend_on_prompt_and_repeat_alone(make, tmp_path):
    """Not on the batch size, on the run's seeds, on what was answered before, or on a kill in between."""
    lm = make(boundary="auto")
    evaluate(lm, different_task())
    first = journaled(tmp_path)
    (journal,) = (tmp_path / "sweeps").glob("*.jsonl")
    assert {len(line["responses"]) for line in first} == {6}
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[:4]) + b"\n")
    lm = make(boundary="auto")
    lm.batch_size_per_gpu = 5
    evaluate(lm, different_task(), torch_random_seed=7)

    def by_pair(found):
        return {(line["variant"], line["doc_id"]): line["responses"] for line in found}

    assert by_pair(journaled(tmp_path)) == by_pair(first)
    # The base model's answers are drawn with the numbers of the full adapter's, and they are other answers.
    assert by_pair(first)["none", 0] != by_pair(first)["0-3", 0]


def test_what_is_evaluated_is_drawn_as_without_a_sweep(make):
    task = different_task
    given = evaluate(make(boundary=2), task())["samples"]
    assert evaluate(make(boundary="auto", sweep_boundaries="2"), task())["samples"] == given


def test_a_task_that_samples_once_is_swept_to_the_same_answers_again(make, tmp_path):
    lines = []
    for _ in range(2):
        evaluate(make(boundary="auto"), make_task(splits=SPLITS, generation_kwargs=SAMPLED))
        lines.append([(line["variant"], line["doc_id"], line["responses"]) for line in journaled(tmp_path)])
        shutil.rmtree(tmp_path / "sweeps")
    assert lines[0] == lines[1]
    assert len({str(responses) for _, _, responses in lines[0]}) > len(ROWS)


def shares(references, predictions, **_):
    """As humaneval's pass@k: several metrics from one function, none by its own name."""
    said = Counter(predictions[0] if isinstance(predictions[0], list) else predictions)
    return {"most@1": max(said.values()) / sum(said.values()), "kinds@6": float(len(said))}


METRIC = [{"metric": shares, "aggregation": "mean", "higher_is_better": True}]


@pytest.mark.parametrize(("asked", "name"), [(None, "most@1"), ("kinds@6:all", "kinds@6")])
def test_a_metric_function_that_gives_several_is_swept_by_the_printed_names(make, asked, name):
    task = different_task(process_results=None, metric_list=METRIC)
    results = evaluate(make(boundary="auto", **({"sweep_metric": asked} if asked else {})), task)
    assert swept(results)["metric"]["name"] == name
    assert f"{name},all" in results["results"]["toy"]
    assert all(row["unscored"] == 0 for row in swept(results)["sweep"]["candidates"])


def test_the_functions_own_name_is_refused_with_the_printed_ones(make):
    task = make_task(splits=SPLITS, metric_list=METRIC)
    with pytest.raises(ArgumentError, match="There are: most@1, kinds@6"):
        evaluate(make(boundary="auto", sweep_metric="shares"), task)
