"""`sweep_task`: a task without documents to search on is searched on another one's; thoughts; code of the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep import documents as validation
from testing.toy import evaluate, make_task, write_task

validation.bind_requests()
EVALUATED = [
    {"question": f"How many apples are left of {n} apples when the neighbour has taken three of them?", "answer": "x"}
    for n in (11, 12, 13)
]
OWN = [
    {
        "text": f"A train with {n} waggons leaves the city of towers; which of its passengers will be {word}?",
        "label": "y",
    }
    for n, word in enumerate(("late", "early", "hungry", "lost", "asleep", "happy"))
]


def bind(task):
    task.build_all_requests()
    return validation.binding_of(task.instances[0])


def bare_task():
    return make_task(splits={"test": EVALUATED})


def other(folder, docs, split="test", name="other", **config):
    """The file of a task with these documents."""
    return str(write_task(folder, name, {split: docs}, doc_to_text="{{text}}", doc_to_target="{{label}}", **config))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_other_tasks_documents_are_read_and_evaluated_ones_among_them_are_not(tmp_path, split):
    """Planted among them: an evaluated document under another field's name, and one with other capitals."""
    planted = [
        {"text": EVALUATED[1]["question"], "label": "z"},
        {"text": EVALUATED[2]["question"].upper(), "label": "z"},
    ]
    evaluated = bind(bare_task())
    searched = validation.other_task(other(tmp_path, [planted[0], *OWN, planted[1]], split), evaluated)
    drawn = validation.draw(searched, 100, seed=0, evaluated_task=evaluated.task)
    assert drawn.split == split
    assert sorted(document.doc_id for document in drawn.documents) == [1, 2, 3, 4, 5, 6]
    assert sorted((one.doc_id, one.of) for one in drawn.left_out) == [(0, 1), (7, 2)]
    # The prompts are those of the other task.
    assert {document.requests[0].args[0] for document in drawn.documents} == {doc["text"] for doc in OWN}


def test_a_task_that_is_not_there_is_refused_and_so_are_a_group_and_the_task_itself(tmp_path):
    evaluated = bind(bare_task())
    with pytest.raises(ArgumentError, match="existing YAML file"):
        validation.other_task(str(tmp_path / "nothing.yaml"), evaluated)
    with pytest.raises(ArgumentError, match="is the evaluated task itself"):
        validation.other_task(other(tmp_path, OWN, name="toy"), evaluated)


def test_code_of_the_model_runs_only_where_the_evaluated_task_runs_it_too(tmp_path):
    path = other(tmp_path, OWN, unsafe_code=True)
    with pytest.raises(ArgumentError, match="--confirm_run_unsafe_code"):
        validation.other_task(path, bind(bare_task()))
    agreed = bind(make_task(splits={"test": EVALUATED}, unsafe_code=True))
    assert validation.other_task(path, agreed).name == "other"


def entry_of(results, task="toy"):
    return results["config"]["lora_drop"]["tasks"][task]


@pytest.mark.parametrize("boundary", ["auto", "probe"])
def test_what_is_kept_is_found_on_the_other_task_and_the_record_says_so(make, tmp_path, boundary):
    path = other(tmp_path, OWN)
    entry = entry_of(evaluate(make(boundary=boundary, sweep_task=path), bare_task()))
    assert entry["method"] == {"auto": "sweep", "probe": "probe"}[boundary]
    assert (entry["validation"]["task"], entry["validation"]["split"]) == ("other", "test")
    assert sorted(entry["validation"]["doc_ids"]) == list(range(len(OWN)))
    assert "documents of task other (sweep_task)" in entry["warnings"][0]


def test_a_task_with_documents_of_its_own_is_searched_on_those(make, tmp_path):
    """The other task is not even loaded: its file does not exist."""
    entry = entry_of(evaluate(make(boundary="auto", sweep_task=str(tmp_path / "no.yaml")), make_task()))
    assert entry["validation"]["task"] is None
    assert entry["validation"]["split"] == "validation"


def run_code(doc, results):
    """Runs what the model wrote, in a process of its own: right where that prints the answer."""
    ran = subprocess.run(
        [sys.executable, "-I", "-c", doc["before"] + ascii(results[0])], capture_output=True, text=True, check=False
    )
    return {"passed": float(ran.stdout.strip() == doc["answer"])}


def code_task():
    """Prompts and answers of a task that runs code; what the model adds is a comment, so the program is right or not by
    its document."""
    rows = {
        split: [{"question": f"{split} {i}", "before": f"print({i % 2}) # ", "answer": "1"} for i in range(4)]
        for split in ("validation", "test")
    }
    return make_task(
        "code",
        splits=rows,
        unsafe_code=True,
        process_results=run_code,
        metric_list=[{"metric": "passed", "aggregation": "mean", "higher_is_better": True}],
    )


def test_code_is_run_in_a_sweep_after_it_was_confirmed_and_never_before(make):
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluate(make(boundary="auto"), code_task())
    results = evaluate(make(boundary="auto"), code_task(), confirm_run_unsafe_code=True)
    entry = entry_of(results, "code")
    assert (entry["method"], entry["metric"]["name"]) == ("sweep", "passed")
    assert {row["score"] for row in entry["sweep"]["candidates"]} == {0.5}
    assert results["results"]["code"]["passed,none"] == 0.5


def answers(results):
    return [row["resps"] for row in sorted(results["samples"]["toy"], key=lambda row: row["doc_id"])]


@pytest.mark.parametrize("kind", ["text", "token"])
def test_the_answer_after_the_thought_counts_in_evaluation_and_sweep(make, kind):
    """The end of the thought is something that the tiny model does say; outputs with it are cut as `hf` cuts them."""
    task = {"generation_kwargs": {"until": [], "max_gen_toks": 8, "do_sample": False}}
    plain = make(HFLM)
    said = [row[0][0] for row in answers(evaluate(plain, make_task(**task)))]
    assert "G" in said[0]
    marker = "G" if kind == "text" else plain.tok_encode("G")[-1]
    theirs = answers(evaluate(make(HFLM, think_end_token=marker), make_task(**task)))
    assert theirs != [[[text]] for text in said]  # something was cut
    whole = answers(evaluate(make(boundary=4, think_end_token=marker), make_task(**task)))
    assert whole == theirs
    lm = make(boundary="auto", sweep_boundaries="0+4", think_end_token=marker, sweep_limit=4)
    entry = entry_of(evaluate(lm, make_task(**task)))
    assert entry["sweep"]["engine"] == "plain"
    assert any("inside its thought" in warning for warning in entry["warnings"])
    journaled = [json.loads(line) for line in Path(entry["journal"]).read_text().splitlines()[1:]]
    alone = make(HFLM, think_end_token=marker)
    documents = [f"validation question {i}?" for i in entry["validation"]["doc_ids"]]
    request = [Instance("generate_until", {}, (text, task["generation_kwargs"]), i) for i, text in enumerate(documents)]
    expected = sorted(alone.generate_until(request))
    found = sorted(row["responses"][0] for row in journaled if row["variant"] == "0-3")
    assert found == expected
