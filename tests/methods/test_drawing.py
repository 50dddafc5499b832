"""Points that fill the space of the parameters, in units of the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfit.compiler.units import UNIT_OF_TARGET, Role
from gradfit.data.dataset import Dataset
from gradfit.methods.drawing import around, cube, projected, some_half, spread

X = np.linspace(3, 7, 40)
DATA = Dataset({"x": X}, np.cos(X), "y", None, np.arange(40))
KNOWN = {
    "center": Role({"x": 1.0}, "x", linear=False, periodic=False),
    "rate": Role({"x": -1.0}, "", linear=False, periodic=False),
    "height": Role({UNIT_OF_TARGET: 1.0}, "", linear=False, periodic=False),
    "power": Role({}, "", linear=False, periodic=False),
    "open": Role(None, "", linear=False, periodic=False),
}
NAMES = tuple(KNOWN)
FREE = np.full(5, -np.inf), np.full(5, np.inf)


def test_starts_are_of_the_size_that_the_data_suggest():
    theta = spread(cube(5, 0, 512, 0), KNOWN, NAMES, DATA, *FREE)
    center, rate, height, power, _open = theta.T
    assert ((center > 2.5) & (center < 7.5)).mean() > 0.5
    assert np.abs(rate).min() == pytest.approx(1 / 12, rel=0.1)  # three spans
    assert np.abs(rate).max() == pytest.approx(39 / 4, rel=0.1)  # the distance of neighbours
    assert np.abs(height).max() < 10
    assert np.abs(power).max() < 30
    assert ((theta > 0).mean(axis=0) > 0.3).all()
    assert ((theta < 0).mean(axis=0)[1:] > 0.3).all()


def test_frequencies_are_drawn_evenly_up_to_the_highest_that_the_points_can_tell():
    known = {"w": Role({"x": -1.0}, "", linear=False, periodic=True), "p": Role({}, "", linear=False, periodic=True)}
    waving = spread(cube(2, 0, 512, 0), known, ("w", "p"), DATA, FREE[0][:2], FREE[1][:2])[some_half(512, 0)]
    highest = np.pi * 39 / 4
    assert np.histogram(waving[:, 0], 4, (0, highest))[0].min() > 50
    assert (waving[:, 0] <= highest).all()
    assert np.histogram(waving[:, 1], 4, (0, 2 * np.pi))[0].min() > 50


@settings(deadline=None, max_examples=20)
@given(st.integers(-12, 12), st.integers(-12, 12))
def test_other_units_of_the_data_give_the_same_starts_in_other_units(of_x, of_y):
    x, y = 2.0**of_x, 2.0**of_y
    points = cube(4, 0, 64, 1)
    names, sides = NAMES[:4], (FREE[0][:4], FREE[1][:4])
    other = Dataset({"x": x * X}, y * np.cos(X), "y", None, np.arange(40))
    ours, theirs = spread(points, KNOWN, names, DATA, *sides), spread(points, KNOWN, names, other, *sides)
    np.testing.assert_allclose(theirs, ours * [x, 1 / x, y, 1], rtol=1e-12)


def test_starts_lie_within_bounds_whatever_is_drawn():
    lower, upper = np.array([4.0, -np.inf, 0.0, 2.0, -np.inf]), np.array([4.5, -1.0, np.inf, 2.5, 0.0])
    for theta in (spread(cube(5, 0, 256, 0), KNOWN, NAMES, DATA, lower, upper), around(np.full(5, 3.0), 256, lower, upper, 0)):
        assert ((theta >= lower) & (theta <= upper)).all()


def test_later_points_of_a_sequence_are_others():
    assert not np.isin(cube(2, 64, 128, 0)[:, 0], cube(2, 0, 64, 0)[:, 0]).any()
    np.testing.assert_array_equal(cube(2, 0, 128, 0)[64:], cube(2, 64, 128, 0))


def test_linear_numbers_are_those_of_numpys_least_squares():
    generator = np.random.default_rng(0)
    scale = np.array([1, 1e6, 1e-9])
    residual, slopes = generator.normal(size=(7, 30)), generator.normal(size=(7, 3, 30)) * scale[:, None]
    residual[3, 4] = np.nan
    found, total = projected(residual, slopes)
    assert total[3] == np.inf
    for place in (0, 1, 2, 4, 5, 6):
        expected, rest, *_ = np.linalg.lstsq(slopes[place].T / scale, -residual[place], rcond=None)
        np.testing.assert_allclose(found[place] * scale, expected, rtol=1e-8)
        assert total[place] == pytest.approx(rest[0], rel=1e-9)
