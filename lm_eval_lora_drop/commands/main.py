"""`lora-drop ...`: what comes before and after a run of `lm_eval`. Each command lives in the room of its subject."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO, cast

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.commands.options import check_written
from lm_eval_lora_drop.endings import last_line, raise_on_signals
from lm_eval_lora_drop.text import VisibleStream, never_raise_on_print, visible

COMMANDS: tuple[str, ...] = (
    "lm_eval_lora_drop.commands.sweep",
    "lm_eval_lora_drop.commands.report",
    "lm_eval_lora_drop.commands.view",
    "lm_eval_lora_drop.commands.plan",
    "lm_eval_lora_drop.commands.figures",
    "lm_eval_lora_drop.commands.probe",
    "lm_eval_lora_drop.commands.layers",
    "lm_eval_lora_drop.commands.candidates",
    "lm_eval_lora_drop.commands.judge",
    "lm_eval_lora_drop.commands.export",
    "lm_eval_lora_drop.commands.train",
    "lm_eval_lora_drop.commands.study",
    "lm_eval_lora_drop.commands.check",
    "lm_eval_lora_drop.commands.publish",
)
"""Modules with `add_parser(subparsers)`; they import what is heavy only when their command runs. A command that can be
interrupted and goes on sets `kept`, a sentence on what is there for the next time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did its work, 1 with a message on standard error when the input was wrong or memory
    ran out, 128 and the signal's number after a signal. Everything it prints is `visible`."""
    args = argparse.Namespace(command="", kept="", written=())
    never_raise_on_print()
    if argv is None:
        raise_on_signals()
    try:
        parser = make_parser()
        # Optional: completion of the shell (docs/reference/commands.md).
        if "_ARGCOMPLETE" in os.environ:
            importlib.import_module("argcomplete").autocomplete(parser)
        parser.parse_args(argv, args)
        check_written(args)
        with contextlib.redirect_stdout(cast(TextIO, VisibleStream(sys.stdout))):
            return int(args.func(args))
    except BrokenPipeError:
        # The reader (`| head`) has gone: what it wanted it has, and Python shall not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        found = last_line(error, args.kept or "It keeps nothing: start it anew.")
        # Somebody's Hub, disk or network: their first lines say what.
        said, code = found or (f"{error}", 1)
        if found is None and not isinstance(error, OSError):
            raise
        _say(args.command, said)
        return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="lora-drop",
        description="Which layers of my LoRA adapter do I need? Companion commands to `lm_eval --model hf-lora-drop`.",
    )
    parser.add_argument("--version", action="version", version=f"lora-drop {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(name).add_parser(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line; argparse would print the usage before it, ten lines for some commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {visible(' '.join(message.split())[:600])}. See {self.prog} --help.\n")


def _say(command: str, message: str) -> None:
    lines = [visible(line) for line in message.split("\n") if line.strip()]
    print(f"{' '.join(['lora-drop', command]).strip()}: {' '.join(lines[:3])}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
