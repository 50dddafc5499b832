"""Tied parameters of many fits at once beside those of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradfit.model.parameters import Parameter, parameters
from gradfit.model.ties import not_fixed, with_tied

DEFAULTS = {
    "a": Parameter(1.0), "c": Parameter(np.ones(3)), "d": Parameter(2.0), "e": Parameter(1.0), "f": Parameter(np.ones(3)),
}  # fmt: skip
THETA = np.random.default_rng(0).normal(size=(100, 4))


def folded(a):
    """A tie that looks at its value, so that it takes one number at a time."""
    return a * 2 if a > 0 else -a


@pytest.mark.parametrize("tied", [{"d": "exp(a)*2 + e", "f": lambda a, c: torch.sin(c) * a}, {"d": folded, "f": "c"}])
def test_ties_of_many_fits_are_those_of_each(tied):
    known = parameters(DEFAULTS, tied=tied, fixed={"e": 3.0})
    kept = [place for place, name in enumerate(known.all_elements) if name in not_fixed(known)]
    values, slopes = with_tied(known, THETA, np.array([3.0]))
    for place in (0, 50, 99):
        np.testing.assert_allclose(values[place], known.all_values(torch.from_numpy(THETA[place]))[kept], rtol=1e-14)
        np.testing.assert_allclose(slopes[place], known.all_slopes(THETA[place])[kept], rtol=1e-14)


def test_ties_of_a_fit_do_not_depend_on_those_beside_it():
    known = parameters(DEFAULTS, tied={"d": "exp(a)*tanh(e)", "f": lambda a, c: torch.sin(c) ** 3 * a}, fixed=["e"])
    fixed = np.linspace(1, 2, len(THETA))[:, None]
    values, slopes = with_tied(known, THETA, fixed)
    order = np.random.default_rng(1).permutation(len(THETA))
    for some in (order, order[:37], order[:1]):
        found = with_tied(known, THETA[some], fixed[some])
        assert np.array_equal(found[0], values[some])
        assert np.array_equal(found[1], slopes[some])
