"""`lora_drop.sweep` on tiny models: what it finds is what the harness's own run finds."""

import lm_eval
import peft
import pytest
import transformers
from lm_eval.tasks import TaskManager

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.backends.hf import LoraDropLM
from testing.toy import CHOICE, write_task


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task of the user's own in a folder, read from local files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Is {i} enough?", "label": i % 2} for i in range(28)]
    choices = {**CHOICE, "doc_to_choice": [" yes", " no"]}
    write_task(tmp_path / "tasks", "toy_of_the_api", {"validation": rows[:8], "test": rows[20:]}, **choices)
    return tmp_path


def only(folder):
    """Without the default folders: reading the harness's thousands of YAML files takes longer than everything else."""
    return {"task_manager": TaskManager(include_path=str(folder / "tasks"), include_defaults=False)}


@pytest.fixture
def common(folder):
    return {"device": "cpu", "dtype": "float32", "batch_size": 4, "sweep_dir": str(folder / "sweeps")}


def test_a_sweep_finds_what_the_harness_finds_and_its_file_reads_back_the_same(
    folder, common, tiny_base, tiny_adapter, tmp_path, capsys
):
    found = lora_drop.sweep(
        str(tiny_base),
        tiny_adapter,
        "toy_of_the_api",
        evaluation=only(folder),
        output_path=tmp_path / "out",
        **common,
    )
    assert "K =" not in capsys.readouterr().out
    lm = LoraDropLM(pretrained=str(tiny_base), peft=str(tiny_adapter), boundary="auto", **common)
    results = lm_eval.simple_evaluate(model=lm, tasks=["toy_of_the_api"], **only(folder))
    theirs = results["config"]["lora_drop"]["tasks"]["toy_of_the_api"]
    assert str(found.variant) == theirs["variant"]
    assert found["toy_of_the_api"].test.score.value == results["results"]["toy_of_the_api"]["acc,none"]
    again = lora_drop.read(tmp_path / "out")
    assert again.path == found.path
    assert again["toy_of_the_api"].record == found["toy_of_the_api"].record
    exported = again.export(tmp_path / "kept") if not again.variant.is_base else None
    assert exported is None or (tmp_path / "kept" / "adapter_config.json").is_file()


def test_without_a_device_the_machines_own_is_taken(folder, common, tiny_base, tiny_adapter):
    """lm-eval's class insists on a GPU where none is named, its command line does not."""
    common.pop("device")
    found = lora_drop.sweep(str(tiny_base), tiny_adapter, "toy_of_the_api", evaluation=only(folder), **common)
    assert found["toy_of_the_api"].test is not None


def test_a_loaded_model_is_swept_and_left_as_it_was(folder, common, tiny_base, tiny_adapter):
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    model = peft.PeftModel.from_pretrained(base, tiny_adapter).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    common.pop("dtype")
    found = lora_drop.sweep(
        model,
        task="toy_of_the_api",
        evaluation=only(folder),
        tokenizer=str(tiny_base),
        **common,
    )
    files = lora_drop.sweep(
        str(tiny_base), tiny_adapter, "toy_of_the_api", evaluation=only(folder), dtype="float32", **common
    )
    assert found.to_pandas().equals(files.to_pandas())
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
