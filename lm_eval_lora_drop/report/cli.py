"""The commands that read result files: compare, stability, leaderboard, report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATHS = "folders written by lm_eval --output_path (searched to any depth), or results files"


def add_parser(subparsers: Any) -> None:
    """Add the four commands to `lora-drop`."""
    _add_compare(subparsers)


def _add_compare(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="is the difference between runs real? paired tests on the logged samples",
        description="Compares runs of the same tasks document by document; the first is the baseline.",
    )
    parser.add_argument("systems", nargs="+", metavar="[LABEL=]PATH", help=f"two or more: {_PATHS}, one system each")
    parser.add_argument("--metric", action="append", default=[], help="test this metric only (may be repeated)")
    parser.add_argument("--show", type=natural, default=5, help="documents to print where a system loses (default 5)")
    parser.add_argument("--resamples", type=natural, default=9999, help="of randomisation and bootstrap (default 9999)")
    parser.add_argument("--seed", type=natural, default=0, help="of randomisation and bootstrap (default 0)")
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
    print(render(found))
    warn([*(issue for _, issues in opened for issue in issues), *all_issues(systems)])
    if args.json is not None:
        write(args.json, json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 1 if found.refused else 0


def natural(text: str) -> int:
    """An integer >= 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def warn(issues: Iterable[object]) -> None:
    """What was wrong with the files, once each, on standard error."""
    for issue in dict.fromkeys(map(str, issues)):
        print(f"warning: {issue}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    """Write a text file, making its folder.

    Raises:
        ArgumentError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written ({error.strerror or error}).") from error
