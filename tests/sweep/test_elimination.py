"""A bet against the winner pays no more often than promised: checked on every order of the documents there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lm_eval_lora_drop.statistics.aggregation import assumed_range
from lm_eval_lora_drop.sweep.strategies.elimination import RaceHistory, wealth


def reached(values: np.ndarray, carried: list[int], total: int, tolerance: float = 1.0, largest: float = 1.0):
    """The wealth against each row after these documents, `carried` rows being carried from the start."""
    running = np.ones(values.shape, dtype=bool)
    promised = np.zeros(values.shape, dtype=bool)
    promised[carried] = True
    return wealth(RaceHistory(values, running, promised), total=total, tolerance=tolerance, largest=largest)


def tables() -> list[tuple[str, np.ndarray]]:
    """Small tables whose row 0 is a winner (or ties for it), each nasty in its own way."""
    rng = np.random.default_rng(0)
    return [
        ("one document decides", np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.0]])),
        ("a rare large gain", np.array([[1.0, 0.3, 0.3, 0.3, 0.3, 0.3], [0.0, 0.4, 0.4, 0.4, 0.4, 0.4]])),
        ("a tie of opposites", np.array([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])),
        ("three that tie", np.array([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])),
        ("close", np.array([[1.0, 1, 0, 1, 0, 1], [1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0]])),
        ("real", np.sort(rng.random((3, 6)), axis=0)[::-1]),
    ]


@pytest.mark.parametrize(("name", "values"), tables())
def test_over_all_orders_the_winner_is_bet_away_no_more_often_than_promised(name: str, values: np.ndarray) -> None:
    """Ville's inequality, for every level, over all 720 orders; rows that lack more than the tolerance are carried."""
    documents = values.shape[1]
    means = values.mean(axis=1)
    allowed = values[0].std(ddof=1) / math.sqrt(documents)
    carried = [row for row in range(1, len(values)) if means[0] - means[row] > allowed]
    highest = [
        reached(values[:, list(order)], carried, documents)[0] for order in itertools.permutations(range(documents))
    ]
    for level in (1.5, 2, 3, 5, 10, 20, 100):
        assert np.mean(np.array(highest) >= level) <= 1 / level


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_the_documents_left_cannot_make_up(tolerance: float) -> None:
    """Ten lost of twelve: the last two cannot bring them back, which is certain and no bet."""
    values = np.array([[1.0] * 10, [0.0] * 10])
    assert reached(values, [0], 12, tolerance)[1] == math.inf
    assert reached(values[:, :6], [], 12, tolerance)[1] < math.inf


def test_agreement_on_the_first_documents_pays_nothing_without_a_tolerance() -> None:
    """Today's 40 equal documents say nothing of the 60 to come."""
    values = np.tile((np.arange(40) % 2).astype(float), (3, 1))
    assert np.all(reached(values, [0], 100, tolerance=0.0) <= 1.0)


def test_the_tolerance_counts_against_carried_rivals_only() -> None:
    values = np.tile((np.arange(90) % 2).astype(float), (2, 1))
    assert reached(values, [0], 100)[1] > 20
    assert reached(values, [], 100)[1] <= 1.0


def test_the_tolerance_is_never_more_than_one_standard_error_of_the_final_score() -> None:
    """The sum of squares over the documents met is a lower bound, whatever comes: here, nothing varies so far."""
    assert reached(np.ones((2, 90)), [0], 100)[1] <= 1.0


def test_a_lone_candidate_and_no_document_have_a_wealth_of_one() -> None:
    assert reached(np.ones((1, 5)), [], 10).tolist() == [1.0]
    assert reached(np.ones((2, 0)), [], 10).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.2], [0.1]], 1.0),
        ([[0.0, 0.0]], 1.0),
        ([[0.0, 1.5]], 100.0),
        ([[-3.0, 5.0], [1.0]], 16.0),
        ([[7.0, 140.0]], 266.0),
        ([[math.nan, 0.5]], 1.0),
        ([[math.nan]], 1.0),
    ],
)
def test_the_range_of_scores(values: list[list[float]], expected: float) -> None:
    assert assumed_range(np.concatenate([np.array(row) for row in values])) == expected
