"""Writes docs/reference/commands.md and record.md: every command of `lora-drop`, and the record in a results file.

python tools/write_reference.py
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from lm_eval_lora_drop.commands.main import make_parser
from lm_eval_lora_drop.record import evaluated, schema

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE = "Made by `python tools/write_reference.py`; a test compares.\n"


def commands() -> str:
    """The page of commands, from their parsers: the same on every Python, which argparse's own layout is not."""
    parts = [
        "# Commands",
        f"{MADE}\n`lora-drop COMMAND --help` prints the same. An interrupted command can be repeated.",
        "Completion in the shell: `pip install '.[completion]'`, and in its start-up file "
        '`eval "$(register-python-argcomplete lora-drop)"`.',
    ]
    for name, parser in _parsers("lora-drop", make_parser()):
        rows = [
            _row(action) for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"
        ]
        parts += [f"## {name}", " ".join((parser.description or "").split())]
        # Indented by four, so that a test parses them.
        parts += [textwrap.indent(textwrap.dedent((parser.epilog or "").partition("\n")[2]), "    ")]
        parts += ["\n".join(["| argument | meaning |", "|---|---|", *rows])] if rows else []
    return "\n\n".join(parts) + "\n"


def _parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The commands that do something, by the words that call them."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, deeper in action.choices.items():
            yield from _parsers(f"{name} {word}", deeper)


def _row(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else "VALUE"
    if action.choices is not None:
        metavar = ", ".join(map(str, action.choices))
    value = "" if action.nargs == 0 else f" {metavar}"
    names = [flag for flag in action.option_strings if "_" not in flag]
    shown = f"`{', '.join(names)}{value}`" if names else f"`{action.metavar or action.dest}`"
    meaning = " ".join((action.help or "").replace("%%", "%").split())
    required = "required" if action.required and names else ""
    return f"| {shown} | {_cell('; '.join(filter(None, (meaning, required))))} |"


def record() -> str:
    """The page of the record, from the types that write and read it."""
    head = "`config.lora_drop` of a results file is a `RunRecord`. Unknown numbers are null."
    parts = ["# Record", f"{MADE}\n{head} `lora_drop.read(...)` gives these classes ([Python](../howto/python.md))."]
    kinds = []
    for module in (evaluated, schema):
        found = [
            one for _, one in inspect.getmembers(module, dataclasses.is_dataclass) if one.__module__ == module.__name__
        ]
        kinds += sorted(found, key=lambda one: inspect.getsourcelines(one)[1])
    for kind in reversed(kinds):
        rows = [f"| `{one.name}` | `{_cell(str(one.type))}` |" for one in dataclasses.fields(kind)]
        about = " ".join((kind.__doc__ or "").split())
        parts += [f"## {kind.__name__}", about, "\n".join(["| field | type |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {FOLDER / "commands.md": commands, FOLDER / "record.md": record}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
