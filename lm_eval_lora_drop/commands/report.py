"""The commands that read result files: compare, stability, leaderboard, report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.commands.options import natural, warn, write
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import visible

_PATHS = "folders written by lm_eval --output_path (searched to any depth), or results files"


def add_parser(subparsers: Any) -> None:
    """Add the four commands to `lora-drop`."""
    _add_compare(subparsers)
    _add_stability(subparsers)
    _add_leaderboard(subparsers)
    _add_report(subparsers)


def _reads_runs(subparsers: Any, name: str, help_: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=help_, description=description)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=_PATHS)
    return parser


def _add_compare(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="is the difference between runs real? paired tests on the logged samples",
        description="Compares runs of the same tasks document by document; the first is the baseline.",
    )
    parser.add_argument("systems", nargs="+", metavar="[LABEL=]PATH", help=f"two or more: {_PATHS}, one system each")
    parser.add_argument("--metric", action="append", default=[], help="test this metric only (may be repeated)")
    parser.add_argument("--show", type=natural, default=5, help="documents to print where a system loses (default 5)")
    parser.add_argument(
        "--resamples", type=natural, default=9999, help="random exchanges, unless all are tried (default 9999)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the random exchanges (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.set_defaults(func=_compare)


def _compare(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.report.compare import all_issues, compare
    from lm_eval_lora_drop.report.compare_text import render
    from lm_eval_lora_drop.report.systems import open_system

    if len(args.systems) < 2:
        raise ArgumentError(f"compare needs at least two systems, got {len(args.systems)}. Give the baseline first.")
    opened = [open_system(argument) for argument in args.systems]
    systems = [system for system, _ in opened]
    for index, system in enumerate(systems):
        if any(system.label == other.label for other in systems[:index]):
            system.label = f"{system.label} [{args.systems[index]}]"
    found = compare(systems, metrics=args.metric, resamples=args.resamples, seed=args.seed, show=args.show)
    print(visible(render(found)))
    warn([*(issue for _, issues in opened for issue in issues), *all_issues(systems)])
    if args.json is not None:
        write(args.json, json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 1 if found.refused else 0


def _add_stability(subparsers: Any) -> None:
    parser = _reads_runs(
        subparsers,
        "stability",
        "how sure is the chosen boundary? resamples the recorded scores of a sweep",
        "Repeats a sweep's choice on resampled validation documents, without running the model again.",
    )
    parser.add_argument("--task", action="append", help="this task only (may be repeated)")
    parser.add_argument("--sizes", type=natural, nargs="+", metavar="N", help="subset sizes (default 10 20 50 100 ...)")
    parser.add_argument("--seed", type=natural, default=0, help="of the resampling (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.set_defaults(func=_stability)


def _stability(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.record.find import find_runs
    from lm_eval_lora_drop.verdict.stability import assess, render, swept_tasks

    runs, issues = find_runs(args.paths)
    swept = [(run, task, record) for run in runs for task, record in swept_tasks(run).items()]
    names = sorted({task for _, task, _ in swept})
    if swept and (unknown := [task for task in args.task or () if task not in names]):
        raise ArgumentError(
            f"--task must name a task with a sweep in these files, got {', '.join(unknown)}. There are: "
            f"{', '.join(names)}."
        )
    if not swept:
        warn(issues)
        raise ArgumentError("no sweep in these files. Evaluate with --model hf-lora-drop and boundary=auto.")
    found = [
        (run, assess(task, record, args.sizes, args.seed))
        for run, task, record in swept
        if not args.task or task in args.task
    ]
    warn(issues)
    print("\n\n".join(f"{run.path}\n{visible(render(one))}" for run, one in found))
    if args.json is not None:
        data = [{"file": str(run.path), **one.to_json()} for run, one in found]
        write(args.json, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return 0


def _add_leaderboard(subparsers: Any) -> None:
    parser = _reads_runs(
        subparsers,
        "leaderboard",
        "all runs as one table, systems by tasks",
        "Sets any number of runs side by side, systems by tasks, with mean rank and significance marks.",
    )
    parser.add_argument("--baseline", metavar="NAME", help="(part of) the name of the system to test against")
    parser.add_argument(
        "--metric", action="append", default=[], help="metric or task:metric (default: each task's first)"
    )
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv", "html"), default="text")
    parser.add_argument("--seed", type=natural, default=0, help="of the randomisation tests (default 0)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table here instead of printing it")
    parser.set_defaults(func=_leaderboard)


def _leaderboard(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.report.leaderboard import leaderboard
    from lm_eval_lora_drop.report.leaderboard_text import FORMATS, legend

    table = leaderboard(args.paths, baseline=args.baseline, metrics=args.metric, seed=args.seed)
    if not table.columns and args.metric:
        raise ArgumentError(
            f"--metric must name a metric of a task, got {', '.join(args.metric)}. There are: "
            f"{', '.join(table.metrics)}."
        )
    text = FORMATS[args.format](table)
    if args.output is not None:
        write(args.output, text + "\n")
    else:
        print(text if args.format != "text" else f"{text}\n\n{legend(table)}")
    warn([*table.notes, *table.issues])
    return 0


def _add_report(subparsers: Any) -> None:
    parser = _reads_runs(
        subparsers,
        "report",
        "one self-contained HTML page of all runs",
        "Writes one HTML page: summary, leaderboard, sweeps, stability, outputs side by side, settings.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the page, e.g. report.html")
    parser.add_argument("--baseline", metavar="NAME", help="(part of) a system's name (default: the whole adapter)")
    parser.add_argument("--title", default="Which layers does the adapter need?")
    parser.add_argument(
        "--documents", type=natural, default=50, help="to show side by side, for each pair (default 50)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the resampling (default 0)")
    parser.set_defaults(func=_report)


def _report(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.report.page import write_report

    page, issues = write_report(
        args.paths, baseline=args.baseline, title=args.title, documents=args.documents, seed=args.seed
    )
    write(args.output, page)
    warn(issues)
    print(f"{args.output}: {len(page.encode('utf-8', 'surrogateescape')):,} bytes")
    return 0
