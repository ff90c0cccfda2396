"""A LoRA adapter: its files, the loaded adapter layer by layer, made smaller, and the card that goes with it."""
