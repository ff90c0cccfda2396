"""The same study on Ray: the same table; a worker killed by the kernel costs what it was at, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import peft
import psutil
import pytest
import torch

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.study.executors import RayExecutor
from lm_eval_lora_drop.study.plan import Cell, Unit, cell_folder, plan
from lm_eval_lora_drop.study.trainings import adapter_folder
from testing.studies import METADATA, TRAINING, study_of, table_of, write_study


@pytest.fixture
def ray(monkeypatch):
    """Ray, its workers in the environment of a user who has this package."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lm-eval-lora-drop[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def cluster(ray, monkeypatch):
    """A cluster of two workers on this machine that other processes find under RAY_ADDRESS."""
    context = ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])


@pytest.fixture
def file(tmp_path, tiny_base):
    training = {**TRAINING, "epochs": 3, "lora_dropout": 0.1, "checkpoints": 6}
    metadata = {**METADATA, "train_documents": 12}
    trainings = {"full": {"seeds": [0, 1]}, "bottom": {"layers": "0-2", "choices": ["full"]}}
    # Paths in the file are relative to where the command is given.
    study = study_of(tiny_base, Path(), metadata=metadata, training=training, trainings=trainings, output="here")
    return write_study(tmp_path, {**study, "choices": ["full", "base", "auto", 3]})


def command(file, output):
    return [
        *(sys.executable, "-m", "lm_eval_lora_drop.commands.main", "study", "--config", str(file)),
        *("--output", output, "--executor", "ray"),
    ]


def workers():
    """The processes that are at a unit now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "_work_there" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def outcome(study):
    """Table, tensors and answers of a finished study."""
    cells = [cell for unit in plan(study) for cell in unit.cells]
    answers = []
    for cell in cells:
        (run,), issues = find_runs([cell_folder(study, cell)])
        assert not issues
        answers.append([sample.raw for sample in run.tasks[cell.task.task].samples()])
    return table_of(study.output), answers


def test_the_same_study_on_two_workers(cluster, file, tmp_path, capfd, monkeypatch):
    """Paths in the file are relative to where the command is given, as without Ray. A worker is killed while it trains;
    a second command is refused; the table, the adapters and the answers are those of one after another."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["study", "--config", str(file)]) == 0
    there = read_study(file, Path("there"))
    # The sweeps of the first one would answer for the second.
    (tmp_path / "sweeps").rename(tmp_path / "sweeps of before")
    said = (tmp_path / "said.txt").open("w")
    driver = subprocess.Popen(command(file, "there"), stdout=said, stderr=said)
    together = 0
    while driver.poll() is None and not any(there.output.glob("adapters/*/checkpoints/*/trainer_state.json")):
        together = max(together, len(workers()))
        time.sleep(0.02)
    victims = workers()
    done = {
        path: path.stat().st_mtime_ns
        for pattern in ("adapters/*/training.json", "cells/*/cell.json")
        for path in there.output.glob(pattern)
    }
    victims[0].kill()
    assert max(together, len(victims)) == 2
    capfd.readouterr()
    assert cli.main(["study", "--config", str(file), "--output", "there"]) == 1
    assert "there is in use by another study" in capfd.readouterr().err
    assert driver.wait() == 0, (tmp_path / "said.txt").read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    here = read_study(file)
    assert outcome(there) == outcome(here)
    for training in here.trainings:
        one, other = (
            peft.load_peft_weights(str(adapter_folder(study, training)), device="cpu") for study in (here, there)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


class Toy:
    """A unit's work that fails in the ways that there are: said, unexpected, killed each time, killed once."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, unit):
        tries = self.folder / unit.name
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        if unit.name == "refused":
            raise ArgumentError("the rule.")
        if unit.name == "broken":
            raise KeyError("a bug\nof many lines")
        if unit.name == "killed" or (unit.name == "once" and len(tries.read_text()) == 1):
            os.kill(os.getpid(), 9)
        return [f"{unit.name} in {os.getcwd()}"] if unit.name == "partly" else []


def test_how_units_end(ray, tmp_path, monkeypatch):
    """In the order of the units, whatever became of each; the others go on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "1")
    # One that `ray.init()` starts by itself.
    monkeypatch.setenv("RAY_ADDRESS", "local")
    names = ["fine", "refused", "broken", "killed", "once", "partly"]
    units = [Unit(None, (Cell(None, name, None, None),)) for name in names]
    with RayExecutor(gpu=False) as executor:
        assert executor.at_once >= 1
        said = list(executor.map(Toy(tmp_path), units))
    assert said[0] == said[4] == []
    assert said[1] == ["refused: the rule."]
    assert said[2] == ["broken: KeyError: 'a bug\\nof many lines'"]
    assert said[3][0].startswith("killed: WorkerCrashedError: ")
    assert said[5] == [f"partly in {tmp_path}"]
    assert [len((tmp_path / name).read_text()) for name in names] == [1, 1, 1, 2, 2, 1]


def test_no_cluster_at_the_address(ray, file, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert cli.main(["study", "--config", str(file), "--executor", "ray"]) == 1
    assert "RAY_ADDRESS must be the address of a Ray cluster that runs" in capsys.readouterr().err


def test_without_ray(file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["study", "--config", str(file), "--executor", "ray"]) == 1
    assert "pip install 'lm-eval-lora-drop[ray]'" in capsys.readouterr().err
