import pytest

from lm_eval_lora_drop.backends.hf import LoraDropLM


@pytest.fixture
def make(tiny_base, tiny_adapter, tmp_path):
    """LoraDropLM or HFLM on the tiny model; sweeps write into a folder of the test."""

    def build(cls=LoraDropLM, **model_args):
        common = {"pretrained": str(tiny_base), "peft": str(tiny_adapter), "device": "cpu", "dtype": "float32"}
        if cls is LoraDropLM and str(model_args.get("boundary", "auto")) in ("auto", "probe"):
            common["sweep_dir"] = str(tmp_path / "sweeps")
        return cls(**common, batch_size=4, **model_args)

    return build
