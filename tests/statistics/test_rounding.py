"""Values and errors as the field writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfit.statistics.rounding import rounded


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.53677192, 0.0412, "0.537 ± 0.041"),
        (-17.3047855, 1.93, "-17.3 ± 1.9"),
        (0.5, 0.0996, "0.500 ± 0.100"),
        (12345.6, 123.0, "12350 ± 120"),
        (1.0, 2.5, "1.0 ± 2.5"),
        (0.0, 0.03, "0.000 ± 0.030"),
        (6.02214076e23, 1.2e18, "(6.022141 ± 0.000012)e+23"),
        (1.234e-9, 5.6e-11, "(1.234 ± 0.056)e-09"),
        (3.25, 0.0, "3.25"),
        (-0.3, 17.0, "0 ± 17"),
        (1e308, 1.0, "1e+308 ± 1"),
        (3.25, math.nan, "3.25 ± ?"),
        (3.25, math.inf, "3.25 ± ?"),
        (math.nan, 1.0, "nan"),
        (1.0, 1e-20, "1 ± 1e-20"),
    ],
)
def test_the_error_has_two_digits_and_the_value_ends_where_it_does(value, stderr, text):
    assert rounded(value, stderr) == text


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(min_value=0, allow_infinity=False, allow_subnormal=False))
def test_every_pair_of_numbers_can_be_written(value, stderr):
    text = rounded(value, stderr)
    assert text
    if "(" not in text and "e" in text:
        return
    if stderr > 0 and 1e-6 < abs(value) < 1e6 and stderr > 1e-9 * abs(value):
        shown = text.strip("(").split(" ")[0]
        power = float("1" + text.partition(")")[2]) if ")" in text else 1.0
        assert abs(float(shown) * power - value) <= 0.051 * stderr * 1.0001
