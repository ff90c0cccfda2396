"""Greedy rounds: they find what brute force finds where layers add up, and what is said of them is true."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table
from lm_eval_lora_drop.sweep.backend import Pass
from lm_eval_lora_drop.sweep.candidates import blocks, make_candidates
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.strategies.greedy import halves, run_greedy
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing.doubles import One, make_documents
from testing.toy import make_task
from tests.candidates.toys import evaluate

LAYERS = 5


def as_number(doc, results):
    return {"exact_match": float(results[0])}


def search(tmp_path, worth, name="greedy", *, documents=40, noise=0.05, strategy="exhaustive", interaction=0.0):
    """A greedy search where layer i is worth `worth[i]` on every document, with a document's own noise per layer."""
    layers = len(worth)
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(documents)]
    task = make_task(splits={"test": rows[:1], "validation": rows}, process_results=as_number)
    of_document = np.random.default_rng(0).normal(0, noise, (documents, layers))
    asked = []

    def runner(work):
        for item in work:
            asked.extend((variant, item.document.doc_id) for variant in item.variants)
            yield [Answer(v, item.document, (repr(value(v, item.document.doc_id)),)) for v in item.variants]

    def value(variant, doc_id):
        kept = sorted(variant.kept_layers)
        both = interaction if {0, 1} <= set(kept) else 0.0
        return float(sum(worth[i] + of_document[doc_id, i] for i in kept)) + both

    settings = SweepSettings(make_candidates([name], AdapterShape(layers)), strategy=strategy)
    journal = Journal(tmp_path / "journal", "sha256:1", "toy", settings={})
    scorer = Scorer(task, resolve_metric(task, None))
    docs = make_documents(task)

    def sweep_on(some, how):
        return run_sweep(some, lambda: Pass(runner, "plain"), scorer, how, journal, peers=One())

    sweep, compared = run_greedy(docs, sweep_on, scorer, settings)
    return sweep, compared, asked, value


@pytest.mark.parametrize("name", ["greedy", "greedy_forward"])
def test_a_deep_model_moves_in_blocks_of_neighbours(tmp_path, name):
    """Of 82 layers a round asks 40 sets, and every set that is asked keeps whole blocks."""
    worth = [-1.0, -1.0, *[1.0] * 80] if name == "greedy" else [100.0, 100.0, *[-1.0] * 80]
    sweep, _, asked, _ = search(tmp_path, worth, name, documents=8)
    first = sweep.greedy.rounds[0]
    assert (first.variant, first.candidates) == ("2-81" if name == "greedy" else "0-1", 40)
    for kept in {variant.kept_layers for variant, _ in asked}:
        assert all(block <= kept or block.isdisjoint(kept) for block in blocks(82))


@pytest.mark.parametrize("name", ["greedy", "greedy_forward"])
def test_where_layers_add_up_it_ends_where_brute_force_over_all_sets_ends(tmp_path, name):
    worth = [1.0, -0.5, 0.8, 0.0, -0.7]
    sweep, compared, asked, value = search(tmp_path, worth, name)
    everything = [set(c) for size in range(LAYERS + 1) for c in itertools.combinations(range(LAYERS), size)]
    half = [document.doc_id for document in compared]
    scores = {
        frozenset(one): np.mean([value(Variant.of_layers(one, LAYERS), doc_id) for doc_id in half])
        for one in everything
    }
    if name == "greedy":
        best = max(scores, key=scores.get)
        assert Variant.parse(sweep.chosen, LAYERS).kept_layers in (best, frozenset({0, 2}), frozenset({0, 2, 3}))
    else:
        # The first set that loses nothing: one layer is worth more than the whole (1.0 against 0.6).
        assert sweep.chosen == "0"
        assert len(sweep.greedy.rounds) == 1
    # The rounds and the comparison read different documents, and no pair was asked twice.
    assert set(half) & set(sweep.greedy.doc_ids) == set()
    assert len(asked) == len(set(asked))
    assert {row.documents for row in sweep.candidates} == {len(half)}


