"""The whole way of a new user on the tiny model, as a process of its own; and a step that must end it."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from testing.programs import ROOT, load


@pytest.fixture(scope="module")
def gone(tiny_base, tmp_path_factory):
    """The folder of a journey that was gone to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("journey") / "new"
    words = [sys.executable, str(ROOT / "demo" / "journey.py"), "--model", str(tiny_base), "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return folder, done.stdout


def test_the_whole_way_of_a_new_user(gone):
    folder, said = gone
    assert said.splitlines()[-1] == "The journey is complete."
    for command in ("train", "compare", "leaderboard", "stability", "report", "view", "export", "check", "publish"):
        assert f"$ lora-drop {command} " in said
    assert said.count("$ lm_eval --model hf-lora-drop ") >= 2
    assert said.count("$ lm_eval --model hf ") == 1
    assert (folder / "report.html").stat().st_size > 50_000


def test_an_export_that_was_damaged_ends_the_journey(gone, tiny_base, capfd, monkeypatch):
    """One matrix of the exported adapter is set to zero: `check` says so, and the journey does not go on."""
    folder, _ = gone
    program = load("demo/journey.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    journey = program.Journey(folder, tiny_base, program.SHORT)
    (exported,) = folder.glob("adapter-*")
    journey.exported = exported
    journey.run_of_choice = "by_hand" if (folder / "runs" / "by_hand").exists() else "auto"
    weights = load_file(exported / "adapter_model.safetensors")
    name = next(name for name in sorted(weights) if "lora_B" in name)
    save_file({**weights, name: weights[name] * 0}, exported / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="journey: exit code 1 of: lora-drop check "):
        journey.check()
    assert "DIFFERS" in capfd.readouterr().out


def test_a_folder_that_exists_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["journey.py", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match="must be a new folder"):
        load("demo/journey.py").main()
