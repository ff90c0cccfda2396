"""Candidates scored on other tasks: the same numbers as a sweep of those tasks, no say in the choice, and the trade."""

import itertools
import random

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.verdict.trade_text import trade_table, tradeoff_rows
from lm_eval_lora_drop.sweep.tradeoffs.also import AlsoSpec, open_also
from lm_eval_lora_drop.sweep.tradeoffs.pareto import pareto_front
from testing.toy import CHOICE, write_task
from tests.candidates.toys import counting_task, evaluate


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_dominates(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 5, (rng.integers(1, 12), rng.integers(1, 4))).astype(float)
    points[rng.random(points.shape) < 0.05] = np.nan
    expected = []
    for one in points:
        dominated = any(
            all(b >= a for a, b in zip(one, other, strict=True)) and any(b > a for a, b in zip(one, other, strict=True))
            for other in points
            if not np.isnan(other).any()
        )
        expected.append(not dominated and not np.isnan(one).any())
    assert pareto_front(points.tolist()) == expected
    assert pareto_front([]) == []


def other_task(folder, name="other", rows=None, splits=("validation", "test"), held=None):
    """A multiple-choice task of its own, as a user's YAML file."""
    chance = random.Random(name)
    given = {**dict.fromkeys(splits, rows), "test": held or rows}
    documents = {
        split: given[split] or [{"question": f"{name} {split} {i} {chance.random()}", "label": i} for i in range(8)]
        for split in splits
    }
    choices = [f" {letter}" for letter in "aeiorstnq"]
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
    return write_task(folder, name, documents, **{**CHOICE, "doc_to_choice": choices, "metric_list": metrics})


def test_scores_on_another_task_beside_those_of_the_optimised_one(make, tmp_path, sweep_figures):
    path = other_task(tmp_path)
    with_other = from_config(
        evaluate(
            make(boundary="auto", sweep_limit=5, sweep_candidates="boundary+window", sweep_also=f"{path}:acc_norm")
        )["config"],
        "here",
    ).tasks["toy"]
    alone = from_config(
        evaluate(
            make(boundary="auto", sweep_limit=5, sweep_candidates="boundary+window", sweep_dir=str(tmp_path / "b"))
        )["config"],
        "here",
    ).tasks["toy"]
    # It has no say.
    assert with_other.sweep.candidates == alone.sweep.candidates
    assert with_other.variant == alone.variant
    assert alone.also == ()
    (also,) = with_other.also
    assert (also.task, also.metric.name, also.validation.split) == ("other", "acc_norm", "validation")
    assert [row.variant for row in also.candidates] == [row.variant for row in with_other.sweep.candidates]
    assert len({row.items for row in also.candidates}) > 1
    # The oracle: that task swept by itself.
    lm = make(
        boundary="auto",
        sweep_limit=5,
        sweep_candidates="boundary+window",
        sweep_metric="acc_norm",
        sweep_dir=str(tmp_path / "c"),
    )
    swept = from_config(evaluate(lm, str(path))["config"], "here").tasks["other"]
    assert {row.variant: row.items for row in swept.sweep.candidates} == {r.variant: r.items for r in also.candidates}
    # What is traded, by brute force.
    parameters = with_other.candidate_parameters
    assert parameters["none"] == 0
    assert parameters["0-3"] == max(parameters.values())
    rows = tradeoff_rows(with_other)
    for row, other in itertools.product(rows, rows):
        if row.fronts[1]:
            assert not (other.score > row.score and other.others[0] > row.others[0])
        if row.fronts[0]:
            assert not (other.score >= row.score and other.kept < row.kept)
    table = trade_table(with_other)
    assert "other acc_norm" in table.splitlines()[0]
    assert sum(line.endswith("chosen") for line in table.splitlines()) == 1
    drawn = sorted(path.name for path in (tmp_path / "sweeps").glob("*-trade.*"))
    assert [name.rpartition(".")[2] for name in drawn] == ["png", "svg"]


def test_bad_input_before_the_model_is_loaded(make, monkeypatch, tmp_path):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model is loaded"))
    for given, message in (
        ("gsm8kk", r"tasks that lm-eval knows .*got 'gsm8kk'. Did you mean gsm8k"),
        (str(tmp_path / "missing.yaml"), "no such file"),
        ("gsm8k+gsm8k", "every task once"),
        ("gsm8k:", "TASK or TASK:metric"),
        ("", "TASK or TASK:metric"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make(boundary="auto", sweep_limit=5, sweep_also=given)


def test_what_is_evaluated_is_never_read(make, tmp_path):
    """Refused before the first answer of the sweep: the journal is not even begun."""
    test_rows = [{"question": f"test question {i}?", "label": 0} for i in range(6)]
    mine = other_task(tmp_path / "mine", "view", rows=test_rows, splits=("validation",))
    held = other_task(tmp_path / "held", "held", splits=("test",))
    same = other_task(tmp_path / "same", "toy")
    for path, message in (
        (mine, "has no validation or training documents besides"),
        (held, "has no validation or training documents besides"),
        (same, "is the task that the sweep optimises"),
    ):
        with pytest.raises(ArgumentError, match=message):
            evaluate(make(boundary="auto", sweep_limit=5, sweep_also=str(path)), counting_task())
    view = other_task(
        tmp_path / "view", "view", rows=test_rows, splits=("train", "test"), held=[{"question": "x", "label": 1}]
    )
    with pytest.raises(ArgumentError, match="would read 5 documents that toy evaluates"):
        evaluate(make(boundary="auto", sweep_limit=5, sweep_also=str(view)), counting_task())
    with pytest.raises(ArgumentError, match="got 'accuracy'"):
        evaluate(make(boundary="auto", sweep_limit=5, sweep_also=f"{other_task(tmp_path)}:accuracy"), counting_task())
    assert not list((tmp_path / "sweeps").glob("*.jsonl"))


def test_another_view_is_known_by_its_long_fields(tmp_path):
    """Another template, another question about the same text."""
    text = "The committee met on Tuesday and did not decide anything of note, number {}."
    task = counting_task(
        splits={"test": [{"question": "What?", "text": text.format(i), "answer": "a"} for i in range(4)]},
        doc_to_text="{{text}} {{question}}",
    )
    seen = [{"question": f"Summarise {i}:", "text": text.format(i), "label": 0} for i in range(4)]
    new = [{"question": f"Summarise {i}:", "text": text.format(i + 9), "label": 0} for i in range(4)]
    binding = Binding(task, {})
    for rows, name in ((new, "new"), (seen, "seen")):
        path = other_task(tmp_path / name, name, rows=rows, held=[{**rows[0], "text": "something else"}])
        if name == "new":
            assert len(open_also([AlsoSpec(str(path))], binding, 3, 0)[0].drawn.documents) == 3
        else:
            with pytest.raises(ArgumentError, match="would read 3 documents"):
                open_also([AlsoSpec(str(path))], binding, 3, 0)
