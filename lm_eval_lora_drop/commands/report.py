"""The commands that read result files: compare, stability, leaderboard, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.commands.options import add_json, add_output, command, natural, warn, write_json
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically

_PATHS = "folders written by lm_eval --output_path (searched to any depth), or results files"


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=_PATHS)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="+", metavar="[LABEL=]PATH", help=f"two or more: {_PATHS}, one system each")
    parser.add_argument("--metric", action="append", default=[], help="test this metric only (may be repeated)")
    parser.add_argument(
        "--show", type=natural, default=5, help="number of lower-scoring documents to print (default 5)"
    )
    parser.add_argument(
        "--resamples", type=natural, default=9999, help="permutations (exact enumeration if few; default 9999)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of the permutations (default 0)")
    add_json(parser)


@command("compare", "paired tests between runs", _add_compare_options)
def _compare(args: argparse.Namespace) -> int:
    """Compares runs of the same tasks by paired tests over documents; the first run is the baseline.

    lora-drop compare full=out/full K24=out/k24
    lora-drop compare out/full out/k24 out/base --metric rouge_l
    lora-drop compare out/full out/k24 --show 0 --json comparison.json
    """
    from lm_eval_lora_drop.show.report.compare import compare_paths

    given = {"metrics": args.metric, "resamples": args.resamples, "seed": args.seed, "show": args.show}
    found, issues = compare_paths(args.systems, **given)
    write_json(args.json, found.to_json(), allow_nan=False)
    print(found)
    warn(issues)
    return 1 if found.refused else 0


def _add_stability_options(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    parser.add_argument("--task", action="append", default=[], help="this task only (may be repeated)")
    parser.add_argument("--sizes", type=natural, nargs="+", metavar="N", help="subset sizes (default 10 20 50 100 ...)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the resampling (default 0)")
    add_json(parser)


@command("stability", "how sure is the choice of K? resamples the scores of a sweep", _add_stability_options)
def _stability(args: argparse.Namespace) -> int:
    """Repeats the choice of a sweep on resampled validation documents. No model runs.

    lora-drop stability out
    lora-drop stability out --task gsm8k --sizes 20 50
    lora-drop stability out --json stability.json
    """
    from lm_eval_lora_drop.show.verdict.stability import stabilities

    found, issues = stabilities(args.paths, args.task, args.sizes, args.seed)
    write_json(args.json, [one.to_json() for one in found])
    warn(issues)
    print(*found, sep="\n\n")
    return 0


def _add_leaderboard_options(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    parser.add_argument("--baseline", metavar="NAME", help="system to test against, (part of) its name")
    parser.add_argument(
        "--metric", action="append", default=[], help="metric or task:metric (default: each task's first)"
    )
    parser.add_argument(
        "--format", choices=("text", "markdown", "latex", "csv", "html"), default="text", help="(default text)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of the randomisation tests (default 0)")
    add_output(parser, "-o", "--output", help="write the table to this file instead of printing it")


@command("leaderboard", "all runs as one table, systems by tasks", _add_leaderboard_options)
def _leaderboard(args: argparse.Namespace) -> int:
    """Shows all runs in one table, systems by tasks, with mean rank and significance marks.

    lora-drop leaderboard out
    lora-drop leaderboard out --baseline boundary=full --metric rouge_l
    lora-drop leaderboard out --format latex -o table.tex
    """
    from lm_eval_lora_drop.show.report.leaderboard import leaderboard
    from lm_eval_lora_drop.show.report.leaderboard_text import FORMATS, legend
    from lm_eval_lora_drop.show.tables import paragraph

    table = leaderboard(args.paths, baseline=args.baseline, metrics=args.metric, seed=args.seed)
    if not table.columns and args.metric:
        raise ArgumentError(
            f"--metric must name a metric of a task, got {', '.join(args.metric)}. There are: "
            f"{', '.join(table.metrics)}."
        )
    text = FORMATS[args.format](table)
    if args.output is not None:
        write_atomically(args.output, text + "\n")
    else:
        print(text if args.format != "text" else f"{text}\n\n{paragraph(legend(table))}")
    warn([*table.notes, *table.issues])
    return 0


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    _add_paths(parser)
    add_output(parser, "-o", "--output", required=True, help="output page, e.g. report.html")
    parser.add_argument(
        "--baseline", metavar="NAME", help="baseline, (part of) a system's name (default: the full adapter)"
    )
    parser.add_argument("--title", default="Which layers does the adapter need?", help="title of the page")
    parser.add_argument(
        "--documents", type=natural, default=50, help="documents to show side by side, per pair (default 50)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of the resampling (default 0)")


@command("report", "one self-contained HTML page of all runs", _add_report_options)
def _report(args: argparse.Namespace) -> int:
    """Writes one HTML page: summary, leaderboard, sweeps, stability, outputs side by side, settings.

    lora-drop report out -o report.html
    lora-drop report out/full out/auto -o report.html --baseline boundary=full
    lora-drop report out -o report.html --documents 200 --title "Adapter A"
    """
    from lm_eval_lora_drop.show.report.page import write_report

    page, issues = write_report(
        args.paths, baseline=args.baseline, title=args.title, documents=args.documents, seed=args.seed
    )
    write_atomically(args.output, page)
    warn(issues)
    print(f"{args.output}: {len(page.encode('utf-8', 'surrogateescape')):,} bytes")
    return 0


def add_parser(subparsers: Any) -> None:
    """Add the four commands to `lora-drop`."""
    for one in (_compare, _stability, _leaderboard, _report):
        one.add_parser(subparsers)
