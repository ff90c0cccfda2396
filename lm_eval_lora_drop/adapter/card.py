"""The model card of an exported adapter or merged model, and what the export tells the user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.adapter.fold import Survival
from lm_eval_lora_drop.text import markdown, markdown_code, percent, visible
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class CardResults:
    """What a card says of an evaluation: `results` of the Hub's `model-index`, and a section of Markdown."""

    results: Sequence[Mapping[str, Any]]
    section: str


@dataclass(frozen=True)
class Exported:
    """What was written: parameters of the adapter (base weights saved along not counted), bytes of the weights file.

    `peft_only` are its kinds that other programs do not take; `merged_into` is the base model of a merged one, `size`
    then that of the whole model, and `survival` how much of the LoRA its weights hold.
    """

    source: str
    source_fingerprint: str
    destination: Path
    kept: Variant
    parameters: int
    dropped_parameters: int
    size: int
    source_size: int
    peft_only: tuple[str, ...] = ()
    merged_into: str | None = None
    survival: Survival | None = None

    @property
    def layers(self) -> str:
        """What is kept, in words."""
        boundary = self.kept.boundary
        if boundary is None:
            return f"{self.kept} of {self.kept.num_layers} layers"
        return f"the bottom {boundary} of {self.kept.num_layers} decoder layers (boundary {boundary})"

    def summary(self) -> str:
        """Two or three lines for the terminal."""
        total = self.parameters + self.dropped_parameters
        if self.merged_into:
            sizes = f"a model of {self.size:,} bytes"
        else:
            sizes = f"{self.source_size:,} bytes before, {self.size:,} now"
        said = (
            f"{self.destination}: {f'{self.merged_into} with ' if self.merged_into else ''}LoRA of {self.layers}\n"
            f"{self.dropped_parameters:,} of {total:,} parameters dropped "
            f"({percent(self.dropped_parameters / total)}), {self.parameters:,} kept; {sizes}"
        )
        if self.survival is not None:
            said += f"\nLeft of the LoRA in weights of {self.survival.dtype}: {self.survival.total:.3f}"
        if self.peft_only and not self.merged_into:
            said += f"\nPEFT loads it; vLLM and llama.cpp do not take {', '.join(self.peft_only)}"
        return said


def model_card(
    config: Mapping[str, Any],
    exported: Exported,
    origin: str,
    evaluated: CardResults | None = None,
    figures: Sequence[str] = (),
) -> str:
    """README.md with the Hub's front matter; `config` is the adapter's, `evaluated` the scores of what is exported,
    `figures` are names of files beside it that show how much of the LoRA survives the merge."""
    merged = exported.merged_into
    base = merged or config.get("base_model_name_or_path")
    head: dict[str, Any] = {"base_model": base} if base else {}
    if merged:
        # The Hub shows a merge as such beside its base model.
        head |= {"base_model_relation": "merge", "library_name": "transformers", "tags": ["merge", "lora-drop"]}
    else:
        head |= {"library_name": "peft", "tags": ["lora", "lora-drop"]}
    name = exported.destination.name
    if evaluated is not None:
        head["model-index"] = [{"name": name, "results": [dict(one) for one in evaluated.results]}]
    total = exported.parameters + exported.dropped_parameters
    what = (
        f"A model: {markdown_code(base)} with a LoRA adapter folded into its weights"
        if merged
        else f"A LoRA adapter{f' for {markdown_code(base)}' if base else ''}"
    )
    load = (
        'model = AutoModelForCausalLM.from_pretrained("<this folder>")'
        if merged
        else f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base or '<base model>')})\n"
        'model = PeftModel.from_pretrained(base, "<this folder>")'
    )
    front = visible(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))
    return f"""---
{front}---

# {markdown(name)}

{what}, with the LoRA of {exported.layers} only; the rest of the LoRA was dropped.

- Made from {"the adapter " if merged else ""}{markdown_code(exported.source)} ({exported.source_fingerprint}).
- What is kept of it: `{exported.kept}`.
- {exported.parameters:,} of {total:,} adapter parameters are left{" (they are part of the weights)" if merged else ""}.
- Where the choice came from: {visible(" ".join(origin.split()))}
- Method: "Not All LoRA Parameters Are Essential", arXiv 2503.23360.

```python
{load}
```
{_scores(evaluated, merged=merged is not None)}{_survival(exported.survival, figures)}
Written by `lora-drop export`, lm-eval-lora-drop {__version__}.
"""


def _survival(survival: Survival | None, figures: Sequence[str]) -> str:
    if survival is None:
        return ""
    shown = "".join(f"![Share of the LoRA that is left, by layer and kind of module]({name})\n\n" for name in figures)
    return (
        f"\n## What is left of the LoRA\n\nThe projection of the stored change on the true one, in weights of "
        f"{survival.dtype}: {survival.total:.3f}.\n\n{shown}{survival.table('github')}\n"
    )


def _scores(evaluated: CardResults | None, *, merged: bool) -> str:
    if evaluated is None:
        return ""
    how = "The scores were taken before the LoRA was folded in: base model and adapter side by side."
    return f"\n{evaluated.section}\n" + (f"\n{how}\n" if merged else "")
