"""Adapter files as hurried hands and wrappers leave them: one line that names the slip and cures it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.adapter.health import check_on
from lm_eval_lora_drop.backends.preflight import check_adapter
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.variant import Variant
from testing.forked import Forked
from testing.tiny import make_adapter
from tests.backends.test_odd_adapters import change_config, change_file, with_added_tokens

LAYERS = 4


def check(base, adapter):
    args, rest = parse_model_args({"boundary": 2}, known=())
    return check_adapter(str(base), str(adapter), args, rest)


def do_as_told(said):
    """Run the program that an error prints."""
    process = Forked(["-c", re.search(r'python -c "(.*)"', str(said.value))[1]])
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("prefix", "after", "by"),
    [
        ("_orig_mod.", "base_model.model.", "torch.compile"),
        ("_fsdp_wrapped_module.", r"layers.\d.", "FSDP"),
        ("module.", "^", "DistributedDataParallel"),
        ("language_model.", "base_model.model.model.", "a vision-language model"),
    ],
)
def test_names_with_what_a_wrapper_put_into_them(prefix, after, by, tiny_base, tiny_adapter, tmp_path):
    """Was: trained on BASE; give that model. It was given. What is offered cures it."""
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    renamed = {re.sub(f"({after})", rf"\g<1>{prefix}", name, count=1): t for name, t in load_file(file).items()}
    assert all(prefix in name for name in renamed)
    save_file(renamed, file, {"format": "pt"})
    with pytest.raises(
        AdapterError, match=f"carry '{re.escape(prefix)}' .*left by {by}.*Rename them: python -c"
    ) as said:
        check(tiny_base, adapter)
    do_as_told(said)
    check(tiny_base, adapter)


@pytest.mark.parametrize(
    ("rename", "carried"),
    [
        (
            lambda name: re.sub(r"(model.layers.\d.)", r"_fsdp_wrapped_module._orig_mod.\1", name),
            "'_orig_mod.' and '_fsdp_wrapped_module.'",
        ),
        (lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."), "'_checkpoint_wrapped"),
        (lambda name: f"base_model.model.{name}", "'base_model.model.'"),
        (lambda name: f"module.module.{name.removeprefix('base_model.model.')}", "'module.'"),
    ],
    ids=["FSDP of a compiled model", "checkpointing", "PEFT twice", "DDP twice"],
)
def test_names_with_several_wrappers(rename, carried, tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    if "'module" not in carried:  # without the base model too: an export would be no better
        with pytest.raises(AdapterError, match=f"carry {carried}"):
            export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    with pytest.raises(AdapterError, match=f"carry {carried}") as said:
        check(tiny_base, adapter)
    do_as_told(said)
    check(tiny_base, adapter)


def test_names_in_an_old_pickle(tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    tensors = load_file(file := adapter / "adapter_model.safetensors")
    file.unlink()
    compiled = {name.replace(".model.layers.", "._orig_mod.model.layers."): one for name, one in tensors.items()}
    torch.save(compiled, adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="carry '_orig_mod.'") as said:
        check(tiny_base, adapter)
    do_as_told(said)
    check(tiny_base, adapter)


def test_names_of_another_class_of_the_same_model(tiny_base, tiny_adapter, tmp_path):
    """Saved from the model without its head: it names this base, so that giving it again is no way out."""
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    change_config(adapter, base_model_name_or_path=str(tiny_base))
    file = adapter / "adapter_model.safetensors"
    cut = {name.replace("model.model.layers.", "model.layers."): tensor for name, tensor in load_file(file).items()}
    save_file(cut, file, {"format": "pt"})
    with pytest.raises(AdapterError, match=r"layers\.0\.\S+ does not exist.*are called as model\.layers\.0\."):
        check(tiny_base, adapter)


def test_tensors_that_zero_3_left_empty(tiny_base, tiny_adapter, tmp_path):
    adapter = change_file(
        shutil.copytree(tiny_adapter, tmp_path / "adapter"), lambda n, t: torch.zeros(0) if "lora_B" in n else t
    )
    with pytest.raises(AdapterError, match="28 of 56 tensors are empty.*ZeRO-3.*stage3_gather_16bit"):
        check(tiny_base, adapter)


@pytest.mark.parametrize("lacking", ["r", "lora_alpha"])
def test_what_a_configuration_leaves_out_is_pefts_default(lacking, tiny_base, tmp_path):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", r=8, lora_alpha=8)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    del config[lacking]
    file.write_text(json.dumps(config))
    check(tiny_base, adapter)
    export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (8, 8)


@pytest.mark.parametrize("init", ["corda", "loftq", "of a newer release"])
def test_initialisations_that_peft_cannot_repeat(init, tiny_base, tiny_adapter, tmp_path):
    """Were advised to boundary=full, which ended in a traceback of PEFT."""
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    change_config(adapter, init_lora_weights=init)
    with pytest.raises(AdapterError, match="PEFT .*(carries that out again|cannot load it)"):
        check(tiny_base, adapter)


@pytest.mark.parametrize("entry", [{"layer_replication": [[0, 9]]}, {"megatron_config": {"a": 1}}], ids=str)
def test_whatever_peft_raises_for_a_configuration_is_one_line(entry, tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    change_config(adapter, **entry)
    with pytest.raises(AdapterError, match="PEFT .* cannot load it"):
        check(tiny_base, adapter)


def test_a_vision_language_base_without_a_text_model(tiny_adapter, tmp_path):
    config = transformers.CLIPConfig()
    config.save_pretrained(tmp_path / "vl")
    with pytest.raises(AdapterError, match="is a clip model, which Transformers has no text-only model for"):
        check(tmp_path / "vl", tiny_adapter)
    with pytest.raises(AdapterError, match="is a clip model"):
        check_on(open_adapter(str(tiny_adapter)), str(tmp_path / "vl"))


def test_an_export_that_carries_an_embedding_says_who_does_not_take_it(tiny_base, tmp_path):
    """And without the layers that train them, what was saved along is the base model's again."""
    adapter = with_added_tokens(tiny_base, tmp_path / "own")
    said = export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out").summary()
    assert "vLLM and llama.cpp do not take an embedding of the base model saved along" in said
    whole = with_added_tokens(tiny_base, tmp_path / "whole", modules_to_save=["embed_tokens", "lm_head"])
    export_adapter(whole, Variant.below(2, LAYERS), tmp_path / "part")
    names = load_file(tmp_path / "part" / "adapter_model.safetensors")
    original = load_file(whole / "adapter_model.safetensors")["base_model.model.lm_head.original_module.weight"]
    assert torch.equal(names["base_model.model.lm_head.weight"], original)
    assert json.loads((tmp_path / "part" / "adapter_config.json").read_text())["modules_to_save"] == [
        "model.embed_tokens"
    ]


# One process, as its imports take longer than both. The second begins when standard input ends.
TWO_COMMANDS = """
import sys
from lm_eval_lora_drop.commands.main import main
first = main(["layers", "--peft", sys.argv[1]])
print("the first is done", flush=True)
sys.stdin.read()
sys.exit([first, main(["layers", "--peft", sys.argv[2]])] != [0, 1])
"""


def test_layers_asks_no_hub_for_what_lies_on_the_disk(tiny_base, tmp_path):
    """The base model's Hub id stands in the adapter, and everything that is asked lies in the adapter's files."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    change_config(adapter, base_model_name_or_path="org/base")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        here = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path)}
        here.pop("HF_HUB_OFFLINE", None)
        ran = [sys.executable, "-c", TWO_COMMANDS, str(adapter), "org/adapter"]
        process = subprocess.Popen(ran, env=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert "the first is done\n" in iter(process.stdout.readline, "")
        assert asked == []
        process.communicate()
        hub.shutdown()
    assert process.returncode == 0
    assert asked  # this Hub would have been heard of
