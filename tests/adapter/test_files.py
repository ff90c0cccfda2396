"""Somebody else's adapter: whatever is wrong with it ends in one message, soon; nothing is executed or copied."""

import json
import os
import pickle
import shutil
import signal
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import patterns
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.adapter.merge import merge_adapter
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Variant

LAYERS = 4


@pytest.fixture
def adapter(tiny_adapter, tmp_path):
    return shutil.copytree(tiny_adapter, tmp_path / "adapter")


def configure(adapter, **config):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": "eight"}, r"\$\.r: 'eight' is not of type 'integer'"),
        ({"r": 0}, r"\$\.r: 0 is less than the minimum"),
        ({"r": 10**9}, r"\$\.r: .*maximum"),
        ({"lora_alpha": None}, r"\$\.lora_alpha"),
        ({"rank_pattern": ["q_proj"]}, r"\$\.rank_pattern"),
        ({"rank_pattern": {"q_proj": "8"}}, r"\$\.rank_pattern\.q_proj"),
        ({"alpha_pattern": {"q_proj": -1}}, r"\$\.alpha_pattern\.q_proj"),
        ({"target_modules": 5}, r"\$\.target_modules"),
        ({"target_modules": [["q_proj"]]}, r"\$\.target_modules"),
        ({"modules_to_save": "lm_head"}, r"\$\.modules_to_save"),
        ({"layers_to_transform": ["1"]}, r"\$\.layers_to_transform"),
        ({"bias": "some"}, r"\$\.bias"),
        ({"peft_type": "X" * 5000}, "must be a LoRA adapter, but .*peft_type=X{80}. Only"),
    ],
)
def test_a_configuration_of_the_wrong_types(adapter, config, message):
    configure(adapter, **config)
    with pytest.raises(AdapterError, match=message) as raised:
        open_adapter(str(adapter))
    assert len(str(raised.value)) < 800


@pytest.mark.parametrize(
    "text",
    [
        b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
        b'{"peft_type": "LORA", "r": NaN}',
        b'{"peft_type": "L\xff\xfe"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"",
        b"null",
        b"[1]",
        b'{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999}',
    ],
)
def test_a_configuration_that_is_none(adapter, text):
    (adapter / "adapter_config.json").write_bytes(text)
    with pytest.raises(AdapterError, match="adapter_config.json"):
        open_adapter(str(adapter))


@pytest.mark.parametrize(
    "source", ["~nosuchuser/adapter", "a\0b", "x" * 5000, "a/" * 3000, "\udcff", "", "a//b", "https://x/y"]
)
def test_paths_that_are_none(source):
    with pytest.raises(AdapterError, match="not a valid path|neither a folder|no such directory|has no adapter_config"):
        open_adapter(source)


HANGS = r"(.*)*(.*)*(.*)*(.*)*x"


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {HANGS: 2}},
        {"alpha_pattern": {HANGS: 2}},
        {"target_modules": HANGS},
        {"exclude_modules": HANGS},
        {"layers_pattern": [HANGS]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_pattern_that_runs_for_ever(adapter, config, monkeypatch):
    """Not once does it run in this process; the one that tries it is stopped by its own limit."""
    monkeypatch.setattr(
        patterns, "_CHILD", patterns._CHILD.replace(f"({patterns.CPU_SECONDS}, {patterns.CPU_SECONDS})", "(1, 1)")
    )
    configure(adapter, **config)
    before = time.process_time()
    with pytest.raises(AdapterError, match="regular expressions .*take longer than .*nested repetition"):
        open_adapter(str(adapter))
    assert time.process_time() - before < 1


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999999999}", "*", "(?P<x>", "[", "(?<=a*)b"])
def test_a_pattern_that_is_none(adapter, pattern):
    configure(adapter, rank_pattern={pattern: 2})
    with pytest.raises(AdapterError, match="not a valid regular expression"):
        open_adapter(str(adapter))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet="ab._-\\", min_size=1, max_size=6), max_size=3),
    st.lists(st.text("ab._", max_size=8), max_size=5),
)
def test_names_are_matched_here_as_they_are_there(keys, names):
    """The short cut for plain names and the process of its own agree wherever both are open."""
    import re

    keys = [key for key in keys if patterns._HARMLESS.fullmatch(key)]
    expressions = [rf"(.*\.)?({key})$" for key in keys]
    here = patterns._match(expressions, names, "s", harmless=True)
    assert here == [frozenset(n for n in names if re.match(e, n)) for e in expressions]


