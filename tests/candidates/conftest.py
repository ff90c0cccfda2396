import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.backends.hf import LoraDropLM


@pytest.fixture
def make(tiny_base, tiny_adapter, tmp_path):
    """LoraDropLM or HFLM on the tiny model; sweeps write into a folder of the test."""

    def build(cls=LoraDropLM, **model_args):
        if cls is not HFLM and "layers" not in model_args:
            model_args.setdefault("sweep_dir", str(tmp_path / "sweeps"))
        given = {"peft": str(tiny_adapter), "device": "cpu", "dtype": "float32", "batch_size": 4, **model_args}
        return cls(pretrained=str(tiny_base), **{**given, "peft": str(given["peft"])})

    return build
