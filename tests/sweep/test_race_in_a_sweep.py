"""A race inside a sweep: journal, processes and record, with a runner that is a rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lm_eval_lora_drop.sweep.strategies.racing import RacingSettings
from testing import doubles
from testing.doubles import L, RuleRunner, Threads, exact_match_rule
from testing.records import k_of, rows_by_k
from testing.toy import make_task

ACCURACY = {0: 0.0, 1: 0.05, 2: 0.1, 3: 0.3, 4: 0.9, 5: 0.88, 6: 0.7}
SPLITS = doubles.questions(validation=100, test=2)


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(splits=SPLITS)


sweep = partial(doubles.sweep, strategy="racing")


def test_chooses_what_an_exhaustive_sweep_chooses_with_fewer_answers(task: Any, tmp_path: Path) -> None:
    full = sweep(task, tmp_path / "a", RuleRunner(exact_match_rule(ACCURACY)), strategy="exhaustive")
    runner = RuleRunner(exact_match_rule(ACCURACY))
    raced = sweep(task, tmp_path / "b", runner, racing=RacingSettings(tolerance=0.0))
    assert k_of(raced.chosen, L) == k_of(full.chosen, L) == 4
    assert len(runner.asked) == len(set(runner.asked)) < 0.7 * (L + 1) * 100
    assert raced.gain_over_full == full.gain_over_full


def test_eliminated_boundaries_stay_in_the_record_with_the_documents_they_met(task: Any, tmp_path: Path) -> None:
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    rows = rows_by_k(result, L)
    assert rows[0].eliminated_after is not None
    assert rows[0].documents == rows[0].eliminated_after < 30
    assert sum(item is not None for item in rows[0].items) == rows[0].eliminated_after
    assert rows[L].eliminated_after is None
    assert rows[L].documents == rows[k_of(result.chosen, L)].documents == 100
    assert result.racing is not None
    assert "none" in {one.variant for one in result.racing.eliminated}


def test_a_race_depends_on_its_seed_alone(task: Any, tmp_path: Path) -> None:
    """Not on the order of answers, the processes, the batches, or on what a journal knows beyond the race."""
    first = RuleRunner(exact_match_rule(ACCURACY))
    once = sweep(task, tmp_path / "once", first)
    other = RuleRunner(exact_match_rule(ACCURACY), batch=7)
    assert sweep(task, tmp_path / "again", other) == once
    runners = [RuleRunner(exact_match_rule(ACCURACY)) for _ in range(2)]
    together = Threads(2).run(lambda member: sweep(task, tmp_path / "two", runners[member.rank], peers=member))
    assert together == [once, once]
    assert sorted(runners[0].asked + runners[1].asked) == sorted(first.asked)
    sweep(task, tmp_path / "wide", RuleRunner(exact_match_rule(ACCURACY)), strategy="exhaustive")
    nothing = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "wide", nothing) == once
    assert nothing.asked == []
    reshuffled = RuleRunner(exact_match_rule(ACCURACY))
    sweep(task, tmp_path / "seed", reshuffled, seed=1)
    assert sorted(reshuffled.asked) != sorted(first.asked)


def test_a_killed_race_goes_on_and_gives_the_same_record(task: Any, tmp_path: Path) -> None:
    undisturbed_runner = RuleRunner(exact_match_rule(ACCURACY))
    undisturbed = sweep(task, tmp_path / "a", undisturbed_runner)
    with pytest.raises(RuntimeError, match="switched off"):
        sweep(task, tmp_path / "b", RuleRunner(exact_match_rule(ACCURACY), fails_after=150))
    rest = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "b", rest) == undisturbed
    assert len(rest.asked) < len(undisturbed_runner.asked) - 130
