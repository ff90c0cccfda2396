"""Dropping the LoRA of layers in a loaded model, and giving the model back as it was. Adapters have B != 0."""

import peft
import pytest
import torch
import transformers

from lm_eval_lora_drop.adapter.layers import AdapterLayers, find_decoder_layers
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.variant import Variant
from tests.tiny import ARCHITECTURES, make_adapter

TOKENS = torch.tensor([[5, 9, 33, 7, 60, 21]])
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 3]},
    "rank pattern": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.2.self_attn.q_proj": 2}},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.fixture(params=KINDS, scope="module")
def model(request, tiny_base, tmp_path_factory):
    adapter = make_adapter(tiny_base, tmp_path_factory.mktemp("adapter"), **KINDS[request.param])
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def state(model):
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    switches = {name: m.disable_adapters for name, m in model.named_modules() if hasattr(m, "disable_adapters")}
    return flags, switches


def test_dropping_nothing_is_the_adapter_and_dropping_all_is_the_base(model):
    layers = AdapterLayers.of(model)
    full = logits(model)
    with layers.keep(Variant.below(4, 4)):
        assert torch.equal(logits(model), full)
    with model.disable_adapter():
        base = logits(model)
    with layers.keep(Variant.below(0, 4)):
        assert torch.equal(logits(model), base)
    assert not torch.equal(full, base)


def test_the_model_afterwards_is_the_model_before(model):
    layers = AdapterLayers.of(model)
    before, untouched = logits(model), state(model)
    with layers.keep(Variant.of_layers({1}, 4)):
        inside = logits(model)
        with layers.keep(Variant.below(1, 4)):
            assert not torch.equal(logits(model), inside)
        assert torch.equal(logits(model), inside)
    with pytest.raises(RuntimeError, match="stop"), layers.keep(Variant.below(2, 4)):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), before)
    assert state(model) == untouched


def test_merging_gives_the_same_answers_and_the_weights_back_bit_for_bit(model):
    layers = AdapterLayers.of(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for boundary in (0, 2, 4):
        kept = Variant.below(boundary, 4)
        with layers.keep(kept):
            expected = logits(model)
        with layers.merge(kept):
            assert torch.allclose(logits(model), expected, atol=1e-4)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_every_parameter_is_kept_or_dropped(model):
    layers = AdapterLayers.of(model)
    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    total = sum(tensor.numel() for tensor in saved.values())
    kept = [layers.count_parameters(Variant.below(k, 4))[0] for k in range(5)]
    assert kept == sorted(kept)
    assert (kept[0], kept[4]) == (0, total)
    assert all(sum(layers.count_parameters(Variant.below(k, 4))) == total for k in range(5))


def test_what_lies_outside_the_layers_goes_with_its_neighbour(tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path, **KINDS["embedding and head"])
    layers = AdapterLayers.of(peft.PeftModel.from_pretrained(_base(tiny_base), adapter))
    assert (len(layers.below), len(layers.above)) == (1, 1)
    with layers.keep(Variant.below(1, 4)):
        assert [m.disable_adapters for m in (*layers.below, *layers.above)] == [False, True]
    with layers.keep(Variant.of_layers({3}, 4)):
        assert [m.disable_adapters for m in (*layers.below, *layers.above)] == [True, False]


def test_only_the_active_adapter_counts(tiny_base, tiny_adapter, tmp_path):
    model = peft.PeftModel.from_pretrained(_base(tiny_base), tiny_adapter, adapter_name="first")
    alone = AdapterLayers.of(model).count_parameters(Variant.below(4, 4))
    model.load_adapter(make_adapter(tiny_base, tmp_path, r=8), adapter_name="second")
    assert AdapterLayers.of(model).count_parameters(Variant.below(4, 4)) == alone
    model.set_adapter("second")
    assert AdapterLayers.of(model).count_parameters(Variant.below(4, 4))[0] == 2 * alone[0]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_decoder_layers_of_every_architecture_are_found(architecture):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](3))
    layers = find_decoder_layers(model)
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1


def test_the_experts_of_a_mixture_are_no_layers():
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_local_experts=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=32,
    )  # fmt: skip
    with torch.device("meta"):
        layers = find_decoder_layers(transformers.AutoModelForCausalLM.from_config(config))
    assert [type(layer).__name__ for layer in layers] == ["MixtralDecoderLayer"] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base, adapter: base, "must be a PeftModel"),
        (lambda base, adapter: peft.get_peft_model(base, peft.IA3Config(task_type="CAUSAL_LM")), "is IA3"),
        (lambda base, adapter: _merged(peft.PeftModel.from_pretrained(base, adapter)), "unmerge_adapter"),
    ],
)
def test_what_has_no_layers_to_drop_is_refused(tiny_base, tiny_adapter, make, message):
    with pytest.raises(AdapterError, match=message):
        AdapterLayers.of(make(_base(tiny_base), tiny_adapter))


def _base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def _merged(model):
    model.merge_adapter()
    return model
