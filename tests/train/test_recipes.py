"""The recipes for other trainers: TRL's is parsed by the installed TRL, LLaMA-Factory's checked by its arguments."""

import json
import os
from pathlib import Path

import pytest
import yaml

from lm_eval_lora_drop.files import package_folder

RECIPES = package_folder("configs") / "training"
KINDS = {"text": str, "truth": bool, "integer": int, "number": (int, float)}


def parse_trl(path):
    """As `trl sft --config` does (trl/scripts/sft.py); TRL writes its environment into ours, which is put back."""
    from trl.scripts.sft import make_parser

    before = dict(os.environ)
    try:
        return make_parser().parse_args_and_config(
            ["--config", str(path), "--dataset_name", "data", "--output_dir", "out"], fail_with_unknown_args=True
        )
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def cpu(tmp_path):
    """TRL's recipe for a machine whose PyTorch may have no bfloat16 training: only where it computes is changed."""
    recipe = yaml.safe_load((RECIPES / "trl_sft.yaml").read_text())
    path = tmp_path / "trl.yaml"
    path.write_text(yaml.safe_dump({**recipe, "use_cpu": True}))
    return path


def test_trl_parses_its_recipe(cpu):
    """Every key is known to the installed TRL, and says what the paper did: three epochs, rank 8, 2,048 tokens, batch
    16 on one GPU."""
    _, training, model, _ = parse_trl(cpu)
    assert training.num_train_epochs == 3
    assert training.max_length == 2048
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert (training.packing, training.seed, training.lr_scheduler_type.value) == (False, 0, "cosine")
    assert training.get_warmup_steps(1000) == 100
    assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_dropout) == (True, 8, 16, 0.0)
    assert model.lora_target_modules in ("all-linear", ["all-linear"])


def test_trl_refuses_a_key_that_it_does_not_know(cpu):
    """So that the test above can fail."""
    cpu.write_text(cpu.read_text() + "lora_rnk: 3\n")
    with pytest.raises(ValueError, match="lora_rnk"):
        parse_trl(cpu)


def wrong(recipe):
    """What is wrong with a LLaMA-Factory recipe by the schema: unknown keys, values of another kind."""
    schema = json.loads((Path(__file__).parent / "llama_factory_keys.json").read_text())
    kinds = {key: kind for group in ("model", "data", "finetuning", "training") for key, kind in schema[group].items()}
    for key, value in recipe.items():
        if key not in kinds:
            yield f"unknown key {key}"
        elif not isinstance(value, KINDS[kinds[key]]) or (isinstance(value, bool) and kinds[key] != "truth"):
            yield f"{key} must be {kinds[key]}, got {value!r}"
        elif value not in schema["choices"].get(key, [value]):
            yield f"{key} must be one of {schema['choices'][key]}"


def test_llama_factory_recipe():
    recipe = yaml.safe_load((RECIPES / "llama_factory_sft.yaml").read_text())
    assert list(wrong(recipe)) == []
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 16
    assert (recipe["lora_rank"], recipe["num_train_epochs"], recipe["cutoff_len"]) == (8, 3, 2048)
    assert (recipe["stage"], recipe["finetuning_type"]) == ("sft", "lora")


def test_both_recipes_train_alike():
    """Where the two tools have the same setting under two names, the recipes give it the same value."""
    trl, factory = (yaml.safe_load((RECIPES / f"{name}_sft.yaml").read_text()) for name in ("trl", "llama_factory"))
    names = {"lora_r": "lora_rank", "max_length": "cutoff_len", "warmup_steps": "warmup_ratio"}
    shared = ["lora_alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size"]
    shared += ["gradient_accumulation_steps", "lr_scheduler_type", "bf16", "seed", "model_name_or_path"]
    for one, other in {**names, **{name: name for name in shared}}.items():
        assert trl[one] == factory[other]
