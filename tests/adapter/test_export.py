"""An exported adapter is the adapter under its variant, bit for bit where nothing is folded, and ordinary PEFT."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.adapter.merge import merge_adapter
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.record.schema import KEY
from lm_eval_lora_drop.variant import Variant
from testing.run_files import swept
from testing.tiny import ARCHITECTURES, make_adapter, make_base

LAYERS = 4
IDS = torch.arange(3, 43).reshape(2, 20)


def loaded(base, adapter):
    """The adapter on its base, with PEFT's warnings about missing and unexpected keys as errors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s).*(missing|unexpected).*keys")
        return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def under(base, adapter, kept):
    """The full adapter; what `kept` drops is taken out of the model, the modules of the base put in their place."""
    model = loaded(base, adapter)
    for name, module in list(model.get_base_model().named_modules()):
        if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper) and not is_kept(name, kept):
            parent = model.get_base_model().get_submodule(name.rpartition(".")[0])
            plain = module.base_layer if isinstance(module, LoraLayer) else module.original_module
            plain = getattr(module, "token_adapter", None).base_layer if hasattr(module, "token_adapter") else plain
            setattr(parent, name.rpartition(".")[2], plain)
    return logits(model)


def is_kept(name, kept):
    """A plain variant's rule, by a module's name: its layer; the embedding with layer 0, the head with the last."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if numbers:
        return numbers[0] in kept.kept_layers
    return (0 if "embed" in name else kept.num_layers - 1) in kept.kept_layers


def assert_same(base, adapter, kept, folder, *, exactly=True):
    exported = export_adapter(adapter, kept, folder)
    model = loaded(base, folder)
    if exactly:
        assert torch.equal(logits(model), under(base, adapter, kept))
    else:
        torch.testing.assert_close(logits(model), under(base, adapter, kept), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shapes of `lora_bias`: only the names are wanted
        made = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    written = set(load_file(folder / "adapter_model.safetensors"))
    assert made <= written
    # PEFT saves the base weight of an embedding along with its LoRA.
    assert {name.removeprefix("base_model.model.") for name in written - made} <= {
        f"{module}.{weight}"
        for module in ("model.embed_tokens", "lm_head")
        for weight in ("weight", "base_layer.weight")
    }
    return exported


@pytest.fixture
def config_of():
    return lambda folder: json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_export_equals_the_boundary_on_every_architecture(architecture, tmp_path, config_of):
    """Logits of the exported adapter are those of the whole one under the boundary; names fit without remainder."""
    base = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(base, tmp_path / "adapter")
    for boundary in (1, LAYERS):
        folder = tmp_path / f"K{boundary}"
        exported = assert_same(base, adapter, Variant.below(boundary, LAYERS), folder)
        if "q_proj" in config_of(adapter)["target_modules"]:
            assert config_of(folder)["layers_to_transform"] == list(range(boundary))
        sizes = {name: tensor.numel() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
        left = sum(size for name, size in sizes.items() if is_kept(name, Variant.below(boundary, LAYERS)))
        assert (exported.parameters, exported.dropped_parameters) == (left, sum(sizes.values()) - left)
        assert exported.size == (folder / "adapter_model.safetensors").stat().st_size


VARIANTS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 2, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {r"layers\.(1|3)\..*q_proj": 2, "down_proj": 6},
        "alpha_pattern": {r"layers\.0\..*": 3, r"layers\.3\..*": 5},
    },
    "regex": {"target_modules": r".*\.(q_proj|down_proj)"},
    "some layers": {
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [0, 2, 3],
        "layers_pattern": "layers",
    },
    "full names": {"target_modules": [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1, 3) for p in "qv"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "down_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj", "down_proj"]},
    "head trained": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "norms trained": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "embedding trained": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens trained": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "tokens of both": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [5]}},
    "lora bias": {"target_modules": ["q_proj"], "lora_bias": True},
}


SPECS = ["0-1", "0-3", "1+3", "0"]


def test_what_acts_before_the_layers_by_any_name(tmp_path):
    """OPT's positions were exported as if they acted behind the last layer."""
    sizes = {"vocab_size": 291, "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    config = transformers.OPTConfig(**sizes, num_hidden_layers=LAYERS, max_position_embeddings=64)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    lora = {"target_modules": ["q_proj", "project_in"], "modules_to_save": ["embed_positions"]}
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", **lora)
    _disturb(adapter)
    for spec in ("0-1", "1-3"):
        export_adapter(adapter, Variant.parse(spec, LAYERS), tmp_path / spec)
        left = load_file(tmp_path / spec / "adapter_model.safetensors")
        assert any("embed_positions" in name for name in left) == (spec == "0-1")
        assert any("project_in" in name for name in left) == (spec == "0-1")
        loaded(tmp_path / "base", tmp_path / spec)


@pytest.mark.parametrize(
    ("variant", "spec"), [(name, SPECS[(place + turn) % 4]) for place, name in enumerate(VARIANTS) for turn in (0, 2)]
)
def test_variants_keep_what_they_are(variant, spec, tiny_base, tmp_path, config_of):
    """DoRA, rsLoRA, patterns, trained modules and every way to name targets survive, with boundaries and layer sets."""
    kept = Variant.parse(spec, LAYERS)
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **VARIANTS[variant])
    _disturb(adapter)
    # Where ranks or scalings differ between modules they are folded into B, which rounds.
    assert_same(tiny_base, adapter, kept, tmp_path / "out", exactly=variant != "patterns")
    before, after = config_of(adapter), config_of(tmp_path / "out")
    which = {"target_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices"}
    scale = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
    assert {k: v for k, v in after.items() if k not in which | scale} == {
        k: v for k, v in before.items() if k not in which | scale
    }
    assert (after["rank_pattern"], after["alpha_pattern"], after["use_rslora"]) == ({}, {}, False)
    if variant not in ("patterns", "rslora"):
        assert (after["r"], after["lora_alpha"]) == (before["r"], before["lora_alpha"])


