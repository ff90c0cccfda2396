"""`lora-drop sweep`: the short form of `lm_eval --model hf-lora-drop --model_args ...,boundary=auto`."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import sysconfig
from typing import Any

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.options import LoraDropArgs, declared


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", required=True, metavar="MODEL", help="base model: a folder or a Hub id")
    parser.add_argument("--peft", required=True, metavar="ADAPTER", help="LoRA adapter: a folder or a Hub id")
    parser.add_argument("--tasks", required=True, nargs="+", metavar="TASK", help="as in lm_eval")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="output folder, with samples (default: not saved)")
    group = parser.add_argument_group("model_args of hf-lora-drop (default)")
    for one in declared(LoraDropArgs).values():
        how: dict[str, Any] = {"action": "store_const", "const": "true"} if one.kind is bool else {"metavar": "VALUE"}
        about = f"{one.sentence} ({one.shown_default or 'none'})".replace("%", "%%")
        group.add_argument(f"--{one.name.replace('_', '-')}", help=about, **how)


def words_of(args: argparse.Namespace) -> list[str]:
    """The words after `lm_eval`: our options as model_args, then everything else as it came."""
    given = {name: getattr(args, name) for name in ("pretrained", "peft", *declared(LoraDropArgs))}
    model_args = [f"{name}={value}" for name, value in given.items() if value is not None]
    words = ["run", "--model", "hf-lora-drop", "--model_args", *model_args, "--tasks", *args.tasks]
    words += ["--output_path", args.output, "--log_samples"] if args.output else []
    for word in args.rest:
        name, sign, value = word.partition("=")
        # lm_eval's own options have underscores.
        words.append(f"--{name[2:].replace('-', '_')}{sign}{value}" if name.startswith("--") else word)
    return words


@command("sweep", "find K on validation documents and test it: short for lm_eval --model hf-lora-drop", _add_options)
def _sweep(args: argparse.Namespace) -> int:
    """Finds the best K on validation documents and evaluates the test documents with it. Prints the lm_eval command and
    runs it; every option that is not listed here is passed on to lm_eval, also further --model-args NAME=VALUE.

    lora-drop sweep --pretrained org/base --peft ./my-adapter --tasks gsm8k --output out
    lora-drop sweep --pretrained org/base --peft ./my-adapter --tasks gsm8k --sweep-limit 200 --batch-size 16
    lora-drop sweep --pretrained org/base --peft ./my-adapter --tasks gsm8k --sweep-select smallest:0.99
    """
    words = words_of(args)
    print(f"lm_eval {shlex.join(words)}", file=sys.stderr, flush=True)
    # In place of this process, so that signals and the exit status are those of lm_eval.
    program = shutil.which("lm_eval", path=sysconfig.get_path("scripts")) or "lm_eval"
    os.execvp(program, [program, *words])  # noqa: S606
    return 0


def add_parser(subparsers: Any) -> None:
    """Add `sweep` to `lora-drop`; its parser keeps what it does not know as `rest`."""
    parser = _sweep.add_parser(subparsers)
    parser.allow_abbrev = False
    known = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        found, found.rest = known(args, namespace)
        return found, []

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign,assignment]
