"""An adapter that is not applied, or whose layers cannot be dropped, is found on its files."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import check_against, open_adapter
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter, make_base

LAYERS = 4


@pytest.fixture
def changed(tiny_adapter, tmp_path):
    """The tiny adapter with other tensors: `change(name, tensor)` gives a name and a tensor, or None for left out."""

    def make(change, **config):
        folder = shutil.copytree(tiny_adapter, tmp_path / "changed")
        file = folder / "adapter_model.safetensors"
        items = (change(name, tensor) for name, tensor in load_file(file).items())
        save_file(dict(filter(None, items)), file, {"format": "pt"})
        config_file = folder / "adapter_config.json"
        config_file.write_text(json.dumps({**json.loads(config_file.read_text()), **config}))
        return open_adapter(str(folder))

    return make


def skeleton(base):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite(changed, value):
    def change(name, tensor):
        if "layers.2.mlp.down_proj.lora_A" in name:
            tensor[1, 3] = value
        return name, tensor

    with pytest.raises(AdapterError, match="1 of 56 tensors hold NaN or infinite .*layers.2.mlp.down_proj.*checkpoint"):
        health.check_weights(changed(change))


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_is_zero(changed, part):
    files = changed(lambda name, tensor: (name, tensor * (part not in name)))
    with pytest.raises(AdapterError, match="changes nothing: in each of its 28 LoRA modules A or B is zero"):
        health.check_weights(files)


def test_an_adapter_that_was_never_trained(tiny_base, tmp_path):
    """PEFT's own first adapter: B = 0. Not so where lm_head was trained besides."""
    fresh = make_adapter(tiny_base, tmp_path / "fresh", init_lora_weights=True)
    with pytest.raises(AdapterError, match="as before training"):
        health.check_weights(open_adapter(str(fresh)))
    head = make_adapter(
        tiny_base, tmp_path / "head", init_lora_weights=True, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    assert health.check_weights(open_adapter(str(head))) == health.Health(frozenset(), below=False, above=True)


def test_half_of_a_lora(changed):
    files = changed(lambda name, tensor: None if "layers.1.mlp.up_proj.lora_B" in name else (name, tensor))
    with pytest.raises(AdapterError, match=r"half of the LoRA of model.layers.1.mlp.up_proj \(.*lora_A"):
        health.check_weights(files)


def test_a_boundary_below_all_lora_is_the_base_model(tiny_base, tmp_path):
    """LoRA in layers 2 and 3 only: K = 2 keeps two layers and changes nothing."""
    adapter = make_adapter(tiny_base, tmp_path / "upper", target_modules=["q_proj"], layers_to_transform=[2, 3])
    found = health.check_weights(open_adapter(str(adapter)))
    assert found.acting == {2, 3}
    assert "K = 2 is the base model: the adapter has LoRA in layers 2-3 only" in found.why_base(
        Variant.below(2, LAYERS)
    )
    assert found.why_base(Variant.below(3, LAYERS)) is None
    assert found.why_base(Variant.base(LAYERS)) is None
    assert "0-1x0.5 is" in found.why_base(Variant.parse("0-1x0.5", LAYERS))


def test_lora_on_the_embedding_acts_from_the_first_layer_on(tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "a", target_modules=["embed_tokens", "layers.3.self_attn.q_proj"])
    found = health.check_weights(open_adapter(str(adapter)))
    assert (found.acting, found.below, found.above) == ({3}, True, False)
    assert found.why_base(Variant.below(1, LAYERS)) is None
    assert found.why_base(Variant.parse("1-2", LAYERS)) is not None


def test_names_without_the_prefix_of_peft(changed, tiny_base):
    """PEFT warns of missing keys and goes on with a LoRA that was never set."""
    files = changed(lambda name, tensor: (name.removeprefix("base_model.model."), tensor))
    check_against(files, skeleton(tiny_base), "base")
    with pytest.raises(
        AdapterError, match="reads 0 of its 56 tensors and leaves 56 unset.*begin with base_model.model"
    ):
        health.load_without_weights(files, skeleton(tiny_base))


def test_an_adapter_that_gets_only_half_in(changed, tiny_base):
    """The configuration names fewer modules than the weights bring, or more."""
    files = changed(lambda name, tensor: (name, tensor), target_modules=["q_proj", "down_proj"])
    with pytest.raises(AdapterError, match="reads 16 of its 56 tensors and leaves 0 unset"):
        health.load_without_weights(files, skeleton(tiny_base))


def test_another_rank_than_the_configuration_says(changed, tiny_base):
    files = changed(lambda name, tensor: (name, tensor), r=8)
    with pytest.raises(AdapterError, match="PEFT .* cannot load it .*size mismatch"):
        health.load_without_weights(files, skeleton(tiny_base))


KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "trained": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "bias": {"bias": "all"},
    "lora bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "replicated": {"target_modules": ["q_proj"], "layer_replication": [[0, 3], [1, 4]]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_adapters_of_every_kind_get_in(kind, tiny_base, tmp_path):
    """What PEFT saved PEFT reads: no false alarm."""
    files = open_adapter(str(make_adapter(tiny_base, tmp_path / "adapter", **KINDS[kind])))
    check_against(files, skeleton(tiny_base), "base")
    model = health.load_without_weights(files, skeleton(tiny_base))
    assert len(model.get_base_model().model.layers) == (6 if kind == "replicated" else 4)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_lora_on_the_experts_of_a_mixture(kind, tmp_path):
    """target_parameters: was refused as trained on another model. Loaded, checked and exported as PEFT reads it."""
    base, adapter = mixture(kind, tmp_path)
    files = open_adapter(str(adapter))
    check_against(files, skeleton(base), str(base))
    health.load_without_weights(files, skeleton(base))
    assert health.check_weights(files).acting == {0, 1, 2, 3}
    export_adapter(adapter, Variant.parse("0+2x0.5", LAYERS), tmp_path / "out")
    whole, part = loaded(base, adapter), loaded(base, tmp_path / "out")
    for name, module in whole.named_modules():
        if isinstance(module, peft.tuners.lora.layer.LoraLayer):
            layer = next(int(p) for p in name.split(".") if p.isdecimal())
            module.scale_layer({0: 1.0, 2: 0.5}.get(layer, 0.0))
    assert torch.equal(answer(part), answer(whole))
    with pytest.raises(AdapterError, match="no single matrix product, so its rank cannot be cut, got r2"):
        export_adapter(adapter, Variant.parse("0-3r2", LAYERS), tmp_path / "cut")


def test_the_rank_of_montecarlo_lora_is_not_cut(tiny_base, tmp_path):
    """Its sampler has the whole rank: PEFT refused what was exported."""
    lora = {"target_modules": ["q_proj"], "monteclora_config": peft.tuners.lora.config.MontecloraConfig()}
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **lora)
    with pytest.raises(AdapterError, match="no single matrix product, so its rank cannot be cut, got r2"):
        export_adapter(adapter, Variant.parse("0-3r2", LAYERS), tmp_path / "cut")
    export_adapter(adapter, Variant.parse("0-3x0.5", LAYERS), tmp_path / "scaled")


