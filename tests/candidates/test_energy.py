"""Ranks by energy: numpy's singular values of the adapter's own files, and what plain PEFT says of the export."""

import json
import shutil

import numpy as np
import peft
import pytest
import safetensors.numpy
import transformers
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing.tiny import make_adapter, make_base
from tests.candidates.toys import evaluate, texts

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def products(folder):
    """Name of a module -> B A, from the file."""
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in tensors:
        if ".lora_A." in name:
            down, up = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            found[name.partition(".lora_A.")[0].removeprefix("base_model.model.")] = up.astype(float) @ down
    return found


def layer_of(name):
    return next(int(part) for part in name.split(".") if part.isdigit())


def needed(product, share):
    squares = np.linalg.svd(product, compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), share)) + 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_layer_keeps_the_rank_that_numpy_finds(architecture, tmp_path, capsys):
    base = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear", r=6)
    assert main(["candidates", "energy", "--peft", str(adapter), "--pretrained", str(base)]) == 0
    printed = capsys.readouterr().out.split("\n")[1:-1]
    own = products(adapter)
    ranks = {
        share: [max(needed(one, share) for name, one in own.items() if layer_of(name) == i) for i in range(4)]
        for share in SHARES
    }
    expected = {"0-3", "none", *map(written, ranks.values())}
    assert set(printed) == expected
    assert len(expected) > 4

    # Exported and loaded by PEFT alone, each module is numpy's best approximation of that rank.
    notation = next(one for one in printed if "r" in one)
    out = tmp_path / "out"
    argv = ["export", "--peft", str(adapter), "--pretrained", str(base), "--layers", notation, "--output", str(out)]
    assert main(argv) == 0
    cut = next(found for found in ranks.values() if notation == written(found))
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(out))
    scaling = json.loads((adapter / "adapter_config.json").read_text())
    scaling = scaling["lora_alpha"] / scaling["r"]
    for name, product in own.items():
        left, values, right = np.linalg.svd(product, full_matrices=False)
        rank = cut[layer_of(name)]
        best = scaling * (left[:, :rank] * values[:rank]) @ right[:rank]
        module = model.base_model.model.get_submodule(name)
        delta = module.lora_B["default"].weight @ module.lora_A["default"].weight * module.scaling["default"]
        assert np.abs(delta.detach().numpy() - best).max() < 1e-4


def written(ranks):
    """In the notation, layers of one rank together."""
    return str(Variant.parse("+".join(f"{i}r{r}" if r < 6 else str(i) for i, r in enumerate(ranks)), 4))


def test_a_sweep_has_them_and_a_model_without_files_has_not(tiny_base, tiny_adapter, tmp_path):
    how = {"device": "cpu", "boundary": "auto", "sweep_candidates": "energy", "sweep_dir": str(tmp_path)}
    lm = LoraDropLM(str(tiny_base), str(tiny_adapter), **how)
    assert len(make_candidates(["energy"], lm.shape).variants) > 2
    with pytest.raises(ArgumentError, match=r"energy reads singular values .* peft=ADAPTER"):
        make_candidates(["energy"], AdapterShape(4))


def test_a_layer_without_an_update_keeps_the_least_and_one_that_needs_all_keeps_all():
    spectra = [(0, [4.0, 1.0, 0.0]), (0, [1.0, 1.0, 1.0]), (2, [0.0, 0.0])]
    found = make_candidates(["energy"], AdapterShape(3, spectra=lambda: iter(spectra)))
    # 0.5: the second module needs 2 of 3; from 0.7 on all three. Layer 1 has no LoRA, layer 2 no update.
    assert {str(one) for one in found.variants} == {"0-2", "0r2+1+2r1", "0-1+2r1", "none"}


def test_single_modules_of_spread_layers():
    kinds = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    found = [str(one) for one in make_candidates(["single"], AdapterShape(30, kinds)).variants]
    single = [one for one in found if "." in one]
    assert len(found) - 2 == len(single) <= 40
    assert {f"{layer}.{kind}" for layer in (0, 29) for kind in kinds} <= set(single)
    assert {one.partition(".")[2] for one in single} == set(kinds)
    with pytest.raises(ArgumentError, match="kinds of module are known"):
        make_candidates(["single"], AdapterShape(4))


@pytest.mark.parametrize("zero", [(".layers.2.",), (".layers.0.", ".layers.3.mlp.")])
def test_where_b_is_zero_the_least_rank_is_kept_and_the_export_answers_as_evaluated(zero, tiny_adapter, make, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    named = [name for name in tensors if "lora_B" in name and any(part in name for part in zero)]
    safetensors.numpy.save_file({**tensors, **{name: tensors[name] * 0 for name in named}}, file)
    swept = evaluate(
        make(peft=adapter, boundary="auto", sweep_candidates="energy", sweep_limit=3, sweep_engine="shared")
    )
    record = from_config(swept["config"], "here").tasks["toy"]
    found = [row.variant for row in record.sweep.candidates]
    assert len(found) > 2
    for notation in found[1:-1]:
        cut = {keep.rank for layer in Variant.parse(notation, 4).layers for keep in layer}
        assert 1 in cut
        export_adapter(adapter, Variant.parse(notation, 4), tmp_path / notation)
        assert texts(evaluate(make(HFLM, peft=tmp_path / notation))) == texts(
            evaluate(make(peft=adapter, layers=notation))
        )
