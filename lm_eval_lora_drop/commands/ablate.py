"""`lora-drop ablate --config grid.yaml`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `ablate` to `lora-drop`."""
    parser = subparsers.add_parser(
        "ablate",
        help="a grid of boundaries, layer sets, metrics and adapters with one model load",
        description="Runs every cell of a grid in one process, writes ordinary lm_eval results, goes on where it was.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the grid, YAML (see docs/report.md)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells and what is done, run nothing")
    parser.set_defaults(func=_ablate)


def _ablate(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.study.grid import read_grid

    grid = read_grid(args.config)
    if args.dry_run:
        for cell in grid.cells:
            folder = grid.folder(cell)
            print(f"{'done' if (folder / 'ablation.json').is_file() else 'to do'}  {cell.name}  {folder}")
        return 0
    from lm_eval.utils import setup_logging

    from lm_eval_lora_drop.study.run import ablate

    setup_logging("INFO")
    failed = ablate(grid)
    print(f"{len(grid.cells) - len(failed)} of {len(grid.cells)} cells are in {grid.output}")
    for sentence in failed:
        print(f"not run: {sentence}", file=sys.stderr)
    return 1 if failed else 0
