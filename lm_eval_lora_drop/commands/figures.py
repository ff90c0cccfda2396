"""`lora-drop figures`: the figures of a results file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError


def add_parser(subparsers: Any) -> None:
    """Add `figures` to `lora-drop`."""
    parser = subparsers.add_parser(
        "figures",
        help="draw the sweeps and probes of a results file",
        description="Draws the sweeps and probes of a results file of lm_eval --model hf-lora-drop, or a probe.json.",
    )
    parser.add_argument("results", type=Path, metavar="FILE", help="results_<date>.json, or probe.json")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to (default: beside the file)")
    parser.add_argument("--task", help="this task only")
    parser.add_argument("--formats", default="png,svg,pdf", help="comma-separated: png, svg, pdf (default: all three)")
    parser.set_defaults(func=_figures)


def _figures(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.figures.probe import save_probe_figures
    from lm_eval_lora_drop.figures.sweep import check_formats, save_sweep_figure

    tasks = _tasks(args.results)
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
        if entry.get("sweep"):
            paths += save_sweep_figure(task, entry, folder, formats)
        if entry.get("probe"):
            paths += save_probe_figures(task, entry["probe"], folder, formats)
    if not paths:
        raise ArgumentError(
            f"{args.results} holds no sweep and no probe: its boundaries were given ({', '.join(tasks)}). Evaluate "
            "with boundary=auto or boundary=probe."
        )
    print("\n".join(map(str, paths)))
    return 0


def _tasks(path: Path) -> dict[str, Any]:
    """The tasks' entries of a results file, or of a probe.json as one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ArgumentError(f"{path} is no JSON file ({error}). Give a results_<date>.json or a probe.json.") from error
    data = data if isinstance(data, dict) else {}
    if isinstance(data.get("probe"), dict) and "task" in data:
        return {str(data["task"]): {"probe": data["probe"]}}
    config = data.get("config")
    recorded = config.get("lora_drop") if isinstance(config, dict) else None
    tasks = recorded.get("tasks") if isinstance(recorded, dict) else None
    if not isinstance(tasks, dict):
        raise ArgumentError(
            f"{path} holds no entry config.lora_drop.tasks. Give the results file of a run with --model hf-lora-drop, "
            "or a probe.json."
        )
    return tasks
