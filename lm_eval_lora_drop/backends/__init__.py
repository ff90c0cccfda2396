"""What lm-eval talks to: `base` holds what every backend shares, `hf` and `vllm` are the backends."""
