"""The cases of `matrix.py`: families, adapters, requests, quantised bases. All are tiny, random and seeded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from transformers.models.auto import modeling_auto

from benchmarks.quantised import KINDS
from lm_eval_lora_drop.harness.documents import Document
from testing.tiny import SIZES

LAYERS = 3
PROMPTS = (
    "The question is",
    "a",
    "To be, or not to be: that is the question, and the answer is in the text of the other one.",
    "1 + 1 =",
    "in the text of",
    "Yes: no",
)
SETTINGS: dict[str, Any] = {"until": ["q", "\n\n"], "max_gen_toks": 8, "do_sample": False}
Asked = dict[str, list[Document]]


@dataclass(frozen=True)
class Case:
    """One row of a table: a model, an adapter on it, and what is asked of both."""

    group: str
    name: str
    detail: str = ""
    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    asked: Callable[[], Asked] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
    more: bool = False
    """A second adapter is loaded beside the first, and its boundaries are candidates too."""
    generation_config: dict[str, Any] = field(default_factory=dict)
    says_special: bool = False
    """The tokens that the model says most often change places with `</s>` and `<s>`, so that answers meet these."""
    dtype: str = "float32"
    quantisation: str = ""
    edit: Callable[[dict[str, Any]], None] | None = None
    """What is done to the files that the model_args name, or to these, between two sweeps (`matrix_identity`)."""

    @property
    def key(self) -> str:
        """What it is called in the work file."""
        return "/".join((self.group, self.name, self.detail))


# What a configuration calls its sizes; each family takes the names it knows.
_SIZES: dict[str, Any] = {
    **SIZES,
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(("n_embd", "d_model", "attention_hidden_size", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(
        ("n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads", "mamba_n_heads"), 4
    ),
    **dict.fromkeys(
        ("ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff", "ffn_hidden_size", "d_inner"), 48
    ),
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "context_length"), 256),
    # The window is shorter than the longest prompt, so that it matters.
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "mamba_d_head"), 16),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank", "state_size"), 8),
    **dict.fromkeys(("mamba_d_state", "linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "conv_kernel"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("mamba_expand", "linear_num_key_heads", "expert_layer_period", "attn_layer_period"), 2),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    "linear_num_value_heads": 4,
    "moe_shared_expert_intermediate_size": 24,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 291,
    "init_std": 0.2,
    "is_decoder": True,
}  # fmt: skip
_FULL = {"layer_types": ["full_attention"] * LAYERS}
_LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_OVERRIDES: dict[str, dict[str, Any]] = {
    "axk2": {"index_topk": 8, "index_head_dim": 8, "qk_rope_head_dim": 8},
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": _LINEAR,
    "big_bird": {"attention_type": "original_full"},
    "cohere_compass_text": _FULL,
    "deepseek_v32": {"index_topk": 8, "index_head_dim": 8, "qk_rope_head_dim": 8},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_heads": 4},
    "gemma3n_text": {
        "intermediate_size": [48] * LAYERS,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        **_FULL,
    },
    "glm_moe_dsa": {"index_topk": 8, "index_head_dim": 8, "qk_rope_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp_text": _LINEAR,
    "zaya": {"num_experts_per_tok": 1},
}
LARGEST = 3_000_000
"""Parameters of a model that is still called tiny. A family whose own settings are larger is left out."""


def make_config(family: str, overrides: dict[str, Any] | None = None) -> transformers.PretrainedConfig:
    """A tiny configuration of any causal model that Transformers knows."""
    kind: Any = transformers.CONFIG_MAPPING[family]
    aliases = getattr(kind, "attribute_map", {})
    fields = getattr(kind, "__dataclass_fields__", {})
    known = {*inspect.signature(kind.__init__).parameters, *aliases, *fields}
    # Of two names for one thing the family's own.
    given = {name: value for name, value in _SIZES.items() if name in known and aliases.get(name) not in known}
    if "kv_lora_rank" in known:
        # Latent attention has no groups.
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    return kind(**{**given, **_OVERRIDES.get(family, {}), **(overrides or {})})


def families() -> list[str]:
    """The decoder-only families of the installed Transformers."""
    names = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return sorted(names - set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES))


def documents(request_type: str, arguments: Sequence[Sequence[tuple[Any, ...]]]) -> list[Document]:
    """A document for each list of requests' arguments."""
    return [
        Document(i, {}, tuple(Instance(request_type, {}, args, j) for j, args in enumerate(group)), str(i))
        for i, group in enumerate(arguments)
    ]


