"""What a merged model cannot be is refused before anything is loaded; what it is says its card."""

import itertools
import json
import logging
import re
import shutil

import peft
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from safetensors.torch import load_file

from lm_eval_lora_drop.adapter.merge import merge_adapter
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter, make_base
from tests.adapter.test_health import mixture
from tests.backends.test_odd_adapters import with_added_tokens

LAYERS = 4
IDS = torch.arange(3, 43).reshape(2, 20)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def in_peft(base, adapter):
    return logits(peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(adapter)))


def configure(base, **config):
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    "gptq": {"quant_method": "gptq", "bits": 4},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base(kind, tmp_path):
    """Before its weights, or the library that reads them, are looked for; the adapter itself can be exported."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    configure(base, quantization_config=QUANTISED[kind])
    with pytest.raises(AdapterError, match=f"is quantised .{kind}.: .*round them anew.*--pretrained.*without --merge"):
        merge_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    plain = make_base(tmp_path / "plain")
    merge_adapter(adapter, Variant.full(LAYERS), tmp_path / "merged", pretrained=str(plain))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(model), in_peft(plain, adapter), rtol=1e-4, atol=1e-4)


def test_a_bias_of_lora_needs_a_bias_to_go_into(tiny_base, tmp_path):
    """Llama has none; Qwen2's attention has some."""
    adapter = make_adapter(tiny_base, tmp_path / "llama", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(AdapterError, match="lora_bias=True, and model.layers.0.self_attn.q_proj .* has no bias"):
        merge_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "merged")
    base = make_base(tmp_path / "base", "qwen2")
    adapter = make_adapter(base, tmp_path / "qwen2", target_modules=["q_proj"], lora_bias=True)
    merge_adapter(adapter, Variant.full(LAYERS), tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(model), in_peft(base, adapter), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_change_of_a_weight_that_is_used_twice(tied, tmp_path):
    base = make_base(tmp_path / "base", "gemma" if tied else "llama")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    if tied:
        with pytest.raises(AdapterError, match="changes model.embed_tokens, and .* uses one weight"):
            merge_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "merged")
        # Without layer 0 the embedding's LoRA is dropped too.
        merge_adapter(adapter, Variant.parse("1-3", LAYERS), tmp_path / "upper")
    else:
        merge_adapter(adapter, Variant.full(LAYERS), tmp_path / "merged")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(model), in_peft(base, adapter), rtol=1e-4, atol=1e-4)


def test_a_table_of_positions_is_no_vocabulary(tmp_path):
    """The merged model had as many tokens as GPT-2 has positions."""
    base = make_base(tmp_path / "base", "gpt2")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn"], modules_to_save=["wpe"])
    merge_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert logits(merged).shape == logits(transformers.AutoModelForCausalLM.from_pretrained(base)).shape


def test_replicated_layers_share_their_weights(tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", layer_replication=[[0, 3], [1, 4]])
    with pytest.raises(AdapterError, match="layer_replication: replicated layers share one weight"):
        merge_adapter(adapter, Variant.below(2, 6), tmp_path / "merged")


def test_a_dtype_there_is_not(tiny_adapter, tmp_path, capsys):
    with pytest.raises(ArgumentError, match="--dtype must be one of auto, .*got 'float15'"):
        merge_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "merged", dtype="float15")
    arguments = ["export", "--merge", "--dtype", "float15", "--peft", str(tiny_adapter), "--boundary", "2"]
    assert cli.main([*arguments, "-o", str(tmp_path / "merged")]) == 1
    assert "--dtype must be one of" in capsys.readouterr().err


def test_the_weights_have_the_dtype_that_was_asked_for(tiny_adapter, tmp_path):
    merge_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "merged", dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_a_merged_model_is_called_a_model(tiny_adapter, tmp_path, capsys):
    arguments = ["export", "--merge", "--peft", str(tiny_adapter), "--layers", "0-1x0.5", "-o"]
    assert cli.main([*arguments, str(tmp_path / "merged")]) == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model_relation: merge" in card
    assert "# merged\n\nA model: `" in card
    assert "A LoRA adapter" not in card
    assert "PeftModel" not in card
    # The figure that the card shows lies beside it.
    shown = re.findall(r"!\[.+\]\((.+)\)", card)
    assert shown == ["survival.png"]
    assert (tmp_path / "merged" / shown[0]).read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "merged: " in said
    assert "a model of" in said


