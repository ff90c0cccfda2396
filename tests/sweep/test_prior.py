"""The prior retires what is clearly hopeless by the reference answers, and nothing it cannot be sure of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.prior import hopeless, read_at, retire_by_prior
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from tests.sweep.doubles import L, One, RuleRunner, Threads, exact_match_rule, make_documents
from tests.toy import make_task


def reference(gains: dict[int, float], documents: int = 40, noise: float = 0.1) -> dict[int, list[float]]:
    """Per document: its own level, plus what the boundary gains over base."""
    rng = np.random.default_rng(0)
    level = rng.normal(-2, 0.5, documents)
    return {k: list(level + gain + rng.normal(0, noise, documents)) for k, gain in gains.items()}


def test_retires_what_lacks_more_than_half_of_the_gain() -> None:
    gains = {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.7, 4: 0.9, 5: 1.0}
    assert retire_by_prior(reference(gains), num_layers=5) == [2, 1, 0]
    assert retire_by_prior(reference(gains), num_layers=5, kept_share=0.2) == [1, 0]


def test_a_boundary_at_the_margin_is_kept() -> None:
    """Half of the gain and a little less: the documents cannot tell, so it generates."""
    assert retire_by_prior(reference({0: 0.0, 3: 0.48, 5: 1.0}), num_layers=5) == [0]


@pytest.mark.parametrize("full_gain", [0.0, 0.02, -1.0])
def test_an_adapter_that_gains_nothing_retires_nothing(full_gain: float) -> None:
    assert retire_by_prior(reference({0: 0.0, 1: -3.0, 5: full_gain}), num_layers=5) == []


def test_documents_that_are_not_finite_are_left_out() -> None:
    values = reference({0: 0.0, 1: 0.1, 5: 1.0})
    values[1][0] = -math.inf
    values[0][1] = math.nan
    assert retire_by_prior(values, num_layers=5) == [1, 0]
    assert retire_by_prior({k: row[:1] for k, row in values.items()}, num_layers=5) == []


def test_base_and_full_must_be_there_and_lists_must_match() -> None:
    with pytest.raises(ArgumentError, match="K = 0 and K = 5"):
        retire_by_prior({1: [0.0], 5: [1.0]}, num_layers=5)
    with pytest.raises(ArgumentError, match="unequal length"):
        retire_by_prior({0: [0.0], 5: [1.0, 2.0]}, num_layers=5)


@pytest.mark.parametrize(
    ("candidates", "num_layers", "read"),
    [
        (range(31), 30, [30, 26, 22, 18, 14, 10, 6, 2, 0]),
        (range(33), 32, [32, 28, 24, 20, 16, 12, 8, 4, 0]),
        (range(7), 6, [6, 5, 4, 3, 2, 1, 0]),
        ((8, 12, 20), 32, [32, 20, 12, 8, 0]),
        (range(5, 16), 30, [30, 15, 13, 11, 9, 7, 5, 0]),
    ],
)
def test_it_is_read_at_both_ends_and_evenly_between(candidates, num_layers, read) -> None:
    assert read_at(candidates, num_layers) == read


def test_a_boundary_between_two_hopeless_ones_is_hopeless() -> None:
    """Not one beside a boundary that is kept: nothing is known of it."""
    values = reference({0: 0.0, 4: 0.1, 8: 0.3, 12: 0.9, 16: 1.0}, documents=16)
    assert hopeless(range(17), values, 16) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    dip = reference({0: 0.0, 4: 0.1, 8: 0.9, 12: 0.2, 16: 1.0}, documents=16)
    assert hopeless((1, 3, 6, 8, 10, 12, 14), dip, 16) == [1, 3, 12]


def test_hopeless_boundaries_meet_no_document_and_stay_in_the_table(tmp_path: Path) -> None:
    docs = [{"question": f"{i}?", "answer": f"answer {i}"} for i in range(40)]
    task = make_task(splits={"validation": docs, "test": docs[:1]})
    runner = RuleRunner(exact_match_rule({0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 0.9, 5: 0.7, 6: 0.6}))
    result = run_sweep(
        make_documents(task),
        runner,
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(tuple(range(L + 1)), strategy="racing"),
        Journal(tmp_path, "sha256:ab", "toy", settings={}),
        num_layers=L,
        peers=One(),
        progress=False,
        reference=reference({0: 0.0, 1: 0.1, 2: 0.3, 3: 0.7, 4: 0.9, 5: 1.0, 6: 1.0}),
    )
    assert {boundary for boundary, _ in runner.asked} == {3, 4, 5, 6}
    assert result.boundary == 4
    written = result.to_json()
    assert written["boundaries"][-1] == {
        "boundary": 0,
        "score": None,
        "stderr": None,
        "documents": 0,
        "unscored": 0,
        "retired_after": 0,
    }
    assert {entry["boundary"] for entry in written["racing"]["retired"] if entry["reason"] == "prior"} == {0, 1, 2}
    assert "retired by the prior" in result.table()


def test_processes_whose_likelihoods_differ_retire_the_same(tmp_path: Path) -> None:
    docs = [{"question": f"{i}?", "answer": f"answer {i}"} for i in range(20)]
    task = make_task(splits={"validation": docs, "test": docs[:1]})
    rule = exact_match_rule({0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 0.9, 5: 0.7, 6: 0.6})
    runners = [RuleRunner(rule), RuleRunner(rule)]
    gains = [{0: 0.0, 1: 0.1, 6: 1.0}, {0: 0.0, 1: 0.9, 6: 1.0}]
    results = Threads(2).run(
        lambda member: run_sweep(
            make_documents(task),
            runners[member.rank],
            Scorer(task, resolve_metric(task, None)),
            SweepSettings(tuple(range(L + 1)), strategy="racing"),
            Journal(tmp_path, "sha256:ab", "toy", rank=member.rank, settings={}),
            num_layers=L,
            peers=member,
            progress=False,
            reference=reference(gains[member.rank]),
        )
    )
    assert results[0].to_json() == results[1].to_json()
    assert {boundary for runner in runners for boundary, _ in runner.asked} == {2, 3, 4, 5, 6}
