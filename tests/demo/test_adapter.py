"""The adapter in demo/adapter, and the program that trained it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from testing.programs import ROOT, load

ADAPTER = ROOT / "demo" / "adapter"
LOG = json.loads((ROOT / "demo" / "training_log.json").read_text())


@pytest.fixture(scope="module")
def program():
    return load("demo/train_adapter.py")


@pytest.fixture(scope="module")
def examples(program, tiny_base):
    return program.examples(AutoTokenizer.from_pretrained(tiny_base))


def test_the_adapter_is_small_whole_and_names_no_folder():
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) <= 5_000_000
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30  # A and B, seven linear layers, thirty decoder layers
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.any() for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == LOG["trained_parameters"]


def test_the_log_is_that_of_the_program(program):
    assert LOG["settings"] == vars(program.Settings())
    assert len(LOG["loss_per_step"]) == LOG["settings"]["epochs"] * LOG["documents"] / LOG["settings"]["batch_size"]
    assert sum(LOG["loss_per_step"][-10:]) < 0.1 * sum(LOG["loss_per_step"][:10])


def test_only_the_answer_and_the_end_of_text_are_learned(program, examples, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    data, digest = examples
    assert digest == LOG["documents_sha256"]
    example = data[0]
    learned = example["labels"] != program.IGNORED
    assert torch.equal(example["labels"][learned], example["input_ids"][learned])
    answer = tokenizer.decode(example["labels"][learned])
    assert answer.startswith(" ")
    assert "####" in answer
    assert answer.endswith(tokenizer.eos_token)
    assert tokenizer.decode(example["input_ids"][~learned]).endswith("\nAnswer:")


def test_every_epoch_takes_every_example_once(program):
    data = [{"input_ids": torch.arange(1, n + 2), "labels": torch.full((n + 1,), n)} for n in range(10)]
    settings = program.Settings(epochs=2, batch_size=4)
    found = list(program.batches(data, settings))
    assert [len(batch["labels"]) for batch in found] == [4, 4, 2] * 2
    for epoch in (found[:3], found[3:]):
        assert sorted(label for batch in epoch for label in batch["labels"][:, 0].tolist()) == list(range(10))
    for batch in found:
        assert torch.equal(batch["attention_mask"].bool(), batch["labels"] != program.IGNORED)


def test_training_lowers_the_loss_and_saves_bfloat16(program, examples, tiny_base, tmp_path, monkeypatch):
    data, digest = examples
    monkeypatch.setattr(program, "examples", lambda tokenizer: (data[:8], digest))
    settings = program.Settings(epochs=4, batch_size=4, learning_rate=1e-2)
    log = program.train(tiny_base, tmp_path / "adapter", settings)
    assert sum(log["loss_per_step"][-4:]) < sum(log["loss_per_step"][:4])
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
