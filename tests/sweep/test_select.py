"""Which candidate is taken: each rule against its definition, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.options import SELECTIONS
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.select import (
    Choice,
    choose,
    choose_rows,
    contributions,
    local_linear,
    selection,
)
from testing.doubles import bleu_items

MEAN = Aggregation(mean)


def chosen(select: str, rows: Any, *, ordered: bool = True, sign: int = 1) -> Choice:
    return choose(select, [list(row) for row in rows], MEAN, sign, ordered=ordered)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_clear_winner_is_taken_by_every_rule(select: str, sign: int) -> None:
    rows = np.array([[0.0] * 20, [0.0] * 20, [1.0] * 20, [0.0] * 20, [0.0] * 20]) * sign
    assert chosen(select, rows, sign=sign) == Choice(2, 2)


def test_ties_go_to_the_first_and_one_se_takes_the_last() -> None:
    rows = np.tile([1.0, 0, 1, 0], (4, 1))
    assert chosen("best", rows) == Choice(0, 0)
    assert chosen("smooth", rows).chosen == 0
    assert chosen("one_se", rows) == Choice(3, 0)


def test_scores_that_differ_in_their_last_bits_tie() -> None:
    assert chosen("best", [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1 + 2e-16]]).chosen == 0


def test_one_se_is_within_one_paired_standard_error_by_the_textbook() -> None:
    """On 300 random tables: the last row whose paired t statistic against the best row is at most 1."""
    rng = np.random.default_rng(0)
    up_to_rounding = 1 + 1e-9  # one document lost and none gained is a t of exactly 1
    for _ in range(300):
        values = (rng.random((7, 40)) < np.linspace(0.7, 0.5, 7)[:, None]).astype(float)
        best = int(values.mean(axis=1).argmax())
        within = [
            row
            for row in range(7)
            if np.array_equal(values[row], values[best])
            or stats.ttest_rel(values[best], values[row]).statistic <= up_to_rounding
        ]
        assert chosen("one_se", values, ordered=False) == Choice(within[-1], best)


def test_one_se_compares_corpus_scores_by_what_documents_contribute() -> None:
    rows = bleu_items(0.9, 0.5)
    rows.append(rows[0])
    assert choose("one_se", rows, Aggregation(BLEU_ZH), 1, ordered=False) == Choice(2, 0)


def test_smoothing_passes_over_a_lone_spike() -> None:
    """A row that beats its neighbours by two documents is less than a plateau that is one document lower."""
    level = [10, 10, 10, 16, 10, 10, 10, 10, 15, 15, 15, 15, 15, 10, 10]
    rows = [[1.0] * right + [0.0] * (30 - right) for right in level]
    assert chosen("best", rows).chosen == 3
    assert 8 <= chosen("smooth", rows).chosen <= 12
    assert chosen("smooth", rows, ordered=False).chosen == 3


def test_smoothing_leaves_a_straight_line_as_it_is() -> None:
    """What makes it local *linear*: also at the ends, where a moving mean would bend it; at uneven places too."""
    places = np.array([30.0, 29, 27, 26, 25, 20, 19])
    np.testing.assert_allclose(local_linear(places) @ (3 * places - 7), 3 * places - 7)


def test_smoothing_is_weighted_least_squares() -> None:
    """Against numpy's own solution of each local fit."""
    places, scores = np.arange(10.0), np.random.default_rng(0).random(10)
    for row, place in enumerate(places):
        root = np.sqrt(stats.norm.pdf(places, place, 1.0))
        design = np.stack([np.ones(10), places - place], axis=1)
        fitted = np.linalg.lstsq(design * root[:, None], scores * root, rcond=None)[0][0]
        assert (local_linear(places, 1.0) @ scores)[row] == pytest.approx(fitted)


def test_candidates_far_apart_are_not_smoothed() -> None:
    np.testing.assert_allclose(local_linear(np.array([32.0, 20.0, 8.0, -100.0])), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(local_linear(np.array([5.0])), [[1.0]])


def test_candidates_without_a_score_are_not_chosen() -> None:
    rows = [[None, None, None], [0.0, 0.0, 1.0], [1.0, None, 0.0]]
    for select in SELECTIONS:
        assert chosen(select, rows).best != 0
        assert chosen(select, rows).chosen != 0
    # A gap counts as the worst there may be: 1 and 0 of two is no more than 1 of three.
    assert chosen("best", rows).chosen == 1
    with pytest.raises(ArgumentError, match="no candidate has a score"):
        chosen("best", [[None], [None]])


@pytest.mark.parametrize("select", SELECTIONS)
def test_resamples_are_chosen_from_as_if_their_documents_were_written_out(select: str) -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((6, 30)) < np.linspace(0.6, 0.5, 6)[:, None]).astype(float)
    counts = rng.multinomial(30, [1 / 30] * 30, size=50)
    scores = counts @ values.T / 30
    fast, _ = choose_rows(select, values, scores, counts, ordered=True)
    slow = [chosen(select, np.repeat(values, row, axis=1)).chosen for row in counts]
    assert fast.tolist() == slow


def test_contributions_leave_missing_documents_open() -> None:
    found = contributions([[1.0, None, 0.0], [None, None, None]], MEAN, -1)
    np.testing.assert_array_equal(found, [[-1.0, np.nan, 0.0], [np.nan] * 3])


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_nobody_is_chosen_for_the_documents_that_it_lacks(select: str, sign: int) -> None:
    """Full has 0.9 on 30 documents, the base model 1.0 on the 3 on which it has a value at all."""
    full, base = [0.9 * sign] * 30, [1.0 * sign] * 3 + [None] * 27
    assert chosen(select, [full, base], sign=sign) == Choice(0, 0)
    assert chosen(select, [base, full], sign=sign).best == 1
    assert chosen("best", [full, [1.0 * sign] * 29 + [None]], ordered=False, sign=sign).chosen == 1


@pytest.mark.parametrize("select", SELECTIONS)
def test_documents_that_nobody_has_a_value_on_do_not_matter(select: str) -> None:
    values = (np.random.default_rng(2).random((6, 25)) < np.linspace(0.6, 0.5, 6)[:, None]).astype(float)
    spread = np.full((6, 100), None)
    spread[:, ::4] = values
    assert chosen(select, spread) == chosen(select, values)


def test_the_rule_in_force() -> None:
    assert selection(None, "exhaustive", ordered=True) == "smooth"
    assert selection(None, "exhaustive", ordered=False) == "best"
    assert selection("one_se", "exhaustive", ordered=True) == "one_se"
    assert selection(None, "racing", ordered=True) == selection("best", "racing", ordered=True) == "best"
    with pytest.raises(ArgumentError, match="must be best with sweep_strategy=racing, got one_se"):
        selection("one_se", "racing", ordered=True)
