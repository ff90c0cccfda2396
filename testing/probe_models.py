"""Tiny models with an adapter, made in memory, of the families whose heads differ."""

from __future__ import annotations

import peft
import torch
import transformers

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from testing.tiny import ARCHITECTURES, SIZES

# Beyond the families of testing/tiny.py: heads that divide or multiply the logits, and Gemma 2's cap made to bite.
CONFIGS = {
    **ARCHITECTURES,
    "granite": lambda n: transformers.GraniteConfig(**SIZES, num_hidden_layers=n, logits_scaling=3.0),
    "cohere": lambda n: transformers.CohereConfig(**SIZES, num_hidden_layers=n, logit_scale=0.25),
    "gemma2_capped": lambda n: transformers.Gemma2Config(
        **SIZES, num_hidden_layers=n, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=1.5
    ),
}


def make(architecture, *, num_layers=4, dtype=torch.float32, seed=0, **lora_config):
    """The adapter's layers of a seeded random model with B != 0."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture](num_layers)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **lora_config}
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora), autocast_adapter_dtype=False)
    return AdapterLayers.of(model.eval())
