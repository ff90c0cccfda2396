"""`hf-lora-drop` against `--model hf`: equal strings and equal log-likelihoods, in fp32, for adapters with B != 0."""

import json
import re
import shutil

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.hf import LoraDropLM
from testing.tiny import ARCHITECTURES, make_adapter, make_base

TEXTS = ["The quick brown fox", "a", "To be, or not to be: that is the question.", "1 + 1 ="]


def answers(lm):
    """Every request type over texts of uneven length, as the harness asks them; made by hand, so without a task."""

    def ask(request_type, arguments):
        requests = [Instance(request_type, {}, args, i) for i, args in enumerate(arguments)]
        return getattr(lm, request_type)(requests, disable_tqdm=True)

    until = {"until": ["q", "\n\n"], "max_gen_toks": 7, "do_sample": False}
    return {
        "generate_until": ask("generate_until", [(text, until) for text in TEXTS]),
        "loglikelihood": ask("loglikelihood", [(text, " yes") for text in TEXTS] + [("", "no context")]),
        "loglikelihood_rolling": ask("loglikelihood_rolling", [(text,) for text in TEXTS]),
    }


def delete_layers(adapter, folder, boundary):
    """A copy of an adapter whose tensors of layers >= boundary were deleted from the file."""
    shutil.copytree(adapter, folder)
    # As a trained adapter says: PEFT then starts the missing tensors at B = 0.
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if (match := re.search(r"\.(?:layers|h)\.(\d+)\.", name)) and int(match[1]) < boundary
    }
    assert 0 < len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def models(base, adapter, **model_args):
    common = {"pretrained": str(base), "device": "cpu", "dtype": "float32", "batch_size": 3}
    return lambda cls, **more: cls(**common, **({"peft": str(adapter)} if adapter else {}), **model_args, **more)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_boundary_answers_as_the_harness_would(architecture, tmp_path):
    base = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter")
    full = answers(models(base, adapter)(HFLM))
    nothing = answers(models(base, None)(HFLM))
    middle = answers(models(base, delete_layers(adapter, tmp_path / "cut", 2))(HFLM))
    # Three different models, or equality would prove nothing.
    assert full["loglikelihood"] != nothing["loglikelihood"] != middle["loglikelihood"] != full["loglikelihood"]

    make = models(base, adapter)
    assert answers(make(LoraDropLM, boundary="full")) == full
    assert answers(make(LoraDropLM, boundary="base")) == nothing
    assert answers(make(LoraDropLM, boundary=2)) == middle


def test_layers_that_are_no_boundary_keep_just_those(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    only = shutil.copytree(adapter, tmp_path / "only")
    config = json.loads((only / "adapter_config.json").read_text())
    (only / "adapter_config.json").write_text(json.dumps({**config, "layers_to_transform": [1, 3]}))
    file = only / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if re.search(r"layers\.[13]\.", n)}, file, {"format": "pt"})
    expected = answers(models(base, only)(HFLM))
    assert answers(models(base, adapter)(LoraDropLM, layers="1+3")) == expected


def test_merging_changes_nothing_beyond_rounding(tmp_path):
    base = make_base(tmp_path / "base")
    make = models(base, make_adapter(base, tmp_path / "adapter"))
    plain, merged = make(LoraDropLM, boundary=2), make(LoraDropLM, boundary=2, merge=True)
    expected, found = answers(plain), answers(merged)
    assert found["generate_until"] == expected["generate_until"]
    for (a, greedy), (b, merged_greedy) in zip(expected["loglikelihood"], found["loglikelihood"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)
        assert merged_greedy == greedy
    # And the weights are given back: a second round is the first again.
    assert answers(merged) == found


@pytest.mark.smollm2
def test_on_smollm2(smollm2, shared_adapters, tmp_path):
    adapter = shared_adapters / "samsum-smollm2-r8"
    make = models(smollm2, adapter)
    expected = answers(models(smollm2, delete_layers(adapter, tmp_path / "cut", 20))(HFLM))
    assert answers(make(LoraDropLM, boundary=20)) == expected
    assert answers(make(LoraDropLM, boundary="full")) == answers(make(HFLM))
    assert answers(make(LoraDropLM, boundary="base")) == answers(models(smollm2, None)(HFLM))
