"""Architectures with ways of their own: the answers are those of the plain pass, whichever pass gives them."""

import pytest
import transformers

from lm_eval_lora_drop.engine.evaluated import decode_requests, why_left_to_harness
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.requests import why_not_rows
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing import tiny
from tests.engine.test_shared import PROMPTS, documents, load, same_numbers
from tests.engine.test_variants import answers

SIZES = tiny.SIZES
TOKENS = {"vocab_size": 291, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = 3


def opt(num_layers, width=32):
    return transformers.OPTConfig(
        **TOKENS, hidden_size=32, ffn_dim=48, num_attention_heads=4, num_hidden_layers=num_layers, init_std=0.2,
        max_position_embeddings=256, word_embed_proj_dim=width,
    )  # fmt: skip


CONFIGS = {
    "opt": opt,
    "opt_projected": lambda n: opt(n, width=16),
    "mpt": lambda n: transformers.MptConfig(
        **TOKENS, d_model=32, n_heads=4, n_layers=n, expansion_ratio=2, max_seq_len=256, initializer_range=0.2
    ),
    "gemma4": lambda n: transformers.Gemma4TextConfig(
        **SIZES, num_hidden_layers=n, head_dim=8, sliding_window=16, hidden_size_per_layer_input=8
    ),
    "bloom": lambda n: transformers.BloomConfig(**TOKENS, hidden_size=32, n_head=4, n_layer=n, initializer_range=0.2),
    "gpt_bigcode": lambda n: transformers.GPTBigCodeConfig(
        **TOKENS, n_embd=32, n_head=4, n_layer=n, n_positions=256, initializer_range=0.2
    ),
    "openai": lambda n: transformers.OpenAIGPTConfig(**TOKENS, n_embd=32, n_head=4, n_layer=n, n_positions=256),
    "rwkv": lambda n: transformers.RwkvConfig(
        **TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=n, context_length=256
    ),
    "gemma3n": lambda n: transformers.Gemma3nTextConfig(
        **{**SIZES, "intermediate_size": [48] * n}, num_hidden_layers=n, head_dim=8, sliding_window=16,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=291, num_kv_shared_layers=0, laurel_rank=4,
        layer_types=["full_attention"] * n, activation_sparsity_pattern=[0.0] * n,
    ),
    "mixtral": lambda n: transformers.MixtralConfig(
        **SIZES, num_hidden_layers=n, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "qwen3_moe": lambda n: transformers.Qwen3MoeConfig(
        **SIZES, num_hidden_layers=n, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}  # fmt: skip
# What each is answered by: "shared" from beginning to end, or "plain" (by rule, or because the shared pass failed).
CASES = [
    ("opt", {}, "shared"),
    ("opt", {"target_modules": ["fc1", "fc2"]}, "shared"),
    ("opt_projected", {"target_modules": ["q_proj", "project_in", "project_out"]}, "shared"),
    ("mpt", {}, "shared"),
    ("gemma4", {}, "shared"),
    ("gemma4", {"target_modules": ["q_proj", "per_layer_model_projection"]}, "shared"),
    ("bloom", {}, "shared"),
    ("gpt_bigcode", {}, "plain"),
    ("openai", {}, "plain"),
    ("rwkv", {"target_modules": ["key", "value", "receptance"]}, "plain"),
    ("gemma3n", {}, "plain"),
    ("mixtral", {"target_modules": ["q_proj", "v_proj"]}, "shared"),
    ("qwen3_moe", {"target_modules": ["q_proj", "o_proj"]}, "shared"),
]


def model(monkeypatch, folder, name, adapter=None, **args):
    monkeypatch.setitem(tiny.ARCHITECTURES, name, CONFIGS[name])
    base = tiny.make_base(folder / "base", name, num_layers=LAYERS)
    return load(base, tiny.make_adapter(base, folder / "adapter", **(adapter or {})), max_length=200, **args)


def asked():
    settings = {"until": ["q", "\n\n"], "max_gen_toks": 8, "do_sample": False}
    return {
        "generate_until": documents("generate_until", [[(prompt, settings)] for prompt in PROMPTS[:3]]),
        # Four inputs, as many as the models have heads.
        "loglikelihood": documents("loglikelihood", [[(prompt, " yes")] for prompt in PROMPTS[:4]]),
    }


@pytest.mark.parametrize(("name", "adapter", "by"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_the_answers_are_those_of_the_plain_pass(monkeypatch, tmp_path, name, adapter, by):
    lm = model(monkeypatch, tmp_path, name, adapter, batch_size=1)
    variants = tuple(Variant.below(k, LAYERS) for k in range(LAYERS + 1))
    ways = set()
    for kind, docs in asked().items():
        work = [Work(document, variants) for document in docs]
        counters = Counters()
        refused = why_not_shared(lm, lm.layers, docs, variants)
        runner = plain_runner(lm, lm.layers) if refused else shared_runner(lm, lm.layers, None, counters)
        plain, found = answers(plain_runner(lm, lm.layers), work), answers(runner, work)
        if kind == "loglikelihood":
            same_numbers(plain, found)
            assert len({plain[str(variant), 2] for variant in variants}) > 2
        else:
            assert found == plain
        ways.add("plain" if refused or counters.fell_back else "shared")
    assert ways == {by}


@pytest.mark.parametrize("name", ["opt", "bloom", "gpt_bigcode", "openai", "rwkv"])
def test_the_evaluated_split_is_answered_as_by_the_harness(monkeypatch, tmp_path, name):
    lm = model(
        monkeypatch, tmp_path, name, {"target_modules": ["key", "value"]} if name == "rwkv" else {}, batch_size=1
    )
    requests = [request for document in asked()["generate_until"] for request in document.requests]
    expected = lm.harness_answers("generate_until", list(requests), disable_tqdm=True)
    if why_left_to_harness(lm, requests) is None:
        assert decode_requests(lm, requests) == expected
    else:
        assert why_not_rows(lm)
