"""Strengths by CMA-ES: it finds what is known to be best, on documents that it is not judged on, and goes on."""

import builtins

import numpy as np
import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.options import LoraDropArgs, parse_model_args
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.sweep.backend import Pass
from lm_eval_lora_drop.sweep.candidates import candidates_of, make_candidates
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.strategies.cma import run_cma
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing.doubles import One, Threads, make_documents
from testing.toy import make_task
from tests.candidates.toys import evaluate

BEST = np.array([1.4, 0.2, 0.7])
"""The strengths that answer every document best."""


def strengths(variant):
    return np.array([sum(keep.strength for keep in keeps) for keeps in variant.layers])


def search(folder, *, peers=None, seed=0, budget=140, stop_after=None):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(12)]
    task = make_task(
        splits={"test": rows[:1], "validation": rows},
        process_results=lambda _, results: {"exact_match": float(results[0])},
    )
    noise = np.random.default_rng(1).normal(0, 0.01, (12, 3))
    asked, peers = [], peers or One()

    def runner(work):
        for item in work:
            for variant in item.variants:
                if stop_after is not None and len(asked) >= stop_after:
                    raise RuntimeError("switched off")
                asked.append((variant, item.document.doc_id))
                off = strengths(variant) - BEST + noise[item.document.doc_id]
                yield [Answer(variant, item.document, (repr(float(-(off**2).sum())),))]

    settings = SweepSettings(make_candidates(["cma_es"], AdapterShape(3)), seed=seed)
    journal = Journal(folder, "sha256:" + "1" * 64, "toy", rank=peers.rank, settings={})
    scorer = Scorer(task, resolve_metric(task, None))

    def sweep_on(some, how):
        return run_sweep(some, lambda: Pass(runner, "plain"), scorer, how, journal, peers=peers)

    sweep, compared = run_cma(make_documents(task), sweep_on, scorer, settings, peers=peers, budget=budget)
    return sweep, compared, asked


def test_it_finds_the_strengths_that_are_best_and_compares_them_elsewhere(tmp_path):
    sweep, compared, asked = search(tmp_path)
    assert np.abs(strengths(Variant.parse(sweep.chosen, 3)) - BEST).max() < 0.1
    assert {document.doc_id for document in compared} & set(sweep.greedy.doc_ids) == set()
    assert len(compared) == len(sweep.greedy.doc_ids) == 6
    tried = sum(one.candidates for one in sweep.greedy.rounds)
    assert 130 < tried <= 140
    assert [row.variant for row in (sweep.candidates[0], sweep.candidates[-1])] == ["0-2", "none"]
    assert len(sweep.candidates) == 4
    assert len(asked) == len(set(asked)) <= 6 * (tried + 1) + 6 * 4
    # The score of the search is the best of many; the gain is that of the other half.
    assert sweep.gain_over_full.documents == 6


def test_a_killed_search_goes_on_and_every_process_asks_the_same(tmp_path):
    once, _, asked = search(tmp_path / "once", budget=35)
    with pytest.raises(RuntimeError, match="switched off"):
        search(tmp_path / "killed", budget=35, stop_after=100)
    again, _, rest = search(tmp_path / "killed", budget=35)
    assert (again.candidates, again.greedy) == (once.candidates, once.greedy)
    assert len(rest) == len(asked) - 100
    together = Threads(2).run(lambda member: search(tmp_path / "two", budget=35, peers=member))
    for found, *_ in together:
        assert (found.candidates, found.greedy) == (once.candidates, once.greedy)
    assert search(tmp_path / "seed", budget=35, seed=1)[0].greedy != once.greedy


def test_what_is_refused_before_a_model_is_loaded(monkeypatch, capsys):
    assert main(["candidates", "cma_es", "--peft", "anything"]) != 0
    assert "no list before the search" in capsys.readouterr().err

    def args(**more) -> LoraDropArgs:
        return parse_model_args({"boundary": "auto", "sweep_candidates": "cma_es", **more}, ())[0]

    assert candidates_of(args(sweep_size=20), AdapterShape(4)).name == "cma_es"
    with pytest.raises(ArgumentError, match="searches in rounds and cannot be joined"):
        candidates_of(args(sweep_candidates="cma_es+window"), AdapterShape(4))
    with pytest.raises(ArgumentError, match="scores every candidate of a generation .* got sweep_strategy=racing"):
        candidates_of(args(sweep_strategy="racing"), AdapterShape(4))
    there = builtins.__import__

    def gone(name, *more):
        if name.partition(".")[0] == "cmaes":
            raise ModuleNotFoundError(name=name)
        return there(name, *more)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(ArgumentError, match=r"needs the package cmaes.*pip install"):
        candidates_of(args(), AdapterShape(4))


def test_through_the_harness_in_both_passes(make):
    def run(engine):
        lm = make(boundary="auto", sweep_candidates="cma_es", sweep_limit=8, sweep_size=10, sweep_engine=engine)
        return from_config(evaluate(lm)["config"], "here").tasks["toy"]

    record, plain = run("shared"), run("plain")
    sweep = record.sweep
    assert (sweep.greedy, sweep.candidates, sweep.chosen) == (
        plain.sweep.greedy,
        plain.sweep.candidates,
        plain.sweep.chosen,
    )
    assert [one.candidates for one in sweep.greedy.rounds] == [8]
    assert "1 generations of CMA-ES over 8 candidates, on 4 other documents" in sweep_table(record)
