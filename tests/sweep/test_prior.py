"""The prior eliminates what is clearly beaten by the likelihood of the references, and nothing it cannot be sure of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.strategies.prior import eliminated_by_prior, read_at, skipped_by_prior
from lm_eval_lora_drop.variant import Variant


def reference(gains: dict[int, float], num_layers: int, documents: int = 40, noise: float = 0.1):
    """Per document: its own level, plus what the boundary gains over base."""
    rng = np.random.default_rng(0)
    level = rng.normal(-2, 0.5, documents)
    return {
        Variant.below(k, num_layers): list(level + gain + rng.normal(0, noise, documents)) for k, gain in gains.items()
    }


def eliminated(values, **settings) -> list[int | None]:
    return [variant.boundary for variant in eliminated_by_prior(values, **settings)]


def boundaries(ks, num_layers: int) -> list[Variant]:
    return [Variant.below(k, num_layers) for k in ks]


def test_eliminates_what_lacks_more_than_three_quarters_of_the_gain() -> None:
    gains = {0: 0.0, 1: 0.1, 2: 0.4, 3: 0.7, 4: 0.9, 5: 1.0}
    assert eliminated(reference(gains, 5)) == [1, 0]
    assert eliminated(reference(gains, 5), kept_share=0.5) == [2, 1, 0]


def test_the_curve_of_the_demo_keeps_a_third_of_the_layers() -> None:
    """K = 10 of 30 has 0.38 of the gain there: half as the margin would eliminate it."""
    curve = {0: 0, 3: 0.20, 7: 0.30, 10: 0.38, 14: 0.53, 18: 0.73, 22: 0.94, 26: 0.99, 30: 1}
    assert eliminated(reference(curve, 30, documents=16, noise=0.02)) == [3, 0]


def test_a_boundary_at_the_margin_is_kept() -> None:
    """A quarter of the gain and a little less: the documents cannot tell, so it generates."""
    assert eliminated(reference({0: 0.0, 3: 0.23, 5: 1.0}, 5)) == [0]


@pytest.mark.parametrize("full_gain", [0.0, 0.02, -1.0])
def test_an_adapter_that_gains_nothing_eliminates_nothing(full_gain: float) -> None:
    assert eliminated(reference({0: 0.0, 1: -3.0, 5: full_gain}, 5)) == []


def test_documents_that_are_not_finite_are_left_out() -> None:
    values = reference({0: 0.0, 1: 0.05, 5: 1.0}, 5)
    values[Variant.below(1, 5)][0] = -math.inf
    values[Variant.below(0, 5)][1] = math.nan
    assert eliminated(values) == [1, 0]
    assert eliminated({k: row[:1] for k, row in values.items()}) == []


def test_base_and_full_must_be_there_and_lists_must_match() -> None:
    one, full, base = boundaries((1, 5, 0), 5)
    with pytest.raises(ArgumentError, match="base and full: both must be given, got K = 5, K = 1"):
        eliminated_by_prior({one: [0.0], full: [1.0]})
    with pytest.raises(ArgumentError, match="unequal length"):
        eliminated_by_prior({base: [0.0], full: [1.0, 2.0]})


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
    assert read_at(boundaries(candidates, num_layers)) == boundaries(read, num_layers)


def test_a_boundary_between_two_skipped_ones_is_skipped() -> None:
    """Not one beside a boundary that is kept: nothing is known of it."""
    values = reference({0: 0.0, 4: 0.05, 8: 0.1, 12: 0.9, 16: 1.0}, 16, documents=16)
    assert skipped_by_prior(boundaries(range(17), 16), values) == boundaries(range(9), 16)
    dip = reference({0: 0.0, 4: 0.05, 8: 0.9, 12: 0.1, 16: 1.0}, 16, documents=16)
    assert skipped_by_prior(boundaries((1, 3, 6, 8, 10, 12, 14), 16), dip) == boundaries((1, 3, 12), 16)


def test_candidates_that_would_all_go_all_stay() -> None:
    values = reference({0: 0.0, 2: 0.05, 4: 0.1, 16: 1.0}, 16)
    assert skipped_by_prior(boundaries((4, 3, 2), 16), values) == []


def test_other_sets_have_no_prior() -> None:
    candidate_set = [Variant.full(8), Variant.parse("2-7", 8)]
    assert read_at(candidate_set) == []
    assert skipped_by_prior(candidate_set, reference({0: 0.0, 8: 1.0}, 8)) == []
    two_adapters = [Variant.below(4, 8, "seed1"), Variant.below(2, 8, "seed2")]
    assert read_at(two_adapters) == []
