"""What a training writes, as reckoned beforehand, against the files of real trainings."""

import dataclasses
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import TrainerCallback

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.train.lora import load_tokenizer
from lm_eval_lora_drop.train.run import Training, train
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings
from lm_eval_lora_drop.train.size import training_size
from testing.tiny import make_base

TASK = TaskSettings(
    task="lora_drop_demo", metadata={"train_documents": 12, "validation_documents": 4, "test_documents": 4}
)


def training(base, folder, **settings):
    given = {"epochs": 1, "batch_size": 4, "precision": "float32", "max_length": 200, "checkpoints": 3, **settings}
    return Training(base=str(base), output=folder, task=TASK, settings=TrainingSettings(**given), device="cpu")


def reckoned(one):
    tokenizer = load_tokenizer(one.base, None, trust_remote_code=False)
    return training_size(one.base, None, one.settings, tokenizer, trust_remote_code=False)


def written(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"layers": "1+3", "rank": 3}),
        ("gpt2", {"layers": "0", "target_modules": ("c_attn",)}),
    ],
)
def test_the_adapter_is_as_large_as_reckoned(architecture, settings, tmp_path):
    """Byte by byte of the tensors in the file that PEFT wrote."""
    one = training(make_base(tmp_path / "base", architecture), tmp_path / "adapter", checkpoints=1, **settings)
    train(one)
    with safe_open(one.output / "adapter_model.safetensors", "pt") as tensors:
        found = sum(4 * tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    assert reckoned(one).adapter == found


class Most(TrainerCallback):
    """How many checkpoints stand side by side."""

    def __init__(self):
        self.checkpoints = 0

    def on_save(self, args, state, control, **_):
        self.checkpoints = max(self.checkpoints, len(list(Path(args.output_dir).glob("checkpoint-*"))))


def test_checkpoints_are_as_large_as_reckoned(tiny_base, tmp_path):
    """Three checkpoints, all kept, so that they can be weighed: what is not reckoned is small. Those of a study are
    removed on the way, and never more than two stand there when one has been written."""
    kept = dataclasses.replace(training(tiny_base, tmp_path / "kept", rank=384), keep_checkpoints=True)
    train(kept)
    size = reckoned(kept)
    assert len(list((kept.output / "checkpoints").glob("checkpoint-*"))) == 3
    actual = written(kept.output / "checkpoints")
    assert size.checkpoints <= actual <= 1.03 * size.checkpoints
    assert size.adapter <= written(kept.output) - actual <= 1.03 * size.adapter
    most = Most()
    usual = dataclasses.replace(training(tiny_base, tmp_path / "usual", rank=384), callbacks=lambda _: [most])
    train(usual)
    assert most.checkpoints == 2
    one = training(tiny_base, tmp_path / "one", rank=384, checkpoints=1)
    assert reckoned(one).checkpoints == size.checkpoints // 3
    assert reckoned(training(tiny_base, tmp_path / "x", rank=384, checkpoints=10)) == size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "0-9"}, "layers must lie in 0..3"),
        ({"target_modules": ("nope",)}, "target_modules must name modules"),
    ],
)
def test_what_cannot_be_trained_is_said(settings, message, tiny_base, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        reckoned(training(tiny_base, tmp_path, **settings))
