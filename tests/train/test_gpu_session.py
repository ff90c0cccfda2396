"""benchmarks/gpu_session.py where there is no GPU: its plan, its commands, and the end of its time."""

import sys

import pytest
import torch

from lm_eval_lora_drop.commands.main import make_parser
from testing.programs import load


@pytest.fixture
def program(monkeypatch, tmp_path):
    found = load("benchmarks/gpu_session.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    return found


def test_a_dry_run_says_what_would_run(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_session", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    if not torch.cuda.is_available():
        assert said.startswith("No GPU: torch ")
    order = [
        said.index(text) for text in ("--only real", "demo-SmolLM2", "samsum-SmolLM2", "samsum-gemma", "--only 8B")
    ]
    assert order == sorted(order)
    assert "data/gsm8k: missing" in said


def test_without_a_gpu_nothing_runs(program, monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_session"])
    with pytest.raises(SystemExit, match="Not run"):
        program.main()
    assert not list(tmp_path.iterdir())


def test_its_trainings_are_commands_of_this_package(program):
    trainings = [step for step in program.steps() if step.name.startswith("training")]
    assert len(trainings) == 12
    folders = {make_parser().parse_args(step.command[3:]).output for step in trainings}
    assert {step.done.parent for step in trainings} == folders


def test_a_step_without_time_is_stopped_with_what_it_started(program, tmp_path):
    """A process whose child would write a file if it were left alone."""
    (tmp_path / program.OUT).mkdir(parents=True)
    child = "import time; time.sleep(3); open('late', 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    step = program.Step("slow", (sys.executable, "-c", parent), None, ())
    assert program.run(step, 0.5).startswith("stopped after")
    quick = program.Step("quick", (sys.executable, "-c", "import time; time.sleep(4)"), None, ())
    assert program.run(quick, 60).startswith("done")
    assert not (tmp_path / "late").exists()
