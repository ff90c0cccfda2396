"""One choice for several tasks: against the definition written out, and where its unit could have blown up."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from lm_eval_lora_drop.backends.checks import check_before_loading
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.record.schema import as_json, read_task
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.tradeoffs.bounds import ScoredCandidates
from lm_eval_lora_drop.sweep.tradeoffs.jointly import choose_jointly
from lm_eval_lora_drop.variant import AdapterShape
from tests.candidates.records import recorded
from tests.sweep.test_bounds import MeanScorer

CANDIDATE_SET = make_candidates(["window"], AdapterShape(6))


def jointly(records, how):
    sweeps = {name: record.sweep for name, record in records.items()}
    judged = {
        name: ScoredCandidates(record.sweep.candidates, MeanScorer(record.metric.higher_is_better), None)
        for name, record in records.items()
    }
    found = choose_jointly(sweeps, judged, how, 6)
    return {name: replace(record, variant=found[name].chosen, sweep=found[name]) for name, record in records.items()}


def by_hand(records, how):
    """Paired differences to the full adapter over the standard deviation of all values of a task, one by one."""
    standing = {}
    for record in records.values():
        sign = 1 if record.metric.higher_is_better else -1
        rows = {row.variant: row.items for row in record.sweep.candidates}
        unit = statistics.pstdev([value for items in rows.values() for value in items])
        full = rows["0-5"]
        for name, items in rows.items():
            difference = sign * statistics.fmean(a - b for a, b in zip(items, full, strict=True))
            standing.setdefault(name, []).append(difference / unit if unit else 0.0)
    case = statistics.fmean if how == "mean" else min
    return max(standing, key=lambda name: case(standing[name]))


@pytest.mark.parametrize("how", ["mean", "worst"])
def test_the_choice_is_the_definition_written_out(how):
    chosen, differing = set(), 0
    for seed in range(30):
        records = {
            # Percents beside shares, more documents, an error rate: none of it may weigh.
            "a": recorded(CANDIDATE_SET, documents=20, seed=3 * seed),
            "b": recorded(CANDIDATE_SET, documents=50, seed=3 * seed + 1, higher_is_better=False),
            "c": recorded(CANDIDATE_SET, documents=9, seed=3 * seed + 2),
        }
        records["c"] = scaled(records["c"], 100.0)
        found = jointly(records, how)
        (one,) = {record.sweep.chosen for record in found.values()}
        assert one == by_hand(records, how), seed
        chosen.add(one)
        for name, record in found.items():
            assert record.sweep.jointly.alone == records[name].sweep.chosen
            differing += record.sweep.jointly.alone != one
            assert set(record.sweep.jointly.others) == set(records) - {name}
    assert len(chosen) > 3
    assert differing > 30


def scaled(record, factor):
    rows = tuple(
        replace(row, score=row.score * factor, items=tuple(item * factor for item in row.items))
        for row in record.sweep.candidates
    )
    return replace(record, sweep=replace(record.sweep, candidates=rows))


def flat(record, value=0.25):
    """The task of `record`, whose candidates all score all documents alike."""
    rows = tuple(replace(row, score=value, items=(value,) * len(row.items)) for row in record.sweep.candidates)
    return replace(record, sweep=replace(record.sweep, candidates=rows, chosen=rows[0].variant, best=rows[0].variant))


@pytest.mark.parametrize("how", ["mean", "worst"])
def test_a_task_on_which_nothing_differs_has_no_say_and_blows_nothing_up(how):
    """The full adapter equals the base model there: in units of their range it would be all or nothing."""
    told = recorded(CANDIDATE_SET, documents=20, seed=4)
    for other in (flat(told), scaled(flat(told), 0.0)):
        found = jointly({"told": told, "flat": other}, how)
        assert found["flat"].sweep.jointly.unit == 0
        assert set(found["told"].sweep.jointly.others["flat"].values()) == {0.0}
        expected = told.sweep.chosen if how == "mean" else by_hand({"told": told, "flat": other}, "worst")
        assert found["told"].sweep.chosen == expected
    # One document, on which one candidate is better by very little: in standard errors it would be the whole say.
    rows = list(flat(told).sweep.candidates)
    rows[5] = replace(rows[5], score=0.25 + 1e-9 / 20, items=(0.25 + 1e-9, *rows[5].items[1:]))
    hair = replace(told, sweep=replace(told.sweep, candidates=tuple(rows)))
    standing = jointly({"told": told, "hair": hair}, how)["told"].sweep.jointly.others["hair"]
    assert max(abs(value) for value in standing.values()) < (2 * len(rows)) ** 0.5


def test_the_worst_case_is_never_worse_than_the_whole_adapter():
    for seed in range(20):
        records = {name: recorded(CANDIDATE_SET, documents=15, seed=seed * 2 + i) for i, name in enumerate("ab")}
        found = jointly(records, "worst")
        for name, record in found.items():
            gain = record.sweep.gain_over_full
            assert gain is None or gain.difference >= 0, (seed, name)


def test_resamples_choose_by_the_same_rule_and_the_record_is_read_back():
    records = {name: recorded(CANDIDATE_SET, documents=15, seed=i) for i, name in enumerate("ab")}
    record = jointly(records, "mean")["a"]
    assert read_task(as_json(record), "here", "tasks.a") == record
    sweep = RecordedSweep.from_record(record)
    every = np.ones((1, 15), dtype=np.int64)
    assert str(sweep.candidates[sweep.choose(sweep.scores(every), every)[0]]) == record.sweep.chosen
    counts = np.random.default_rng(0).multinomial(15, np.full(15, 1 / 15), size=30)
    told = record.sweep.jointly
    for row, times in zip(sweep.choose(sweep.scores(counts), counts), counts, strict=True):
        drawn = {one.variant: np.repeat(one.items, times).mean() for one in record.sweep.candidates}
        expected = max(drawn, key=lambda name: (drawn[name] - drawn["0-5"]) / told.unit + told.others["b"][name])
        assert str(sweep.candidates[row]) == expected
    short = {"b": {name: value for name, value in told.others["b"].items() if name != "none"}}
    torn = replace(record, sweep=replace(record.sweep, jointly=replace(told, others=short)))
    with pytest.raises(ArgumentError, match="how every candidate stands on task b"):
        RecordedSweep.from_record(torn)
    with pytest.raises(ArgumentError, match=r"sweep.jointly.alone: must be one of the candidates"):
        read_task(
            as_json(replace(record, sweep=replace(record.sweep, jointly=replace(told, alone="1+3")))), "here", "tasks.a"
        )


def test_the_table_says_so():
    records = {name: recorded(CANDIDATE_SET, documents=15, seed=i) for i, name in enumerate("abc")}
    table = sweep_table(jointly(records, "worst")["a"])
    assert "the best worst case over 3 tasks (sweep_jointly, best)" in table
    assert "this task alone would have chosen" in table
    assert "in standard deviations of a document: b " in table


def test_a_candidate_without_a_score_on_one_task_is_not_taken():
    records = {name: recorded(CANDIDATE_SET, documents=15, seed=0) for name in "ab"}
    best = records["a"].sweep.chosen
    rows = tuple(
        replace(row, score=None, items=(None,) * 15, documents=0) if row.variant == best else row
        for row in records["b"].sweep.candidates
    )
    records["b"] = replace(records["b"], sweep=replace(records["b"].sweep, candidates=rows))
    found = jointly(records, "mean")
    assert found["a"].sweep.chosen != best
    assert found["a"].sweep.jointly.others["b"][best] is None


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"sweep_strategy": "racing"}, "sweep_strategy=racing. Take sweep_strategy=exhaustive"),
        ({"sweep_candidates": "greedy"}, "sweep_candidates=greedy are each task's own"),
        ({"sweep_candidates": "upper+scores"}, "sweep_candidates=scores are each task's own"),
        ({"sweep_select": "one_se"}, "got sweep_select=one_se"),
        ({"sweep_select": "smallest:0.9"}, "got sweep_select=smallest:0.9"),
        ({"sweep_boundaries": "0-3"}, "Add K = L"),
        ({"boundary": "probe"}, "boundary=probe makes none"),
    ],
)
def test_what_has_nothing_in_common_is_refused_before_a_model_is_loaded(model_args, message, tmp_path):
    args, _ = parse_model_args({"sweep_jointly": True, **model_args, "sweep_dir": str(tmp_path)}, ())
    assert args.sweep_jointly == "mean"
    with pytest.raises(ArgumentError, match=message):
        check_before_loading(args, AdapterShape(4))


def test_how_is_a_word():
    assert parse_model_args({"sweep_jointly": False}, ())[0].sweep_jointly is None
    assert parse_model_args({"sweep_jointly": "worst"}, ())[0].sweep_jointly == "worst"
    with pytest.raises(ArgumentError, match="must be one of mean, worst or true, false, got 'best'"):
        parse_model_args({"sweep_jointly": "best"}, ())
