"""The screen: what it says, that it fits, that paths survive, and that it is silent where it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_eval_lora_drop.harness.evaluation import results_file
from lm_eval_lora_drop.record.evaluated import (
    EvaluatedRecord,
    EvaluatedScoreRecord,
    EvaluatedVariantRecord,
    PairedRecord,
)
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.show.listeners.screen import render_run
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import (
    L,
    boundaries,
    candidate,
    results_of,
    run_record,
    sweep_record,
    task_record,
    write_results,
)


def tracker(folder=None, date="2026-01-01T00-00-00.000000", model="adapters__mine"):
    return SimpleNamespace(
        output_path=folder and str(folder),
        date_id=date,
        general_config_tracker=SimpleNamespace(model_name_sanitized=model),
    )


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def screen(results, where=None):
    return render_run(results, where or tracker())


def evaluated(metric, **variants):
    """Variant -> score, standard error, difference to full with its interval, on 200 documents."""
    rows = []
    for variant, (score, stderr, *compared) in variants.items():
        value, low, high = compared or (None,) * 3
        to_full = PairedRecord(difference=value, low=low, high=high, p_value=0.5, documents=200) if compared else None
        found = EvaluatedScoreRecord(metric=metric, score=score, stderr=stderr, to_full=to_full)
        rows.append(EvaluatedVariantRecord(variant=variant.replace("_", "-").strip("v"), scores=(found,)))
    return EvaluatedRecord(doc_ids=tuple(range(200)), rows=tuple(rows), engine="shared")


def test_three_rows_of_test_scores_with_the_paired_difference_to_full():
    task = task_record(sweep_record())
    found = evaluated(
        task.metric, v0_6=(33.0, 2.1, -0.8, -2.94, 1.32), v0_9=(33.8, 2.04), none=(12.25, 1.5, -21.5, -25.0, -18.0)
    )
    out = screen(results_of(run_record({"samsum": replace(task, evaluated=found)})))
    rows = [line.split("  ") for line in out.splitlines() if line.startswith("K = ")]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["K = 7 (chosen)", "27.0 ± 1.5", "33.0 ± 2.1", "-0.8 [-2.9, +1.3]"],
        ["K = 10 (full)", "28.2 ± 1.5", "33.8 ± 2.0", "-"],
        ["K = 0 (base)", "20.0 ± 1.5 on 8", "12.2 ± 1.5", "-21.5 [-25.0, -18.0]"],
    ]
    assert max(map(len, out.splitlines()[:14])) <= 80
    assert "Not evaluated" not in out


def test_what_was_not_evaluated_is_named_with_the_way_to_have_it():
    task = task_record(sweep_record())
    said = "Not evaluated on the test split: {}. To evaluate, add evaluate=chosen+full+base to --model_args."
    out = screen(results_of(run_record({"samsum": task})))
    assert said.format("full and base") in " ".join(out.split())
    found = evaluated(task.metric, v0_6=(33.0, 2.1, -0.8, -2.94, 1.32), v0_9=(33.8, 2.0))
    out = screen(results_of(run_record({"samsum": replace(task, evaluated=found)})))
    assert said.format("base") in " ".join(out.split())
    # Who gave the boundary was not looking for a comparison.
    assert "Not evaluated" not in screen(results_of(run_record({"samsum": task_record(variant="0-4")})))


def test_many_tasks_show_the_difference_too():
    task = task_record(sweep_record())
    found = evaluated(task.metric, v0_6=(33.0, 2.1, -0.8, -2.94, 1.32), v0_9=(33.8, 2.0))
    tasks = {f"task{number}": replace(task, evaluated=found if number else None) for number in range(5)}
    out = screen(results_of(run_record(tasks)))
    assert out.count("-0.8 [-2.9, +1.3]") == 4
    assert max(map(len, out.splitlines()[:12])) <= 80


def test_with_an_output_path_everything_lies_there(tmp_path):
    record = run_record({"a/b c": task_record(sweep_record()), "given": task_record(variant="0-2")})
    results = results_of(record)
    path = write_results(tmp_path / "adapters__mine", results)
    out = screen(results, tracker(tmp_path)).splitlines()
    figure = path.parent / "sweep-a_b_c.png"
    assert figure.is_file()
    assert figure.with_suffix(".svg").is_file()
    assert f"Results  {path}" in out
    assert f"Figure   {figure}" in out
    assert f"Export   lora-drop export --results {path} --task 'a/b c' --output mine-K7" in out
    assert f"Export   lora-drop export --results {path} --task given --output mine-K3" in out


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_the_file_is_the_one_the_harness_wrote(tmp_path, suffix):
    """By the harness's own tracker, for a folder and for a file as --output_path."""
    from lm_eval.loggers import EvaluationTracker

    saved = EvaluationTracker(output_path=str(tmp_path / f"out{suffix}"))
    saved.general_config_tracker.model_name_sanitized = "some__model"
    assert results_file(saved) is None
    saved.save_results_aggregated(results={"results": {}}, samples=None)
    (written,) = [file for file in tmp_path.rglob("*.json") if file.is_file()]
    assert results_file(saved) == written


