"""The model card of an exported adapter, and what the export tells the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.boundary import LayerSet


@dataclass(frozen=True)
class Exported:
    """What was written: parameters of the adapter (base weights saved along not counted), bytes of the weights file."""

    source: str
    source_fingerprint: str
    destination: Path
    kept: LayerSet
    parameters: int
    dropped_parameters: int
    size: int
    source_size: int

    @property
    def layers(self) -> str:
        """The kept layers in words."""
        boundary = self.kept.boundary
        if boundary is None:
            return f"layers {self.kept.spec} of {self.kept.num_layers}"
        return f"the bottom {boundary} of {self.kept.num_layers} decoder layers (boundary {boundary})"

    def summary(self) -> str:
        """Two lines for the terminal."""
        total = self.parameters + self.dropped_parameters
        return (
            f"{self.destination}: LoRA of {self.layers}\n"
            f"{self.dropped_parameters:,} of {total:,} parameters dropped ({self.dropped_parameters / total:.1%}), "
            f"{self.parameters:,} kept; {self.source_size:,} bytes before, {self.size:,} now "
            f"({self.source_size - self.size:,} saved)"
        )


def model_card(config: Mapping[str, Any], exported: Exported, origin: str, merged_into: str | None = None) -> str:
    """README.md with the Hub's front matter; `merged_into` names the base model of a merged one."""
    base = merged_into or config.get("base_model_name_or_path")
    head: dict[str, Any] = {"base_model": base} if base else {}
    head |= {"library_name": "transformers" if merged_into else "peft", "tags": ["lora", "lora-drop"]}
    total = exported.parameters + exported.dropped_parameters
    what = (
        f"`{base}` with a LoRA adapter folded into its weights"
        if merged_into
        else f"A LoRA adapter{f' for `{base}`' if base else ''}"
    )
    load = (
        'model = AutoModelForCausalLM.from_pretrained("<this folder>")'
        if merged_into
        else f'base = AutoModelForCausalLM.from_pretrained("{base or "<base model>"}")\n'
        'model = PeftModel.from_pretrained(base, "<this folder>")'
    )
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"""---
{front}---

# {exported.destination.name}

{what}, with the LoRA of {exported.layers} only; the LoRA of the other layers was dropped.

- Made from `{exported.source}` ({exported.source_fingerprint}).
- {exported.parameters:,} of {total:,} adapter parameters are left.
- Where the boundary came from: {origin}
- Method: "Not All LoRA Parameters Are Essential", arXiv 2503.23360.

```python
{load}
```

Written by `lora-drop export`, lm-eval-lora-drop {__version__}.
"""
