"""Probes so many documents of 100 tokens and prints what that took at most, in bytes: process, and Python with numpy.

usage: python -m tests.engine.probe.measure_memory DOCUMENTS
"""

import resource
import sys
import tracemalloc

import peft
import torch
import transformers

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.probe.run import probe
from lm_eval_lora_drop.variant import Variant

# So large that to keep the hidden states of 180 documents would add a quarter to the process, their logits as much.
HIDDEN, LAYERS, VOCABULARY, LENGTH = 256, 8, 4000, 100


class Tokens:
    """An lm whose texts are numbers, one token each."""

    max_length = 512
    prefix_token_id = 0

    def _encode_pair(self, prompt, reference):
        return [int(token) for token in prompt.split()], [int(token) for token in reference.split()]


def main(documents):
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_attention_heads=4,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    layers = AdapterLayers.of(peft.get_peft_model(model, adapter).eval())
    pairs = ((" ".join(str(5 + (i + j) % 999) for j in range(LENGTH)), "7 8 9 10") for i in range(documents))
    tracemalloc.start()
    probe(Tokens(), layers, pairs, [Variant.below(0, LAYERS)], progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, tracemalloc.get_traced_memory()[1])


if __name__ == "__main__":
    main(int(sys.argv[1]))
