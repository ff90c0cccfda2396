"""The demo's one command: what it asks for, and what becomes of its exit code."""

import subprocess

import pytest

from lm_eval_lora_drop.options import parse_model_args
from testing.programs import load


@pytest.fixture
def program(monkeypatch, tmp_path):
    found = load("demo/run.py")
    monkeypatch.chdir(tmp_path)  # main changes the folder; this puts it back
    monkeypatch.setattr(found, "prepare_model", lambda folder: folder)
    monkeypatch.setattr(found, "is_prepared", lambda folder: True)
    return found


def test_it_compares_boundaries_and_tests_all_three(program):
    """21 boundaries, base and full among them, as the text before it says."""
    given = dict(one.split("=", 1) for one in program.MODEL_ARGS.split(","))
    args, _ = parse_model_args(given, ("pretrained", "peft"))
    assert set(args.evaluate) == {"chosen", "full", "base"}
    boundaries = sorted(args.sweep_boundaries)
    assert len(boundaries) == 21
    assert {0, 30, *range(15, 31)} <= set(boundaries)
    assert f"{len(boundaries)} boundaries are tried on {args.sweep_limit} validation documents" in program.NOTE


def test_the_printed_command_is_the_one_that_runs_and_its_code_is_the_demos(program, monkeypatch, capsys):
    ran = []

    def run(command, check):
        ran.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(program.subprocess, "run", run)
    assert program.main() == 3
    (command,) = ran
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert printed.split()[2:] == command[1:]
