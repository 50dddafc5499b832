"""Losses against their definitions, scipy, and optima found independently."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.testing import assert_allclose
from torch.nn import functional

import gradfit
from gradfit.data.dataset import Dataset
from gradfit.errors import DataError, ModelError, OptionError
from gradfit.model.loss import ROBUST, gauss_newton_rows, resolve

X = np.linspace(0, 3, 40)
NOISE = np.random.default_rng(1).standard_normal(40)
Y = 3 * np.exp(-1.2 * X) + 0.5 + 0.05 * NOISE + np.where(np.arange(40) % 9 == 0, 2.0, 0.0)
COUNTS = np.random.default_rng(2).poisson(3 * np.exp(-1.2 * X) + 0.5).astype(float)
SIGMA = np.linspace(0.5, 2, 40)


def decay(x, a, b, c):
    return a * torch.exp(-b * x) + c


def decay_of(theta):
    return theta[0] * np.exp(-theta[1] * X) + theta[2]


def data(target=Y, sigma=None):
    return Dataset({"x": X}, target, "y", sigma, np.arange(len(target)))


def numbers(fit):
    return np.array(list(fit.values.values()))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("f_scale", [0.05, 1.0])
@pytest.mark.parametrize("sigma", [None, SIGMA], ids=["no sigma", "sigma"])
def test_a_robust_fit_is_that_of_scipy(name, f_scale, sigma):
    weight = 1.0 if sigma is None else 1 / sigma
    # arctan is bounded and has many minima: both begin near the best one
    start = np.ones(3) if name != "arctan" else numbers(gradfit.fit(decay, X, Y, loss="huber", f_scale=f_scale, sigma=sigma))
    theirs = scipy.optimize.least_squares(
        lambda theta: (decay_of(theta) - Y) * weight, start, loss=name, f_scale=f_scale, ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    ours = gradfit.fit(decay, X, Y, start=start.tolist(), loss=name, f_scale=f_scale, sigma=sigma)
    assert ours.success
    assert_allclose(ours.loss * len(X) / 2, theirs.cost, rtol=1e-12)
    assert_allclose(numbers(ours), theirs.x, rtol=1e-6)


@pytest.mark.parametrize("name", ROBUST)
def test_gauss_newton_rows_have_the_gradient_of_the_loss(name):
    loss = resolve(name, data(), f_scale=0.3)
    point = torch.linspace(-2, 4, 40, dtype=torch.float64).requires_grad_()
    target = torch.from_numpy(Y)
    (gradient,) = torch.autograd.grad(loss.pointwise(point, target, None).sum(), point)
    rows = gauss_newton_rows(loss, point.detach(), target, None)
    assert_allclose(2 * rows.residual * rows.weight, gradient, rtol=1e-12, atol=1e-14)
    assert (rows.weight > 0).all()


@pytest.mark.parametrize("name", [name for name in ROBUST if name != "arctan"])  # bounded: far rows do not pull
@pytest.mark.parametrize("start", [[1.0, 1.0], [0.5, -17.0], [-3.0, 400.0]])
def test_a_robust_line_is_found_from_anywhere_also_where_every_row_is_an_outlier(name, start, t_u, t_c):
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, loss=name, f_scale=1.5, start=start)
    theirs = scipy.optimize.least_squares(
        lambda p: p[0] * t_u + p[1] - t_c,
        [0.54, -17.0],
        loss=name,
        f_scale=1.5,
        x_scale="jac",
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )
    assert_allclose(numbers(fit), theirs.x, rtol=1e-5)
    assert_allclose(fit.loss * 11 / 2, theirs.cost, rtol=1e-10)


@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_loss_has_a_derivative_at_a_perfect_prediction(name):
    point = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = resolve(name, data(), f_scale=0.3)
    (slope,) = torch.autograd.grad(loss.pointwise(point, torch.zeros(1), None).sum(), point)
    assert slope.item() == 0


def test_poisson_deviance_is_the_closed_form_also_for_zero_counts():
    loss = resolve("poisson", data(COUNTS))
    mean, count = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64), torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    expected = [2 * 0.5, 0.0, 2 * (3 - 5 + 5 * np.log(5 / 3))]
    assert_allclose(loss.pointwise(mean, count, None), expected, rtol=1e-14, atol=1e-15)
    assert torch.isnan(loss.pointwise(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0]), None)).all()


def test_a_poisson_fit_minimises_the_exact_likelihood():
    assert (COUNTS == 0).any()

    def negative_log_likelihood(theta):
        mean = decay_of(theta)
        return np.sum(mean - COUNTS * np.log(mean)) if (mean > 0).all() else np.inf

    with np.errstate(all="ignore"):
        theirs = scipy.optimize.minimize(
            negative_log_likelihood, [3, 1.2, 0.5], method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000},
        )  # fmt: skip
    ours = gradfit.fit(decay, X, COUNTS, loss="poisson")
    assert ours.success
    assert_allclose(numbers(ours), theirs.x, rtol=1e-5)


def test_a_poisson_fit_that_starts_below_zero_says_so():
    fit = gradfit.fit(decay, X, COUNTS, loss="poisson", start={"a": -1.0, "b": 1.0, "c": 0.0}, on_failure="ignore")
    assert fit.status == "not_finite"


WHOLE = {
    "l1_loss": functional.l1_loss,
    "mse_loss": functional.mse_loss,
    "smooth_l1_loss": functional.smooth_l1_loss,
    "huber_loss": functional.huber_loss,
    "poisson_nll_loss": lambda p, t: functional.poisson_nll_loss(p, t, log_input=False),
    "MSELoss()": torch.nn.MSELoss(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_loss_of_one_number_is_for_gradients_and_refused_by_lm_with_advice(name):
    target = COUNTS if "poisson" in name else Y
    with pytest.raises(OptionError, match="method='lbfgs' or 'adam'"):
        gradfit.fit(decay, X, target, loss=WHOLE[name], method="lm")
    fit = gradfit.fit(decay, X, target, loss=WHOLE[name], method="lbfgs", on_failure="ignore")
    theta = torch.from_numpy(numbers(fit))
    at_fit = WHOLE[name](decay(torch.from_numpy(X), *theta), torch.from_numpy(target))
    assert fit.loss == pytest.approx(at_fit.item(), rel=1e-12)
    assert fit.loss < WHOLE[name](decay(torch.from_numpy(X), 1.0, 1.0, 1.0), torch.from_numpy(target)).item()


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda p, t: functional.mse_loss(p, t, reduction="none"), {}),
        (lambda p, t: functional.huber_loss(p, t, reduction="none", delta=0.3), {"loss": "huber", "f_scale": 0.3}),
    ],
)
def test_a_torch_loss_per_row_serves_lm(function, same):
    ours, named = gradfit.fit(decay, X, Y, loss=function), gradfit.fit(decay, X, Y, **same)
    assert ours.success
    assert_allclose(numbers(ours), numbers(named), rtol=1e-5)


def test_a_loss_may_hold_one_weight_per_row():
    weights = torch.from_numpy(1 / SIGMA**2)
    ours = gradfit.fit(decay, X, Y, loss=lambda p, t: weights * (p - t) ** 2)
    assert_allclose(numbers(ours), numbers(gradfit.fit(decay, X, Y, sigma=SIGMA)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "hubber"}, OptionError, "huber"),
        ({"loss": 3}, OptionError, "expected one of"),
        ({"loss": torch.nn.MSELoss}, OptionError, r"MSELoss\(\)"),
        ({"loss": "squared", "f_scale": 1.0}, OptionError, "f_scale belongs to"),
        ({"loss": ["huber"], "f_scale": 1.0}, OptionError, "f_scale belongs to"),
        ({"loss": "huber", "f_scale": 0.0}, OptionError, "positive number"),
        ({"loss": "huber", "f_scale": "wide"}, OptionError, "positive number"),
        ({"loss": "huber", "f_scale": np.nan}, OptionError, "positive number"),
        ({"loss": "poisson"}, DataError, "negative"),
        ({"loss": lambda p, t: 3.0}, ModelError, "gave float"),
        ({"loss": lambda p, t: torch.ones(5)}, ModelError, r"shape \(5,\)"),
        ({"loss": lambda p, t: torch.tensor(3)}, ModelError, "int64"),
        ({"loss": lambda p, t: (p.detach() - t) ** 2}, ModelError, "no gradient"),
        ({"loss": lambda p, t: p.nothing}, ModelError, "raised AttributeError"),
    ],
)
def test_what_is_no_loss_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        gradfit.fit(decay, X, Y - 5.0, **options)


def test_sigma_with_a_loss_that_has_no_use_for_it_is_refused():
    with pytest.raises(DataError, match="leave one of them out"):
        gradfit.fit(decay, X, COUNTS, loss="poisson", sigma=SIGMA)
