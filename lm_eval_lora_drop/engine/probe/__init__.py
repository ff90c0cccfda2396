"""The paper's first strategy: read the reference's probability at every layer, and drop the LoRA above its rise."""
