"""Another run's choice is taken over for the same adapter and base model, and for no other."""

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.choice import read_recorded, recorded_choice
from lm_eval_lora_drop.variant import Variant, parse_boundary
from testing.recorded_runs import L, results_of, run_record, sweep_record, task_record, write_results

PARTS = {"adapter": {"fingerprint": "sha256:" + "ab" * 32}, "base": {"fingerprint": "sha256:" + "cd" * 32}}


@pytest.fixture
def saved(tmp_path):
    record = run_record({"wmt": task_record(sweep_record()), "samsum": task_record(variant="0-2+5")})
    return write_results(tmp_path / "out" / "model", results_of(record))


def test_the_argument_is_read_and_prints_as_it_was_written():
    spec = parse_boundary(" @out/run#wmt ")
    assert (spec.kind, spec.source, str(spec)) == ("recorded", "out/run#wmt", "boundary=@out/run#wmt")
    assert spec.resolve(L) is None
    assert not spec.needs_validation
    with pytest.raises(ArgumentError, match="boundary=@PATH must name"):
        parse_boundary("@ ")


def test_file_and_folder_give_the_task_of_the_same_name(saved):
    for source in (saved, saved.parent, saved.parent.parent):
        choice = recorded_choice(str(source), "samsum", PARTS)
        assert (choice.variant, choice.path) == (Variant.parse("0-2+5", L), saved)
    assert recorded_choice(str(saved), "wmt", PARTS).variant == Variant.below(7, L)


def test_a_task_may_be_named_and_need_not_where_there_is_one(saved, tmp_path):
    assert recorded_choice(f"{saved}#wmt", "wikimatrix", PARTS).variant == Variant.below(7, L)
    with pytest.raises(ArgumentError, match=r"no task wikimatrix, and several others: wmt, samsum.*#wmt"):
        recorded_choice(str(saved), "wikimatrix", PARTS)
    with pytest.raises(ArgumentError, match="has the tasks wmt, samsum, got 'mwt'"):
        read_recorded(f"{saved}#mwt")
    one = write_results(tmp_path / "a#b", results_of(run_record({"wmt": task_record(sweep_record())})))
    assert recorded_choice(str(one.parent), "wikimatrix", PARTS).variant == Variant.below(7, L)


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_another_adapter_or_base_model_is_refused(saved, part):
    parts = PARTS | {part: {"fingerprint": "sha256:other"}}
    with pytest.raises(ArgumentError, match=rf"another {part}.*sha256:other"):
        recorded_choice(str(saved), "samsum", parts)


def test_no_run_and_several_are_refused(saved, tmp_path):
    with pytest.raises(ArgumentError, match="does not exist"):
        read_recorded(str(tmp_path / "nowhere"))
    write_results(saved.parent, results_of(run_record({"t": task_record()})), date="2026-02-01T00-00-00.000000")
    with pytest.raises(ArgumentError, match="holds 2"):
        read_recorded(str(saved.parent))
    other = write_results(tmp_path / "other", {"results": {"t": {"acc,none": 1.0}}, "config": {"model": "hf"}})
    with pytest.raises(ArgumentError, match="holds 0"):
        read_recorded(str(other))
