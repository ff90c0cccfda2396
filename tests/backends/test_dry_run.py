"""`sweep_dry_run=true`: it says what a sweep would take, answers nothing, and ends with status 0."""

import pytest

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.sweep.dry_run import plan_of_sweep
from testing.toy import make_task
from tests.backends.test_evaluate import choice_task, evaluate


@pytest.fixture
def run(tiny_base, tiny_adapter, tmp_path):
    """Evaluate on the tiny model with `sweep_limit=4`; returns the model."""

    def start(*tasks, **model_args):
        lm = LoraDropLM(
            str(tiny_base), str(tiny_adapter), device="cpu", dtype="float32", batch_size=4, sweep_limit=4,
            sweep_dir=str(tmp_path), **model_args,
        )  # fmt: skip
        evaluate(lm, *tasks)

    return start


def test_it_answers_nothing_and_names_every_task(run, tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as ended:
        run(make_task(), choice_task(), sweep_dry_run=True)
    assert ended.value.code == 0
    assert list(tmp_path.iterdir()) == []
    said = [record.message for record in caplog.records if record.message.startswith("Dry run of ")]
    assert len(said) == 2
    assert "Dry run of choices, acc: nothing was answered." in said[1] + said[0]
    for text in said:
        assert "  documents  4 of split 'validation'" in text
        assert "time       not known before a first sweep" in text
        assert "GB in use with the model loaded" in text
        assert " documents under chosen and full (full only where one shared pass answers both)" in text


def test_the_time_is_the_journals_own(run, caplog):
    """After the sweep everything is in the journal, and nothing is left to be done."""
    run(sweep_boundaries="0+1")
    caplog.set_level("INFO")
    with pytest.raises(SystemExit):
        run(sweep_boundaries="0+1", sweep_dry_run=True)
    (said,) = [record.message for record in caplog.records if record.message.startswith("Dry run of ")]
    assert "pairs      8 (2 candidates on each document, 8 of them in the journal)" in said
    assert "time       0 s, at the journal's own speed" in said


def test_what_is_left_is_shared_by_the_processes():
    plan = {"documents": 100, "split": "train", "candidates": 31, "known": 100, "memory": "none", "bound": "at most "}
    text = plan_of_sweep("t", "em", seconds_per_pair=2.4, processes=2, evaluated="-", **plan)
    assert "at most 3,100 (31 candidates on each document, 100 of them in the journal)" in text
    assert "at most 60 min, at the journal's own speed" in text


def test_only_a_sweep_can_be_tried_dry():
    assert parse_model_args({"sweep_dry_run": True}, ())[0].sweep_dry_run
    with pytest.raises(ArgumentError, match="only boundary=auto sweeps; got"):
        parse_model_args({"boundary": 3, "sweep_dry_run": True}, ())
    with pytest.raises(ArgumentError, match="sweep_dry_run must be true or false"):
        parse_model_args({"sweep_dry_run": "yes"}, ())
