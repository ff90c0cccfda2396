"""What is found out before the base model is loaded: each adapter that would be scored wrongly, and none else."""

import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.preflight import check_adapter
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from testing.tiny import make_adapter
from tests.adapter.test_health import mixture


def check(base, adapter, **arguments):
    args, rest = parse_model_args(arguments, known=("backend",))
    return check_adapter(str(base), str(adapter), args, rest)


def damaged(adapter, folder, change):
    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("boundary", ["auto", "full"])
def test_weights_that_are_no_numbers_or_zero(boundary, tiny_base, tiny_adapter, tmp_path):
    nan = damaged(tiny_adapter, tmp_path / "nan", lambda tensor: tensor * float("nan"))
    with pytest.raises(AdapterError, match="56 of 56 tensors hold NaN"):
        check(tiny_base, nan, boundary=boundary)
    zero = damaged(tiny_adapter, tmp_path / "zero", lambda tensor: tensor * 0)
    with pytest.raises(AdapterError, match="changes nothing"):
        check(tiny_base, zero, boundary=boundary)


def test_layers_without_lora_are_the_base_model_and_it_is_said(tiny_base, tmp_path, caplog):
    adapter = make_adapter(tiny_base, tmp_path / "upper", target_modules=["q_proj"], layers_to_transform=[2, 3])
    with caplog.at_level(logging.WARNING, logger="lm_eval_lora_drop"):
        check(tiny_base, adapter, boundary=3)
        assert not [r for r in caplog.records if "is the base model" in r.getMessage()]
        check(tiny_base, adapter, boundary=2)
    assert [
        r for r in caplog.records if "K = 2 is the base model: the adapter has LoRA in layers 2-3" in r.getMessage()
    ]


def test_the_experts_of_a_mixture_and_replicated_layers(tiny_base, tmp_path):
    """Were refused as trained on another model, or counted against the wrong number of layers."""
    base, adapter = mixture("qwen3_moe", tmp_path)
    check(base, adapter, boundary=2)
    replicated = make_adapter(tiny_base, tmp_path / "replicated", layer_replication=[[0, 3], [1, 4]])
    check(tiny_base, replicated, boundary=6)


def test_backend_seq2seq_is_not_called_an_encoder_decoder(tiny_base, tiny_adapter):
    with pytest.raises(ArgumentError, match="backend must be one of causal, default, got 'seq2seq'"):
        check(tiny_base, tiny_adapter, boundary=2, backend="seq2seq")
