"""What is kept of an adapter, and what a user may write for it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options._notations import parse_sweep_boundaries
from lm_eval_lora_drop.variant import (
    Keep,
    Variant,
    default_boundary,
    format_integers,
    parse_boundary,
    parse_layers,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), ("4", 4), (" 20 ", 20), ("full", 30), ("base", 0), ("default", 14), ("FULL", 30), (20.0, 20)],
)
def test_a_boundary_keeps_the_bottom_layers(value, expected):
    kept = parse_boundary(value).resolve(30)
    assert kept is not None
    assert kept.kept_layers == frozenset(range(expected))
    assert kept.boundary == expected


@pytest.mark.parametrize("word", ["auto", "probe"])
def test_words_that_need_validation_documents_resolve_to_nothing_yet(word):
    spec = parse_boundary(word)
    assert spec.needs_validation
    assert spec.resolve(30) is None


@pytest.mark.parametrize("value", [-1, "-1", 3.7, "3.7", "", "atuo", True, None, "1-3", [4], "9" * 5000])
def test_a_boundary_that_is_none_is_refused_by_name(value):
    with pytest.raises(ArgumentError, match="^boundary must be an integer from 0") as caught:
        parse_boundary(value)
    assert len(str(caught.value)) < 400


def test_a_misspelt_word_is_answered_with_the_near_one():
    with pytest.raises(ArgumentError, match="Did you mean boundary=auto"):
        parse_boundary("atuo")


def test_a_boundary_above_the_model_names_the_range():
    with pytest.raises(ArgumentError, match="0 to 30 .*got 31"):
        parse_boundary(31).resolve(30)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "3-",
        "-3",
        "a",
        "5-2",
        "1++2",
        "0-3;5",
        "0x0",
        "0x-1",
        "0x1e-400",
        "0x1e300",
        "0x1001",
        "0r0",
        "0-2+1",
        "0.",
    ],
)
def test_malformed_layers_are_refused_with_an_example(value):
    with pytest.raises(ArgumentError):
        parse_layers(value).resolve(30)


@pytest.mark.parametrize("value", ["", " ", "3-", "-3", "a", "5-2", "1-9:0", "1++2", "0-3;5", "1.5", "0-30000000"])
def test_malformed_sweep_boundaries_are_refused_with_an_example(value):
    with pytest.raises(ArgumentError, match="^sweep_boundaries"):
        parse_sweep_boundaries(value)


def test_ranges_include_both_ends():
    assert parse_sweep_boundaries("8-24:2+30+4") == (4, 8, 10, 12, 14, 16, 18, 20, 22, 24, 30)
    assert parse_layers("0-14+20").resolve(30) == Variant.of_layers([*range(15), 20], 30)
    assert parse_layers(7).resolve(30) == Variant.of_layers([7], 30)


def test_a_layer_outside_the_model_is_refused():
    with pytest.raises(ArgumentError, match=r"0\.\.29 .*got 30"):
        parse_layers("0-30").resolve(30)


KEEPS = st.builds(
    Keep,
    st.sampled_from([(), ("attention",), ("mlp",), ("q_proj", "v_proj")]),
    st.floats(1e-6, 100, allow_nan=False) | st.just(1.0),
    st.none() | st.integers(1, 64),
)


@given(st.lists(st.none() | KEEPS, min_size=1, max_size=12), st.sampled_from(["", "seed1", "a.b-c_d"]))
def test_the_notation_reads_back_and_is_safe_as_a_file_name(keeps, adapter):
    variant = Variant(tuple(() if keep is None else (keep,) for keep in keeps), adapter)
    text = str(variant)
    assert Variant.parse(text, len(keeps)) == variant
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@")


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ascending_runs_are_the_layers(values):
    assert parse_layers(format_integers(values)).resolve(301) == Variant.of_layers(values, 301)


def test_what_kind_of_module_is_kept():
    variant = Variant.parse("0-1.attention+1x0.5.mlp+3r4", 4)
    assert variant.keep_at(0, "q_proj", ("attention",)) == Keep(("attention",))
    assert variant.keep_at(0, "up_proj", ("mlp",)) is None
    assert variant.keep_at(1, "up_proj", ("mlp",)) == Keep(("mlp",), 0.5)
    assert variant.keep_at(2, "q_proj", ("attention",)) is None
    assert variant.keep_at(3, "anything") == Keep(rank=4)
    assert variant.boundary is None
    assert not variant.is_plain


@pytest.mark.parametrize("text", ["0x0.5.attention+0r2.q_proj", "0r2.q_proj+0x0.5.attention", "0r2.a_proj+0.attention"])
def test_the_name_of_a_module_has_priority_over_its_kind(text):
    """Whichever comes first in the notation or in the alphabet."""
    module = text[text.index("_proj") - 1 :][:6]
    variant = Variant.parse(text, 1)
    assert variant.keep_at(0, module, ("attention",)) == Keep((module,), rank=2)
    assert variant.keep_at(0, "k_proj", ("attention",)).rank is None


def test_a_variant_that_travels_is_found_in_another_process():
    """Strings hash differently in every process; a remembered hash must not travel along."""
    variant = Variant.parse("0-2.attention", 4)
    hash(variant)
    program = (
        "import pickle, sys; from lm_eval_lora_drop.variant import Variant\n"
        "came = pickle.loads(sys.stdin.buffer.read())\n"
        "print({Variant.parse('0-2.attention', 4): 'found'}[came])"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(variant), capture_output=True, check=True)
    assert done.stdout.strip() == b"found"


def test_the_default_is_the_papers_fifteen_of_thirty_two_half_rounded_up():
    assert [default_boundary(layers) for layers in (32, 28, 16, 48)] == [15, 13, 8, 23]
