"""What resampling says about a choice, checked where the truth is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.trust import stability, trust
from tests.sweep.doubles import L, One, RuleRunner, exact_match_rule, make_documents
from tests.toy import make_task


def entry(values: np.ndarray, *, select: str = "best", higher_is_better: bool = True) -> dict[str, Any]:
    """A task's entry in the results file with a sweep over `(boundaries 0..L, documents)` scores."""
    sign = 1 if higher_is_better else -1
    scores = values.mean(axis=1)
    chosen = max(range(len(values)), key=lambda k: (sign * scores[k], k))
    return {
        "method": "sweep",
        "num_layers": len(values) - 1,
        "higher_is_better": higher_is_better,
        "sweep": {
            "select": select,
            "chosen": chosen,
            "aggregation": "mean",
            "boundaries": [
                {
                    "boundary": k,
                    "score": scores[k],
                    "stderr": float(values[k].std()) / len(values[k]) ** 0.5,
                    "retired_after": None,
                }
                for k in range(len(values))
            ],
            "items": {str(k): row.tolist() for k, row in enumerate(values)},
        },
    }


def recorded(values: np.ndarray, **settings: Any) -> RecordedSweep:
    return RecordedSweep.from_entry(entry(values, **settings))


def coins(shares: list[float], documents: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((len(shares), documents)) < np.array(shares)[:, None]).astype(float)


def test_reads_what_run_sweep_writes(tmp_path: Path) -> None:
    docs = [{"question": f"{i}?", "answer": f"answer {i}"} for i in range(40)]
    task = make_task(splits={"validation": docs, "test": docs[:1]})
    result = run_sweep(
        make_documents(task),
        RuleRunner(exact_match_rule({0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 0.9, 5: 0.7, 6: 0.6})),
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(tuple(range(L + 1)), strategy="racing"),
        Journal(tmp_path, "sha256:ab", "toy", settings={}),
        num_layers=L,
        peers=One(),
        progress=False,
    )
    read = RecordedSweep.from_entry(
        json.loads(json.dumps({"num_layers": L, "higher_is_better": True, "sweep": result.to_json()}))
    )
    assert read.chosen == result.boundary
    assert set(read.boundaries) | set(read.retired) == set(range(L + 1))
    assert read.boundaries[0] == L
    assert 0 in read.retired
    assert result.gain is not None
    assert trust(read).gain == pytest.approx(result.gain.value)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_clear_winner_is_chosen_always(higher_is_better: bool) -> None:
    values = coins([0.1, 0.95, 0.5] if higher_is_better else [0.9, 0.05, 0.5], 100, seed=0)
    found = trust(recorded(values, higher_is_better=higher_is_better))
    assert found.choice_share == {1: 1.0}
    assert found.better_than_full == found.unseen_better_than_full == 1.0
    assert found.apparent == values[1].mean()
    assert found.gain == pytest.approx(abs(values[1].mean() - values[2].mean()))
    assert found.corrected_gain == pytest.approx(found.gain, abs=0.02)
    assert abs(found.optimism) < 0.02


def test_the_winners_curse_is_taken_off() -> None:
    """20 boundaries that are equally good: the best looks better than 0.5, the corrected score does not, on average."""
    found = [trust(recorded(coins([0.5] * 20, 60, seed)), resamples=300) for seed in range(40)]
    apparent = np.mean([one.apparent for one in found])
    corrected = np.array([one.corrected for one in found])
    assert apparent > 0.58
    # Three standard errors of the mean over tables, and the 0.01 by which the estimate leans to the careful side.
    assert abs(corrected.mean() - 0.5) < 3 * stats.sem(corrected) + 0.01
    assert np.mean([one.optimism for one in found]) == pytest.approx(apparent - corrected.mean())
    # Chosen K against full on documents that were not used for choosing: a coin, not a certainty.
    assert np.mean([one.better_than_full for one in found]) > 0.8
    assert np.mean([one.unseen_better_than_full for one in found]) < 0.6


def test_the_bootstrap_agrees_with_the_normal_distribution() -> None:
    """Two boundaries with normal differences: the share of resamples in which one beats the other is known."""
    rng = np.random.default_rng(1)
    full = rng.normal(size=200)
    values = np.stack([full + rng.normal(0.05, 0.7, 200), full])
    # Row 1 is full (K = L = 1), row 0 the candidate.
    found = trust(recorded(values), resamples=4000)
    difference = values[0] - values[1]
    expected = stats.norm.cdf(difference.mean() / stats.sem(difference))
    assert found.choice_share[0] == pytest.approx(expected, abs=0.03)


