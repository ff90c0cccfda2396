"""Dropping the LoRA of layers in a loaded model, and giving the model back as it was. Adapters have B != 0."""

import peft
import pytest
import torch
import transformers

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter

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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base, adapter: base, "must be a PeftModel"),
        (lambda base, adapter: peft.get_peft_model(base, peft.IA3Config(task_type="CAUSAL_LM")), "is IA3"),
        (lambda base, adapter: _merged(peft.PeftModel.from_pretrained(base, adapter)), "unmerge_adapter"),
        (lambda base, adapter: _off(peft.PeftModel.from_pretrained(base, adapter), 0), "off in 28 of 28 modules"),
        (lambda base, adapter: _off(peft.PeftModel.from_pretrained(base, adapter), 3), "off in 7 of 28 modules"),
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


def _off(model, first):
    """Without the adapter from a layer on, as one drops it by hand."""
    for layer in model.get_base_model().model.layers[first:]:
        for module in layer.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.enable_adapters(enabled=False)
    return model


def parsed(text):
    return Variant.parse(text, 4)


@pytest.fixture(scope="module")
def plain(tiny_base, tiny_adapter):
    return peft.PeftModel.from_pretrained(_base(tiny_base), tiny_adapter).eval()


def weights_of(model):
    scalings = {
        name: dict(m.scaling) for name, m in model.named_modules() if isinstance(getattr(m, "scaling", None), dict)
    }
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, scalings


def same_weights(model, before):
    tensors, scalings = weights_of(model)
    assert scalings == before[1]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())


def by_hand(base, adapter, change):
    """The model whose adapter's deltas were changed, by ordinary arithmetic on the weights: an oracle of its own."""
    model = peft.PeftModel.from_pretrained(_base(base), adapter).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and module.lora_A:
                delta = module.get_delta_weight("default").double()
                layer = int(name.split("layers.")[1].split(".")[0])
                module.base_layer.weight += change(layer, name.rpartition(".")[2], delta).float()
    with model.disable_adapter():
        return logits(model)


def cut(delta, rank):
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("0-3x0.5", lambda i, name, delta: delta * 0.5),
        ("1-2x1.5", lambda i, name, delta: delta * (1.5 if i in (1, 2) else 0)),
        ("0-3r2", lambda i, name, delta: cut(delta, 2)),
        ("0-1+2-3x0.25r1", lambda i, name, delta: delta if i < 2 else cut(delta, 1) * 0.25),
        ("0-3.attention", lambda i, name, delta: delta * (name in ("q_proj", "k_proj", "v_proj", "o_proj"))),
        ("0-3.mlp", lambda i, name, delta: delta * (name in ("gate_proj", "up_proj", "down_proj"))),
        ("0-3.q_proj.up_proj", lambda i, name, delta: delta * (name in ("q_proj", "up_proj"))),
    ],
)
def test_a_variant_is_what_arithmetic_on_the_weights_gives(plain, tiny_base, tiny_adapter, text, change):
    layers, before = AdapterLayers.of(plain), weights_of(plain)
    expected, full = by_hand(tiny_base, tiny_adapter, change), logits(plain)
    for context in (layers.keep, layers.merge):
        with context(parsed(text)):
            assert torch.allclose(logits(plain), expected, atol=1e-3)
            assert not torch.allclose(logits(plain), full, atol=1e-2)
        same_weights(plain, before)
        with pytest.raises(RuntimeError, match="stop"), context(parsed(text)):
            raise RuntimeError("stop")
        same_weights(plain, before)


def test_the_innermost_of_nested_contexts_holds(plain):
    layers, before = AdapterLayers.of(plain), weights_of(plain)
    for outer, inner in [("0-3x0.5", "0-3"), ("0-3r1", "0-3x2"), ("none", "0-3r1"), ("0-3x0.5r1", "0-1x0.5+2r2")]:
        with layers.keep(parsed(inner)):
            alone = logits(plain)
        with layers.keep(parsed(outer)):
            outside = logits(plain)
            with layers.keep(parsed(inner)):
                assert torch.equal(logits(plain), alone)
            assert torch.equal(logits(plain), outside)
        same_weights(plain, before)


def test_parameters_of_a_variant_are_counted(plain):
    layers = AdapterLayers.of(plain)
    total = layers.count_parameters(parsed("0-3"))[0]
    attention, mlp = (layers.count_parameters(parsed(f"0-3.{kind}"))[0] for kind in ("attention", "mlp"))
    assert attention + mlp == total
    assert min(attention, mlp) > 0
    # r = 4, cut to 1: a quarter of each product is kept.
    assert layers.count_parameters(parsed("0-3r1")) == (total // 4, total - total // 4)
    assert layers.count_parameters(parsed("0-3x0.5r9")) == (total, 0)


def test_one_of_several_adapters_is_kept_by_name(tiny_base, tiny_adapter, tmp_path):
    model = peft.PeftModel.from_pretrained(_base(tiny_base), tiny_adapter).eval()
    other = make_adapter(tiny_base, tmp_path, seed=5, r=2, target_modules=["q_proj", "down_proj"])
    alone = logits(peft.PeftModel.from_pretrained(_base(tiny_base), other).eval())
    model.load_adapter(str(other), adapter_name="other")
    layers, before, untouched = AdapterLayers.of(model), logits(model), state(model)
    with layers.keep(parsed("other@0-3")):
        assert torch.equal(logits(model), alone)
        with layers.keep(parsed("0-3")):
            assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert state(model) == untouched
    assert 0 < sum(layers.count_parameters(parsed("other@0-3"))) < sum(layers.count_parameters(parsed("0-3")))


@pytest.mark.parametrize(
    ("lora", "text", "error", "message"),
    [
        ({}, "0-3.experts", ArgumentError, "attention.*down_proj.*mlp.*got experts"),
        ({}, "nobody@0-3", ArgumentError, "loaded .default., got 'nobody'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "0-3x0.5", AdapterError, "norm was trained"),
    ],
)
def test_variants_that_cannot_be_kept_are_refused_untouched(tiny_base, tmp_path, lora, text, error, message):
    model = peft.PeftModel.from_pretrained(_base(tiny_base), make_adapter(tiny_base, tmp_path, **lora)).eval()
    layers, before = AdapterLayers.of(model), weights_of(model)
    for context in (layers.keep, layers.merge):
        with pytest.raises(error, match=message), context(parsed(text)):
            pass
    same_weights(model, before)


def test_where_a_module_acts_is_seen_by_running_it():
    """OPT defines project_out before its layers and runs it after them."""
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=16, num_attention_heads=2, num_hidden_layers=2, word_embed_proj_dim=8
    )
    model = peft.get_peft_model(
        transformers.OPTForCausalLM(config),
        peft.LoraConfig(target_modules=["q_proj", "project_in", "project_out"], init_lora_weights=False),
    )
    layers = AdapterLayers.of(model)
    decoder = model.get_base_model().model.decoder
    assert layers.below == (decoder.project_in,)
    assert layers.above == (decoder.project_out,)


def test_layers_that_peft_has_replicated_are_layers(tiny_base):
    model = peft.get_peft_model(
        _base(tiny_base),
        peft.LoraConfig(task_type="CAUSAL_LM", layer_replication=[[0, 3], [1, 4]], init_lora_weights=False),
    ).eval()
    layers = AdapterLayers.of(model)
    assert layers.num_layers == 6
    full = logits(model)
    with layers.keep(Variant.below(6, 6)):
        assert torch.equal(logits(model), full)
    with layers.keep(Variant.below(3, 6)):
        assert not torch.equal(logits(model), full)
