"""What demo/run.py says at the end, from results files, and what it does when a command fails."""

import json
import os

import pytest

from tests.demo.programs import load


@pytest.fixture(scope="module")
def program():
    return load("demo/run.py")


def write_result(path, score, lora_drop=None):
    path.write_text(
        json.dumps(
            {
                "results": {
                    "lora_drop_demo": {"exact_match,strict-match": score, "exact_match_stderr,strict-match": 0.05}
                },
                "n-samples": {"lora_drop_demo": {"effective": 100}},
                "config": {"lora_drop": {"tasks": {"lora_drop_demo": lora_drop or {}}}},
            }
        )
    )
    return path


def test_the_summary_marks_chosen_full_and_base(program, tmp_path):
    rows = [{"boundary": k, "score": k / 40, "stderr": 0.1} for k in (30, 20, 0)]
    record = {
        "boundary": 20,
        "num_layers": 30,
        "metric": "exact_match",
        "doc_ids": [3, 1, 2],
        "sweep": {"boundaries": rows},
        "kept_parameters": 2000,
        "dropped_parameters": 1000,
        "figure": "sweep.png",
    }
    results = {
        "auto": write_result(tmp_path / "auto.json", 0.5, record),
        "full": write_result(tmp_path / "full.json", 0.53),
        "base": write_result(tmp_path / "base.json", 0.0),
    }
    lines = [line.strip() for line in program.summary(results, seconds=90).splitlines()]
    assert "Sweep on 3 validation documents, exact_match with its standard error:" in lines
    assert f"K = 30  0.750 +- 0.100  {'#' * 15}      full" in lines
    assert f"K = 20  0.500 +- 0.100  {'#' * 10}           chosen" in lines
    assert f"K =  0  0.000 +- 0.100  {' ' * 20} base" in lines
    assert "K = 20 (chosen)   0.500 +- 0.050" in lines
    assert "K = 30 (full)     0.530 +- 0.050" in lines
    assert "Adapter parameters: 2,000 kept, 1,000 dropped." in lines
    assert f"Results file: {results['auto']}" in lines
    assert "Figure: sweep.png" in lines
    assert "The three runs took 1.5 minutes." in lines


def test_a_boundary_that_is_chosen_and_full_has_both_marks(program):
    row = {"boundary": 30, "score": 1.0, "stderr": 0.0}
    assert program.sweep_row(row, chosen=30, num_layers=30).endswith("# full chosen")


def test_the_newest_results_file_counts(program, tmp_path):
    for at, name in enumerate(("results_b.json", "results_a.json")):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (at, at))
    assert program.newest_result(tmp_path).name == "results_a.json"


def test_a_failing_command_ends_the_demo_with_its_code(program, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)  # main changes the folder; this puts it back
    monkeypatch.setattr(program, "prepare_model", lambda folder: folder)
    monkeypatch.setattr(program, "is_prepared", lambda folder: True)
    monkeypatch.setattr(program, "run", lambda boundary, options: asked.append(boundary) or 3)
    assert program.main() == 3
    assert asked == ["auto"]
