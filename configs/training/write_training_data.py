"""Write the training documents of a task as prompts and answers, exactly as lm-eval will ask and expect them.

    python configs/training/write_training_data.py --task lora_drop_samsum --output data/samsum

The output folder gets `train.jsonl` with one object per line, `prompt` and `completion`: what TRL reads as it is, and
LLaMA-Factory through `dataset_info.json`, which is written beside it. See the README of this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.sweep import documents as validation

HOLD_OUT = 200
"""Documents held out where the sweep draws from the training split; a sweep reads 100 unless told otherwise."""
TASKS = Path(__file__).parents[2] / "tasks"
DATASET_INFO = {
    "lora_drop": {"file_name": "train.jsonl", "columns": {"prompt": "prompt", "response": "completion"}},
}


def main() -> int:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a task with a training split, ours or one in --include_path")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--include_path", help="a folder with tasks of your own")
    parser.add_argument("--metadata", type=json.loads, default={}, help="""as for lm_eval: '{"data_dir": "..."}'""")
    parser.add_argument("--limit", type=int, help="at most so many documents, drawn with --seed")
    parser.add_argument(
        "--hold-out",
        type=int,
        help="keep what a sweep with sweep_seed=SEED and sweep_limit up to HOLD_OUT reads out of the training data; "
        "default: 200 where the sweep draws from the training split, else 0",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s, like sweep_seed")
    parser.add_argument(
        "--special_tokens",
        metavar="TOKENIZER",
        help="write the tokenizer's first and last token out as text, for LLaMA-Factory's template `empty`",
    )
    options = parser.parse_args()

    manager = TaskManager(include_path=[str(TASKS), *filter(None, [options.include_path])], metadata=options.metadata)
    task = manager.load([options.task])["tasks"][options.task]
    if not task.has_training_docs():
        raise SystemExit(f"--task must name a task with a training split, {options.task} has none.")
    before, after = special_tokens(options.special_tokens) if options.special_tokens else ("", "")
    options.output.mkdir(parents=True, exist_ok=True)
    count = 0
    with (options.output / "train.jsonl").open("w", encoding="utf-8") as file:
        for prompt, answer in examples(task, options.hold_out, options.limit, options.seed):
            line = {"prompt": before + prompt, "completion": answer + after}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    (options.output / "dataset_info.json").write_text(json.dumps(DATASET_INFO, indent=2) + "\n")
    print(f"{count} documents of {options.task} in {options.output}")
    return 0


def examples(task, hold_out: int | None, limit: int | None, seed: int) -> Iterator[tuple[str, str]]:
    """Prompt and answer of the training documents, in the order of the split."""
    docs = task.training_docs()
    from_training = validation.draws_from(task) == task.config.training_split
    if hold_out is None:
        hold_out = HOLD_OUT if from_training else 0
    if hold_out and not from_training:
        raise SystemExit(
            f"--hold-out is for tasks whose sweep reads training documents; that of {task.config.task} reads the split "
            f"{validation.draws_from(task)!r}. Leave it out."
        )
    drawn = validation.select(task, hold_out, seed) if hold_out else None
    # What a sweep leaves out, it passes over: up to the last document it reads, all are kept out of the training.
    kept_out = {*drawn.doc_ids, *(one.doc_id for one in drawn.left_out)} if drawn else set()
    if len(kept_out) >= len(docs):
        raise SystemExit(
            f"--hold-out must leave something to train on: the training split has {len(docs)} documents, {hold_out} "
            "are held out for the sweep. Hold out fewer."
        )
    order = [index for index in validation.order(len(docs), seed) if index not in kept_out]
    for position in sorted(order if limit is None else order[:limit]):
        yield validation.example(task, docs[position])


def special_tokens(name: str) -> tuple[str, str]:
    """What the tokenizer puts before a prompt (nothing, for some), and its end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    ids = tokenizer("a").input_ids
    starts = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return tokenizer.bos_token if starts else "", tokenizer.eos_token


if __name__ == "__main__":
    sys.exit(main())
