import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval_lora_drop.boundary import (
    LayerSet,
    default_boundary,
    format_integers,
    parse_boundary,
    parse_integers,
    parse_layers,
    parse_sweep_boundaries,
)

from lm_eval_lora_drop.errors import ArgumentError


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), ("4", 4), (" 20 ", 20), ("full", 30), ("base", 0), ("default", 14), ("FULL", 30)],
)
def test_a_boundary_keeps_the_bottom_layers(value, expected):
    kept = parse_boundary(value).resolve(30)
    assert kept is not None
    assert kept.layers == frozenset(range(expected))
    assert kept.boundary == expected


@pytest.mark.parametrize("word", ["auto", "probe"])
def test_words_that_need_validation_documents_resolve_to_nothing_yet(word):
    spec = parse_boundary(word)
    assert spec.needs_validation
    assert spec.resolve(30) is None


@pytest.mark.parametrize("value", [-1, "-1", 3.7, "3.7", "", "atuo", True, None, "1-3", [4]])
def test_a_boundary_that_is_none_is_refused_by_name(value):
    with pytest.raises(ArgumentError, match="^boundary must be an integer from 0") as caught:
        parse_boundary(value)
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)


def test_a_misspelt_word_is_answered_with_the_near_one():
    with pytest.raises(ArgumentError, match="Did you mean boundary=auto"):
        parse_boundary("atuo")


def test_a_boundary_above_the_model_names_the_range():
    with pytest.raises(ArgumentError, match="0 to 30 .*got 31"):
        parse_boundary(31).resolve(30)


@pytest.mark.parametrize("value", ["", " ", "3-", "-3", "a", "5-2", "1-9:0", "1++2", "0-3;5", "1.5"])
@pytest.mark.parametrize(("parse", "name"), [(parse_layers, "layers"), (parse_sweep_boundaries, "sweep_boundaries")])
def test_malformed_lists_are_refused_with_an_example(parse, name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}.*e\.g\. "):
        parse(value)


def test_ranges_include_both_ends():
    assert parse_sweep_boundaries("8-24:2+30+4") == (4, 8, 10, 12, 14, 16, 18, 20, 22, 24, 30)
    assert parse_layers("0-14+20").layers == frozenset([*range(15), 20])
    assert parse_layers(7).layers == frozenset([7])


def test_a_layer_outside_the_model_is_refused():
    with pytest.raises(ArgumentError, match=r"0\.\.29 .*got 30"):
        parse_layers("0-30").resolve(30)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_what_is_formatted_is_read_back(values):
    assert set(parse_integers("layers", format_integers(values), example="0-3")) == values


@pytest.mark.parametrize(
    ("layers", "embedding", "head", "boundary"),
    [({0, 1}, True, False, 2), (set(), False, False, 0), ({0, 1, 2, 3}, True, True, 4), ({2, 3}, False, True, None)],
)
def test_what_lies_outside_the_layers_goes_with_its_neighbour(layers, embedding, head, boundary):
    kept = LayerSet(frozenset(layers), 4)
    assert (kept.keeps_embedding, kept.keeps_head, kept.boundary) == (embedding, head, boundary)


def test_the_default_is_the_papers_fifteen_of_thirty_two():
    assert default_boundary(32) == 15
    assert default_boundary(28) == 13
