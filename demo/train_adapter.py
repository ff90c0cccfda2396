"""Train the demo's LoRA adapter on the training documents of `lora_drop_demo`; CPU, under half an hour on two cores.

    python demo/train_adapter.py [--model folder] [--output folder]

Everything that decides the result is in `Settings`. Beside the adapter it writes `training_log.json`: the settings,
what the data was, the loss of every step, library versions and how long it took.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from prepare_model import MODEL_ID, prepare_model
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_lora_drop.sweep import documents as validation

HERE = Path(__file__).parent
TASK = "lora_drop_demo"
IGNORED = -100  # the label that cross entropy skips


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the adapter, the documents apart (those are the task's, made from its own seed)."""

    seed: int = 0
    rank: int = 8
    lora_alpha: int = 16
    target_modules: str = "all-linear"
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


def examples(tokenizer) -> tuple[list[dict[str, torch.Tensor]], str]:
    """The training documents as token ids and labels, with a digest of their text.

    Prompt and answer come from the task itself, so the adapter is trained on exactly what lm-eval will ask. Only the
    answer and the end-of-text token carry labels.
    """
    manager = TaskManager(include_path=str(HERE.parent / "tasks" / "demo"), include_defaults=False)
    task = manager.load([TASK])["tasks"][TASK]
    digest = hashlib.sha256()
    found = []
    for doc in task.training_docs():
        prompt, answer = validation.example(task, doc)
        digest.update(f"{prompt}{answer}\n".encode())
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        answer_ids = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        found.append(
            {
                "input_ids": torch.tensor(prompt_ids + answer_ids),
                "labels": torch.tensor([IGNORED] * len(prompt_ids) + answer_ids),
            }
        )
    return found, digest.hexdigest()


def batches(data: list[dict[str, torch.Tensor]], settings: Settings) -> Iterator[dict[str, torch.Tensor]]:
    """All epochs, each in a new seeded order, right-padded. Shapes: (batch, longest example)."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(data), generator=generator).split(settings.batch_size):
            rows = [data[i] for i in chosen.tolist()]
            input_ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
            labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED)
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
            yield {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def train(model_folder: Path, output: Path, settings: Settings) -> dict[str, object]:
    """Train, write the adapter to `output`, give back the log."""
    start = time.monotonic()
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    data, digest = examples(tokenizer)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), lora).train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(data) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps, pct_start=settings.warmup
    )
    losses = []
    progress = tqdm(batches(data, settings), total=steps, mininterval=5)
    for batch in progress:
        # Twice as fast where the CPU has bfloat16; the LoRA weights and their sums stay in float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        progress.set_postfix(loss=losses[-1])

    save(model, output)
    return {
        "base_model": MODEL_ID,
        "task": TASK,
        "settings": dataclasses.asdict(settings),
        "documents": len(data),
        "documents_sha256": digest,
        "trained_parameters": sum(weight.numel() for weight in weights),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "lm_eval")},
        "loss_per_step": losses,
    }


def save(model, output: Path) -> None:
    """Write the adapter in bfloat16, naming the base model by its public id instead of this machine's folder."""
    model.peft_config["default"].base_model_name_or_path = MODEL_ID
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.save_pretrained(output)
    (output / "README.md").unlink(missing_ok=True)  # an empty model card; demo/README.md says what there is to say


def main() -> int:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct (default: prepared in .demo)")
    parser.add_argument("--output", type=Path, default=HERE / "adapter", help="default: %(default)s")
    options = parser.parse_args()
    log = train(options.model or prepare_model(), options.output, Settings())
    (options.output.parent / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
