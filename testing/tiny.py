"""Seeded tiny models, one per family, a tokenizer and adapters with B != 0: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.requests import end_each_alone

SIZES = {
    "vocab_size": 291,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Large enough that each layer changes the output; the usual 0.02 leaves a tiny model nearly the identity.
    "initializer_range": 0.2,
}


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name not in names}


ARCHITECTURES: dict[str, Callable[[int], transformers.PretrainedConfig]] = {
    "llama": lambda n: transformers.LlamaConfig(**SIZES, num_hidden_layers=n),
    "mistral": lambda n: transformers.MistralConfig(**SIZES, num_hidden_layers=n, sliding_window=None),
    # The window is shorter than the test's prompts, so that it matters.
    "mistral_sliding": lambda n: transformers.MistralConfig(**SIZES, num_hidden_layers=n, sliding_window=16),
    "qwen2": lambda n: transformers.Qwen2Config(**SIZES, num_hidden_layers=n),
    "qwen3": lambda n: transformers.Qwen3Config(**SIZES, num_hidden_layers=n, head_dim=8),
    "phi": lambda n: transformers.PhiConfig(**SIZES, num_hidden_layers=n, partial_rotary_factor=0.5),
    "phi3": lambda n: transformers.Phi3Config(**SIZES, num_hidden_layers=n, sliding_window=None),
    "gemma": lambda n: transformers.GemmaConfig(**SIZES, num_hidden_layers=n, head_dim=8),
    "gemma2": lambda n: transformers.Gemma2Config(
        **SIZES, num_hidden_layers=n, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
    ),
    "gpt_neox": lambda n: transformers.GPTNeoXConfig(
        **_without("num_key_value_heads"), num_hidden_layers=n, rotary_pct=0.5
    ),
    "gpt2": lambda n: transformers.GPT2Config(
        **_without("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        n_embd=32,
        n_head=4,
        n_layer=n,
    ),
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def make_base(
    folder: Path, architecture: str = "llama", *, num_layers: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """A random model of `architecture` with a byte-level tokenizer, saved in `folder`."""
    config = ARCHITECTURES[architecture](num_layers)
    make_tokenizer().save_pretrained(folder)
    config.save_pretrained(folder)
    # Some families add a token of their own. With peft= the harness cuts or extends the embedding to the tokenizer's
    # size, without it does not: here they agree.
    config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    # Zero biases and unit norms are what every family starts from; a trained model has neither.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with some merges, so that words and stop sequences span tokens in more than one way."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the question and the answer are in the text of the other one"] * 5, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        # Otherwise the harness takes the tokenizer for one without a limit.
        model_max_length=256,
    )


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **lora_config: Any) -> Path:
    """A LoRA adapter with B != 0 for the model in `base`, on all linear layers unless told otherwise."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 8,
            "target_modules": "all-linear",
            "init_lora_weights": False,
            "task_type": "CAUSAL_LM",
            **lora_config,
        }
    )
    torch.manual_seed(seed)
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


class TinyLM(HFLM):
    """HFLM with what the engine needs beside it: the adapter's layers, and the harness's own answers by name."""

    def __init__(self, base: Path, adapter: Path, **model_args: Any) -> None:
        given = {"dtype": "float32", "device": "cpu", "batch_size": 2, **model_args}
        super().__init__(pretrained=str(base), peft=str(adapter), **given)
        self.layers = AdapterLayers.of(self.model)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        tokens = super()._model_generate(context, max_length, stop, **kwargs)
        return end_each_alone(self, tokens, context.shape[1], stop)

    def harness_answers(self, request_type: str, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """The harness's answers under whatever layers are kept now."""
        return getattr(self, request_type)(requests, disable_tqdm=disable_tqdm)
