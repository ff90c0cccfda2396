"""`lora-drop ...`: what comes before and after a run of `lm_eval`. Each command lives in the room of its subject."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.errors import LoraDropError

COMMANDS: tuple[str, ...] = (
    "lm_eval_lora_drop.commands.report",
    "lm_eval_lora_drop.commands.plan",
    "lm_eval_lora_drop.commands.figures",
    "lm_eval_lora_drop.commands.probe",
    "lm_eval_lora_drop.commands.layers",
    "lm_eval_lora_drop.commands.judge",
    "lm_eval_lora_drop.commands.export",
    "lm_eval_lora_drop.commands.train",
    "lm_eval_lora_drop.commands.study",
    "lm_eval_lora_drop.commands.check",
    "lm_eval_lora_drop.commands.publish",
)
"""Modules with `add_parser(subparsers)`; they import what is heavy only when their command runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did its work, 1 with a message on standard error when the input was wrong."""
    parser = argparse.ArgumentParser(
        prog="lora-drop",
        description="Which layers of my LoRA adapter do I need? Companion commands to `lm_eval --model hf-lora-drop`.",
    )
    parser.add_argument("--version", action="version", version=f"lora-drop {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(name).add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.func(args))
    except LoraDropError as error:
        print(f"lora-drop {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