def generating(prompts: Sequence[str] = PROMPTS, **settings: Any) -> Asked:
    """Generation requests."""
    return {"generate_until": documents("generate_until", [[(prompt, {**SETTINGS, **settings})] for prompt in prompts])}


def choosing(contexts: Sequence[str] = PROMPTS[:4], choices: Sequence[str] = (" yes", " in the other text")) -> Asked:
    """Multiple choice."""
    return {"loglikelihood": documents("loglikelihood", [[(one, choice) for choice in choices] for one in contexts])}


def rolling(*texts: str) -> Asked:
    """Log-likelihoods of whole texts."""
    return {"loglikelihood_rolling": documents("loglikelihood_rolling", [[(text,)] for text in texts])}


def usual() -> Asked:
    """Generation and log-likelihoods."""
    return {**generating(), **choosing()}


def few() -> Asked:
    """As `usual`, and no more than shows a fault: there are many families."""
    return {**generating(PROMPTS[:3], max_gen_toks=6), **choosing(PROMPTS[:3])}


def family_cases() -> list[Case]:
    """Every family, with LoRA on its attention only and on all linear layers."""
    return [
        Case("families", name, where, family=name, lora={"target_modules": target}, asked=few)
        for name in families()
        for where, target in (("attention", "attention"), ("all linear", "all-linear"))
    ]


