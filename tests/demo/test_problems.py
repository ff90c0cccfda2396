"""The word problems of `lora_drop_demo`: right, disjoint, the same everywhere."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from lm_eval.tasks import TaskManager

from testing.programs import ROOT, load

problems = load("tasks/demo/utils.py")
SIZES = {"train": 600, "validation": 300, "test": 300}
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


@pytest.fixture(scope="module")
def documents():
    return {split: problems.generate(split, size) for split, size in SIZES.items()}


@pytest.fixture(scope="module")
def task():
    manager = TaskManager(include_path=str(ROOT / "tasks" / "demo"), include_defaults=False)
    return manager.load(["lora_drop_demo"])["tasks"]["lora_drop_demo"]


def test_no_problem_is_in_two_splits_or_twice_in_one(documents):
    # Kind and steps tell a problem apart from every other, whatever its names and wording.
    keys = {split: [(doc["kind"], doc["steps"]) for doc in docs] for split, docs in documents.items()}
    assert all(len(set(of)) == len(of) for of in keys.values())
    assert not set(keys["train"]) & set(keys["validation"])
    assert not set(keys["train"]) & set(keys["test"])
    assert not set(keys["validation"]) & set(keys["test"])


def test_every_kind_has_its_share_of_every_split(documents):
    for split, docs in documents.items():
        kinds = [doc["kind"] for doc in docs]
        assert {kind: kinds.count(kind) for kind in problems.KINDS} == dict.fromkeys(
            problems.KINDS, SIZES[split] // len(problems.KINDS)
        )


def test_the_steps_are_right_and_start_from_the_question(documents):
    for doc in (doc for docs in documents.values() for doc in docs):
        equations = EQUATION.findall(doc["steps"])
        assert " ".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in equations) == doc["steps"]
        known = {*re.findall(r"\d+", doc["question"]), "2"}  # "half" and "around" do not spell their 2
        for a, sign, b, c in equations:
            assert {a, b} <= known, doc
            assert APPLY[sign](int(a), int(b)) == int(c) > 0, doc
            known.add(c)
        assert equations[-1][-1] == doc["answer"]


def test_a_longer_list_begins_with_the_shorter():
    assert problems.generate("test", 30)[:7] == problems.generate("test", 7)


def test_another_seed_gives_other_problems():
    first = {doc["question"] for doc in problems.generate("test", 100, seed=0)}
    assert len(first & {doc["question"] for doc in problems.generate("test", 100, seed=1)}) < 30


def test_every_process_makes_the_documents_that_the_adapter_was_trained_on():
    code = (
        "from testing.programs import load\n"
        "for doc in load('tasks/demo/utils.py').generate('train', 3200):\n"
        '    print(f\'Question: {doc["question"]}\\nAnswer: {doc["steps"]}\\n#### {doc["answer"]}\')\n'
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    text = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    log = json.loads((ROOT / "demo" / "training_log.json").read_text())
    assert hashlib.sha256(text.stdout).hexdigest() == log["documents_sha256"]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        problems.generate("dev", 1)
    with pytest.raises(ValueError, match="ask for fewer documents"):
        problems.generate("test", 1200)


def test_the_task_asks_and_scores(task):
    doc = next(iter(task.test_docs()))
    assert task.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    assert task.fewshot_context(doc, num_fewshot=0) == task.doc_to_text(doc)
    assert (len(task.training_docs()), len(task.validation_docs()), len(task.test_docs())) == (3200, 200, 100)

    def score(response):
        task.build_all_requests(limit=1)
        instance = task.instances[0]
        instance.resps = [response]
        task.apply_filters()
        return task.process_results(doc, [instance.filtered_resps["strict-match"]])["exact_match"]

    assert score(f" {doc['steps']}\n#### {doc['answer']}") == 1
    assert score(f" #### {doc['answer']} apples") == 1
    assert score(f" {doc['answer']}") == 0
    assert score(f" {doc['steps']}\n#### {doc['answer']}0") == 0
    assert score("") == 0


def test_sizes_and_seed_can_be_given_on_the_command_line():
    metadata = {"test_documents": 7, "data_seed": 3}
    manager = TaskManager(include_path=str(ROOT / "tasks" / "demo"), include_defaults=False, metadata=metadata)
    task = manager.load(["lora_drop_demo"])["tasks"]["lora_drop_demo"]
    assert [doc["question"] for doc in task.test_docs()] == [
        doc["question"] for doc in problems.generate("test", 7, seed=3)
    ]
