"""Every set has the candidates it promises, full adapter and base model among them, and not too many."""

import itertools

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.candidates import CANDIDATES, blocks, make_candidates
from lm_eval_lora_drop.sweep.select import places_of
from lm_eval_lora_drop.variant import AdapterShape, Variant

SHAPE = AdapterShape(30, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"), 8)


def names(candidate_set):
    return [str(variant) for variant in candidate_set.variants]


@pytest.mark.parametrize("name", sorted(set(CANDIDATES) - {"adapters", "scores", "energy"}))
@pytest.mark.parametrize("num_layers", [1, 2, 4, 30, 32, 80])
def test_full_and_base_are_there_once_and_the_notation_reads_back(name, num_layers):
    candidate_set = make_candidates([name], AdapterShape(num_layers, SHAPE.modules, 8))
    assert len(set(candidate_set.variants)) == len(candidate_set.variants) == len(set(names(candidate_set)))
    assert candidate_set.full is not None
    assert candidate_set.base is not None
    assert candidate_set.variants[-1] == candidate_set.base
    for variant in candidate_set.variants:
        assert Variant.parse(str(variant), num_layers) == variant
    if name != "boundary":
        assert len(candidate_set.variants) <= 42


def test_a_deep_model_is_looked_at_evenly_from_end_to_end():
    """Every boundary stays; of single layers and starts some forty, the first and the last among them."""
    for num_layers in (1, 2, 39, 40):
        assert len(make_candidates(["upper"], AdapterShape(num_layers)).variants) == num_layers + 1
        swept = {str(one) for one in make_candidates(["leave_one_out"], AdapterShape(num_layers)).variants}
        every = range(num_layers)
        assert swept == {
            str(Variant.of_layers(set(every) - out, num_layers)) for out in [set(), set(every), *({i} for i in every)]
        }
    for num_layers in (41, 80, 126):
        assert len(make_candidates(["boundary"], AdapterShape(num_layers)).variants) == num_layers + 1
        upper = make_candidates(["upper"], AdapterShape(num_layers)).variants
        assert len(upper) == 41
        starts = [num_layers - len(one.kept_layers) for one in upper]
        every = frozenset(range(num_layers))
        (left_out,) = (
            sorted(min(every - one.kept_layers) for one in found if len(one.kept_layers) == num_layers - 1)
            for found in [make_candidates(["leave_one_out"], AdapterShape(num_layers)).variants]
        )
        assert len(left_out) == 40
        for values, last in ((starts, num_layers), (left_out, num_layers - 1)):
            assert (values[0], values[-1]) == (0, last)
            gaps = {after - before for before, after in itertools.pairwise(values)}
            assert max(gaps) - min(gaps) <= 1
    # Neighbours of a thinned candidate_set are as far apart as their layers are, where they are smoothed.
    assert places_of(upper) == [126 - start for start in starts]


def test_the_layers_that_a_greedy_search_moves_together():
    assert blocks(30) == [frozenset({layer}) for layer in range(30)]
    for num_layers in (41, 80, 126):
        found = blocks(num_layers)
        assert len(found) == 40
        assert sorted(layer for block in found for layer in block) == list(range(num_layers))
        assert all(max(block) - min(block) == len(block) - 1 for block in found)
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_what_the_sets_are():
    shape = AdapterShape(4, ("k_proj", "q_proj"), 4)
    assert names(make_candidates(["boundary"], shape)) == ["0-3", "0-2", "0-1", "0", "none"]
    assert names(make_candidates(["upper"], shape)) == ["0-3", "1-3", "2-3", "3", "none"]
    assert set(names(make_candidates(["leave_one_out"], shape))) == {"0-3", "1-3", "0+2-3", "0-1+3", "0-2", "none"}
    assert "0-3x0.5" in names(make_candidates(["strength"], shape))
    assert "0-1+2-3r2" in names(make_candidates(["rank"], shape))
    assert {"0-3.attention", "0-3.q_proj", "0.mlp"} <= set(names(make_candidates(["modules"], shape)))
    assert "0x1+1x0.666667+2x0.333333" not in names(make_candidates(["slope"], shape))
    assert "0+1x0.666667+2x0.333333" in names(make_candidates(["slope"], shape))
    assert {"1-2", "0-1", "2-3"} <= set(names(make_candidates(["window"], shape)))


def test_random_sets_have_the_size_and_depend_on_the_seed_alone():
    one, again, other = (make_candidates(["random"], SHAPE, seed=seed, size=12) for seed in (1, 1, 2))
    assert one == again != other
    assert {len(variant.kept_layers) for variant in one.variants} == {0, 12, 30}
    assert Variant.below(12, 30) in one.variants


def test_several_sets_are_one_unordered_set():
    candidate_set = make_candidates(["boundary", "upper"], SHAPE)
    assert len(candidate_set.variants) == 31 + 31 - 2
    assert not candidate_set.ordered
    assert make_candidates(["boundary"], SHAPE).ordered


@pytest.mark.parametrize(
    ("asked", "shape", "message"),
    [
        (["boundaries"], SHAPE, "sweep_candidates must be one of boundary, upper"),
        (["modules"], AdapterShape(4), "kinds of module"),
        (["rank"], AdapterShape(4, ("q_proj",), 1), "rank 2 or more, got 1"),
    ],
)
def test_a_set_that_cannot_be_is_refused(asked, shape, message):
    with pytest.raises(ArgumentError, match=message):
        make_candidates(asked, shape)


def test_a_tie_goes_to_the_whole_adapter_and_strengths_stand_by_their_strength():
    """Beyond 1 a strength keeps no more than the full adapter: it must not win where nothing tells them apart."""
    for name in set(CANDIDATES) - {"adapters", "scores", "energy"}:
        assert make_candidates([name], SHAPE).variants[0].is_full
    candidate_set = make_candidates(["strength"], SHAPE)
    places = dict(zip(names(candidate_set), places_of(candidate_set.variants), strict=True))
    assert places == {"0-29": 8, "none": 0} | {f"0-29x{step / 8:g}": step for step in range(1, 13) if step != 8}
    assert places_of(make_candidates(["upper"], SHAPE).variants) == list(range(30, -1, -1))
    windows = make_candidates(["window"], SHAPE).variants
    assert places_of(windows) == list(range(len(windows)))
    assert places_of(make_candidates(["boundary"], SHAPE).variants) == list(range(30, -1, -1))
    # One layer at another strength is no strength of the whole.
    assert places_of([Variant.parse("0-28+29x0.5", 30), Variant.base(30)]) == [0, 1]
