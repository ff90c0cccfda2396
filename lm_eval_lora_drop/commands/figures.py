"""`lora-drop figures`: the figures of a results file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import read_text


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="FILE", help="results_<date>.json, or probe.json")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="output folder (default: beside the file)")
    parser.add_argument("--task", help="this task only")
    parser.add_argument(
        "--formats", default="png,svg,pdf", help="comma-separated formats: png, svg, pdf (default: all three)"
    )


@command("figures", "draw the sweeps and probes of a results file", _add_options)
def _figures(args: argparse.Namespace) -> int:
    """Draws the sweeps and probes of a results file of lm_eval --model hf-lora-drop, or a probe.json.

    lora-drop figures out
    lora-drop figures out --task gsm8k --formats pdf -o figures
    lora-drop figures probe/probe.json
    """
    from lm_eval_lora_drop.record.find import only_run
    from lm_eval_lora_drop.show.figures.candidates import save_figures_of
    from lm_eval_lora_drop.show.figures.probe import save_probe_figures
    from lm_eval_lora_drop.show.figures.style import check_formats, file_name

    alone = _probe_alone(args.results)
    record = None if alone else only_run(args.results).record
    tasks = record.tasks if record else {}
    probes = dict([alone] if alone else [(task, entry.probe) for task, entry in tasks.items() if entry.probe])
    names = list(dict.fromkeys([*tasks, *probes]))
    if args.task is not None and args.task not in names:
        raise ArgumentError(f"--task must be a task of {args.results}, got {args.task}. There are: {', '.join(names)}.")
    folder = args.output or (args.results if args.results.is_dir() else args.results.parent)
    formats = check_formats(args.formats.split(","))
    paths: list[Path] = []
    for task in [args.task] if args.task is not None else names:
        if task in tasks and tasks[task].sweep is not None:
            paths += save_figures_of(task, tasks[task], folder / f"sweep-{file_name(task)}", formats, record)
        if task in probes:
            try:
                paths += save_probe_figures(task, probes[task], folder, formats)
            except LoraDropError:  # a ValueError too
                raise
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise ArgumentError(
                    f"{args.results}: the probe of {task} cannot be drawn ({type(error).__name__}: {error}). The file "
                    "is damaged or was edited; run the probe again."
                ) from error
    if not paths:
        raise ArgumentError(
            f"{args.results} holds no sweep and no probe: its boundaries were given ({', '.join(names)}). Evaluate "
            "with boundary=auto or boundary=probe."
        )
    print("\n".join(map(str, paths)))
    return 0


def _probe_alone(path: Path) -> tuple[str, Any] | None:
    """Task and probe of the file that `lora-drop probe` writes; None where it is another one."""
    from lm_eval_lora_drop.record.runs import json_object

    if not path.is_file():
        return None
    found = json_object(read_text(path, "a results file of lm_eval, or probe.json", most=1 << 30))
    if found is None or not isinstance(found.get("task"), str) or "probe" not in found:
        return None
    return found["task"], found["probe"]


add_parser = _figures.add_parser
