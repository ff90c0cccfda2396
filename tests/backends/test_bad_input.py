"""Each wrong input gets one message: the argument, what came, what is allowed; before the model loads if possible."""

import json
import shutil

import lm_eval
import peft
import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from testing.tiny import make_adapter, make_base
from testing.toy import write_task


@pytest.fixture
def loading_fails(monkeypatch):
    """From here on, loading the weights of a base model is the failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(HFLM, "_create_model", refuse)


def start(base, adapter, **model_args):
    given = {"peft": str(adapter)} if adapter is not None else {}
    return LoraDropLM(pretrained=str(base), device="cpu", dtype="float32", **given, **model_args)


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"boundary": 5}, r"boundary must be an integer from 0 to 4 .*got 5"),
        ({"boundry": 4}, "Did you mean boundary"),
        ({"layers": "0-7"}, r"layers must lie in 0\.\.3 .*got 4\+7"),
        ({"sweep_boundaries": "0-9"}, "sweep_boundaries: .*0 to 4 .*got 9"),
    ],
)
def test_arguments(tiny_base, tiny_adapter, loading_fails, model_args, message):
    with pytest.raises(ArgumentError, match=message):
        start(tiny_base, tiny_adapter, **model_args)


def test_no_adapter(tiny_base, loading_fails):
    with pytest.raises(ArgumentError, match="peft must name the LoRA adapter"):
        start(tiny_base, None)


def test_a_folder_that_is_no_adapter(tiny_base, tmp_path, loading_fails):
    with pytest.raises(AdapterError, match="has no adapter_config.json. Point peft="):
        start(tiny_base, tmp_path)


def test_a_path_that_does_not_exist(tiny_base, tmp_path, loading_fails):
    with pytest.raises(AdapterError, match="Check the path"):
        start(tiny_base, tmp_path / "no" / "such" / "folder")


def test_a_merged_model_in_place_of_an_adapter(tiny_base, loading_fails):
    with pytest.raises(AdapterError, match="perhaps one with the adapter merged into it"):
        start(tiny_base, tiny_base)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
    ids=["IA3", "prefix"],
)
def test_an_adapter_that_is_not_lora(tiny_base, tmp_path, config, loading_fails):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=f"peft_type={config.peft_type.value}"):
        start(tiny_base, tmp_path)


def test_an_adapter_for_another_model(tmp_path, loading_fails):
    base = make_base(tmp_path / "base")
    other = make_base(tmp_path / "other", num_layers=6)
    with pytest.raises(AdapterError, match="does not fit .*layers.4.* does not exist.*The adapter was trained on"):
        start(base, make_adapter(other, tmp_path / "adapter"))


def test_an_adapter_for_a_wider_model(tiny_base, tiny_adapter, tmp_path, loading_fails):
    wide = shutil.copytree(tiny_adapter, tmp_path / "wide")
    file = wide / "adapter_model.safetensors"
    tensors = {n: torch.cat([t, t], dim=1) if ".lora_A." in n else t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(AdapterError, match="does not fit .*inputs, not"):
        start(tiny_base, wide)


def test_a_truncated_weights_file(tiny_base, tiny_adapter, tmp_path, loading_fails):
    torn = shutil.copytree(tiny_adapter, tmp_path / "torn")
    file = torn / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot be read .*probably truncated"):
        start(tiny_base, torn)


def test_a_torn_configuration(tiny_base, tiny_adapter, tmp_path, loading_fails):
    torn = shutil.copytree(tiny_adapter, tmp_path / "torn")
    (torn / "adapter_config.json").write_text('{"peft_type": "LO')
    with pytest.raises(AdapterError, match="not valid JSON"):
        start(tiny_base, torn)


def test_no_lora_in_any_decoder_layer(tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(AdapterError, match="no LoRA in its decoder layers|decoder layer"):
        start(tiny_base, adapter)


def test_an_encoder_decoder_base(tiny_adapter, tmp_path, loading_fails):
    transformers.T5Config(vocab_size=64, d_model=16, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="encoder-decoder"):
        start(tmp_path, tiny_adapter)


def test_a_loaded_model_that_is_merged_or_has_no_adapter(tiny_base, tiny_adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    with pytest.raises(AdapterError, match="or a PeftModel"):
        LoraDropLM(pretrained=model, tokenizer=tokenizer)
    merged = peft.PeftModel.from_pretrained(model, tiny_adapter)
    merged.merge_adapter()
    with pytest.raises(AdapterError, match="merged"):
        LoraDropLM(pretrained=merged, tokenizer=tokenizer, boundary=2)


def test_an_unwritable_sweep_folder(tiny_base, tiny_adapter, tmp_path, loading_fails):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="sweep_dir"):
        start(tiny_base, tiny_adapter, sweep_dir=str(tmp_path / "file" / "sweeps"))


def test_the_name_of_the_folder_does_not_change_the_fingerprint(tiny_base, tiny_adapter, tmp_path):
    twin = shutil.copytree(tiny_adapter, tmp_path / "twin")
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 3}))
    models = [start(tiny_base, adapter, boundary=1) for adapter in (tiny_adapter, twin, other)]
    prints = [model.fingerprint_parts()["adapter"]["fingerprint"] for model in models]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("model_args", "metadata", "message"),
    [
        ({"sweep_metric": "exact_mach"}, {}, "sweep_metric .*toy.*got 'exact_mach'. .*Did you mean .*exact_match"),
        ({}, {"data_dir": "/nope"}, "data_dir must be a folder .*/nope"),
        ({"boundary": 2}, {"data_dir": "/nope"}, "data_dir must be a folder .*/nope"),
    ],
)
def test_what_does_not_fit_the_tasks(tiny_base, tiny_adapter, loading_fails, tmp_path, model_args, metadata, message):
    """lm-eval builds the model before it loads the tasks, and tells it nothing of them."""
    write_task(tmp_path, "lora_drop_toy", {"test": [{"question": "?", "answer": "a"}]})
    given = {"pretrained": str(tiny_base), "peft": str(tiny_adapter), **model_args}
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(ArgumentError, match=message):
        lm_eval.simple_evaluate(
            "hf-lora-drop", given, tasks=["lora_drop_toy"], task_manager=manager, metadata=metadata, device="cpu"
        )
