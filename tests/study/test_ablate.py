"""`lora-drop ablate`: the grid's cells are ordinary runs, equal to runs made one by one; it goes on where it was."""

import json

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.models.hf import LoraDropLM
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.study.grid import read_grid
from tests.tiny import make_adapter

TASK = "lora_drop_demo"


@pytest.fixture
def grid(tmp_path, tiny_base, tiny_adapter):
    """Two adapters, three settings, a sweep by two metrics is left to the last test."""
    other = make_adapter(tiny_base, tmp_path / "rank2", seed=3, r=2, target_modules=["q_proj", "up_proj"])
    config = {
        "model_args": {"pretrained": str(tiny_base), "dtype": "float32", "sweep_limit": 4, "sweep_boundaries": "2-4"},
        "adapters": [str(tiny_adapter), str(other)],
        "boundaries": ["full", 2, "auto"],
        "layers": ["1+3"],
        "tasks": [TASK],
        "limit": 4,
        "device": "cpu",
        "bootstrap_iters": 0,
        "metadata": {"test_documents": 8, "validation_documents": 8, "train_documents": 8},
        "output": str(tmp_path / "out"),
    }
    config["model_args"]["sweep_dir"] = str(tmp_path / "sweeps")
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_cells_equal_runs_made_one_by_one(grid, capsys, monkeypatch):
    """One load of the base, eight runs; each cell's outputs are those of a model made for it alone. A second call of
    the command runs nothing; with one cell's mark gone, that cell alone."""
    loads = []
    init = LoraDropLM.__init__
    monkeypatch.setattr(LoraDropLM, "__init__", lambda self, *a, **k: (loads.append(k), init(self, *a, **k))[1])
    assert cli.main(["ablate", "--config", str(grid)]) == 0
    assert len(loads) == 1
    parsed = read_grid(grid)
    runs, issues = find_runs([parsed.output])
    assert not issues
    assert len(runs) == 8
    tasks = str(package_folder("tasks"))
    manager = TaskManager(include_path=tasks, include_defaults=False, metadata=dict(parsed.metadata))
    for cell in parsed.cells:
        (run,), _ = find_runs([parsed.folder(cell)])
        assert run.model_type == "hf-lora-drop"
        assert run.lora_drop["adapter"]["path"] == cell.adapter
        alone = LoraDropLM(peft=cell.adapter, device="cpu", **parsed.model_args, **cell.model_args)
        want = lm_eval.simple_evaluate(model=alone, tasks=[TASK], task_manager=manager, limit=4, bootstrap_iters=0)
        assert run.lora_drop["fingerprint"] == want["config"]["lora_drop"]["fingerprint"]
        assert run.tasks[TASK].lora_drop["layers"] == want["config"]["lora_drop"]["tasks"][TASK]["layers"]
        got = [sample.raw for sample in run.tasks[TASK].samples()]
        assert got == [sample["resps"][0][0] for sample in want["samples"][TASK]]
    assert len({tuple(s.raw for s in run.tasks[TASK].samples()) for run in runs}) > 2
    loads.clear()
    assert cli.main(["ablate", "--config", str(grid)]) == 0
    assert not loads
    marks = sorted(parsed.output.glob("*/ablation.json"))
    assert json.loads(marks[0].read_text())["results"]
    marks[0].unlink()
    capsys.readouterr()
    assert cli.main(["ablate", "--config", str(grid), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (said.count("done  "), said.count("to do")) == (7, 1)
    assert cli.main(["ablate", "--config", str(grid)]) == 0
    assert len(loads) == 1


def test_a_cell_that_cannot_run_does_not_stop_the_grid(grid, capsys):
    """A boundary that the model does not have: named, the other cells are written, the command fails."""
    data = yaml.safe_load(grid.read_text())
    grid.write_text(yaml.safe_dump({**data, "boundaries": [9, 1], "layers": [], "adapters": data["adapters"][:1]}))
    assert cli.main(["ablate", "--config", str(grid)]) == 1
    said = capsys.readouterr()
    assert "boundary=9: boundary must be an integer from 0 to 4" in said.err
    assert "1 of 2 cells" in said.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boundries": [1]}, "Did you mean boundaries?"),
        ({"boundaries": ["ful"]}, "Did you mean boundary=full?"),
        ({"boundaries": [], "layers": []}, "must have boundaries or layers"),
        ({"adapters": []}, "must name adapters"),
        ({"tasks": []}, "must have tasks"),
        ({"model_args": {}}, "model_args must name the base model"),
    ],
)
def test_a_wrong_grid_is_named_before_anything_loads(change, message, grid, capsys):
    grid.write_text(yaml.safe_dump({**yaml.safe_load(grid.read_text()), **change}))
    assert cli.main(["ablate", "--config", str(grid)]) == 1
    assert message in capsys.readouterr().err


def test_without_a_device_it_takes_what_there_is(grid):
    """As the lm_eval command does; HFLM's own default fails on a machine without CUDA."""
    data = yaml.safe_load(grid.read_text())
    del data["device"]
    grid.write_text(yaml.safe_dump({**data, "boundaries": [1], "layers": [], "adapters": data["adapters"][:1]}))
    assert cli.main(["ablate", "--config", str(grid)]) == 0
    runs, _ = find_runs([read_grid(grid).output])
    assert len(runs) == 1


def test_metrics_multiply_searches_alone(grid):
    """Metrics are what a sweep optimises; a given boundary is run once."""
    grid.write_text(yaml.safe_dump({**yaml.safe_load(grid.read_text()), "metrics": ["exact_match", "other"]}))
    names = [cell.name for cell in read_grid(grid).cells]
    assert len(names) == 2 * (2 + 2 + 1)
    assert "rank2 boundary=auto by other" in names
    assert "rank2 boundary=full" in names
