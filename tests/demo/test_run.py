"""What demo/run.py says before the sweep, from results files, and what it does when a command fails."""

import json

import pytest

from testing.programs import load


@pytest.fixture(scope="module")
def program():
    return load("demo/run.py")


def test_the_scores_of_full_and_base_come_from_their_newest_files(program, tmp_path):
    for date, full in (("2026-01-01T00-00-00.000000", 0.2), ("2026-01-02T00-00-00.000000", 0.53)):
        for boundary, score in (("full", full), ("base", 0.0)):
            folder = tmp_path / boundary
            folder.mkdir(exist_ok=True)
            (folder / f"results_{date}.json").write_text(
                json.dumps(
                    {
                        "results": {
                            "lora_drop_demo": {
                                "exact_match,strict-match": score,
                                "exact_match_stderr,strict-match": 0.05,
                            }
                        },
                        "n-samples": {"lora_drop_demo": {"effective": 100}},
                        "lm_eval_version": "0.4.13",
                    }
                )
            )
    full, base = program.test_rows(tmp_path).splitlines()
    assert full.split() == ["full", "0.530", "±", "0.050", "on", "100", "documents"]
    assert base.split()[:2] == ["base", "0.000"]


def test_a_failing_command_ends_the_demo_with_its_code(program, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)  # main changes the folder; this puts it back
    monkeypatch.setattr(program, "prepare_model", lambda folder: folder)
    monkeypatch.setattr(program, "is_prepared", lambda folder: True)
    monkeypatch.setattr(program, "run", lambda boundary, options: asked.append(boundary) or 3)
    assert program.main() == 3
    assert asked == ["full"]
