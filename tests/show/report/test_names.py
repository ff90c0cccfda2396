import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_lora_drop.show.report.systems import what_differs


@pytest.mark.parametrize(
    ("values", "short"),
    [
        (["out/seed1/adapter", "out/seed2/adapter"], ["seed1", "seed2"]),
        (["/a/b/c", "/a/b/d"], ["c", "d"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "b/y"]),
        (["a/b", "a/b/c"], ["a/b", "a/b/c"]),
        (["out/a/", "out/b"], ["a", "b"]),
        (["auto", "27"], ["auto", "27"]),
        (["same", "same"], ["same", "same"]),
        ([], []),
    ],
)
def test_what_all_share_is_left_out(values, short):
    assert what_differs(values) == short


@given(st.lists(st.text("ab/", max_size=6), max_size=5))
def test_what_was_different_stays_different_and_nothing_becomes_empty(values):
    short = what_differs(values)
    assert len(short) == len(values)
    for i, one in enumerate(values):
        assert bool(short[i]) == bool(one) or not one
        for j, other in enumerate(values):
            assert (short[i] == short[j]) == (one == other) or {one.rstrip("/"), other.rstrip("/")} == {one.rstrip("/")}