def test_backward_ends_where_the_loss_is_real_and_the_candidates_are_the_way(tmp_path):
    sweep, _, _, _ = search(tmp_path, [1.0, 0.0, 0.9, -0.2, 0.8])
    ways = [one.variant for one in sweep.greedy.rounds]
    # 3 costs to keep, 1 nothing; without either of the others the loss is real, and there it stops.
    assert ways[0] == "0-2+4"
    assert ways[1] == "0+2+4"
    assert [round(one.difference.difference) for one in sweep.greedy.rounds] == [0, 0, -1]
    assert [row.variant for row in sweep.candidates] == ["0-4", *ways, "none"]
    assert [one.candidates for one in sweep.greedy.rounds] == [5, 4, 3]


def test_forward_racing_finds_its_way_where_every_single_layer_is_far_below_the_whole_adapter(tmp_path):
    """A race against the full adapter would give up all of them at once."""
    worth = [1.0, 0.4, 0.9, 0.5, 0.7]
    every = search(tmp_path / "a", worth, "greedy_forward", documents=400)
    race = search(tmp_path / "b", worth, "greedy_forward", documents=400, strategy="racing")
    ways = [[one.variant for one in found[0].greedy.rounds] for found in (every, race)]
    assert ways == [["0", "0+2", "0+2+4", "0+2-4"]] * 2
    assert [one.difference.documents for one in race[0].greedy.rounds] == [200] * 4
    assert len(race[2]) <= len(every[2])


@pytest.mark.parametrize("sizes", [[5] * 8, [1, 9, 3, 3, 4], [20, 1, 1, 1], [1] * 7])
def test_no_cluster_lies_in_both_halves(sizes):
    """A gain on a passage that the way was found on is no unseen gain."""
    names = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(0).shuffle(names)
    documents = [Document(place, {}, (), str(place), name) for place, name in enumerate(names)]
    seeking, comparing = halves(documents)
    found = [{document.cluster for document in side} for side in (seeking, comparing)]
    assert not found[0] & found[1]
    assert min(map(len, found)) >= 2
    assert sorted(d.doc_id for d in (*seeking, *comparing)) == list(range(len(names)))
    alone = [replace(document, cluster=None) for document in documents]
    assert [len(side) for side in halves(alone)] == [len(names) // 2, len(names) - len(names) // 2]


def test_bad_input(tmp_path):
    with pytest.raises(ArgumentError, match="takes at least 4, got 3"):
        search(tmp_path, [1.0] * LAYERS, documents=3)
    with pytest.raises(ArgumentError, match="reads the layers of one adapter, got a, b"):
        make_candidates(["greedy"], AdapterShape(4, adapters=("a", "b")))


def test_through_the_harness(tiny_base, tiny_adapter, tmp_path):
    def run(engine):
        lm = LoraDropLM(
            pretrained=str(tiny_base),
            peft=str(tiny_adapter),
            device="cpu",
            dtype="float32",
            batch_size=4,
            boundary="auto",
            sweep_candidates="greedy",
            sweep_limit=8,
            sweep_engine=engine,
            sweep_dir=str(tmp_path / engine),
        )
        return from_config(evaluate(lm)["config"], "here").tasks["toy"]

    record = run("shared")
    sweep = record.sweep
    assert sweep.greedy.rounds
    assert record.kept == Variant.parse(sweep.chosen, 4)
    assert len(record.validation.doc_ids) == len(sweep.greedy.doc_ids) == 4
    assert set(record.validation.doc_ids) & set(sweep.greedy.doc_ids) == set()
    assert "greedy rounds over" in sweep_table(record)
    plain = run("plain").sweep
    assert (plain.greedy, plain.candidates, plain.chosen) == (sweep.greedy, sweep.candidates, sweep.chosen)
