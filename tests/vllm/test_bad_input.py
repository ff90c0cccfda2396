"""Wrong input before the engine starts: the tests of hf-lora-drop, and what vLLM cannot do."""

import peft
import pytest
import transformers

from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from testing.tiny import make_adapter, make_base
from tests.backends import test_bad_input as hf
from tests.vllm.conftest import SMALL

# A loaded model cannot be given to vLLM.
globals().update(
    {
        name: test
        for name, test in vars(hf).items()
        if name.startswith("test_") and name != "test_a_loaded_model_that_is_merged_or_has_no_adapter"
    }
)


def start(base, adapter, **model_args):
    from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

    given = {"peft": str(adapter)} if adapter is not None else {}
    return VllmLoraDropLM(pretrained=str(base), dtype="float32", **given, **{**SMALL, **model_args})


@pytest.fixture(autouse=True)
def this_backend(monkeypatch, shared_engines):
    monkeypatch.setattr(hf, "start", start)


@pytest.fixture
def loading_fails(monkeypatch):
    """From here on, starting an engine is the failure."""
    from lm_eval.models import vllm_causallms

    def refuse(**arguments):
        raise AssertionError("the engine was started before the input was checked")

    monkeypatch.setattr(vllm_causallms, "LLM", refuse)


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"sweep_engine": "shared"}, "sweep_engine=shared names a pass of hf-lora-drop"),
        ({"merge": True}, "lora-drop export --merge"),
        ({"boundary": "probe"}, "boundary=probe reads the hidden states .*Use --model hf-lora-drop"),
        ({"lora_local_path": "elsewhere"}, "peft and lora_local_path both name the adapter"),
        ({"max_lora_rank": 1}, "max_lora_rank must be one of .*for an adapter of rank 4, got 1"),
        ({"max_lora_rank": 12}, "max_lora_rank must be one of 8, 16"),
        ({"max_model_len": 100_000}, "vLLM refuses pretrained=.*max_model_len.*use --model hf-lora-drop"),
    ],
)
def test_arguments_of_vllm(tiny_base, tiny_adapter, loading_fails, model_args, message):
    with pytest.raises(ArgumentError, match=message):
        hf.start(tiny_base, tiny_adapter, **model_args)


@pytest.mark.parametrize(
    ("lora_config", "message"),
    [
        ({"use_dora": True}, "DoRA.*Evaluate it with --model hf-lora-drop"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*Evaluate it with --model hf-lora-drop"),
        ({"bias": "lora_only"}, "bias.*Evaluate it with --model hf-lora-drop"),
        ({"r": 513}, "its rank is 513, the largest that vLLM has is 512"),
        ({"trainable_token_indices": [3, 4]}, "does not know trainable_token_indices"),
    ],
    ids=["DoRA", "modules_to_save", "bias", "rank", "tokens"],
)
def test_an_adapter_that_vllm_refuses(tiny_base, tmp_path, loading_fails, lora_config, message):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **lora_config)
    with pytest.raises(AdapterError, match=message):
        hf.start(tiny_base, adapter, boundary=2)


def test_lora_on_the_embedding_where_the_architecture_has_none_there(tmp_path, loading_fails):
    base = make_base(tmp_path / "base", "qwen2")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(AdapterError, match="it has LoRA on embed_tokens.*Evaluate it with --model hf-lora-drop"):
        hf.start(base, adapter, boundary=2)


def test_lora_on_the_head(tiny_base, tmp_path, loading_fails):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(AdapterError, match="it has LoRA on lm_head.*Evaluate it with --model hf-lora-drop"):
        hf.start(tiny_base, adapter, boundary=2)


def test_an_architecture_that_takes_no_lora_in_vllm(tmp_path, loading_fails):
    base = make_base(tmp_path / "base", "gpt2")
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="takes no LoRA for GPT2LMHeadModel.*Evaluate it with --model hf-lora-drop"):
        hf.start(base, adapter, boundary=2, max_model_len=128)


def test_a_switch_that_only_a_newer_peft_knows(tiny_base, tiny_adapter, tmp_path, loading_fails):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(adapter)
    file = adapter / "adapter_config.json"
    file.write_text(file.read_text().replace('"use_dora": false', '"use_dora": false, "use_magic": true'))
    with pytest.raises(AdapterError, match="does not know use_magic=True"):
        hf.start(tiny_base, adapter, boundary=2)