def test_ties_go_to_the_larger_boundary_as_in_the_sweep() -> None:
    values = coins([0.0, 0.6, 0.6], 50, seed=0)
    values[2] = values[1]
    assert trust(recorded(values)).choice_share == {2: 1.0}


def test_one_se_is_repeated_on_every_resample() -> None:
    values = coins([0.1, 0.6, 0.6, 0.6], 100, seed=2)
    values[1] = values[2] = values[3]
    assert trust(recorded(values, select="one_se")).choice_share == {1: 1.0}


def test_without_full_nothing_is_said_about_a_gain() -> None:
    made = entry(coins([0.2, 0.8, 0.5], 50, seed=0))
    made["num_layers"] = 30
    found = trust(RecordedSweep.from_entry(made))
    assert (found.gain, found.better_than_full, found.corrected_gain_interval) == (None, None, None)


def test_stability_grows_with_the_documents() -> None:
    values = coins([0.1, 0.3, 0.75, 0.6], 100, seed=3)
    sizes = stability(recorded(values), repeats=400)
    assert [size.documents for size in sizes] == [10, 20, 50, 100]
    assert [size.same_choice for size in sizes] == sorted(size.same_choice for size in sizes)
    assert sizes[0].same_choice < 0.95
    assert sizes[-1].same_choice == 1.0
    assert sizes[-1].regret == 0.0
    assert sizes[-1].unseen is None
    assert sizes[0].regret > sizes[2].regret
    assert sizes[0].regret_95 >= sizes[0].regret
    assert sum(sizes[0].choice_share.values()) == pytest.approx(1.0)
    assert sizes[2].unseen == pytest.approx(values[2].mean(), abs=0.05)


def test_resampling_depends_on_the_seed_alone() -> None:
    values = recorded(coins([0.4, 0.5, 0.6], 40, seed=0))
    assert trust(values, resamples=50) == trust(values, resamples=50)
    assert trust(values, resamples=50) != trust(values, resamples=50, seed=1)
    assert stability(values, repeats=50) == stability(values, repeats=50)
    assert stability(values, repeats=50) != stability(values, repeats=50, seed=1)


def test_corpus_metrics_are_resampled_by_their_sums() -> None:
    rng = np.random.default_rng(0)
    words = list("天地玄黄宇宙洪荒日月盈昃")
    references = ["".join(rng.choice(words, size=10)) for _ in range(40)]
    items = {
        str(k): [BLEU_ZH.statistics("".join(w if rng.random() < share else "某" for w in r), r) for r in references]
        for k, share in enumerate((0.2, 0.9, 0.6))
    }
    made = entry(np.zeros((3, 40)))
    made["sweep"] |= {"items": items, "aggregation": "lm_eval_lora_drop.metrics.corpus:BLEU_ZH", "chosen": 1}
    found = trust(RecordedSweep.from_entry(made), resamples=100)
    assert found.choice_share == {1: 1.0}
    assert found.apparent == pytest.approx(BLEU_ZH(items["1"]))


def test_a_race_can_be_run_again_from_recorded_scores() -> None:
    values = coins([0.0, 0.1, 0.2, 0.9, 0.6], 100, seed=0)
    made = recorded(values)
    chosen, pairs = made.race(seed=0)
    assert chosen == 3
    assert 2 * 100 <= pairs < 0.7 * values.size
    assert made.race(seed=0) == (chosen, pairs)


@pytest.mark.parametrize("sizes", [[1], [51], [0]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ArgumentError, match="from 2 to 50"):
        stability(recorded(coins([0.5, 0.6], 50, seed=0)), sizes)


def test_entries_without_a_usable_sweep_are_refused() -> None:
    with pytest.raises(ArgumentError, match="method='given'"):
        RecordedSweep.from_entry({"method": "given", "sweep": None})
    with pytest.raises(ArgumentError, match="at least 2"):
        trust(recorded(coins([0.5, 0.6], 1, seed=0)))
    made = entry(coins([0.5, 0.6], 10, seed=0))
    made["sweep"]["aggregation"] = "somewhere:else"
    with pytest.raises(ArgumentError, match="only its task knows"):
        RecordedSweep.from_entry(made)


def test_documents_without_a_value_do_not_spoil_the_resamples() -> None:
    values = coins([0.2, 0.9, 0.5], 30, seed=0)
    made = entry(values)
    made["sweep"]["items"]["2"][3] = None
    found = trust(RecordedSweep.from_entry(made))
    assert all(
        value is None or np.all(np.isfinite(value))
        for value in dataclasses.asdict(found).values()
        if not isinstance(value, dict)
    )