def test_patterns_mean_what_peft_takes_them_for():
    from peft.utils.other import get_pattern_key

    names = ["model.layers.0.mlp.up_proj", "model.layers.11.mlp.up_proj", "model.layers.1.self_attn.q_proj", "up_proj"]
    values = {r"layers\.1\..*": 3, "up_proj": 2, r".*q_pro[jk]": 5, "model.layers.0.mlp.up_proj": 7}
    matched = patterns.match_patterns(values, names, "s")
    for name in names:
        key = get_pattern_key(values.keys(), name)
        assert patterns.first_pattern(values, matched, name) == values.get(key)


def test_weights_that_are_none(adapter):
    for content in (b"", b"\xff" * 100, (10**15).to_bytes(8, "little") + b"{}", pickle.dumps({"a": 1})):
        (adapter / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(AdapterError, match="weights file cannot be read"):
            open_adapter(str(adapter))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_runs_nothing(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "went off"))
    (adapter / "adapter_model.safetensors").unlink()
    for content in ({"a.lora_A.weight": Bomb()}, [1, 2], {"a.lora_A.weight": 5}):
        torch.save(content, adapter / "adapter_model.bin")
        with pytest.raises(AdapterError, match="weights file"):
            open_adapter(str(adapter))
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_is_not_waited_for(adapter, name):
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    with pytest.raises(AdapterError, match="has no adapter_"):
        open_adapter(str(adapter))


def test_no_links_target_is_copied(adapter, tmp_path):
    """A tokenizer file that links out of the adapter's folder stays; one within the Hub's cache goes."""
    (tmp_path / "secret").write_text("key")
    (adapter / "tokenizer_secret.json").symlink_to(tmp_path / "secret")
    (adapter / "tokenizer_pipe").symlink_to("/dev/zero")
    export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer_*"))
    cache = tmp_path / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "1234").write_text("{}")
    shutil.copytree(adapter, cache / "snapshots" / "main", symlinks=True)
    (cache / "snapshots" / "main" / "tokenizer_config.json").symlink_to("../../blobs/1234")
    export_adapter(cache / "snapshots" / "main", Variant.below(2, LAYERS), tmp_path / "out2")
    assert [f.name for f in (tmp_path / "out2").glob("tokenizer*")] == ["tokenizer_config.json"]


@pytest.mark.parametrize("target", ["file/out", "x" * 300, "a\0b"])
def test_a_place_that_cannot_be_written(adapter, tmp_path, target):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot be written"):
        export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / target)


@pytest.mark.parametrize("write", [export_adapter, merge_adapter])
@pytest.mark.parametrize("size", [100, 5000])
def test_a_full_disk(adapter, tmp_path, small_disk, write, size):
    """Full at the weights, which safetensors tells by an exception of its own."""
    before = sorted(tmp_path.iterdir())
    with (
        small_disk(size),
        pytest.raises(ArgumentError, match="out.* cannot be written .*File too large.* Name a folder"),
    ):
        write(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_kill_in_the_middle_of_the_weights_leaves_no_folder_of_that_name(adapter, tmp_path, monkeypatch):
    from lm_eval_lora_drop.adapter import export

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", half)
        child = os.fork()
        if not child:
            try:
                export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (tmp_path / "out").exists()
    export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    open_adapter(str(tmp_path / "out"))


def test_what_is_exported_is_on_the_disk_before_it_has_its_name(adapter, tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def noting(descriptor):
        fsync(descriptor)
        synced.add((os.fstat(descriptor).st_ino, (tmp_path / "out").exists()))

    monkeypatch.setattr(os, "fsync", noting)
    export_adapter(adapter, Variant.below(2, LAYERS), tmp_path / "out")
    files = list((tmp_path / "out").iterdir())
    assert len(files) >= 3
    assert {(file.stat().st_ino, False) for file in files} <= synced


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(adapter_files._SCHEMA["properties"])), JSON)
def test_any_value_of_any_entry_is_taken_or_refused(adapter, name, value):
    """Never another exception; what is taken can be exported, or is refused then."""
    file = adapter / "adapter_config.json"
    good = file.read_text()
    try:
        configure(adapter, **{name: value})
        export_adapter(adapter, Variant.below(2, LAYERS), adapter.parent / "out")
    except (AdapterError, ArgumentError):
        pass
    finally:
        file.write_text(good)
        shutil.rmtree(adapter.parent / "out", ignore_errors=True)


def test_the_dtype_is_that_of_the_lora_and_read_from_the_header(adapter, monkeypatch):
    """Any tensor was taken, of whole modules too, 8-bit floats were called float16, and all of them were loaded."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file({"base_model.model.a.weight": torch.ones(2, 3), **stored}, file, {"format": "pt"})
    monkeypatch.setattr(adapter_files, "load_file", None)
    assert open_adapter(str(adapter)).dtype == "bfloat16"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert open_adapter(str(adapter)).dtype == "F8_E4M3"
    file.unlink()
    torch.save({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, adapter / "adapter_model.bin")
    assert open_adapter(str(adapter)).dtype == "float16"
