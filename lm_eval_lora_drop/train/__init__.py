"""Fine-tunes a LoRA adapter on a task's own prompts and reference answers; never imports the engine."""
