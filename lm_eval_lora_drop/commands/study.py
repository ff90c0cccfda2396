"""`lora-drop study --config study.yaml`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `study` to `lora-drop`."""
    parser = subparsers.add_parser(
        "study",
        help="train, sweep and test: tasks x trainings x choices in one file, resumable",
        description="Trains the adapters that a study names and that are missing, evaluates every choice of what to "
        "keep of them as an ordinary run of lm_eval, and goes on where it was. See docs/study.md.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the study, YAML")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="in place of the file's output")
    parser.add_argument("--only", choices=("train", "evaluate"), help="one half of the work")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.set_defaults(func=_study)


def _study(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.commands.train import require_trl
    from lm_eval_lora_drop.study.config import read_study

    study = read_study(args.config, args.output)
    if study.trainings and args.only != "evaluate":
        require_trl()
    from lm_eval_lora_drop.study.plan import bill, plan, read_cell
    from lm_eval_lora_drop.study.trainings import is_trained

    for training, cells in plan(study):
        if training is not None:
            print(f"{'done ' if is_trained(study, training) else 'to do'}  training {training.folder}")
        for cell in cells:
            print(f"{'done ' if read_cell(study, cell) else 'to do'}    {cell.name}")
    print(bill(study), flush=True)
    if args.dry_run:
        return 0
    from lm_eval.utils import setup_logging

    from lm_eval_lora_drop.study.run import run_study
    from lm_eval_lora_drop.study.table import table, write_table

    setup_logging("INFO")
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    failed = run_study(study, train=args.only != "evaluate", evaluate=args.only != "train")
    print(table(study))
    print(f"all cells: {write_table(study)}")
    for sentence in failed:
        print(f"not run: {sentence}", file=sys.stderr)
    return 1 if failed else 0
