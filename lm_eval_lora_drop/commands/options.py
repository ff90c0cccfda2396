"""What a command is, how options of several commands are parsed, and how commands write and warn."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.show.tables import paragraph
from lm_eval_lora_drop.text import visible

CommandFunction = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """A command of `lora-drop`. The first paragraph of the docstring of `run` is its description in `--help`, the lines
    after it are examples.

    `help` is its line among the others, `kept` a sentence on what an interruption leaves for the next time.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    kept: str
    run: CommandFunction

    def add_parser(self, subparsers: Any) -> argparse.ArgumentParser:
        """Add it to `lora-drop`, or to a command that has commands of its own."""
        about, _, examples = inspect.cleandoc(self.run.__doc__ or "").partition("\n\n")
        parser: argparse.ArgumentParser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=paragraph(about),
            epilog="examples:\n" + textwrap.indent(examples, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_options(parser)
        parser.set_defaults(func=self.run, kept=self.kept)
        return parser


def command(
    name: str, short: str, add_options: Callable[[argparse.ArgumentParser], None], kept: str = ""
) -> Callable[[CommandFunction], Command]:
    """Make a command of the function below; see `Command`."""
    return lambda run: Command(name, short, add_options, kept, run)


def natural(text: str) -> int:
    """An integer >= 0, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 999999999, got {text[:80]!r}")
    return int(text)


def positive(text: str) -> int:
    """An integer >= 1, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 999999999, got {text[:80]!r}")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'must be JSON, e.g. \'{{"data_dir": "data"}}\', got {text[:80]!r} ({error})'
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r}")
    return value


def warn(issues: Iterable[object]) -> None:
    """Print what was wrong with the files on standard error, once each."""
    for issue in dict.fromkeys(map(str, issues)):
        print(f"warning: {visible(issue)}", file=sys.stderr)


def add_output(parser: argparse.ArgumentParser, *flags: str, **options: Any) -> None:
    """An option that names a file to write; `check_written` looks at it before the command runs."""
    action = parser.add_argument(*flags, type=Path, metavar="FILE", **options)
    parser.set_defaults(written=(*(parser.get_default("written") or ()), action.dest))


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that names the file of `write_json`."""
    add_output(parser, "--json", help="also write all results to this file, as JSON")


def check_written(args: argparse.Namespace) -> None:
    """Refuse a file to write that is an input of the same command, or a run's.

    Raises:
        ArgumentError: naming the option and the file.
    """
    from lm_eval_lora_drop.record.find import kind_of_file

    outputs = {name: path for name in args.written if (path := getattr(args, name)) is not None}
    for name, path in outputs.items():
        option = f"--{name.replace('_', '-')}"
        same = next((one for one in _paths_in(args, outputs) if _is_same(one, path)), None)
        kind = "an input of this command" if same is not None else kind_of_file(path)
        if kind is not None:
            raise ArgumentError(
                f"{option} {path} is {kind}, and writing there would destroy it. Name another file: {option} "
                f"{path.with_name(f'new-{path.name}')}."
            )
    for (one, path), (two, other) in itertools.combinations(outputs.items(), 2):
        if os.path.realpath(path) == os.path.realpath(other):
            raise ArgumentError(f"--{one} and --{two} both name {path}. Give each a file of its own.")


def _paths_in(args: argparse.Namespace, outputs: Iterable[str]) -> Iterable[str]:
    """Everything that was given and may be an input's path, `LABEL=PATH` without its label too."""
    for name, given in vars(args).items():
        if name in outputs or name in ("command", "kept", "written"):
            continue
        for one in given if isinstance(given, (list, tuple)) else (given,):
            if isinstance(one, (str, Path)):
                yield str(one)
                yield str(one).partition("=")[2]


def _is_same(one: str, path: Path) -> bool:
    try:
        return bool(one) and os.path.isfile(one) and os.path.samefile(one, path)
    except (OSError, ValueError):
        return False


def write_json(path: Path | None, found: Any, *, allow_nan: bool = True) -> None:
    """Write what was found where `--json` says, if it says so; in ASCII, so that showing the file steers no terminal.

    Raises:
        ArgumentError: the file cannot be written.
    """
    if path is not None:
        write_atomically(path, json.dumps(found, indent=2, allow_nan=allow_nan) + "\n")
