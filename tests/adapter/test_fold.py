"""Strengths, modules, cut ranks, differing scalings: loaded in plain PEFT an export is W + c s B_k A_k by hand."""

import json
import math
import re

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.fold import LoraPair
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter, make_base

LAYERS = 4
IDS = torch.arange(3, 43).reshape(2, 20)
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "attn.c_attn", "attn.c_proj"}
# Variant -> what a module (layer, name) keeps: (strength, rank), or None. Written down by hand, not parsed.
KEPT = {
    "0-1": lambda layer, _: (1, None) if layer < 2 else None,
    "1-2": lambda layer, _: (1, None) if layer in (1, 2) else None,
    "0-3x0.7": lambda *_: (0.7, None),
    "0-1+2-3x0.3": lambda layer, _: (1, None) if layer < 2 else (0.3, None),
    "0-3.attention": lambda _, name: (1, None) if is_attention(name) else None,
    "0-1+2-3x0.5.mlp": lambda layer, name: (1, None) if layer < 2 else None if is_attention(name) else (0.5, None),
    "0-3r2": lambda *_: (1, 2),
    "0-1r1+3x1.5r3.mlp": lambda layer, name: (
        (1, 1) if layer < 2 else (1.5, 3) if layer == 3 and not is_attention(name) else None
    ),
}


def is_attention(name):
    return any(name.endswith(f".{part}") for part in ATTENTION)


def by_hand(base, adapter, kept):
    """Logits of the base model with the products added to its weights, in double precision."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            keep = kept(int(re.search(r"\.(\d+)\.", module)[1]), module)
            if keep is None:
                continue
            strength, rank = keep
            a, b = tensor.double().numpy(), tensors[name.replace("lora_A", "lora_B")].double().numpy()
            r = a.shape[0]
            alpha = next((v for p, v in config["alpha_pattern"].items() if re.match(rf"(.*\.)?({p})$", module)), None)
            alpha = config["lora_alpha"] if alpha is None else alpha
            scaling = alpha / (math.sqrt(r) if config["use_rslora"] else r)
            # The whole matrix's singular value decomposition: no trick of the code under test.
            u, values, v = np.linalg.svd(b @ a, full_matrices=False)
            values[len(values) if rank is None else rank :] = 0
            delta = torch.from_numpy(strength * scaling * (u * values) @ v)
            weight = model.get_submodule(module).weight
            weight += delta.T if type(model.get_submodule(module)).__name__ == "Conv1D" else delta
        return model(IDS).logits.float()


def through_peft(base, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()(IDS).logits


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 6, "lora_alpha": 5},
    "patterns": {
        "rank_pattern": {r"layers\.(1|3)\..*": 2, r"h\.1\..*": 2},
        "alpha_pattern": {r"layers\.0\..*": 3, r".*c_fc": 5},
    },
}


@pytest.mark.parametrize(
    ("architecture", "setting"), [("llama", "plain"), ("llama", "rslora"), ("gpt2", "patterns"), ("qwen2", "patterns")]
)
def test_an_export_is_what_was_evaluated(architecture, setting, tmp_path):
    """Each kind of variant, on separate and fused projections, with biases, and Conv1D's transposed weights."""
    base = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter", **SETTINGS[setting])
    seen = []
    for number, (notation, kept) in enumerate(KEPT.items()):
        folder = tmp_path / str(number)
        export_adapter(adapter, Variant.parse(notation, LAYERS), folder)
        seen.append(through_peft(base, folder))
        torch.testing.assert_close(seen[-1], by_hand(base, adapter, kept), rtol=1e-3, atol=1e-3)
        config = json.loads((folder / "adapter_config.json").read_text())
        shapes = {n: t.shape for n, t in load_file(folder / "adapter_model.safetensors").items()}
        # What vLLM and llama.cpp's converter do not read is not there, and one r fits all.
        assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
        assert {s[0] for n, s in shapes.items() if "lora_A" in n} == {config["r"]}
        assert {s[1] for n, s in shapes.items() if "lora_B" in n} == {config["r"]}
    # Variants, not one model eight times.
    for i, one in enumerate(seen):
        assert all((one - other).abs().max() > 0.02 for other in seen[:i])


def test_what_needs_no_folding_is_copied_bit_for_bit(tiny_base, tmp_path):
    """Of two scalings the more frequent one stays as it is, in 16 bits; the other is folded in, in 32."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", alpha_pattern={"down_proj": 3})
    file = adapter / "adapter_model.safetensors"
    before = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(before, file, metadata={"format": "pt"})
    export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    for name, tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        if "down_proj.lora_B" in name:
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, before[name].float() * 3 / 8, rtol=1e-6, atol=0)
        else:
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"target_modules": ["q_proj"], "lora_bias": True}])
def test_a_power_of_two_changes_no_bit_of_the_answers(settings, tiny_base, tmp_path):
    """Half strength: PEFT's own scaled adapter and the export give the same logits, biases and DoRA too."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **settings)
    export_adapter(adapter, Variant.parse("0-3x0.5", LAYERS), tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    with peft.helpers.rescale_adapter_scale(model, 0.5), torch.no_grad():
        assert torch.equal(through_peft(tiny_base, tmp_path / "out"), model(IDS).logits)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 9])
def test_a_cut_is_the_best_approximation(rank):
    """The error is the norm of the singular values left out (Eckart and Young), and none where nothing is left out."""
    generator = torch.Generator().manual_seed(rank)
    a, b = torch.randn(4, 11, generator=generator), torch.randn(7, 4, generator=generator)
    pair = LoraPair(a, b, 2.0).cut(rank)
    values = np.linalg.svd((b @ a).numpy(), compute_uv=False)
    error = torch.linalg.norm(b @ a - pair.b @ pair.a)
    assert float(error) == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-5)
    assert pair.rank == min(rank, 4)
    padded = pair.padded(9)
    assert (padded.a.shape, padded.b.shape) == ((9, 11), (7, 9))
    assert torch.equal(padded.b @ padded.a, pair.b @ pair.a)


@pytest.mark.parametrize(
    ("settings", "notation", "message"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}, "0-3x0.5", "as a whole"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}, "0x0.5+1-3", "as a whole"),
    ],
)
def test_what_has_no_strength_is_refused(settings, notation, message, tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **settings)
    with pytest.raises(AdapterError, match=message):
        export_adapter(adapter, Variant.parse(notation, LAYERS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_outside_the_layers_has_a_strength_takes_its_neighbours(tiny_base, tmp_path):
    """LoRA on the embedding has layer 0's strength and rank, that on lm_head the last layer's."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", target_modules=["embed_tokens", "lm_head", "q_proj"])
    export_adapter(adapter, Variant.parse("0x0.5+1-2+3x2r2", LAYERS), tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "out"))
    name = "base_model.model.model.embed_tokens.lora_embedding_B"
    assert torch.equal(after[name], before[name] * 0.5)
    head = "base_model.model.lm_head.lora_{}.weight"
    one, other = (t[head.format("B")] @ t[head.format("A")] for t in (before, after))
    u, values, v = torch.linalg.svd(one, full_matrices=False)
    values[2:] = 0
    torch.testing.assert_close(other, 2 * (u * values) @ v, rtol=1e-4, atol=1e-5)
