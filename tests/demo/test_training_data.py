"""configs/training/write_training_data.py: the prompts and documents of `lora-drop train`, as files."""

import json
import sys

import pytest

from lm_eval_lora_drop.train.documents import choose_documents
from lm_eval_lora_drop.train.examples import load_binding
from lm_eval_lora_drop.train.settings import TaskSettings
from testing.programs import ROOT, load
from testing.toy import write_task

program = load("configs/training/write_training_data.py")


def write(monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["write_training_data.py", "--output", str(folder), *options])
    assert program.main() == 0
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_prompts_and_answers_are_those_of_the_task(monkeypatch, tmp_path):
    small = '{"train_documents": 40, "validation_documents": 5, "test_documents": 5}'
    lines = write(monkeypatch, tmp_path, "--task", "lora_drop_demo", "--metadata", small)
    documents = load("tasks/demo/utils.py").generate("train", 40)
    expected = [
        {"prompt": f"Question: {one['question']}\nAnswer:", "completion": f" {one['steps']}\n#### {one['answer']}"}
        for one in documents
    ]
    assert lines
    assert all(line in expected for line in lines)
    assert json.loads((tmp_path / "dataset_info.json").read_text())["lora_drop"]["file_name"] == "train.jsonl"


def test_special_tokens_are_written_out(monkeypatch, tmp_path, tiny_base):
    options = ("--task", "lora_drop_demo", "--limit", "3", "--special-tokens", str(tiny_base))
    lines = write(monkeypatch, tmp_path, *options)
    before, after = program.special_tokens(str(tiny_base))
    assert after
    assert len(lines) == 3
    assert all(line["completion"].endswith(after) for line in lines)
    assert all(line["prompt"].startswith(f"{before}Question") for line in lines)


def test_the_documents_are_those_of_a_training(monkeypatch, tmp_path):
    """No validation split: what a sweep would draw is held out, and no test document is written."""
    rows = {
        name: [{"question": f"the {name} number {i * 37}?", "answer": str(i * i)} for i in range(60)]
        for name in ("train", "test")
    }
    rows["train"][:5] = rows["test"][:5]
    write_task(tmp_path, "mine", rows)
    options = ("--task", "mine", "--include-path", str(tmp_path), "--hold-out", "20")
    lines = write(monkeypatch, tmp_path / "data", *options)
    binding = load_binding(TaskSettings(task="mine", include_path=str(tmp_path)))
    chosen = choose_documents(binding, limit=None, seed=0, hold_out=20).chosen
    assert 0 < len(lines) <= 35
    assert [line["prompt"] for line in lines] == [binding.task.doc_to_text(doc) for _, doc in chosen]


def test_a_task_without_a_training_split_is_refused(monkeypatch, tmp_path):
    write_task(tmp_path, "bare", {"test": [{"question": "a?", "answer": "1"}]})
    with pytest.raises(SystemExit, match="bare has no training split"):
        write(monkeypatch, tmp_path / "data", "--task", "bare", "--include-path", str(tmp_path))
    assert not (tmp_path / "data").exists()


def test_the_recipes_read_what_is_written():
    text = (ROOT / "configs" / "training" / "llama_factory_sft.yaml").read_text()
    assert f"dataset: {next(iter(program.DATASET_INFO))}\n" in text
