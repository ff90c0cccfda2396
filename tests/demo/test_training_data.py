"""configs/training/write_training_data.py: lm-eval's own prompts, and nothing that the sweep will read."""

import json
import sys

import pytest

from lm_eval_lora_drop.sweep import documents as validation
from testing.programs import ROOT, load
from testing.toy import CHOICE, make_task

program = load("configs/training/write_training_data.py")


def write(monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["write_training_data.py", "--output", str(folder), *options])
    assert program.main() == 0
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_prompts_and_answers_are_those_of_the_task(monkeypatch, tmp_path):
    lines = write(monkeypatch, tmp_path, "--task", "lora_drop_demo")
    assert len(lines) == 3200
    document = load("tasks/demo/utils.py").generate("train", 1)[0]
    assert lines[0] == {
        "prompt": f"Question: {document['question']}\nAnswer:",
        "completion": f" {document['steps']}\n#### {document['answer']}",
    }
    assert json.loads((tmp_path / "dataset_info.json").read_text())["lora_drop"]["file_name"] == "train.jsonl"


def test_special_tokens_are_written_out(monkeypatch, tmp_path, tiny_base):
    options = ("--task", "lora_drop_demo", "--limit", "3", "--special_tokens", str(tiny_base))
    lines = write(monkeypatch, tmp_path, *options)
    before, after = program.special_tokens(str(tiny_base))
    assert after
    assert len(lines) == 3
    assert all(line["completion"].endswith(after) for line in lines)
    assert all(line["prompt"].startswith(f"{before}Question") for line in lines)


def test_what_a_sweep_draws_from_the_training_split_is_held_out():
    rows = {name: [{"question": f"{name} {i}?", "answer": str(i)} for i in range(60)] for name in ("train", "test")}
    task = make_task(splits=rows)
    validation.bind_requests()
    task.build_all_requests(limit=2)
    drawn = validation.draw(validation.binding_of(task.instances[0]), limit=20, seed=5)
    prompts = {task.doc_to_text(document.doc) for document in drawn.documents}
    trained = {prompt for prompt, _ in program.examples(task, hold_out=20, limit=None, seed=5)}
    assert len(trained) == 40
    assert not trained & prompts


def test_the_text_of_a_choice_is_written_and_not_its_index():
    docs = [{"question": f"q{i}", "choices": ["a", "b", "c"], "label": i % 3} for i in range(6)]
    task = make_task(splits={"train": docs, "validation": docs[:2], "test": docs[2:]}, **CHOICE)
    written = list(program.examples(task, hold_out=None, limit=None, seed=0))
    assert written == [(f"q{i}", " " + "abc"[i % 3]) for i in range(6)]


def test_what_the_sweep_passes_over_is_held_out_too():
    rows = {name: [{"question": f"{name} {i}?", "answer": str(i)} for i in range(30)] for name in ("train", "test")}
    rows["train"][:10] = rows["test"][:10]  # evaluated, so that a sweep leaves them out and reads on
    task = make_task(splits=rows)
    selection = validation.select(task, 20, seed=3)
    assert len(selection.doc_ids) == 20
    with pytest.raises(SystemExit, match="--hold-out must leave something"):
        list(program.examples(task, hold_out=20, limit=None, seed=3))
    trained = {prompt for prompt, _ in program.examples(task, hold_out=5, limit=None, seed=3)}
    read = validation.select(task, 5, seed=3)
    assert not trained & {rows["train"][index]["question"] for index in read.doc_ids}


def test_holding_out_of_a_split_that_no_sweep_reads_is_refused():
    with pytest.raises(SystemExit, match="--hold-out is for tasks whose sweep reads training documents"):
        next(program.examples(make_task(), hold_out=5, limit=None, seed=0))


def test_a_task_without_a_training_split_is_refused(monkeypatch, tmp_path):
    # The task's own message, before any file is written.
    task = make_task(splits={"test": [{"question": "a?", "answer": "1"}]})
    monkeypatch.setattr(program.TaskManager, "load", lambda self, names: {"tasks": {names[0]: task}})
    with pytest.raises(SystemExit, match="--task must name a task with a training split, mine has none"):
        write(monkeypatch, tmp_path / "data", "--task", "mine")
    assert not (tmp_path / "data").exists()


def test_holding_everything_out_is_refused():
    rows = {name: [{"question": f"{name} {i}?", "answer": str(i)} for i in range(5)] for name in ("train", "test")}
    with pytest.raises(SystemExit, match="--hold-out must leave something to train on: the training split has 5"):
        next(program.examples(make_task(splits=rows), hold_out=5, limit=None, seed=0))


def test_the_recipes_read_what_is_written():
    text = (ROOT / "configs" / "training" / "llama_factory_sft.yaml").read_text()
    assert f"dataset: {next(iter(program.DATASET_INFO))}\n" in text
