"""`lora-drop figures`: the figures of a results file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="FILE", help="results_<date>.json, or probe.json")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to (default: beside the file)")
    parser.add_argument("--task", help="this task only")
    parser.add_argument("--formats", default="png,svg,pdf", help="comma-separated: png, svg, pdf (default: all three)")


@command("figures", "draw the sweeps and probes of a results file", _add_options)
def _figures(args: argparse.Namespace) -> int:
    """Draws the sweeps and probes of a results file of lm_eval --model hf-lora-drop, or a probe.json."""
    from lm_eval_lora_drop.figures.family import save_figure_of
    from lm_eval_lora_drop.figures.probe import save_probe_figures
    from lm_eval_lora_drop.figures.style import check_formats
    from lm_eval_lora_drop.record.find import read_records

    tasks = read_records(args.results)
    if args.task is not None:
        if args.task not in tasks:
            raise ArgumentError(
                f"--task must be a task of {args.results}, got {args.task}. There are: {', '.join(tasks)}."
            )
        tasks = {args.task: tasks[args.task]}
    folder = args.output or args.results.parent
    formats = check_formats(args.formats.split(","))
    paths: list[Path] = []
    for task, entry in tasks.items():
        if entry.sweep is not None:
            paths += save_figure_of(task, entry, folder, formats)
        if entry.probe is not None:
            paths += save_probe_figures(task, entry.probe, folder, formats)
    if not paths:
        raise ArgumentError(
            f"{args.results} holds no sweep and no probe: its boundaries were given ({', '.join(tasks)}). Evaluate "
            "with boundary=auto or boundary=probe."
        )
    print("\n".join(map(str, paths)))
    return 0


add_parser = _figures.add_parser
