"""What it brings to compute the logits of answers only: operations and memory of a training step, counted.

    python -m benchmarks.answer_logits --data-dir data/samsum --base .demo/gemma-3-270m .demo/SmolLM2-135M-Instruct

The first documents of SAMSum as `lora-drop train` batches them; floating-point operations of one step forward and
backward (PyTorch's counter), with the loss of `lora-drop train` and with that of all logits, and the size of the logits
in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peft
import torch
import transformers
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from lm_eval_lora_drop.train.run import Training, prepare
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings
from lm_eval_lora_drop.train.trainer import answer_loss, collate

FLOAT32 = 4


def row(base: str, data_dir: str, documents: int) -> list[str]:
    """One base model."""
    task = TaskSettings(task="lora_drop_samsum", metadata={"data_dir": data_dir})
    settings = TrainingSettings(limit=documents, batch_size=documents)
    prepared = prepare(Training(base=base, output=Path("unused"), task=task, settings=settings))
    batch = collate([{"input_ids": one.input_ids, "labels": one.labels} for one in prepared.encoded])
    labels = batch.pop("labels")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(loaded, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with FlopCounterMode(display=False) as ours:
        answer_loss(model, model.get_output_embeddings(), batch, labels).backward()
    with FlopCounterMode(display=False) as plain:
        model(**batch, labels=labels, use_cache=False).loss.backward()
    answers, tokens = int((labels >= 0).sum()), labels.numel()
    width = FLOAT32 * model.config.get_text_config().vocab_size / 1e9
    flops = [one.get_total_flops() for one in (plain, ours)]
    return [
        Path(base).name, f"{answers} of {tokens}", *(f"{one / 1e12:.2f}" for one in flops),
        f"{flops[0] / flops[1]:.1f}", f"{tokens * width:.2f}", f"{answers * width:.2f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", required=True, help="folders of base models")
    parser.add_argument("--data-dir", required=True, help="folder of SAMSum's files")
    parser.add_argument("--documents", type=int, default=8, help="in a step (default: %(default)s)")
    args = parser.parse_args()
    head = ["base", "answer tokens", "TFLOP, all logits", "TFLOP, answers", "ratio", "logits, GB", "answers, GB"]
    print(tabulate([row(base, args.data_dir, args.documents) for base in args.base], head, disable_numparse=True))


if __name__ == "__main__":
    main()
