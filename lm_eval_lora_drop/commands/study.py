"""`lora-drop study --config study.yaml` and `lora-drop reproduce`, the study of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import command, positive
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import package_folder

if TYPE_CHECKING:
    from lm_eval_lora_drop.study.config import Study


_KEPT = "Finished work is kept; the same command resumes."


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: output of the file)")
    parser.add_argument(
        "--only",
        choices=("train", "evaluate", "report"),
        help="run one part; report writes the report of finished cells",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")


def _add_study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the study, YAML")
    _add_options(parser)


@command(
    "study", "train, sweep and test: tasks x trainings x choices in one file, resumable", _add_study_options, _KEPT
)
def _study(args: argparse.Namespace) -> int:
    """Trains the adapters that a study names and that are missing, evaluates every choice of what to keep of them as
    an ordinary run of lm_eval, and writes a report. Resumes when repeated. See docs/howto/study.md.

    lora-drop study --config study.yaml
    lora-drop study --config study.yaml --dry-run
    lora-drop study --config study.yaml --only report
    """
    from lm_eval_lora_drop.study.config import read_study

    return _run(read_study(args.config, args.output), args)


def _add_reproduce_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="small form for a CPU, without downloads")
    parser.add_argument("--pretrained", metavar="NAME", help="base model: a folder or a Hub id (default: the study's)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks of the study")
    _add_options(parser)


@command(
    "reproduce",
    "the paper's study with several seeds, from data to report",
    _add_reproduce_options,
    _KEPT,
)
def _reproduce(args: argparse.Namespace) -> int:
    """The study of configs/studies/paper.yaml (Llama-3.1-8B-Instruct, one GPU), or with --small the same on
    SmolLM2-135M and generated tasks (a CPU). The report has the paper's own numbers. See docs/howto/study.md.

    lora-drop reproduce --small --dry-run
    lora-drop reproduce --small --output out/small
    lora-drop reproduce --tasks gsm8k --pretrained org/base
    """
    from lm_eval_lora_drop.study.config import read_study

    name = "paper_small.yaml" if args.small else "paper.yaml"
    studies = package_folder("configs") / "studies"
    study = read_study(studies / name, args.output)
    if study.include_path:  # relative to a checkout in the file, and installed elsewhere
        study = dataclasses.replace(study, include_path=str(studies / Path(study.include_path).name))
    if args.pretrained:
        study = dataclasses.replace(study, model_args={**study.model_args, "pretrained": args.pretrained})
    if args.tasks:
        names = [task.name for task in study.tasks]
        if unknown := [task for task in args.tasks if task not in names]:
            raise ArgumentError(
                f"--tasks must name tasks of the study, got {', '.join(unknown)}. There are: {', '.join(names)}."
            )
        study = dataclasses.replace(
            study,
            tasks=tuple(task for task in study.tasks if task.name in args.tasks),
            trainings=tuple(one for one in study.trainings if one.task.name in args.tasks),
        )
    return _run(study, args)


def add_parser(subparsers: Any) -> None:
    """Add `study` and `reproduce` to `lora-drop`."""
    for one in (_study, _reproduce):
        one.add_parser(subparsers)


def _run(study: Study, args: argparse.Namespace) -> int:
    train = args.only not in ("evaluate", "report")
    if args.only != "report":
        _check(study, train=train)
    if args.dry_run:
        return 0
    from lm_eval_lora_drop.harness.evaluation import log_with_the_harness
    from lm_eval_lora_drop.study.pages import write_cells, write_report
    from lm_eval_lora_drop.study.run import run_study

    log_with_the_harness("INFO")
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    failed: list[str] = []
    if args.only != "report":
        failed = run_study(study, train=train, evaluate=args.only != "train")
    print(f"all cells: {write_cells(study)}")
    if args.only != "train":
        answers, written = write_report(study, failed)
        print(*answers, sep="\n")
        print("report:", *written)
    for sentence in failed:
        print(f"not run: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _check(study: Study, *, train: bool) -> None:
    """Print the plan and what is left of it, and refuse what cannot be run as written."""
    from lm_eval_lora_drop.study.check import check_study
    from lm_eval_lora_drop.study.plan import read_cell

    found = check_study(study, train=train)
    for training, cells in found.units:
        if training is not None:
            print(f"{'done ' if training.folder in found.trained else 'to do'}  training {training.folder}")
        for cell in cells:
            print(f"{'done ' if read_cell(study, cell) else 'to do'}    {cell.name}")
    print(found.trainings, *([found.cells] if found.units else ()), sep="\n", flush=True)
    if found.refusals:
        *others, last = found.refusals
        for sentence in others:
            print(f"cannot run: {sentence}", file=sys.stderr)
        raise ArgumentError(last)
