"""Coarse to fine: which candidates are asked, that nothing else changes it, and what is said of those that were not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord, from_config
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.sweep.candidates import boundaries
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.select import selection
from lm_eval_lora_drop.sweep.strategies.refine import Refine
from lm_eval_lora_drop.sweep.strategies.table import Table
from testing import doubles
from testing.doubles import RuleRunner, Threads, exact_match_rule
from testing.records import k_of
from testing.toy import make_task
from tests.candidates.toys import evaluate

SPLITS = doubles.questions(validation=40, test=2)
DEPTH = 18
CURVE = {k: round(0.9 - 0.05 * abs(k - 11), 2) for k in range(DEPTH + 1)}


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(splits=SPLITS)


sweep = partial(doubles.sweep, strategy="refine", layers=DEPTH, ks=range(DEPTH + 1))


def asked_by(scores: dict[int, float]) -> list[set[int]]:
    """The boundaries that each round adds, by a rule that is `max`."""
    candidates = boundaries(scores, max(scores)).variants
    plan = Refine(Table(candidates, 3), lambda some: max(some, key=lambda one: scores[one.boundary or 0]))
    rounds = [{one.boundary or 0 for one in wanted} for wanted in plan.rounds()]
    assert {one for one in candidates if plan.positions(one)} == {
        one for one in candidates if one.boundary in rounds[-1]
    }
    return [now - before for before, now in zip([set(), *rounds], rounds, strict=False)]


def test_every_fourth_and_both_ends_then_half_the_step_then_the_neighbours() -> None:
    assert asked_by(CURVE) == [{18, 14, 10, 6, 2, 0}, {12, 8}, {13, 11}]
    # It climbs on until the best has both neighbours.
    stairs = {k: float(-abs(k - 9)) + (0.5 if k == 14 else 0.0) for k in range(19)}
    assert asked_by(stairs)[-1] & {8, 9, 10, 11}


@pytest.mark.parametrize("ks", [[7], [0, 7], [0, 3, 7], [0, 2, 4, 6, 8, 10, 12], list(range(82))])
def test_it_ends_at_a_candidate_both_of_whose_neighbours_were_asked(ks: list[int]) -> None:
    for seed in range(20):
        scores = dict(zip(ks, np.random.default_rng(seed).normal(size=len(ks)).tolist(), strict=True))
        asked = set.union(*asked_by(scores))
        best = ks.index(max(asked, key=lambda k: scores[k]))
        assert {ks[0], ks[-1], *ks[max(best - 1, 0) : best + 2]} <= asked


def test_the_record_has_what_was_asked_and_counts_the_rest(task: Any, tmp_path: Path) -> None:
    runner = RuleRunner(exact_match_rule(CURVE))
    found = sweep(task, tmp_path, runner, select="smooth")
    asked = {k for k, _ in runner.asked}
    assert {k_of(row.variant, DEPTH) for row in found.candidates} == asked
    assert {k_of(one, DEPTH) for one in found.not_asked} == set(range(DEPTH + 1)) - asked
    assert len(runner.asked) == len(set(runner.asked)) == 40 * len(asked)
    assert {row.documents for row in found.candidates} == {40}
    every = doubles.sweep(
        task, tmp_path / "all", RuleRunner(exact_match_rule(CURVE)), layers=DEPTH, ks=range(DEPTH + 1), select="best"
    )
    assert found.chosen == every.chosen
    assert every.not_asked == ()


def test_it_depends_on_nothing_but_the_scores(task: Any, tmp_path: Path) -> None:
    """Not on processes, batches, an end in between, or on what a journal knows beyond."""
    first = RuleRunner(exact_match_rule(CURVE))
    once = sweep(task, tmp_path / "once", first)
    runners = [RuleRunner(exact_match_rule(CURVE)) for _ in range(2)]
    together = Threads(2).run(lambda member: sweep(task, tmp_path / "two", runners[member.rank], peers=member))
    assert together == [once, once]
    assert sorted(runners[0].asked + runners[1].asked) == sorted(first.asked)
    for killed_after in (100, len(first.asked) - 20):
        with pytest.raises(RuntimeError, match="switched off"):
            sweep(task, tmp_path / f"{killed_after}", RuleRunner(exact_match_rule(CURVE), fails_after=killed_after))
        rest = RuleRunner(exact_match_rule(CURVE), batch=5)
        assert sweep(task, tmp_path / f"{killed_after}", rest) == once
        assert len(rest.asked) <= len(first.asked) - killed_after + 2 * DEPTH
    sweep(task, tmp_path / "wide", RuleRunner(exact_match_rule(CURVE)), strategy="exhaustive")
    nothing = RuleRunner(exact_match_rule(CURVE))
    assert sweep(task, tmp_path / "wide", nothing) == once
    assert nothing.asked == []


def test_what_it_cannot_search_is_refused() -> None:
    with pytest.raises(ArgumentError, match="neighbours must be alike .* sweep_strategy=racing"):
        selection(None, "refine", ordered=False)
    for rule in ("one_se", "smallest:0.99"):
        with pytest.raises(ArgumentError, match=f"best or smooth with sweep_strategy=refine, got {rule}"):
            selection(rule, "refine", ordered=True)


def test_through_the_harness_in_both_passes(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    def run(engine: str, **more: Any) -> TaskRecord:
        lm = LoraDropLM(
            pretrained=str(tiny_base),
            peft=str(tiny_adapter),
            device="cpu",
            dtype="float32",
            sweep_strategy="refine",
            sweep_limit=6,
            sweep_engine=engine,
            sweep_dir=str(tmp_path / engine),
            **more,
        )
        found = from_config(evaluate(lm)["config"], "here")
        assert found is not None
        return found.tasks["toy"]

    record, plain = run("shared"), run("plain")
    sweep = record.sweep
    assert sweep is not None
    assert plain.sweep is not None
    assert (sweep.engine, plain.sweep.engine) == ("shared", "plain")
    assert (sweep.candidates, sweep.not_asked, sweep.chosen) == (
        plain.sweep.candidates,
        plain.sweep.not_asked,
        plain.sweep.chosen,
    )
    asked = len(sweep.candidates)
    assert f"Refine asked {6 * asked} (candidate, document) pairs; {5 - asked} of 5" in sweep_table(record)
    # The verdict shares its error rate with what was not asked.
    assert len(RecordedSweep.from_record(record).left_out) == len(sweep.not_asked) == 5 - asked
    with pytest.raises(ArgumentError, match="neighbours must be alike"):
        run("shared", sweep_candidates="window")
    some = run("shared", sweep_boundaries="0-4:2").sweep
    assert some is not None
    assert len(some.candidates) == 3