def _disturb(adapter):
    """Move every saved tensor, so that a trained module differs from the base model's."""
    generator = torch.Generator().manual_seed(5)
    file = adapter / "adapter_model.safetensors"
    moved = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_values_stay(dtype, tiny_adapter, tmp_path, config_of):
    """Tensors are copied bit for bit in their dtype."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text(json.dumps(config_of(tiny_adapter)))
    values = {k: v.to(dtype) for k, v in load_file(tiny_adapter / "adapter_model.safetensors").items()}
    save_file(values, source / "adapter_model.safetensors")
    export_adapter(source, Variant.below(2, LAYERS), tmp_path / "out")
    left = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert 0 < len(left) < len(values)
    assert all(left[name].dtype == dtype and torch.equal(left[name], values[name]) for name in left)


def test_pickled_adapter_is_exported_as_safetensors(tiny_base, tiny_adapter, tmp_path, config_of):
    """An adapter_model.bin of an old PEFT is read without unpickling anything but tensors."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text(json.dumps(config_of(tiny_adapter)))
    torch.save(load_file(tiny_adapter / "adapter_model.safetensors"), source / "adapter_model.bin")
    export_adapter(source, Variant.below(2, LAYERS), tmp_path / "out")
    want = under(tiny_base, tiny_adapter, Variant.below(2, LAYERS))
    assert torch.equal(logits(loaded(tiny_base, tmp_path / "out")), want)


def test_existing_folder_is_refused_and_untouched(tiny_adapter, tmp_path):
    """Neither in place nor over anything that exists, an empty folder and a dangling link included."""
    before = {file.name: file.read_bytes() for file in tiny_adapter.iterdir()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (tiny_adapter, tmp_path / "empty", tmp_path / "link"):
        with pytest.raises(ArgumentError, match="exists already"):
            export_adapter(tiny_adapter, Variant.below(2, LAYERS), target)
        with pytest.raises(ArgumentError, match="exists already"):
            merge_adapter(tiny_adapter, Variant.below(2, LAYERS), target)
    assert {file.name: file.read_bytes() for file in tiny_adapter.iterdir()} == before


def test_nothing_is_left_behind_by_a_refusal(tiny_adapter, tmp_path):
    """K = 0 has no adapter to write; the way out is named."""
    with pytest.raises(ArgumentError, match=r"that is the base model\. Use .* without an adapter"):
        export_adapter(tiny_adapter, Variant.below(0, LAYERS), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_adapters_are_refused(tiny_adapter, tmp_path):
    """Too few layers for the adapter: said before anything is written."""
    with pytest.raises(AdapterError, match="LoRA in layer 3, but .* model of 3"):
        export_adapter(tiny_adapter, Variant.below(2, 3), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def run_with(adapter):
    """A results file of a run that chose boundary 3 of 4 of this adapter."""
    entry = swept()
    entry["adapter"] |= {"path": str(adapter), "fingerprint": open_adapter(str(adapter)).fingerprint()}
    return {"results": {"t": {}}, "config": {KEY: entry}, "lm_eval_version": "0.4.13"}


def test_command_takes_the_boundary_of_a_run(tiny_base, tiny_adapter, tmp_path, capsys):
    """`--results --task` exports what the run chose and writes down why; another adapter is refused."""
    (tmp_path / "run.json").write_text(json.dumps(run_with(tiny_adapter)))
    base = ["export", "--results", str(tmp_path / "run.json"), "--task", "t", "-o"]
    assert cli.main([*base, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "boundary 3" in said
    assert "parameters dropped" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not compared with the full adapter on 40 validation documents." in card
    assert "Task `t`, split `validation` by exact_match, run" in card
    want = under(tiny_base, tiny_adapter, Variant.below(3, LAYERS))
    assert torch.equal(logits(loaded(tiny_base, tmp_path / "out")), want)
    other = make_adapter(tiny_base, tmp_path / "other", seed=9)
    assert cli.main([*base, str(tmp_path / "out2"), "--peft", str(other)]) == 1
    assert "is not the adapter of this run" in capsys.readouterr().err


def test_command_takes_a_folder_of_results(tiny_adapter, tmp_path, capsys):
    """As other commands do; of several runs with that task none is guessed, and a folder without any is said to be "
    "one."""
    command = ["export", "--results", str(tmp_path / "runs"), "-o", str(tmp_path / "out")]
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert cli.main(command) == 1
    assert "no results file" in capsys.readouterr().err
    first = tmp_path / "runs" / "a" / "results_2026-01-01T00-00-00.json"
    first.write_text(json.dumps(run_with(tiny_adapter)))
    (tmp_path / "runs" / "b" / "results_2026-01-02T00-00-00.json").write_text("{}")
    assert cli.main([*command, "--task", "nope"]) == 1
    assert "--task must be one of them, got nope" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "boundary 3" in capsys.readouterr().out
    first.with_name("results_2026-01-03T00-00-00.json").write_text(first.read_text())
    assert cli.main([*command[:-1], str(tmp_path / "out2")]) == 1
    assert "holds 2 runs (" in capsys.readouterr().err


@pytest.mark.smollm2
def test_smollm2_adapter(smollm2, shared_adapters, tmp_path):
    """The trained SAMSum adapter: same logits as boundary 20, ten thirtieths smaller."""
    source = shared_adapters / "samsum-smollm2-r8"
    exported = assert_same(smollm2, source, Variant.below(20, 30), tmp_path / "out")
    assert (exported.parameters, exported.dropped_parameters) == (1_628_160, 814_080)
