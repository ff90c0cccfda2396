"""Whatever lies in an output folder: what can be read is read, the rest is named."""

import json
from dataclasses import replace

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.runs import scores_only
from lm_eval_lora_drop.show.report.corrections import first_metric
from lm_eval_lora_drop.show.verdict.answer import evaluated_score
from testing.run_files import swept, write_run


def test_scores_and_texts_of_a_run(tmp_path):
    write_run(tmp_path / "a", {"em": [1.0, 0.0, 1.0]}, outputs=["x", "y\u2028z", "一"])
    (run,), issues = find_runs([tmp_path])
    task = run.tasks["t"]
    assert not issues
    assert not run.all_issues
    assert task.scores["em", "none"].value == pytest.approx(2 / 3)
    assert task.documents["none"].metrics["em"] == [1.0, 0.0, 1.0]
    assert [sample.raw for sample in task.samples()] == ["x", "y\u2028z", "一"]
    assert task.samples()[0].prompt == "prompt 0"


def test_reading_scores_alone_equals_reading_all(tmp_path):
    """Also where texts hold what looks like the key that is looked for, and where the layout is another one."""
    nasty = 'a", "filter": "none", "metrics": ["em"], "doc_hash": "x", "em": 9.0}'
    path = write_run(tmp_path, {"em": [1.0]}, outputs=[nasty], targets=[nasty])
    line = next(path.parent.glob("samples_*")).read_bytes()
    whole = json.loads(line)
    assert scores_only(line) == {k: whole[k] for k in scores_only(line)}
    assert scores_only(line)["em"] == 1.0
    turned = json.dumps(dict(reversed(whole.items()))).encode()
    assert scores_only(turned) == whole


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path):
    """Truncated JSON, no results table, torn samples, missing samples, another release."""
    good = write_run(tmp_path / "good", {"em": [1.0, 0.0]})
    torn = write_run(tmp_path / "torn", {"em": [1.0, 0.0]}, name="torn")
    samples = next(torn.parent.glob("samples_*"))
    samples.write_bytes(samples.read_bytes()[:-40])
    write_run(tmp_path / "bare", {"em": [1.0]}, name="bare", samples=False)
    write_run(tmp_path / "new", {"em": [1.0]}, name="new", release="0.9.0")
    cut = tmp_path / "cut" / "results_2026-01-01T00-00-00.000000.json"
    cut.parent.mkdir()
    cut.write_text(good.read_text()[:200])
    (tmp_path / "results_other.json").write_text('{"answer": 42}')
    (tmp_path / "adapter_config.json").write_text("not looked at")
    runs, issues = find_runs([tmp_path])
    for run in runs:
        for task in run.tasks.values():
            assert task.documents is not None
    said = {issue.path.parent.name: str(issue) for issue in [*issues, *(i for run in runs for i in run.all_issues)]}
    assert {run.path.parent.name for run in runs} == {"good", "torn", "bare", "new"}
    assert "truncated" in said["cut"]
    assert "no results file" in said[tmp_path.name]
    assert "no samples_t_" in said["bare"]
    assert "lm-eval 0.9.0" in said["new"]
    assert "good" not in said
    (torn_run,) = [run for run in runs if run.path == torn]
    words = " ".join(map(str, torn_run.all_issues))
    assert "line 2 is no logged document" in words
    assert "holds 1 documents, the results file counts 2" in words


def test_files_before_filters_are_read(tmp_path):
    """lm-eval 0.3 wrote no filter, no date and no samples."""
    (tmp_path / "results.json").write_text(json.dumps({"results": {"t": {"acc": 0.5, "acc_stderr": 0.1}}}))
    (run,), _ = find_runs([tmp_path])
    assert run.tasks["t"].scores == {("acc", "none"): pytest.approx(run.tasks["t"].scores["acc", "none"])}
    assert run.tasks["t"].scores["acc", "none"].stderr == 0.1
    assert "does not name its release" in " ".join(map(str, run.all_issues))


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="no results file"):
        find_runs([tmp_path])
    with pytest.raises(ArgumentError, match="does not exist"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("listed", "table", "first"),
    [
        (["field_f1", "json_valid"], ["json_valid", "field_f1"], "field_f1"),
        (["json_valid", "field_f1"], ["field_f1", "json_valid"], "json_valid"),
        # One function gives several scores under names of their own.
        (["pass_at_k", "em"], ["em", "pass@1", "pass@10"], "pass@1"),
        (["em", "pass_at_k"], ["pass@1", "em"], "em"),
        ([], ["b", "a"], "b"),
    ],
)
def test_the_metric_that_stands_for_a_task_is_the_one_a_sweep_optimises(listed, table, first, tmp_path):
    """`metric_list` orders a task's metrics, not the results table, which has the order of process_results."""
    path = write_run(tmp_path, {name: [0.0, 1.0] for name in table}, lora_drop=swept())
    data = json.loads(path.read_text())
    data["configs"]["t"]["metric_list"] = [{"metric": name} for name in listed] or "none"
    path.write_text(json.dumps(data))
    (run,) = find_runs([tmp_path])[0]
    assert first_metric(run.tasks["t"]) == (first, "none")
    assert next(iter(run.tasks["t"].scores))[0] == first
    assert evaluated_score(data, "t", replace(run.tasks["t"].record, metric=None)).metric.name == first
    # A metric that is asked for by name stands for it all the same.
    assert first_metric(run.tasks["t"], [table[-1]]) == (table[-1], "none")
