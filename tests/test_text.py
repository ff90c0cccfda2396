"""Digits follow the standard error; a column has one number of decimals; nothing is shown as -0 or nan."""

import math
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lm_eval_lora_drop.text import (
    decimals_for,
    decimals_of_column,
    decimals_of_difference,
    duration_text,
    number,
    p_value,
    percent,
    significant,
    with_error,
)


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (34.1, 5.6, "34.1 ± 5.6"),
        (9.808, 1.23, "9.8 ± 1.2"),
        (0.5, 0.0707, "0.500 ± 0.071"),
        (0.5, 0.0996, "0.500 ± 0.100"),
        (33.04, 9.96, "33 ± 10"),
        (1234.5, 56.7, "1234 ± 57"),
        (0.41234, 0.0, "0.412 ± 0.000"),
        (32.2, None, "32.2"),
        (0.41234, None, "0.412"),
        (0.0, None, "0.000"),
        (1234.5, None, "1234"),
        (None, 1.0, "-"),
        (math.nan, 1.0, "-"),
        (5.0, math.nan, "5.00"),
        (-0.001, 0.5, "0.00 ± 0.50"),
        (1e-9, 2e-10, "0.00000000100 ± 0.00000000020"),
    ],
)
def test_a_score_is_shown_to_the_place_of_its_standard_error(value, stderr, shown):
    assert with_error(value, stderr) == shown


@given(st.floats(1e-6, 1e6))
def test_the_standard_error_keeps_two_digits_or_all_before_the_point(stderr):
    """Against decimal arithmetic: rounded to two significant digits, or to a whole number from 10 on."""
    exact = Decimal(stderr)
    two = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), rounding=ROUND_HALF_EVEN)
    shown = Decimal(number(stderr, decimals_for(stderr)))
    expected = two if stderr < 9.5 else exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    assume(abs(exact - expected) < abs(Decimal("0.4999")) * Decimal(1).scaleb(expected.as_tuple().exponent))
    assert shown == expected


def test_a_column_takes_the_place_of_its_median_standard_error():
    assert decimals_of_column([(9.808, 1.2), (32.2, 5.6), (33.0, 0.0), (1.0, None)]) == 1
    assert decimals_of_column([(0.5, 0.07), (0.4, 0.06), (0.1, 0.0001)]) == 3
    assert decimals_of_column([(0.5, None), (12.3, None)]) == 1
    assert decimals_of_column([]) == 2
    assert decimals_of_column([(None, math.inf), (math.nan, None)]) == 2


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 6), st.booleans())
def test_no_number_is_minus_zero_or_not_a_number(value, decimals, sign):
    text = number(value, decimals, sign=sign)
    assert text == "-" or math.isfinite(float(text))
    assert not (text.startswith("-") and text != "-" and float(text) == 0)


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (0.001, "<1 %"), (0.1, "10 %"), (0.996, ">99 %"), (1.0, "100 %"), (0.5, "50 %")],
)
def test_a_share_is_all_or_nothing_only_when_it_is(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        *((0.0884, 2, "0.088"), (0.0996, 2, "0.10"), (1234.5, 2, "1234"), (0.04, 1, "0.04"), (0.0, 3, "0")),
        *((2.44e-6, 2, "2.4e-06"), (-2.44e-6, 2, "-2.4e-06"), (1e-4, 2, "0.00010"), (None, 2, "-"), (math.nan, 2, "-")),
    ],
)
def test_a_number_without_a_standard_error_keeps_its_digits(value, digits, shown):
    assert significant(value, digits) == shown


@given(st.floats(1e-4, 9.4), st.integers(1, 6))
def test_significant_digits_are_those_of_decimal_arithmetic(value, digits):
    exact = Decimal(value)
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_HALF_EVEN)
    assert Decimal(significant(value, digits)) == rounded


def test_a_difference_is_shown_to_the_place_of_the_standard_error_that_its_interval_tells():
    # A standard error of 0.0347 makes an interval 3.92 times as wide.
    assert decimals_of_difference(-0.04, (-0.108, 0.028)) == decimals_for(0.0347) == 3
    assert decimals_of_difference(2.5, (-9.0, 14.0)) == decimals_for(5.9) == 1
    assert decimals_of_difference(0.0412, None) == 4


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.344, "0.344"), (0.0996, "0.100"), (0.0123, "0.012"), (1.0, "1.000"), (3.2e-9, "3.2e-09"), (None, "")],
)
def test_a_p_value_is_never_nothing(p, shown):
    assert p_value(p) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (86400, "24.0 h"), (None, "-")],
)
def test_a_time_is_shown_in_the_unit_that_fits(seconds, shown):
    assert duration_text(seconds) == shown
