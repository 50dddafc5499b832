"""Fits in the lanes of a vector end where the careful solver ends, and do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradfit
from gradfit.compiler.compiled import NativeKernel
from gradfit.data.batch import Block, checked
from gradfit.methods import lanes, many
from gradfit.methods.many import CONVERGED, Limits, Starts
from gradfit.typing import Floats

X = np.arange(30.0)
START = {"a": 100.0, "c": 15.0, "w": 3.0, "b": 10.0}
OPEN = np.full(4, np.inf)


def gauss(x, a, c, w, b):
    return a * np.exp(-0.5 * ((x - c) / w) ** 2) + b


def spectra(count: int, seed: int, noise: float = 3.0) -> Floats:
    generator = np.random.default_rng(seed)
    low, high = np.array([[50, 12, 2, 5], [150, 18, 4, 15]])
    truth = generator.uniform(low, high, (count, 4))
    return gauss(X, *(column[:, None] for column in truth.T)) + noise * generator.standard_normal((count, len(X)))


@pytest.fixture(scope="module")
def kernel() -> NativeKernel:
    found = gradfit.fit(gauss, X, spectra(1, 0)[0], start=START)._known.kernel
    assert isinstance(found, NativeKernel)
    return found


def starts(count: int, lower: Floats = -OPEN, upper: Floats = OPEN) -> Starts:
    return Starts(np.tile(list(START.values()), (count, 1)), lower, upper, np.empty(0))


def careful(kernel: NativeKernel, block: Block, begin: Starts) -> many.Ends:
    return many.careful(kernel, block, begin, Limits())


def away(ours: many.Ends, theirs: many.Ends, block: Block) -> float:
    """Largest distance in standard errors, a width of either sign."""
    error = np.sqrt(theirs.variances * (theirs.sum / (block.sizes - 4))[:, None])
    return float(np.max(np.abs(np.abs(ours.theta) - np.abs(theirs.theta)) / error))


@pytest.mark.parametrize("single", [False, True])
def test_a_block_ends_within_a_thousandth_of_a_standard_error_of_the_careful_solver(kernel, single):
    target = spectra(500, 1)
    block = checked([X], target.astype(np.float32 if single else np.float64), None, None)
    ours = many.fit_block(kernel, block, starts(500), Limits(single=single))
    theirs = careful(kernel, checked([X], block.target.astype(float), None, None), starts(500))
    assert away(ours, theirs, block) < 1e-3
    np.testing.assert_allclose(np.sqrt(ours.variances), np.sqrt(theirs.variances), rtol=1e-3)
    np.testing.assert_allclose(ours.sum, theirs.sum, rtol=1e-5)
    assert (ours.status == CONVERGED).all()


def test_nearly_all_ordinary_fits_end_in_the_lanes(kernel):
    block = checked([X], spectra(500, 2), None, None)
    begin = starts(500)
    found = lanes.fit(kernel, block, begin.theta, begin.lower, begin.upper, begin.fixed, most=lanes.MOST_LOOKS)
    assert found.ended.mean() > 0.99


def test_bounds_are_kept_and_the_rest_is_at_its_minimum(kernel):
    block = checked([X], spectra(300, 3), None, None)
    begin = starts(300, np.array([70.0, -np.inf, 2.5, -np.inf]), np.array([130.0, np.inf, 3.5, np.inf]))
    ours, theirs = many.fit_block(kernel, block, begin, Limits()), careful(kernel, block, begin)
    assert (ours.theta >= begin.lower).all()
    assert (ours.theta <= begin.upper).all()
    np.testing.assert_allclose(ours.sum, theirs.sum, rtol=1e-5)
    held = theirs.theta[:, 2] == 3.5
    assert held.sum() > 50
    np.testing.assert_array_equal(ours.theta[held, 2], 3.5)


def test_weights_and_lengths_of_its_own_are_those_of_each_fit(kernel):
    generator = np.random.default_rng(4)
    target, sigma = spectra(200, 4), generator.uniform(1, 3, (200, 30))
    target[generator.uniform(size=target.shape) < 0.2] = np.nan
    block = checked([X], target, sigma, None)
    weighted = gradfit.fit(gauss, X, spectra(1, 0)[0], start=START, sigma=sigma[0])._known.kernel
    ours, theirs = many.fit_block(weighted, block, starts(200), Limits()), careful(weighted, block, starts(200))
    assert set(block.sizes) > {24, 25}
    assert away(ours, theirs, block) < 1e-3


def test_exact_data_are_fitted_exactly(kernel):
    target = spectra(100, 5, noise=0.0)
    ours = many.fit_block(kernel, checked([X], target, None, None), starts(100), Limits())
    np.testing.assert_allclose(gauss(X, *(column[:, None] for column in ours.theta.T)), target, rtol=1e-12)


def test_what_cannot_be_vouched_for_is_left_to_the_careful_solver(kernel):
    target = np.vstack([spectra(1, 6), np.full((1, 30), 7.0), np.zeros((1, 30)), 1e3 * np.sin(37 * X)[None]])
    block = checked([X], target, None, None)
    begin = starts(4)
    found = lanes.fit(kernel, block, begin.theta, begin.lower, begin.upper, begin.fixed, most=lanes.MOST_LOOKS)
    assert found.ended[0]
    assert not found.ended[1:3].any()


def test_a_fit_that_cannot_begin_has_no_sum(kernel):
    begin = starts(2)
    begin.theta[1] = 1e200
    found = many.fit_block(kernel, checked([X], spectra(2, 6), None, None), begin, Limits(careful=False))
    assert np.isfinite(found.sum[0])
    assert np.isnan(found.sum[1])


GARBAGE = {
    "constant": lambda y: np.full_like(y, 7.0),
    "zero": lambda y: np.zeros_like(y),
    "huge": lambda y: 1e120 * y,
    "tiny": lambda y: 1e-120 * y,
    "spike": lambda y: np.where(X == 3, 1e9, y),
    "few": lambda y: np.where(X < 25, np.nan, y),
    "steps": lambda y: np.sign(y - 40),
}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_neighbours_change_no_bit(kernel, data):
    count = data.draw(st.integers(1, 40))
    target = spectra(count, data.draw(st.integers(0, 1000)))
    alone = many.fit_block(kernel, checked([X], target, None, None), starts(count), Limits())
    spoilt = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from(sorted(GARBAGE)), max_size=count))
    other = target.copy()
    for place, kind in spoilt.items():
        other[place] = GARBAGE[kind](other[place])
    order = np.random.default_rng(count).permutation(count)
    among = many.fit_block(kernel, checked([X], other[order], None, None), starts(count), Limits())
    kept = np.array([place not in spoilt for place in order])
    for name in ("theta", "packed", "sum", "steps", "status"):
        np.testing.assert_array_equal(getattr(among, name)[kept], getattr(alone, name)[order][kept], err_msg=name)


@pytest.mark.parametrize(("loss", "options"), [("huber", {"f_scale": 4.0}), ("cauchy", {"f_scale": 4.0}), ("poisson", {})])
def test_other_losses_end_where_a_single_fit_ends(loss, options):
    generator = np.random.default_rng(7)
    target = spectra(8, 7)
    if loss == "poisson":
        target = generator.poisson(np.maximum(target, 1)).astype(float)
    else:
        target[generator.uniform(size=target.shape) < 0.05] += 40
    singles = [gradfit.fit(gauss, X, row, start=START, loss=loss, **options) for row in target]
    ends = many.fit_block(singles[0]._known.kernel, checked([X], target, None, None), starts(8), Limits())
    assert (ends.status == CONVERGED).all()
    for theta, single in zip(ends.theta, singles, strict=True):
        error = np.array([single.params[name].stderr for name in START])
        assert np.max(np.abs(np.abs(theta) - np.abs(list(single.values.values()))) / error) < 2e-3


def test_data_in_single_precision_go_most_of_the_way_in_it():
    target = spectra(50, 8).astype(np.float32)
    default = gradfit.fit_many(gauss, X.astype(np.float32), target, start=START)
    asked = gradfit.fit_many(gauss, X.astype(np.float32), target, start=START, dtype="float32")
    double = gradfit.fit_many(gauss, X.astype(np.float32), target, start=START, dtype="float64")
    np.testing.assert_array_equal(default.record.values, asked.record.values)
    assert (default.record.values != double.record.values).any()
    np.testing.assert_array_less(np.abs(default.record.values - double.record.values), 1e-3 * double.record.stderr)


def test_a_fit_of_very_many_rows_changes_no_bit_of_short_ones(monkeypatch, kernel):
    target = spectra(20, 9)
    alone = many.fit_block(kernel, checked([X], target, None, None), starts(20), Limits())
    x = np.linspace(0, 29, 3000)
    long = gauss(x, 90.0, 15.0, 3.0, 8.0) + np.random.default_rng(0).standard_normal(3000)
    columns, wide, sizes = np.zeros((21, 3000)), np.zeros((21, 3000)), np.full(21, 30)
    columns[:20, :30], wide[:20, :30], columns[20], wide[20], sizes[20] = X, target, x, long, 3000
    monkeypatch.setattr(lanes, "MOST_ROWS", 1000)
    among = many.fit_block(kernel, checked([columns], wide, None, sizes), starts(21), Limits())
    for name in ("theta", "packed", "sum", "steps", "status"):
        np.testing.assert_array_equal(getattr(among, name)[:20], getattr(alone, name))
    single = gradfit.fit(gauss, x, long, start=START)
    np.testing.assert_allclose(among.theta[20], list(single.values.values()), rtol=1e-9)