def test_a_base_model_that_is_not_there(tiny_adapter, tmp_path):
    with pytest.raises(AdapterError, match="the base model .*cannot be read.*--pretrained"):
        merge_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "merged", pretrained=str(tmp_path / "nowhere"))
    (broken := make_base(tmp_path / "broken")).joinpath("model.safetensors").unlink()
    with pytest.raises(AdapterError, match="cannot be loaded"):
        merge_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "merged", pretrained=str(broken))
    assert not (tmp_path / "merged").exists()


def as_stored(base, folder, dtype):
    """The tiny model in a dtype, as a checkpoint is downloaded."""
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def scaled(adapter, folder, factor):
    """An adapter whose update is `factor` times as large."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * factor}))
    return folder


def expected_survival(base, adapter, dtype, kept):
    """By NumPy, from the files: (layer, kind) -> (<stored, true>, <true, true>), and the merged weights."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    lora = load_file(adapter / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors")
    products, merged = {}, {}
    for name in lora:
        if "lora_A" not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        layer, kind = int(module.split(".")[2]), module.rpartition(".")[2]
        if layer >= kept:
            continue
        a, b = (lora[name.replace("lora_A", part)].double().numpy() for part in ("lora_A", "lora_B"))
        change = config["lora_alpha"] / config["r"] * (b @ a)
        start = weights[f"{module}.weight"].to(dtype)
        merged[f"{module}.weight"] = torch.from_numpy(start.double().numpy() + change).to(dtype)
        stored = merged[f"{module}.weight"].double().numpy() - start.double().numpy()
        products[layer, kind] = float((stored * change).sum()), float((change * change).sum())
    return products, merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_survives_is_what_numpy_finds_in_the_files(dtype, tiny_base, tiny_adapter, tmp_path, capsys):
    """And the weights are W + s B A rounded once: PEFT rounds the product, then the sum."""
    base = as_stored(tiny_base, tmp_path / "base", dtype)
    adapter = scaled(tiny_adapter, tmp_path / "adapter", 1 / 16)
    products, merged = expected_survival(base, adapter, dtype, 3)
    total = sum(one for one, _ in products.values()) / sum(other for _, other in products.values())
    exported = merge_adapter(adapter, Variant.below(3, LAYERS), tmp_path / "merged", pretrained=str(base), force=True)
    assert exported.survival.total == pytest.approx(total, abs=1e-3)
    assert exported.survival.parts.keys() == products.keys()
    for key, (stored, true) in exported.survival.parts.items():
        assert stored / true == pytest.approx(products[key][0] / products[key][1], abs=1e-3)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    for name, weight in merged.items():
        # The product itself is made in single precision: a tie may fall the other way.
        assert (written[name] != weight).float().mean() < (0.5 if dtype == torch.float32 else 0.002)
        torch.testing.assert_close(written[name], weight, rtol=1e-2, atol=1e-6)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"in weights of {str(dtype)[6:]}: {total:.3f}" in card
    given = ["--peft", adapter, "--boundary", 3, "--dtype", str(dtype)[6:], "--pretrained", base, "--tokens", 2]
    given += ["-o", tmp_path / "new"]
    code = cli.main(["check", *map(str, given)])
    said = capsys.readouterr().out
    assert code in (0, 1)
    assert f"folded into weights of {str(dtype)[6:]}: {total:.3f}" in said
    assert (tmp_path / "new" / "survival.png").read_bytes().startswith(b"\x89PNG")
    assert said.splitlines()[-1] == str(tmp_path / "new" / "survival.png") or "Why this adapter" in said
    if all(stored / true >= 0.9995 for stored, true in products.values()):
        assert dtype != torch.bfloat16
        assert "layer " not in said  # a table of nothing but 1.000
        return
    # Every cell of the table that is printed, and its totals.
    head, *rows = [line.split() for line in said[said.index("layer ") :].splitlines() if line and line[0] not in "-/"]
    sums = {}
    for (layer, kind), (stored, true) in products.items():
        for key in itertools.product((str(layer), "all"), (kind, "all")):
            before = sums.get(key, (0.0, 0.0))
            sums[key] = before[0] + stored, before[1] + true
    shown = {(row[0], kind): float(cell) for row in rows[:4] for kind, cell in zip(head[1:], row[1:], strict=True)}
    assert shown == {key: pytest.approx(stored / true, abs=1e-3) for key, (stored, true) in sums.items()}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_what_survives_of_lora_on_the_experts_of_a_mixture(kind, tmp_path):
    """`target_parameters`: PEFT rounded the change, then the sum, and the card said that all of it survives."""
    base, adapter = mixture(kind, tmp_path)
    adapter = scaled(adapter, tmp_path / "weak", 1 / 512)
    exported = merge_adapter(adapter, Variant.full(LAYERS), tmp_path / "merged", dtype="bfloat16", force=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = {name: one.detach().bfloat16().float() for name, one in model.named_parameters()}
    whole = peft.PeftModel.from_pretrained(model, str(adapter))
    true = {}
    for name, module in whole.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.layer.LoraLayer):
            layer, part = int(name.split(".")[2]), getattr(module, "parameter_name", "q_proj")
            path = name.replace(".base_layer", "") + f".{part}" if part != "q_proj" else f"{name}.weight"
            true[layer, part] = path, module.get_delta_weight("default").detach().float()
    assert exported.survival.parts.keys() == true.keys()
    assert len(true) == 3 * LAYERS
    written = dict(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").named_parameters())
    for key, (path, change) in true.items():
        rounded = (before[path] + change).bfloat16()
        assert torch.equal(written[path], rounded)
        stored, product = (float(((rounded.float() - before[path]) * change).sum()), float((change * change).sum()))
        found = exported.survival.parts[key]
        assert found[0] / found[1] == pytest.approx(stored / product, abs=1e-3)
        assert found[0] / found[1] < 0.99


def test_a_merge_that_loses_the_lora_is_warned_of_and_then_refused(tiny_base, tiny_adapter, tmp_path, caplog):
    base = as_stored(tiny_base, tmp_path / "base", torch.bfloat16)
    some, little = scaled(tiny_adapter, tmp_path / "a", 1 / 256), scaled(tiny_adapter, tmp_path / "b", 1 / 1024)
    full, given = Variant.full(LAYERS), {"pretrained": str(base)}
    with caplog.at_level(logging.WARNING, logger="lm_eval_lora_drop"):
        merge_adapter(tiny_adapter, full, tmp_path / "whole", **given)
        assert "is left in weights" not in caplog.text
        merge_adapter(some, full, tmp_path / "some", **given)
    assert re.search(r"only 0\.\d\d of the LoRA is left in weights of bfloat16", caplog.text)
    with pytest.raises(ArgumentError, match="only 0.* of the LoRA is left.*dtype=float32.*--force merges all the same"):
        merge_adapter(little, full, tmp_path / "little", **given)
    assert not (tmp_path / "little").exists()
    merge_adapter(little, full, tmp_path / "little", force=True, **given)
    assert merge_adapter(little, full, tmp_path / "wide", dtype="float32", **given).survival.total > 0.999


def test_merge_true_is_held_to_the_same(tiny_base, tiny_adapter, tmp_path):
    little = scaled(tiny_adapter, tmp_path / "a", 1 / 1024)
    request = Instance("loglikelihood", {}, ("The question", " is"), 0)

    def answer(adapter, **more):
        lm = LoraDropLM(
            pretrained=str(tiny_base), peft=str(adapter), dtype="bfloat16", device="cpu", boundary="full", **more
        )
        before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
        try:
            return lm.loglikelihood([request], disable_tqdm=True)
        finally:
            assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())

    answer(tiny_adapter, merge=True)
    with pytest.raises(ArgumentError, match="is left in weights of bfloat16.*merge=force merges all the same"):
        answer(little, merge=True)
    answer(little, merge="force")


@pytest.mark.parametrize("kind", ["modules_to_save", "own embedding"])
def test_added_tokens_are_merged(kind, tiny_base, tmp_path):
    """Ended in PEFT's RuntimeError: the base model has fewer tokens."""
    lora = {"modules_to_save": ["embed_tokens", "lm_head"]} if kind == "modules_to_save" else {}
    adapter = with_added_tokens(tiny_base, tmp_path / "adapter", **lora)
    merge_adapter(adapter, Variant.full(LAYERS), tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    base.resize_token_embeddings(len(tokenizer))
    expected = logits(peft.PeftModel.from_pretrained(base, str(adapter)))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