LONG = "a_task_with_a_name_that_is_longer_than_the_eighty_columns_of_a_plain_log_and_then_some_more"


@pytest.mark.parametrize("columns", [None, 80, 120, 200])
def test_paragraphs_are_as_wide_as_the_terminal_and_nothing_to_be_copied_is_broken(columns, monkeypatch):
    """COLUMNS is how a terminal's width is told (shutil.get_terminal_size); without a terminal it is 80."""
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    rows = boundaries({k: 12_345.678 + k for k in range(11)}, stderr=0.001)
    long = task_record(sweep_record(rows), journal="/x" * 150, warnings=("a long warning " * 40,))
    lines = screen(results_of(run_record({LONG: long}))).splitlines()
    width = columns or 80
    assert [line for line in lines if len(line) > width] == [*[LONG] * (width < len(LONG)), "Journal  " + "/x" * 150]
    assert width - 15 <= max(len(line) for line in lines if "long warning" in line) <= width


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_heading_is_broken_at_any_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    metric = MetricSpec("a_metric_with_a_long_name_of_its_own", "a_filter_with_a_long_name_too", True)
    task = replace(task_record(sweep_record()), metric=metric)
    some = dict.fromkeys([LONG, "b", "c", "d"], task)
    for tasks in ({"t": task}, some):
        text = screen(results_of(run_record(tasks)))
        for name in (*tasks, *([metric.name, metric.filter] if len(tasks) == 1 else ())):
            assert any(name in line for line in text.splitlines()), name


def test_many_tasks_get_a_line_each():
    record = run_record({f"task{i}": task_record(sweep_record()) for i in range(60)})
    out = screen(results_of(record))
    assert out.count("K = 7 (chosen)") == 60
    assert len(out.splitlines()) < 75
    assert "and so on for 59 more tasks" in out


def test_a_loaded_adapter_has_no_file_to_export_from():
    record = run_record({"t": task_record(sweep_record())}, path=None)
    assert "lora-drop export" not in screen(results_of(record))


def test_a_run_of_another_model_type_prints_nothing():
    assert screen({"results": {"t": {}}, "config": {"model": "hf"}}) == ""


def test_unknown_scores_are_dashes():
    rows = (candidate(Variant.below(7, L), 0.5, None), candidate(Variant.full(L), None, None, 0))
    results = results_of(run_record({"t": task_record(sweep_record(rows, gain=None))}), stderr="N/A")
    results["results"]["t"] = {"alias": "t"}
    lines = [line.split() for line in screen(results).splitlines() if line.startswith("K = ")]
    assert lines == [["K", "=", "7", "(chosen)", "0.500", "-"], ["K", "=", "10", "(full)", "-", "-"]]


def test_the_test_score_is_that_of_the_metric_and_filter_of_the_choice():
    record = run_record({"t": task_record(sweep_record(), metric=MetricSpec("exact_match", "flexible", True))})
    results = results_of(record)
    results["results"]["t"] = {
        "exact_match,strict": 0.1,
        "exact_match_stderr,strict": 0.01,
        "exact_match,flexible": 0.256,
        "exact_match_stderr,flexible": 0.031,
    }
    out = screen(results)
    assert "0.256 ± 0.031" in out
    heads = [line.split()[-1] for line in out.splitlines()[4:8]]
    assert heads == ["test", "exact_match", "flexible", "docs"]


def test_nothing_is_written_where_nothing_was_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen(results_of(run_record({"t": task_record(sweep_record())})), tracker(tmp_path / "out"))
    assert not list(Path(tmp_path).iterdir())
