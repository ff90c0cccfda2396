"""What a merged model cannot be is refused before anything is loaded; what it is says its card."""

import json

import peft
import pytest
import torch
import transformers

from lm_eval_lora_drop.adapter.merge import merge_adapter
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter, make_base

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
    arguments = [
        "export",
        "--merge",
        "--peft",
        str(tiny_adapter),
        "--layers",
        "0-1x0.5",
        "-o",
        str(tmp_path / "merged"),
    ]
    assert cli.main(arguments) == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model_relation: merge" in card
    assert "# merged\n\nA model: `" in card
    assert "A LoRA adapter" not in card
    assert "PeftModel" not in card
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
