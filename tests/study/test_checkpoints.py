"""A real training whose checkpoints are swept: the curve, the best one kept, the training undisturbed."""

import dataclasses
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.study.checkpoints import SweepCheckpoints
from lm_eval_lora_drop.sweep.documents import draw
from lm_eval_lora_drop.train.examples import load_binding
from lm_eval_lora_drop.train.run import Training, train
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings

TASK = TaskSettings(
    task="lora_drop_demo", metadata={"train_documents": 16, "validation_documents": 6, "test_documents": 4}
)
ARGS = {"sweep_limit": 5, "sweep_metric": "reference_loglikelihood", "device": "cpu"}


@pytest.fixture
def training(tiny_base, tmp_path):
    settings = TrainingSettings(
        epochs=2, batch_size=8, learning_rate=0.02, lora_dropout=0.1, precision="float32", checkpoints=4, max_length=200
    )
    return Training(
        base=str(tiny_base),
        output=tmp_path / "adapter",
        task=TASK,
        settings=settings,
        device="cpu",
        keep_checkpoints=True,
    )


def test_curve_and_best(training, tmp_path):
    """Four checkpoints, four points; the best by the recorded scores is kept, and its tensors are that checkpoint's;
    the trained adapter is bit for bit that of a training without the callback."""
    callback = SweepCheckpoints(TASK, tmp_path / "swept", ARGS)
    train(dataclasses.replace(training, callbacks=lambda _: [callback]))
    curve = json.loads((tmp_path / "swept" / "checkpoints.json").read_text())
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    assert all(point["documents"] == 5 for point in curve)
    assert all(point["score"] >= point["full_score"] for point in curve)
    best = max(curve, key=lambda point: point["score"])
    kept = json.loads((tmp_path / "swept" / "best" / "best.json").read_text())
    assert kept == best
    saved = peft.load_peft_weights(str(training.output / "checkpoints" / f"checkpoint-{best['step']}"), device="cpu")
    found = peft.load_peft_weights(str(tmp_path / "swept" / "best"), device="cpu")
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    alone = dataclasses.replace(training, output=tmp_path / "alone")
    train(alone)
    one, other = (peft.load_peft_weights(str(folder), device="cpu") for folder in (training.output, alone.output))
    assert all(torch.equal(one[name], other[name]) for name in one)


def likelihood(base, adapter):
    """The full adapter on the validation documents, from its files by plain forward passes: nats per reference token,
    the mean over documents."""
    lm = LoraDropLM(str(base), str(adapter), boundary="full", device="cpu", dtype="float32")
    total = []
    for document in draw(load_binding(TASK), 5, 0).documents:
        prompt = document.requests[0].args[0]
        answer = f" {document.doc['steps']}\n#### {document.doc['answer']}"
        context, continuation = lm._encode_pair(prompt, answer)
        with torch.no_grad():
            logits = lm.model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        said = sum(logits[place, token].item() for place, token in zip(places, continuation, strict=True))
        total.append(said / len(continuation))
    return sum(total) / len(total)


def test_in_a_trainer_of_somebody_elses(tiny_base, tmp_path):
    """TRL's SFTTrainer as its own documentation sets it up, prompts and answers tokenised by TRL: three checkpoints,
    three points, the best one kept, and every score that of the checkpoint's own files."""
    binding = load_binding(TASK)
    documents = list(binding.task.training_docs())[:12]
    data = Dataset.from_list(
        [
            {"prompt": binding.task.doc_to_text(one), "completion": f" {one['steps']}\n#### {one['answer']}"}
            for one in documents
        ]
    )
    callback = SweepCheckpoints(TASK, tmp_path / "swept", ARGS)
    trainer = SFTTrainer(
        model=str(tiny_base),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"), max_steps=3, save_steps=1, per_device_train_batch_size=4,
            learning_rate=0.02, max_length=200, report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, seed=3,
        ),
        train_dataset=data,
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert type(trainer) is SFTTrainer
    curve = json.loads((tmp_path / "swept" / "checkpoints.json").read_text())
    assert [point["step"] for point in curve] == [1, 2, 3]
    assert len({point["full_score"] for point in curve}) == 3
    best = max(curve, key=lambda point: point["score"])
    assert json.loads((tmp_path / "swept" / "best" / "best.json").read_text()) == best
    saved = peft.load_peft_weights(str(tmp_path / "trl" / f"checkpoint-{best['step']}"), device="cpu")
    kept = peft.load_peft_weights(str(tmp_path / "swept" / "best"), device="cpu")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    for point in curve:
        want = likelihood(tiny_base, tmp_path / "trl" / f"checkpoint-{point['step']}")
        assert point["full_score"] == pytest.approx(want, rel=1e-3)


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_goes_on_with_the_training(training, tmp_path):
    """Stopped and started again, the curve is that of a training never stopped."""
    whole = SweepCheckpoints(TASK, tmp_path / "whole", ARGS)
    train(dataclasses.replace(training, output=tmp_path / "a", callbacks=lambda _: [whole]))
    with pytest.raises(KeyboardInterrupt):
        train(
            dataclasses.replace(training, callbacks=lambda _: [SweepCheckpoints(TASK, tmp_path / "s", ARGS), StopAt()])
        )
    again = SweepCheckpoints(TASK, tmp_path / "s", ARGS)
    train(dataclasses.replace(training, callbacks=lambda _: [again]))
    assert again.points == whole.points


def test_a_kill_while_the_best_is_replaced_leaves_whole_folders(training, tmp_path, monkeypatch):
    """Whatever bears the name of the best is all of it, or nothing does."""
    swept = tmp_path / "swept"
    callback = SweepCheckpoints(TASK, swept, ARGS)
    train(dataclasses.replace(training, callbacks=lambda _: [callback], keep_checkpoints=True))
    names = sorted(file.name for file in (swept / "best").iterdir())
    seen, rmtree = [], shutil.rmtree

    def watching(path, *rest, **named):
        seen.append(Path(path).name)
        rmtree(path, *rest, **named)
        assert not (swept / "best").exists() or sorted(file.name for file in (swept / "best").iterdir()) == names

    monkeypatch.setattr(shutil, "rmtree", watching)
    callback._keep(training.output / "checkpoints" / "checkpoint-4")
    assert "best" not in seen
    assert sorted(file.name for file in (swept / "best").iterdir()) == names
    assert [path.name for path in swept.iterdir() if path.name.startswith("best")] == ["best"]