def adapter_cases() -> list[Case]:
    """Kinds of LoRA, on Llama unless the name says otherwise."""
    whole = {"target_modules": "all-linear"}
    kinds: dict[str, dict[str, Any]] = {
        "plain": whole,
        "rank 1": {**whole, "r": 1},
        "rank above the width": {**whole, "r": 40},
        "rank_pattern": {**whole, "rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 7}},
        "alpha_pattern": {**whole, "alpha_pattern": {"k_proj": 3, r"layers\.2\..*up_proj": 32}},
        "rank_pattern and alpha_pattern": {**whole, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 5}},
        "use_rslora": {**whole, "use_rslora": True},
        "use_dora": {**whole, "use_dora": True},
        "use_dora and use_rslora": {**whole, "use_dora": True, "use_rslora": True},
        "use_dora on attention": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        "lora_bias": {"target_modules": ["q_proj", "up_proj"], "lora_bias": True},
        "bias=all, on a model without biases": {**whole, "bias": "all"},
        "modules_to_save lm_head": {**whole, "modules_to_save": ["lm_head"]},
        "modules_to_save embed_tokens": {**whole, "modules_to_save": ["embed_tokens"]},
        "modules_to_save a norm of each layer": {**whole, "modules_to_save": ["input_layernorm"]},
        "modules_to_save the last norm": {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
        "on embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
        "on lm_head": {"target_modules": ["q_proj", "lm_head"]},
        "on embed_tokens and lm_head": {"target_modules": ["up_proj", "embed_tokens", "lm_head"]},
        "trainable_token_indices": {**whole, "trainable_token_indices": [5, 9]},
        "layers_to_transform": {**whole, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]},
        "layers_to_transform, the top layer only": {"target_modules": ["q_proj"], "layers_to_transform": [2]},
        "exclude_modules": {**whole, "exclude_modules": ["down_proj"]},
        "target_modules as a pattern": {"target_modules": r".*\.(0|1)\.self_attn\.(q|v)_proj"},
        "layer_replication": {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 3]]},
        "init pissa": {**whole, "init_lora_weights": "pissa"},
        "init olora": {**whole, "init_lora_weights": "olora"},
        "lora_dropout": {**whole, "lora_dropout": 0.3},
    }
    cases = [Case("adapters", name, lora=lora) for name, lora in kinds.items()]
    cases += [
        Case("adapters", "target_parameters (Mixtral)", family="mixtral", lora={
            "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        }),
        Case("adapters", "bias=all, on a model with biases (Qwen2)", family="qwen2", lora={**whole, "bias": "all"}),
        Case("adapters", "bias=lora_only (Qwen2)", family="qwen2", lora={**whole, "bias": "lora_only"}),
        Case("adapters", "Conv1D (GPT-2)", family="gpt2", lora=whole),
        Case("adapters", "tied lm_head (GPT-2)", family="gpt2", lora={"target_modules": ["c_attn", "lm_head"]}),
        Case("adapters", "tied embedding (Gemma)", family="gemma", lora={"target_modules": ["q_proj", "embed_tokens"]}),
        Case("adapters", "two at once, each its boundaries", lora=whole, more=True),
        Case("adapters", "all zero", lora=whole, spoil=_zero),
        Case("adapters", "NaN in one tensor", lora=whole, spoil=_nan),
        Case("adapters", "half of a module missing", lora=whole, spoil=_half),
    ]  # fmt: skip
    return cases


def _zero(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in tensors.items()}


def _nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(tensors)
    return {**tensors, name: torch.full_like(tensors[name], float("nan"))}


def _half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[1:]}


def _differing() -> Asked:
    asked = [
        [("The question is", SETTINGS), ("The question is", {**SETTINGS, "until": ["a"], "max_gen_toks": 4})],
        [("a", {**SETTINGS, "until": [], "max_gen_toks": 6})],
    ]
    return {"generate_until": documents("generate_until", asked)}


def request_cases() -> list[Case]:
    """Kinds of requests, on Llama."""
    examples = "The answer is in the text: that is the question.\n\nThe answer is no, or to be of one.\n\n"
    long = " the question of the other text" * 20
    kinds: dict[str, Callable[[], Asked]] = {
        "until: none": partial(generating, until=[]),
        "until: an empty string": partial(generating, until=[""]),
        "until: a string, no list": partial(generating, until="e"),
        "until: longer than a token": partial(generating, until=["question", "e t"]),
        "until: the end-of-text string": partial(generating, until=["</s>"]),
        "until: white space": partial(generating, until=[" "]),
        "one new token": partial(generating, max_gen_toks=1),
        "40 new tokens": partial(generating, until=[], max_gen_toks=40),
        "arguments that differ within a document": _differing,
        "do_sample, temperature 0.7": partial(generating, do_sample=True, temperature=0.7, top_k=1),
        "num_beams 2": partial(generating, num_beams=2),
        "repetition_penalty 1.3": partial(generating, repetition_penalty=1.3),
        "an empty prompt beside others": partial(generating, ["", *PROMPTS]),
        "a prompt of white space": partial(generating, [" ", "\n\n\n", *PROMPTS]),
        "the same prompt five times": partial(generating, [PROMPTS[0]] * 5),
        "one document": partial(generating, PROMPTS[:1]),
        "a common beginning": partial(generating, [examples + prompt for prompt in PROMPTS]),
        "a prompt longer than the model": partial(generating, [long * 3, *PROMPTS]),
        "Chinese, accents, emoji": partial(generating, ["问题是什么", "naïve café", "🙂 🙂", *PROMPTS]),
        "the end-of-text string in the prompt": partial(generating, ["a</s>b", "</s>", *PROMPTS]),
        "choices of one token": partial(choosing, choices=("a", "b", "c", "d")),
        "choices that begin alike": partial(choosing, choices=(" the", " the text", " the text of")),
        "one choice twice": partial(choosing, choices=(" yes", " yes")),
        "an empty context": partial(choosing, ["", *PROMPTS[:3]]),
        "a context that ends in spaces": partial(choosing, ["The question is  ", "a "]),
        "a long continuation": partial(choosing, choices=(long, " no")),
        "a context longer than the model": partial(choosing, [long * 3, "a"]),
        "a common beginning, choices": partial(choosing, [examples + prompt for prompt in PROMPTS[:4]]),
        "rolling": partial(rolling, "The question is in the text.", "a", "To be, or not to be."),
        "rolling, an empty text": partial(rolling, "", "The text", ""),
        "rolling, longer than the model": partial(rolling, long * 3, "a"),
    }
    cases = [Case("requests", name, asked=asked) for name, asked in kinds.items()]
    for name, model_args in (
        ("batch_size 4", {"batch_size": 4}),
        ("batch_size 16", {"batch_size": 16}),
        ("sweep_batch_size 1", {"sweep_batch_size": 1}),
        ("sweep_batch_size 5", {"sweep_batch_size": 5}),
        ("add_bos_token", {"add_bos_token": True}),
        ("max_length 24", {"max_length": 24}),
        ("softmax_dtype float64", {"softmax_dtype": "float64"}),
    ):
        cases.append(Case("requests", name, asked=usual, model_args=model_args))
    cases.append(
        Case("requests", "max_new_tokens in generation_config", asked=usual, generation_config={"max_new_tokens": 3})
    )
    cases.append(
        Case("requests", "no end token in generation_config", asked=usual, generation_config={"eos_token_id": None})
    )
    return cases


def stop_cases() -> list[Case]:
    """Kinds of ends, at two batch sizes; the generation config ends texts with a token that the tokenizer does not."""
    kinds: dict[str, dict[str, Any]] = {
        "the tokenizer's end token is not the model's": {"until": ["never said"]},
        "until: a special token": {"until": ["<s>"]},
        "until: two special tokens in a row": {"until": ["<s><s>", "</s><s>", "<s></s>"]},
        "until: special and ordinary text": {"until": [",<s>", "e</s>", "<s>P", "@</s>", "<s>H", "K</s>"]},
        "until: over two tokens": {"until": ["ff", "K,", "He", "MM", "PP", "@@", "kk", "$$"]},
        "until: an empty string and a special token": {"until": ["", "<s>"]},
        "the token limit": {"until": ["never said"], "max_gen_toks": 3},
        "sampled (top_k=1), a special token": {"until": ["<s>"], "do_sample": True, "temperature": 1.0, "top_k": 1},
        "two beams, a special token": {"until": ["<s>"], "num_beams": 2},
    }
    families: dict[str, dict[str, Any]] = {"llama": {}, "gpt2": {}, "mistral": {"sliding_window": 16}}
    cases = [
        Case(
            "stops", name, f"{family}, batch size {size}", family=family, config=config, says_special=True,
            asked=partial(generating, **{"max_gen_toks": 20, **settings}), model_args={"batch_size": size},
            generation_config={"eos_token_id": 9}, lora={"target_modules": "all-linear"},
        )
        for name, settings in kinds.items() for family, config in families.items() for size in (1, 4)
    ]  # fmt: skip
    long: dict[str, Any] = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 8.0]}
    long |= {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40}
    changing: dict[str, dict[str, Any]] = {
        "phi3": {"rope_parameters": long, "original_max_position_embeddings": 40},
        "llama": {"rope_parameters": long},
        "qwen3": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    }
    changing["qwen3"]["max_position_embeddings"] = 40
    cases += [
        Case(
            "stops", "past a length at which positions change", f"{family}, batch size {size}", family=family,
            config=config, lora={"target_modules": "all-linear"}, model_args={"batch_size": size, "max_length": 200},
            asked=partial(_around, size=12),
        )
        for family, config in changing.items() for size in (1, 4)
    ]  # fmt: skip
    return cases


def _around(size: int) -> Asked:
    """Prompts of 6 to 70 tokens of the tiny tokenizer."""
    text = "the question and the answer are in the text of the other one " * 4
    prompts = [text[:end] for end in (10, 30, 50, 60, 70, 80, 100, 120, 160)]
    asked = generating(prompts, until=["never said"], max_gen_toks=size)
    return {**asked, **choosing([prompt.strip() for prompt in prompts], (" the other text", " no"))}


def quantised_cases() -> list[Case]:
    """Quantised bases; each needs its package."""
    # Blocks are of 64 weights, and the kernels for CPUs take whole blocks only.
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16}
    lora = {"target_modules": "all-linear"}
    return [Case("quantised", kind, family="llama", config=wide, lora=lora, quantisation=kind) for kind in KINDS]
