"""What is said about a choice, checked where the truth is known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.significance import mean_tests
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.select import choose, places_of
from lm_eval_lora_drop.sweep.trust import Evidence, gains_over_full, stability, trust
from lm_eval_lora_drop.variant import Variant
from testing.doubles import bleu_items


def recorded(
    items: Any,
    *,
    select: str = "best",
    sign: int = 1,
    aggregation: Any = mean,
    with_full: bool = True,
    eliminated: int = 0,
) -> RecordedSweep:
    """A sweep over `(candidates, documents)` items, the full adapter first; the last boundaries were eliminated."""
    rows = tuple(tuple(row) for row in items)
    num_layers = len(rows) - 1 + eliminated + (0 if with_full else 1)
    candidates = tuple(
        Variant.below(num_layers - row - (0 if with_full else 1), num_layers) for row in range(len(rows))
    )
    choice = choose(select, rows, Aggregation(aggregation), sign, ordered=True, places=places_of(candidates))
    return RecordedSweep(
        candidates=candidates,
        items=rows,
        chosen=candidates[choice.chosen],
        select=select,
        sign=sign,
        full=candidates[0] if with_full else None,
        aggregation=Aggregation(aggregation),
        left_out=tuple(Variant.below(k, num_layers) for k in range(eliminated)),
        ordered=True,
    )


def coins(shares: list[float], documents: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((len(shares), documents)) < np.array(shares)[:, None]).astype(float)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clear_winner_is_chosen_always(sign: int) -> None:
    values = coins([0.5, 0.95, 0.1] if sign == 1 else [0.5, 0.05, 0.9], 100, seed=0)
    record = recorded(values, sign=sign)
    found = trust(record)
    assert found.choice_share == {record.candidates[1]: 1.0}
    gain = found.gains[record.chosen]
    assert gain.evidence is Evidence.BETTER
    assert found.apparent == values[1].mean()
    assert gain.value == pytest.approx(abs(values[1].mean() - values[0].mean()))
    assert found.corrected_gain == pytest.approx(gain.value, abs=0.02)
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


def correlated(documents: int, rng: np.random.Generator) -> np.ndarray:
    """31 equal candidates, neighbours alike."""
    rows = [rng.normal(size=documents)]
    for _ in range(30):
        rows.append(0.97 * rows[-1] + (1 - 0.97**2) ** 0.5 * rng.normal(size=documents))
    return np.stack(rows)


@pytest.mark.parametrize("kind", ["0/1", "real"])
def test_of_equal_candidates_hardly_any_is_called_better_or_worse(kind: str) -> None:
    """Of 60 sweeps at most 5 % and three standard errors; what used to be printed was wrong in a quarter of them."""
    rng = np.random.default_rng(0)
    wrong = flattered = 0
    for seed in range(60):
        latent = correlated(50, rng)
        record = recorded((latent > 0).astype(float) if kind == "0/1" else latent)
        gains = gains_over_full(record, seed=seed)
        wrong += gains[record.chosen].evidence in (Evidence.BETTER, Evidence.WORSE)
        row = record.candidates.index(record.chosen)
        difference = record.values[row] - record.values[0]
        flattered += difference.mean() > 2 * stats.sem(difference)
    assert wrong <= 60 * 0.05 + 3 * math.sqrt(60 * 0.05 * 0.95)
    assert flattered > wrong


def test_the_band_holds_for_all_candidates_at_once_also_where_they_differ() -> None:
    """150 samples of seven candidates with known differences: no interval misses in at least 95 %, less the error."""
    rng = np.random.default_rng(0)
    level = np.array([0.0, 0.1, 0.2, -0.3, 0.0, 0.05, -0.1])
    held = 0
    for seed in range(150):
        values = level[:, None] + 0.5 * rng.normal(size=(7, 60)) + rng.normal(size=60)
        tests = mean_tests(values[1:].T, values[0], draws=999, seed=seed)
        held += all(test.interval[0] <= true <= test.interval[1] for test, true in zip(tests, level[1:], strict=True))
    assert held >= 150 * 0.95 - 3 * math.sqrt(150 * 0.05 * 0.95)


def test_a_few_documents_cannot_tell() -> None:
    """Four documents, all gained, with a standard error of zero: once "more than two standard errors"."""
    record = recorded([[0.0] * 4, [1.0] * 4])
    assert trust(record).gains[record.chosen].evidence is Evidence.TOO_FEW_DOCUMENTS


def test_a_small_gain_is_not_distinguishable_and_a_rule_may_take_what_is_worse() -> None:
    full = np.array([1.0] * 50 + [0.0] * 50)
    better = full.copy()
    better[50:53] = 1.0
    record = recorded([full, better])
    found = trust(record)
    assert found.gains[record.chosen].evidence is Evidence.NOT_SIGNIFICANT
    assert found.corrected_gain > 0
    worse = full.copy()
    worse[:20] = 0.0
    record = recorded([full, worse])
    assert trust(record).gains[record.candidates[1]].evidence is Evidence.WORSE


def test_after_a_race_those_that_were_eliminated_count_too() -> None:
    full = np.array([0.0] * 100)
    better = full.copy()
    better[:6] = 1.0
    alone = recorded([full, better])
    assert gains_over_full(alone)[alone.chosen].evidence is Evidence.BETTER
    left = recorded([full, better], eliminated=29)
    assert gains_over_full(left)[left.chosen].evidence is Evidence.NOT_SIGNIFICANT


def test_the_whole_adapter_and_no_whole_adapter() -> None:
    record = recorded(coins([0.9, 0.1], 50, seed=0))
    assert record.chosen == record.full
    without = recorded(coins([0.2, 0.8, 0.5], 50, seed=0), with_full=False)
    found = trust(without)
    assert (found.gains, found.corrected_gain) == ({}, None)


def test_ties_go_to_the_larger_boundary_as_in_the_sweep() -> None:
    values = coins([0.6, 0.6, 0.0], 50, seed=0)
    values[1] = values[0]
    record = recorded(values)
    assert trust(record).choice_share == {record.candidates[0]: 1.0}


def test_the_rule_is_repeated_on_every_resample() -> None:
    values = coins([0.6, 0.6, 0.6, 0.05], 100, seed=2)
    values[1] = values[2] = values[0]
    record = recorded(values, select="one_se")
    share = trust(record).choice_share
    assert share[record.candidates[2]] > 0.9


def test_stability_grows_with_the_documents() -> None:
    values = coins([0.6, 0.75, 0.3, 0.1], 100, seed=3)
    sizes = stability(recorded(values), repeats=400)
    assert [size.documents for size in sizes] == [10, 20, 50]
    assert [size.same_choice for size in sizes] == sorted(size.same_choice for size in sizes)
    assert sizes[0].same_choice < 0.95
    assert sizes[0].regret > sizes[2].regret
    assert sizes[0].regret_95 >= sizes[0].regret
    assert sum(sizes[0].choice_share.values()) == pytest.approx(1.0)
    assert sizes[2].unseen == pytest.approx(values[1].mean(), abs=0.05)


def test_resampling_depends_on_the_seed_alone() -> None:
    values = recorded(coins([0.4, 0.5, 0.6], 40, seed=0))
    assert trust(values, resamples=50) == trust(values, resamples=50)
    assert trust(values, resamples=50) != trust(values, resamples=50, seed=1)
    assert stability(values, repeats=50) == stability(values, repeats=50)
    assert stability(values, repeats=50) != stability(values, repeats=50, seed=1)


def test_corpus_metrics_are_resampled_by_their_sums() -> None:
    items = bleu_items(0.6, 0.9, 0.2)
    record = recorded(items, aggregation=BLEU_ZH)
    found = trust(record, resamples=100)
    assert found.choice_share == {record.candidates[1]: 1.0}
    assert found.apparent == pytest.approx(BLEU_ZH(items[1]))
    gain = found.gains[record.chosen]
    assert gain.value == pytest.approx(BLEU_ZH(items[1]) - BLEU_ZH(items[0]))
    assert gain.evidence is Evidence.BETTER


def test_a_race_can_be_run_again_from_recorded_scores() -> None:
    values = coins([0.6, 0.9, 0.2, 0.1, 0.0], 100, seed=0)
    made = recorded(values)
    chosen, pairs = made.race(seed=0)
    assert chosen == made.candidates[1]
    assert 2 * 100 <= pairs < 0.7 * values.size
    assert made.race(seed=0) == (chosen, pairs)


@pytest.mark.parametrize("sizes", [[1], [50], [51], [0]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ArgumentError, match="from 2 to 49"):
        stability(recorded(coins([0.5, 0.6], 50, seed=0)), sizes)


def test_one_document_cannot_be_resampled() -> None:
    with pytest.raises(ArgumentError, match="at least 2"):
        trust(recorded(coins([0.5, 0.6], 1, seed=0)))


def test_documents_without_a_value_do_not_spoil_the_resamples() -> None:
    values = coins([0.5, 0.9, 0.2], 30, seed=0).tolist()
    values[0][3] = None
    found = trust(recorded(values))
    numbers = (found.apparent, found.corrected, found.optimism, found.corrected_gain)
    assert np.all(np.isfinite(np.array(numbers, dtype=np.float64)))
    for gain in found.gains.values():
        assert np.all(np.isfinite([gain.value, gain.low, gain.high]))


def test_what_is_found_can_be_written_down() -> None:
    record = recorded(coins([0.5, 0.9, 0.2], 30, seed=0))
    written = json.loads(json.dumps(trust(record).to_json()))
    assert written["choice_share"] == {"0": 1.0}
    assert written["gains"]["0"]["evidence"] == "better"
    assert written["documents"] == 30
    assert json.loads(json.dumps(stability(record, [10])[0].to_json()))["choice_share"].keys() <= {"0-1", "0", "none"}
