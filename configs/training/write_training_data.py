"""Write the training documents of a task as prompts and answers: those of `lora-drop train`, for other trainers.

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

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import TrainingOptions
from lm_eval_lora_drop.train.documents import choose_documents
from lm_eval_lora_drop.train.examples import Example, example_builder, load_binding
from lm_eval_lora_drop.train.settings import TaskSettings

DATASET_INFO = {
    "lora_drop": {"file_name": "train.jsonl", "columns": {"prompt": "prompt", "response": "completion"}},
}


def main() -> int:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a task with a training split, ours or one in --include-path")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--include-path", help="a folder with tasks of your own")
    parser.add_argument("--metadata", type=json.loads, default={}, help="""as for lm_eval: '{"data_dir": "..."}'""")
    parser.add_argument("--limit", type=int, help="number of documents, drawn with --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--hold-out",
        type=int,
        default=TrainingOptions.hold_out,
        help="documents left for a sweep that draws from the training split (default: %(default)s)",
    )
    parser.add_argument(
        "--special-tokens",
        metavar="TOKENIZER",
        help="write the tokenizer's first and last token out as text, for LLaMA-Factory's template `empty`",
    )
    options = parser.parse_args()
    task = TaskSettings(task=options.task, include_path=options.include_path, metadata=options.metadata)
    before, after = special_tokens(options.special_tokens) if options.special_tokens else ("", "")
    try:
        lines = [
            json.dumps({"prompt": before + one.prompt, "completion": one.answer + after}, ensure_ascii=False) + "\n"
            for one in examples(task, options.limit, options.seed, options.hold_out)
        ]
    except ArgumentError as error:
        raise SystemExit(str(error)) from error
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    (options.output / "dataset_info.json").write_text(json.dumps(DATASET_INFO, indent=2) + "\n")
    print(f"{len(lines)} documents of {options.task} in {options.output}")
    return 0


def examples(task: TaskSettings, limit: int | None, seed: int, hold_out: int) -> Iterator[Example]:
    """Prompt and answer of the training documents, in the order in which they are drawn."""
    binding = load_binding(task)
    with example_builder(binding, seed) as build:
        for doc_id, doc in choose_documents(binding, limit=limit, seed=seed, hold_out=hold_out).chosen:
            yield build(doc_id, doc)


def special_tokens(name: str) -> tuple[str, str]:
    """What the tokenizer puts before a prompt (nothing, for some), and its end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    ids = tokenizer("a").input_ids
    starts = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return tokenizer.bos_token if starts else "", tokenizer.eos_token


if __name__ == "__main__":
    sys.exit(main())
