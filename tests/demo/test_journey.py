"""The whole way of a new user on the tiny model, each command a process; and a step that must end it."""

import contextlib
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from testing.forked import Forked
from testing.programs import load


@pytest.fixture(scope="module")
def journey_program():
    """The program; each command that it starts is a forked process, but for `view`, which is read while it runs."""

    def run(words, *, cwd, **_):
        process = Forked(words[1:], cwd=cwd)
        out, said = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, said)

    program = load("demo/journey.py")
    program.subprocess = SimpleNamespace(run=run, Popen=subprocess.Popen, PIPE=subprocess.PIPE)
    return program


@pytest.fixture(scope="module")
def gone(journey_program, tiny_base, tmp_path_factory):
    """The folder of a journey that was gone to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("journey") / "new"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["journey.py", "--model", str(tiny_base), "-o", str(folder)])
        assert journey_program.main() == 0
    return folder, said.getvalue()


def test_the_whole_way_of_a_new_user(gone):
    folder, said = gone
    assert said.splitlines()[-1] == "The journey is complete."
    for command in ("train", "compare", "leaderboard", "stability", "report", "view", "export", "check", "publish"):
        assert f"$ lora-drop {command} " in said
    assert said.count("$ lm_eval --model hf-lora-drop ") >= 2
    assert said.count("$ lm_eval --model hf ") == 1
    assert (folder / "report.html").stat().st_size > 50_000


def test_an_export_that_was_damaged_ends_the_journey(gone, journey_program, tiny_base, capsys):
    """One matrix of the exported adapter is set to zero: `check` says so, and the journey does not go on."""
    folder, _ = gone
    journey = journey_program.Journey(folder, tiny_base, journey_program.SHORT)
    (exported,) = folder.glob("adapter-*")
    journey.exported = exported
    journey.run_of_choice = "by_hand" if (folder / "runs" / "by_hand").exists() else "auto"
    weights = load_file(exported / "adapter_model.safetensors")
    name = next(name for name in sorted(weights) if "lora_B" in name)
    save_file({**weights, name: weights[name] * 0}, exported / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="journey: exit code 1 of: lora-drop check "):
        journey.check()
    assert "DIFFERS" in capsys.readouterr().out


def test_a_folder_that_exists_is_left_alone(journey_program, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["journey.py", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match="must be a new folder"):
        journey_program.main()
