"""A real training on a tiny model: what it optimises, where the LoRA is, what is written, and going on after a stop."""

import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
import yaml
from filelock import FileLock
from transformers import TrainerCallback

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.train.record import read_record
from lm_eval_lora_drop.train.run import Training, last_checkpoint, prepare, train
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings
from testing.tiny import make_base
from testing.toy import write_task

DEVICE = "cpu"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task on disk with twelve training documents."""
    folder = tmp_path_factory.mktemp("task")
    splits = {
        split: [{"question": f"the {split} question {i}", "answer": f"the answer {i * 7}"} for i in range(size)]
        for split, size in (("train", 12), ("validation", 3), ("test", 3))
    }
    write_task(folder, "toy_train", splits, doc_to_text="{{question}}\n", target_delimiter="")
    return TaskSettings(task="toy_train", include_path=str(folder))


@pytest.fixture
def training(tiny_base, task, tmp_path):
    settings = TrainingSettings(epochs=2, batch_size=4, learning_rate=0.01, precision="float32", checkpoints=3)
    return Training(base=str(tiny_base), output=tmp_path / "adapter", task=task, settings=settings, device=DEVICE)


def change(training, *, output=None, **settings):
    return dataclasses.replace(
        training,
        output=output or training.output,
        settings=dataclasses.replace(training.settings, **settings),
    )


def weights(folder):
    return peft.load_peft_weights(str(folder), device="cpu")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_a_machine_without_a_gpu_trains_without_being_told_so(training, precision):
    """bfloat16 on a CPU is what `auto` takes where the CPU can; the trainer must not look for a GPU for it."""
    record = train(dataclasses.replace(change(training, precision=precision), device=None))
    assert len(record.steps) == 6


class StopAt(TrainerCallback):
    """Stands for a kill: the step was made, nothing is saved of it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_loss_is_that_of_the_answers(architecture, training, tmp_path):
    """One step on all documents at once: its loss is the mean over all answer tokens of -log p, computed one document
    at a time by plain Transformers on the base model (a fresh LoRA has B = 0)."""
    base = make_base(tmp_path / architecture, architecture)
    config = json.loads((base / "config.json").read_text())
    # GPT-2 comes with dropout of its own, which a training model applies: off, as the oracle knows no chance.
    (base / "config.json").write_text(json.dumps({k: 0.0 if k.endswith("pdrop") else v for k, v in config.items()}))
    one = change(training, batch_size=12, epochs=1, weight_decay=0.0)
    one = dataclasses.replace(one, base=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for encoded in prepare(one).encoded:
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
        for position, label in enumerate(encoded.labels[1:]):
            if label >= 0:
                total -= logits[position, label].item()
                count += 1
    record = train(one)
    assert len(record.steps) == 1
    assert record.steps[0].loss == pytest.approx(total / count, rel=1e-4)
    assert record.data.answer_tokens == count


@pytest.mark.parametrize("sweeps_read", ["validation", "train"])
def test_the_validation_loss_is_that_of_the_answers_a_sweep_reads(sweeps_read, training, tiny_base, task, tmp_path):
    """Before the first step and after the last, computed one document at a time by plain Transformers and PEFT; where
    a sweep draws from the training split, on documents that were not trained on."""
    if sweeps_read == "train":
        written = yaml.safe_load((Path(task.include_path) / "toy_train.yaml").read_text())
        (tmp_path / "task").mkdir()
        (tmp_path / "task" / "toy_train.yaml").write_text(yaml.safe_dump({**written, "validation_split": None}))
        training = dataclasses.replace(training, task=dataclasses.replace(task, include_path=str(tmp_path / "task")))
    one = change(training, validation_limit=3, hold_out=0, micro_batch_size=2)
    prepared, record = prepare(one), train(one)
    assert len(prepared.validation) == 3
    assert not {x.input_ids for x in prepared.encoded} & {x.input_ids for x in prepared.validation}
    measured = {one.step: one.loss for one in record.validation}
    assert sorted(measured) == [0, *range(2, len(record.steps), 2), len(record.steps)]
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for step in (0, len(record.steps)):
        model = base if step == 0 else peft.PeftModel.from_pretrained(base, one.output).eval()
        losses = []
        for encoded in prepared.validation:
            with torch.no_grad():
                logits = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
            losses += [-logits[at, label].item() for at, label in enumerate(encoded.labels[1:]) if label >= 0]
        assert measured[step] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert "on validation documents" in (one.output / "README.md").read_text()


def test_what_is_written(training):
    """An adapter that PEFT loads, B != 0 on every layer, whose loss has fallen; card and record say what it is."""
    record = train(dataclasses.replace(training, base_name="owner/model"))
    folder = training.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "training.json",
    ]  # fmt: skip
    tensors = weights(folder)
    assert {int(name.split("layers.")[1].split(".")[0]) for name in tensors} == {0, 1, 2, 3}
    assert all(tensor.abs().max() > 0 and tensor.dtype == torch.float32 for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == record.trained_parameters
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/model"
    assert read_record(folder) == record
    assert [step.step for step in record.steps] == list(range(1, 7))
    assert record.steps[-1].loss < record.steps[0].loss
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "owner/model"
    assert "12 documents of split `train`" in card
    base = transformers.AutoModelForCausalLM.from_pretrained(training.base)
    loaded = peft.PeftModel.from_pretrained(base, folder)
    assert not [name for name, parameter in loaded.named_parameters() if parameter.isnan().any()]


def test_only_the_wanted_layers_are_trained(training, tmp_path):
    """`paper` is its bottom 20 of 32: 2.5 of four layers, rounded up to three."""
    per_layer = train(change(training, output=tmp_path / "one", layers="2", epochs=1)).trained_parameters
    for layers, trained in (("paper", {0, 1, 2}), ("0+3", {0, 3})):
        record = train(change(training, output=tmp_path / layers, layers=layers, epochs=1))
        assert {int(name.split("layers.")[1].split(".")[0]) for name in weights(tmp_path / layers)} == trained
        assert record.trained_parameters == per_layer * len(trained)


def test_seeds(training):
    """Same seed, same adapter, bit for bit; another one differs and reads the same documents."""
    folder = training.output.parent
    first, again, other = (
        train(change(training, output=folder / name, seed=seed, lora_dropout=0.1, epochs=1))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(weights(folder / "a"), weights(folder / "b"))
    assert [step.loss for step in first.steps] == [step.loss for step in again.steps]
    assert not same(weights(folder / "a"), weights(folder / "c"))
    assert first.data.doc_ids == other.data.doc_ids


def test_stopped_and_started_again(training, tmp_path):
    """Stopped at any step and called again, the adapter is bit for bit that of a training never stopped; also where the
    newest checkpoint was being written when it happened."""
    whole = change(training, output=tmp_path / "whole", lora_dropout=0.1, validation_limit=2)
    expected = train(whole)
    for damaged in (False, True):
        stopped = change(whole, output=tmp_path / f"damaged-{damaged}")
        for step in (3, 5):
            with pytest.raises(KeyboardInterrupt):
                train(dataclasses.replace(stopped, callbacks=(StopAt(step),)))
            assert read_record(stopped.output) is None
            newest = last_checkpoint(stopped.output / "checkpoints")
            if damaged and newest is not None:
                (newest / "trainer_state.json").write_text('{"global_step": ')
        record = train(stopped)
        assert same(weights(whole.output), weights(stopped.output))
        assert (record.steps, record.validation) == (expected.steps, expected.validation)
        assert record.resumed == 2
        assert not (stopped.output / "checkpoints").exists()


def test_done_is_done(training):
    first = train(training)
    stamp = (training.output / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(training) == first
    assert (training.output / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_another_training_is_not_taken_for_this_one(training):
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(training, callbacks=(StopAt(3),)))
    with pytest.raises(ArgumentError, match="unfinished training with other settings"):
        train(change(training, rank=2))
    train(training)
    with pytest.raises(ArgumentError, match="adapter of another training"):
        train(change(training, rank=2))


def test_a_folder_in_use(training):
    training.output.mkdir()
    with FileLock(training.output / ".lock"), pytest.raises(ArgumentError, match="in use by another training"):
        train(training)


def test_micro_batches_and_checkpointing_change_nothing(training):
    """A batch split into parts, and activations computed twice, give the same losses (loss is per token of the whole
    batch, not a mean of means: answers differ in length)."""
    folder = training.output.parent
    plain = train(change(training, output=folder / "a", epochs=1))
    split = train(change(training, output=folder / "b", epochs=1, micro_batch_size=1))
    again = train(change(training, output=folder / "c", epochs=1, gradient_checkpointing=True))
    for other in (split, again):
        assert [step.loss for step in other.steps] == pytest.approx([step.loss for step in plain.steps], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "0-9"}, "layers must lie in 0..3"),
        ({"layers": "0-1x0.5"}, "layers must name the decoder layers to train and nothing else"),
        ({"target_modules": ("nope",)}, "target_modules must name modules"),
        ({"batch_size": 6, "micro_batch_size": 4}, "batch_size must be a multiple"),
        ({"max_length": 5}, "no document remains for training"),
    ],
)
def test_wrong_settings(settings, message, training):
    with pytest.raises(ArgumentError, match=message):
        train(change(training, **settings))


@pytest.mark.parametrize("base", ["/nope/model", "no-such-owner/no-such-model"])
def test_no_such_base(base, training):
    with pytest.raises(ArgumentError, match="model"):
        train(dataclasses.replace(training, base=base))
    assert not training.output.exists()


def test_cut_or_skipped(training):
    """Documents longer than max_length lose the beginning of their prompt, or are passed over."""
    lengths = sorted(len(one.input_ids) for one in prepare(training).encoded)
    assert lengths[0] < lengths[-1], "the case is not the one that it is meant to be"
    cut = prepare(change(training, max_length=lengths[0]))
    skipped = prepare(change(training, max_length=lengths[0], long="skip"))
    assert len(cut.encoded) == 12
    assert max(len(one.input_ids) for one in cut.encoded) == lengths[0]
    assert 0 < len(skipped.encoded) < 12
    assert not any(one.cut for one in skipped.encoded)