def mixture(kind, folder):
    base = make_base(folder / "base")
    sizes = {
        k: v for k, v in json.loads((base / "config.json").read_text()).items() if k.endswith(("size", "heads", "id"))
    }
    config = transformers.AutoConfig.for_model(
        kind, **sizes, num_hidden_layers=LAYERS, num_local_experts=3, num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=24, initializer_range=0.2, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return base, make_adapter(base, folder / "adapter", target_modules=["q_proj"], target_parameters=parameters)


def loaded(base, adapter):
    return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()


def answer(model):
    with torch.no_grad():
        return model(torch.arange(3, 43).reshape(2, 20)).logits


def test_layer_replication_is_exported_for_the_layers_that_it_makes(tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", layer_replication=[[0, 3], [1, 4]])
    export_adapter(adapter, Variant.parse("0-1+4", 6), tmp_path / "out")
    whole = loaded(tiny_base, adapter)
    for index, layer in enumerate(whole.get_base_model().model.layers):
        for module in layer.modules():
            if isinstance(module, peft.tuners.lora.layer.LoraLayer) and index not in (0, 1, 4):
                module.scale_layer(0)
    assert torch.equal(answer(loaded(tiny_base, tmp_path / "out")), answer(whole))


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora"])
def test_an_adapter_that_changes_its_base_model(init, tiny_base, tmp_path):
    """Without its LoRA a layer of PiSSA or OLoRA is not the base model's: the claim, and what is said."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", init_lora_weights=init)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    before = answer(base)
    with (model := loaded(tiny_base, adapter)).disable_adapter():
        assert (answer(model) - before).abs().max() > 0.1
    files = open_adapter(str(adapter))
    with pytest.raises(AdapterError, match=f"made with {init}: PEFT changes the base weights.*Convert.*boundary=full"):
        health.check_divisible(files)
    with pytest.raises(AdapterError, match=f"made with {init}"):
        export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    export_adapter(adapter, Variant.full(LAYERS), tmp_path / "full")
    if "niter" not in init:  # PEFT draws its subspace anew at each loading
        assert torch.equal(answer(loaded(tiny_base, tmp_path / "full")), answer(loaded(tiny_base, adapter)))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_stay_when_a_layer_is_dropped(bias, tiny_base, tmp_path):
    """Qwen2 has biases: the adapter brings trained ones. Llama has none: nothing stays, nothing is refused."""
    base = make_base(tmp_path / "base", "qwen2")
    adapter = make_adapter(base, tmp_path / "adapter", bias=bias)
    with pytest.raises(AdapterError, match=f"bias={bias} and brings 12 biases of the base model.*boundary=full"):
        export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    export_adapter(adapter, Variant.full(LAYERS), tmp_path / "full")
    assert torch.equal(answer(loaded(base, tmp_path / "full")), answer(loaded(base, adapter)))
    without = make_adapter(tiny_base, tmp_path / "without", bias=bias)
    health.check_divisible(open_adapter(str(without)))
    export_adapter(without, Variant.below(2, LAYERS), tmp_path / "part")
    assert json.loads((tmp_path / "part" / "adapter_config.json").read_text())["bias"] == "none"


def test_full_and_base_that_answer_alike():
    said = health.compare_answers([-3.0, -4.0], [-3.0 + 1e-7, -4.0], noise=1e-6)
    assert "2 documents differ by at most 1.0e-07" in said
    assert health.compare_answers([-3.0, -4.0], [-3.0, -4.1], noise=1e-6) is None
    assert health.compare_answers([-3.0], [-3.0]) is not None
    assert health.compare_answers([], []) is None
    with pytest.raises(ValueError, match="shorter"):
        health.compare_answers([1.0], [])
