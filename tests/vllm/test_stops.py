"""A special token that ends answers: vLLM stops each request there by itself, whatever the others say."""

import json
import re
import shutil

import pytest
from lm_eval.models.huggingface import HFLM

from benchmarks.matrix_run import _say_special
from testing.tiny import make_adapter
from tests.engine.test_shared import generating
from tests.vllm.conftest import SMALL


@pytest.fixture
def model(tiny_base, tmp_path):
    """A base that says `</s>` and `<s>` often, while its generation config ends texts with another token."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    adapter = make_adapter(base, tmp_path / "adapter")
    _say_special(base, adapter)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**config, "eos_token_id": 9}))
    return str(base), str(adapter)


@pytest.mark.parametrize("until", [["<s>"], ["never said"]], ids=["a task's stop", "the tokenizer's end token"])
def test_an_answer_ends_where_it_ends_at_batch_size_1_of_hf(model, until):
    """But for special tokens that end nothing: vLLM's text keeps them, HFLM's has none."""
    from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

    base, adapter = model
    requests = [one.requests[0] for one in generating(until=until, max_gen_toks=20)]
    hf = HFLM(pretrained=base, peft=adapter, dtype="float32", device="cpu", batch_size=1)
    lm = VllmLoraDropLM(pretrained=base, peft=adapter, dtype="float32", boundary="full", batch_size=5, **SMALL)
    texts = lm.generate_until(requests, disable_tqdm=True)
    assert not any(stop in text for text in texts for stop in ("</s>", *until))
    assert [re.sub("<s>|</s>|<pad>", "", text) for text in texts] == hf.generate_until(requests, disable_tqdm=True)
