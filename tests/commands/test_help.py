"""Every command shows three examples that parse; the shell completes; `sweep` is what it is short for."""

import argparse
import os
import shlex
import subprocess
import sys

import pytest
from lm_eval._cli.harness import HarnessCLI

from lm_eval_lora_drop.commands.main import make_parser
from lm_eval_lora_drop.commands.sweep import words_of
from testing.forked import ROOT


def leaves(parser, words=()):
    """Every command that does something, by its words."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield " ".join(words), parser
    for action in below:
        for word, deeper in action.choices.items():
            yield from leaves(deeper, (*words, word))


COMMANDS = dict(leaves(make_parser()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_description_and_three_examples_of_itself(name):
    help_ = COMMANDS[name].format_help()
    assert len(COMMANDS[name].description) > 40
    examples = [line.strip() for line in help_.partition("\nexamples:\n")[2].splitlines()]
    assert len(set(examples)) == 3
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        assert " ".join(words).startswith(f"lora-drop {name} ")
        args = make_parser().parse_args(words[1:])
        assert args.func


def test_the_shell_completes_commands_and_options():
    for line, wanted in (
        ("lora-drop sta", "stability"),
        ("lora-drop compare --res", "--resamples"),
        ("lora-drop sweep --sweep-st", "--sweep-strategy"),
    ):
        environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout", "_ARGCOMPLETE_IFS": "\n"}
        command = [sys.executable, "-m", "lm_eval_lora_drop.commands.main"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert wanted in done.stdout.split(), done.stderr


def sweep(*words):
    return words_of(make_parser().parse_args(["sweep", "--pretrained", "b", "--peft", "a", "--tasks", "t", *words]))


def test_what_sweep_does_not_know_goes_to_lm_eval_as_it_came(monkeypatch):
    """lm_eval's own parser reads it: our options are model_args, its options have underscores, the last word wins."""
    words = sweep(
        *("--sweep-limit", "48", "--sweep-dry-run", "-o", "out", "--batch-size", "8", "--limit=5", "--device", "cpu"),
        *("--gen_kwargs", "temperature=0", "--model-args", "dtype=float32", "--use-cache", "x-y", "--log_samples"),
    )
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    args = HarnessCLI().parse_args()
    ours = {"pretrained": "b", "peft": "a", "sweep_limit": 48, "sweep_dry_run": True, "dtype": "float32"}
    assert args.model == "hf-lora-drop"
    assert {name: args.model_args[name] for name in ours} == ours
    assert (args.tasks, args.output_path, args.batch_size, args.limit) == (["t"], "out", "8", 5)
    assert (args.device, args.gen_kwargs, args.use_cache) == ("cpu", {"temperature": 0}, "x-y")
    assert "--limit" not in sweep()


@pytest.mark.parametrize("words", [["--sweep-limt", "4"], ["--no-such-option"]])
def test_an_option_that_nobody_knows_is_rejected_by_lm_eval(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lm_eval", *sweep(*words)])
    with pytest.raises(SystemExit):
        HarnessCLI().parse_args()
    assert words[0].replace("-", "_").strip("_") in capsys.readouterr().err


# `lm_eval` without its own ten thousand task files, which take longer to list than all the rest.
QUICK = """
import sys
if sys.orig_argv[1].endswith("lm_eval"):
    from testing import task_files
    task_files.leave_out()
"""


def test_sweep_becomes_lm_eval_and_ends_as_it_ends(tiny_base, tiny_adapter, tmp_path):
    """The stock command checks our options before anything is loaded; its message and exit status are what is seen."""
    (tmp_path / "sitecustomize.py").write_text(QUICK)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "lm_eval_lora_drop.commands.main", "sweep", "--pretrained", str(tiny_base)]
    command += ["--peft", str(tiny_adapter), "--tasks", "lora_drop_demo", "--device", "cpu", "--sweep-limit", "x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("lm_eval run --model hf-lora-drop --model_args pretrained=")
    assert done.stderr.splitlines()[-1].startswith("lm_eval: sweep_limit must be an integer of at least 1")
