"""The model card of a trained adapter."""

from __future__ import annotations

from pathlib import Path

import yaml

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.train.record import TrainingRecord


def write_card(record: TrainingRecord, folder: Path) -> None:
    """Write README.md with the Hub's front matter."""
    write_atomically(folder / "README.md", training_card(record, folder.name))


def training_card(record: TrainingRecord, name: str) -> str:
    """The card as text."""
    settings, data = record.settings, record.data
    front = yaml.safe_dump(
        {"base_model": record.base_model, "library_name": "peft", "pipeline_tag": "text-generation",
         "tags": ["lora", "lora-drop"]},
        sort_keys=False,
        allow_unicode=True,
    )  # fmt: skip
    chat = " --apply_chat_template" if record.task.get("apply_chat_template") else ""
    first, last = record.steps[0], record.steps[-1]
    validation = ""
    if record.validation:
        lowest, end = min(record.validation, key=lambda one: one.loss), record.validation[-1]
        validation = (
            f"\n| on validation documents | lowest {lowest.loss:.3f} at step {lowest.step}, {end.loss:.3f} at the end |"
        )
    return f"""---
{front}---

# {name}

A LoRA adapter for `{record.base_model}`, trained on {len(data.doc_ids):,} documents of split `{data.split}` of the
lm-eval task `{data.task}`, prompts and answers as that task asks and expects them, loss on the answer only.

| | |
|---|---|
| decoder layers with LoRA | {record.trained_layers} |
| rank, alpha, dropout | {settings["rank"]}, {settings["lora_alpha"]:g}, {settings["lora_dropout"]:g} |
| trained parameters | {record.trained_parameters:,} |
| epochs, batch | {settings["epochs"]:g}, {settings["batch_size"]} |
| learning rate, weight decay | {settings["learning_rate"]:g} ({settings["schedule"]}), {settings["weight_decay"]:g} |
| seeds (training, data) | {settings["seed"]}, {settings["data_seed"]} |
| prompt | {"chat template" if chat else "plain text"}, at most {settings["max_length"]} tokens |
| loss per answer token | {first.loss:.3f} at step {first.step}, {last.loss:.3f} at step {last.step} |{validation}
| data | {data.sha256} |

Not trained on: {data.held_out} documents held out for a sweep, {data.leaked} that an evaluated split has too,
{data.repeated} repetitions, {data.unfit} too long. `training.json` has all settings, document indices and the loss of
every step.

    lm_eval --model hf-lora-drop --model_args pretrained={record.base_model},peft=<this folder>,boundary=auto \\
        --tasks {data.task}{chat} --output_path out

Written by `lora-drop train`, lm-eval-lora-drop {__version__}.
"""
