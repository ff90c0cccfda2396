"""Which layers to train, by how much the pretrained model changes its states in them: against plain Transformers."""

import itertools
import json

import numpy as np
import pytest
import torch
import transformers

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.alignment import by_importance, cka_pretrained
from lm_eval_lora_drop.train.run import Training, prepare, train
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings
from testing.tiny import make_base
from testing.toy import write_task

LAYERS = 6


def by_numpy(base, texts):
    """1 - CKA in the space of features, from the states that Transformers itself gives out."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    # The last of its states has been through the final norm.
    for name in ("norm", "ln_f"):
        if hasattr(model.base_model, name):
            setattr(model.base_model, name, torch.nn.Identity())
    with torch.no_grad():
        states = [model(torch.tensor([list(text)]), output_hidden_states=True).hidden_states for text in texts]
    at = [np.stack([one[0, -1].double().numpy() for one in layer]) for layer in zip(*states, strict=True)]
    at = [one - one.mean(axis=0) for one in at]
    norm = np.linalg.norm
    with np.errstate(invalid="ignore"):  # the last token of a prompt may be the same in all
        return [1 - norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b)) for a, b in itertools.pairwise(at)]


@pytest.fixture
def task(tmp_path):
    splits = {
        split: [{"question": f"the {split} question {i * 37}", "answer": f"answer {i * 7}"} for i in range(8)]
        for split in ("train", "validation", "test")
    }
    write_task(tmp_path / "task", "toy_cka", splits, doc_to_text="{{question}}\n", target_delimiter="")
    return TaskSettings(task="toy_cka", include_path=str(tmp_path / "task"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "SmolLM2"])
def test_the_layers_that_change_their_states_most_are_printed_and_trained(
    architecture, task, tmp_path, capsys, request
):
    if architecture == "SmolLM2":
        base = request.getfixturevalue("smollm2")
    else:
        base = make_base(tmp_path / "base", architecture, num_layers=LAYERS)
    where = ["--pretrained", str(base), "--task", "toy_cka", "--include-path", task.include_path]
    assert main(["layers", *where, "--dtype", "float32", "--device", "cpu", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split()[:3] == ["layer", "cka_pretrained", "rank"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    found = json.loads((tmp_path / "out" / "layers.json").read_text())
    # The harness moves the white space at the end of a prompt to the answer.
    texts = [tokenizer(f"the validation question {i * 37}", add_special_tokens=False).input_ids for i in range(8)]
    assert found["scores"]["cka_pretrained"] == pytest.approx(by_numpy(base, texts), rel=1e-4, abs=1e-7)
    assert (found["documents"], found["adapter"]) == (8, None)
    if architecture == "SmolLM2":
        return  # training adds nothing to the comparison

    settings = TrainingSettings(epochs=1, batch_size=8, precision="float32", layers="cka:0.5")
    training = Training(base=str(base), output=tmp_path / "adapter", task=task, settings=settings, device="cpu")
    texts = [one.input_ids[: one.labels.count(-100)] for one in prepare(training).encoded]
    best = sorted(np.argsort(by_numpy(base, texts))[-3:].tolist())
    record = train(training)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["layers_to_transform"]) == best
    assert record.settings["layers"] == "cka:0.5"
    assert record.trained_layers.endswith("of 6")


def test_states_that_are_the_same_before_a_layer_and_differ_behind_it():
    """As where all prompts end with one token; a mean of equal numbers must not leave rounding to compare."""
    same, behind = np.tile([0.1, 0.7, 1e3 / 3], (7, 1)), np.random.default_rng(0).normal(size=(7, 4))
    found = cka_pretrained([(same, behind), (behind, behind), (same, same)])
    assert found[:2] == pytest.approx([1, 0])
    assert by_importance(found) == [0, 1, 2]
    with pytest.raises(ArgumentError, match="at least 3 documents, got 2"):
        cka_pretrained([(behind[:2], behind[:2])])


@pytest.mark.parametrize("value", ["cka:", "cka:0", "cka:0.0", "cka:1.5", "cka:half", "cka:-0.5", "cka:nan"])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(ArgumentError, match=f"above 0 and at most 1, got '{value}'"):
        TrainingSettings(layers=value)


def test_it_needs_a_model_and_a_task(capsys):
    assert main(["layers", "--pretrained", "org/base"]) != 0
    assert "--task TASK. Give both, or --peft" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "trained"), [("0.01", (4,)), ("0.5", (1, 3, 4)), ("1", (0, 1, 2, 3, 4, 5))])
def test_a_share_names_at_least_one_layer(share, trained):
    found = TrainingSettings(layers=f"cka:{share}").resolved([4, 1, 3, 0, 5, 2])
    assert found.trained_layers(6) == trained
