"""Gradient descent is torch.optim: the oracle is a loop written by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler, swa_utils

import gradfit
from gradfit import GradientDescent
from gradfit.errors import OptionError, ParameterError
from gradfit.methods.gradient_descent import Averaging
from gradfit.methods.optimizers import OPTIMIZERS, SCALED, SCHEDULERS

EPOCHS = 25
START = {"w": 1.0, "b": 0.0}


def celsius(t_u, w, b):
    return w * t_u + b


def by_hand(
    x, y, optimizer, *, epochs=EPOCHS, scheduler=None, per_batch=False, watched=None, batch_size=None, average=None,
    average_from=1, seed=0, dtype=torch.float64, validation=None, **options,
):  # fmt: skip
    """The notebook's loop, as anybody would write it."""
    x, y = (torch.as_tensor(part, dtype=dtype) for part in (x, y))
    theta = torch.tensor([1.0, 0.0], dtype=dtype, requires_grad=True)
    descent = optimizer([theta], **options)
    schedule = None if scheduler is None else scheduler(descent)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        rate = descent.param_groups[0]["lr"]
        batches = torch.randperm(len(x), generator=generator).split(batch_size) if batch_size else [slice(None)]
        losses, gradients, sizes = [], [], []
        held = None
        if validation is not None:
            with torch.no_grad():
                held = ((celsius(validation[0], *theta) - validation[1]) ** 2).mean().item()
        for batch in batches:

            def closure(batch=batch, losses=losses, gradients=gradients):
                descent.zero_grad()
                loss = ((celsius(x[batch], *theta) - y[batch]) ** 2).mean()
                loss.backward()
                losses.append(loss.item())
                gradients.append(theta.grad.clone())
                return loss

            if optimizer is torch.optim.LBFGS:
                before = len(losses)
                descent.step(closure)
                del losses[before + 1 :], gradients[before + 1 :]
            else:
                closure()
                descent.step()
            sizes.append(len(x[batch]))
            if per_batch:
                schedule.step()
        share = np.array(sizes) / len(x)
        loss = float(np.dot(share, losses))
        gradient = sum(s * g.double() for s, g in zip(share, gradients, strict=True)).numpy()
        if average is not None and epoch >= average_from:
            average.update_parameters(torch.nn.ParameterList([theta]))
        if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(held if watched == "validation" else loss)
        elif schedule is not None and not per_batch:
            schedule.step()
        rows.append((loss, rate, *theta.detach().double().tolist(), *gradient, np.nan if held is None else held))
    return np.array(rows)


def table(fit):
    return np.array([fit.history[name] for name in ("train_loss", "learning_rate", "w", "b", "grad_w", "grad_b")]).T


def fitted(x, y, method, **options):
    options = {"start": START, "scale": False, "epochs": EPOCHS, "on_failure": "ignore"} | options
    return gradfit.fit(celsius, x, y, method=method, **options)


both_engines = pytest.mark.parametrize("engine", ["torch", "native"])


def agree(fit, expected, columns=slice(0, 6), dtype=torch.float64):
    """The torch engine gives the same bits; compiled code adds rows up in another order."""
    ours, theirs = table(fit)[:, columns], expected[:, :6][:, columns]
    if fit.engine == "torch":
        return np.array_equal(ours, theirs)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    size = np.abs(theirs).max(axis=0)  # a gradient near zero is a difference of large numbers
    return np.allclose(ours, theirs, rtol=rtol, atol=rtol * size, equal_nan=True)


CASES = [
    ("SGD", {}), ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}), ("SGD", {"foreach": True}), ("SGD", {"fused": True}), ("SGD", {"maximize": True}),
    ("ASGD", {}), ("ASGD", {"lambd": 0.01, "alpha": 0.5, "t0": 5, "weight_decay": 0.01}), ("ASGD", {"foreach": True}),
    ("Adadelta", {}), ("Adadelta", {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {}), ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    ("Adagrad", {"fused": True}),
    ("Adam", {}), ("Adam", {"betas": (0.5, 0.9), "eps": 1e-2, "weight_decay": 0.1, "amsgrad": True}), ("Adam", {"fused": True}),
    ("Adam", {"foreach": True, "maximize": True}), ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {}), ("AdamW", {"weight_decay": 0.3, "amsgrad": True}), ("AdamW", {"fused": True}),
    ("Adamax", {}), ("Adamax", {"betas": (0.7, 0.9), "weight_decay": 0.1}),
    ("NAdam", {}), ("NAdam", {"momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {}), ("RAdam", {"betas": (0.5, 0.9), "weight_decay": 0.1}),
    ("RMSprop", {}), ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1}),
    ("Rprop", {}), ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 1.0)}),
    ("LBFGS", {}), ("LBFGS", {"line_search_fn": "strong_wolfe"}), ("LBFGS", {"history_size": 2, "max_iter": 3, "tolerance_grad": 1e-3}),
    ("Adafactor", {}), ("Adafactor", {"beta2_decay": -0.5, "eps": (1e-6, 1e-2), "d": 2.0, "weight_decay": 0.1}),
]  # fmt: skip


def described(case):
    return " ".join([case[0], *(f"{name}={value}" for name, value in case[1].items())])


def test_every_optimizer_of_torch_is_among_the_cases():
    tried = {name for name, _ in CASES} | {"Muon", "SparseAdam"}
    assert {cls.__name__ for cls in OPTIMIZERS.values()} <= tried


@both_engines
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=described)
def test_descent_is_torch_optim_step_by_step(case, dtype, engine, t_u, t_c):
    name, options = case
    optimizer = getattr(torch.optim, name)
    rate = 1.0 if name == "LBFGS" else 0.01
    fit = fitted(0.1 * t_u, t_c, name.lower(), learning_rate=rate, dtype=dtype, engine=engine, **options)
    expected = by_hand(0.1 * t_u, t_c, optimizer, lr=rate, dtype=dtype, **options)
    assert fit.engine == engine
    if name == "LBFGS" and engine == "native":  # a line search compares losses: the last bit may decide where it goes
        np.testing.assert_allclose(table(fit)[-1, :4], expected[-1, :4], rtol=1e-6 if dtype == torch.float64 else 1e-3)
        return
    assert agree(fit, expected, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "LBFGS"], ids=described)
def test_compiled_descent_stays_with_torch_for_500_steps(case, dtype, t_u, t_c):
    name, options = case
    plan = {"learning_rate": 0.01, "dtype": dtype, "epochs": 500, **options}
    fit = fitted(0.1 * t_u, t_c, name.lower(), engine="native", **plan)
    expected = fitted(0.1 * t_u, t_c, name.lower(), engine="torch", **plan)
    assert "whole loop is compiled" in fit.engine_reason
    # In single precision compiled code adds rows up in double: each epoch differs by torch's own rounding.
    # Some paths are chaotic: where the last bit of the start changes torch's own path, its bits are nobody's to keep.
    bit = float(torch.finfo(dtype).eps)
    starts = [{"w": 1.0 + bits * bit, "b": 0.0} for bits in (1, -1, 2, -2)]
    shaken = [fitted(0.1 * t_u, t_c, name.lower(), engine="torch", **plan | {"start": start}) for start in starts]
    rows = min(len(one.history) for one in (fit, expected, *shaken))
    ours, theirs, *others = (table(one)[:rows] for one in (fit, expected, *shaken))
    size, rtol = np.abs(theirs).max(axis=0), 1e-12 if dtype == torch.float64 else 2e-5
    moved = np.max([(np.abs(other - theirs) / size).max(axis=1) for other in others], axis=0)
    kept = np.maximum.accumulate(moved) < max(6 * bit, 1e-14)
    assert kept.sum() > 20
    np.testing.assert_array_less((np.abs(ours - theirs) / size).max(axis=1)[kept], rtol)


@pytest.mark.parametrize("name", [name for name in SCALED if name not in ("Adadelta", "LBFGS")])
def test_without_scaling_the_default_rate_is_torchs_own_and_a_class_serves_as_well_as_its_name(name, t_u, t_c):
    optimizer = getattr(torch.optim, name)
    fit = fitted(0.1 * t_u, t_c, optimizer)
    assert agree(fit, by_hand(0.1 * t_u, t_c, optimizer))


def test_climbing_is_done_as_torch_says_and_not_called_a_success(t_u, t_c):
    fit = fitted(0.1 * t_u, t_c, "sgd", learning_rate=0.01, maximize=True, epochs=500)
    assert fit.status == "diverged"
    assert not fitted(0.1 * t_u, t_c, "adam", learning_rate=0.01, maximize=True).success


# --- learning rates ----------------------------------------------------------------------------------------------------

SCHEDULES = [
    ("StepLR", {"step_size": 4, "gamma": 0.5}), ("MultiStepLR", {"milestones": [3, 9], "gamma": 0.3}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 6}), ("LinearLR", {"start_factor": 0.1, "total_iters": 8}),
    ("ExponentialLR", {"gamma": 0.9}), ("CosineAnnealingLR", {"T_max": 10}), ("PolynomialLR", {"total_iters": 20, "power": 2.0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 2}), ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.95}), ("SWALR", {"swa_lr": 0.001, "anneal_epochs": 5}),
    ("ReduceLROnPlateau", {"patience": 1, "factor": 0.5, "threshold": 0.2}),
    ("CyclicLR", {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 4}),
    ("OneCycleLR", {"max_lr": 0.01, "total_steps": EPOCHS}),
]  # fmt: skip


def test_every_scheduler_of_torch_is_among_the_cases():
    by_function = {"sequentiallr", "chainedscheduler"}
    assert set(SCHEDULERS) == {name.lower() for name, _ in SCHEDULES} | by_function


@both_engines
@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case[0])
def test_every_scheduler_follows_torch(case, engine, t_u, t_c):
    name, options = case
    cls = getattr(lr_scheduler, name, None) or getattr(swa_utils, name)
    fit = fitted(
        0.1 * t_u, t_c, "sgd", learning_rate=0.01, momentum=0.5, scheduler=name, scheduler_options=options, engine=engine
    )
    expected = by_hand(
        0.1 * t_u, t_c, torch.optim.SGD, lr=0.01, momentum=0.5, scheduler=lambda descent: cls(descent, **options),
        per_batch=name in ("CyclicLR", "OneCycleLR"),
    )  # fmt: skip
    assert agree(fit, expected)
    assert len(set(fit.history["learning_rate"])) > 1


def chained(descent):
    return lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(descent, 0.1, 3), lr_scheduler.ExponentialLR(descent, 0.9)])


def sequential(descent):
    parts = [lr_scheduler.LinearLR(descent, 0.1, total_iters=5), lr_scheduler.ExponentialLR(descent, 0.9)]
    return lr_scheduler.SequentialLR(descent, parts, milestones=[5])


@both_engines
@pytest.mark.parametrize("scheduler", [chained, sequential])
def test_schedulers_of_schedulers_come_as_functions_of_the_optimizer(scheduler, engine, t_u, t_c):
    fit = fitted(0.1 * t_u, t_c, "sgd", learning_rate=0.01, scheduler=scheduler, engine=engine)
    assert agree(fit, by_hand(0.1 * t_u, t_c, torch.optim.SGD, lr=0.01, scheduler=scheduler))


@both_engines
def test_the_plateau_is_that_of_the_validation_loss_where_there_is_one(engine, t_u, t_c):
    x, options = 0.1 * t_u, {"patience": 2, "factor": 0.5}
    train, held = np.arange(7), np.arange(7, 11)
    fit = fitted(x, t_c, "sgd", learning_rate=0.01, validation=list(held), scheduler="ReduceLROnPlateau", scheduler_options=options,
                 epochs=60, engine=engine)  # fmt: skip
    expected = by_hand(
        x[train], t_c[train], torch.optim.SGD, lr=0.01, epochs=60, watched="validation",
        validation=(torch.tensor(x[held]), torch.tensor(t_c[held])),
        scheduler=lambda descent: lr_scheduler.ReduceLROnPlateau(descent, **options),
    )  # fmt: skip
    assert agree(fit, expected)
    np.testing.assert_allclose(fit.history["validation_loss"], expected[:, 6], rtol=0 if engine == "torch" else 1e-12)
    on_training_loss = by_hand(
        x[train], t_c[train], torch.optim.SGD, lr=0.01, epochs=60,
        scheduler=lambda descent: lr_scheduler.ReduceLROnPlateau(descent, **options),
    )  # fmt: skip
    assert not np.array_equal(expected[:, 1], on_training_loss[:, 1])  # so the test can tell the two apart


def test_one_cycle_spans_the_fit_and_is_stepped_every_batch(t_u, t_c):
    fit = fitted(
        0.1 * t_u, t_c, "sgd", learning_rate=0.01, batch_size=4, scheduler="OneCycleLR", scheduler_options={"max_lr": 0.01}
    )
    expected = by_hand(
        0.1 * t_u, t_c, torch.optim.SGD, lr=0.01, batch_size=4, per_batch=True,
        scheduler=lambda descent: lr_scheduler.OneCycleLR(descent, max_lr=0.01, total_steps=3 * EPOCHS),
    )  # fmt: skip
    np.testing.assert_allclose(table(fit), expected[:, :6], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler": "Step"}, "unknown scheduler"),
        ({"scheduler": "StepLR"}, "refuses"),
        ({"scheduler": "OneCycleLR", "scheduler_options": {"max_lr": 0.1, "total_steps": 3}}, "refuses at epoch"),
        ({"scheduler": lambda descent: None}, "expected a scheduler"),
        ({"scheduler": 3}, "expected a name"),
        ({"scheduler_options": {"gamma": 0.5}}, "without a scheduler"),
        ({"averaging": "mean"}, "unknown averaging"),
        ({"averaging": 5}, "expected 'swa'"),
        ({"averaging": Averaging("swa", start=99)}, "start earlier"),
        ({"averaging": "swa", "early_stopping": 3}, "choose one"),
        ({"early_stopping": 3}, "validation"),
        ({"early_stopping": "3"}, "patience"),
        ({"early_stopping": True}, "patience"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 2.5}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": True}, "learning_rate"),
        ({"lr": 0.1}, "learning_rate"),
        ({"scale": "yes"}, "scale"),
        ({"betas": (0.1, 0.9)}, "unknown option of SGD"),
        ({"momentum": -1.0}, "SGD refuses"),
        ({"nesterov": True}, "SGD refuses"),
        ({"differentiable": True}, "differentiable"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(options, words, t_u, t_c):
    with pytest.raises(OptionError, match=words):
        fitted(0.1 * t_u, t_c, "sgd", **{"learning_rate": 0.01} | options)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("sparseadam", {}, "sparse gradients"),
        ("adam", {"capturable": True}, "Adam refuses"),
        ("lbfgs", {"line_search_fn": "exact"}, "LBFGS refuses"),
        ("lbfgs", {"batch_size": 3}, "all rows"),
        (torch.optim.SparseAdam, {}, "sparse gradients"),
    ],
)
def test_an_optimizer_says_what_it_cannot_do(method, options, words, t_u, t_c):
    with pytest.raises(OptionError, match=words):
        fitted(t_u, t_c, method, **options)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, "much"])
def test_the_decay_of_an_average_lies_between_0_and_1(value):
    with pytest.raises(OptionError, match="decay"):
        Averaging("ema", decay=value)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_the_first_averaged_epoch_is_a_whole_number(value):
    with pytest.raises(OptionError, match="start"):
        Averaging("swa", start=value)


# --- batches, averages ---------------------------------------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_mini_batches_follow_a_seeded_permutation(batch_size, engine, t_u, t_c):
    fit = fitted(0.1 * t_u, t_c, "adam", learning_rate=0.01, batch_size=batch_size, seed=7, engine=engine)
    expected = by_hand(0.1 * t_u, t_c, torch.optim.Adam, lr=0.01, batch_size=batch_size, seed=7)
    assert agree(fit, expected, slice(1, 4))
    np.testing.assert_allclose(table(fit), expected[:, :6], rtol=1e-13)


def test_in_an_epoch_of_unequal_batches_every_row_counts_once(t_u, t_c):
    whole = fitted(0.1 * t_u, t_c, "sgd", learning_rate=1e-300, epochs=1)
    batches = fitted(0.1 * t_u, t_c, "sgd", learning_rate=1e-300, epochs=1, batch_size=4)  # 4, 4 and 3 rows
    columns = [0, 4, 5]  # loss and gradient
    np.testing.assert_allclose(table(batches)[:, columns], table(whole)[:, columns], rtol=1e-14)


@both_engines
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_averages_are_those_of_swa_utils(kind, engine, t_u, t_c):
    holder = torch.nn.ParameterList([torch.tensor([1.0, 0.0], dtype=torch.float64)])
    rule = swa_utils.get_swa_multi_avg_fn() if kind == "swa" else swa_utils.get_ema_multi_avg_fn(0.9)
    average = swa_utils.AveragedModel(holder, multi_avg_fn=rule)
    fit = fitted(0.1 * t_u, t_c, "sgd", learning_rate=0.01, averaging=Averaging(kind, decay=0.9, start=5), engine=engine)
    by_hand(0.1 * t_u, t_c, torch.optim.SGD, lr=0.01, average=average, average_from=5)
    theirs = list(average.module.parameters())[0].tolist()  # noqa: RUF015
    np.testing.assert_allclose(list(fit.values.values()), theirs, rtol=0 if engine == "torch" else 1e-12)
    if kind == "swa":
        np.testing.assert_allclose(
            fit.values["w"], fit.history["w"][4:].mean(), rtol=1e-8
        )  # torch rounds its weights to single precision


def test_without_a_start_swa_averages_the_last_quarter_and_ema_everything(t_u, t_c):
    swa, ema = (fitted(0.1 * t_u, t_c, "sgd", learning_rate=0.01, averaging=kind, epochs=100) for kind in ("swa", "ema"))
    np.testing.assert_allclose(swa.values["w"], swa.history["w"][75:].mean(), rtol=1e-8)
    mean = ema.history["w"][0]
    for value in ema.history["w"][1:]:
        mean = 0.999 * mean + 0.001 * value
    np.testing.assert_allclose(ema.values["w"], mean, rtol=1e-12)


# --- validation, early stopping, trouble ---------------------------------------------------------------------------------


def test_validation_never_changes_the_path(t_u, t_c):
    seen = []

    def spied(t_u, w, b):
        seen.append((len(t_u), torch.is_grad_enabled()))
        return w * t_u + b

    rows = {"method": "adam", "learning_rate": 0.1, "epochs": EPOCHS, "start": START, "on_failure": "ignore", "batch_size": 4}
    without = gradfit.fit(spied, t_u[:8], t_c[:8], **rows)
    seen.clear()
    held = gradfit.fit(spied, t_u[:8], t_c[:8], validation=(t_u[8:10], t_c[8:10]), **rows)
    assert np.array_equal(table(without), table(held))
    assert np.isfinite(held.history["validation_loss"]).all()
    assert {grad for size, grad in seen if size == 2} == {False}


def overfitting(t_u, t_c, **options):
    """Held-out rows lie where the path passes after 40 epochs: their loss falls until then and rises afterwards."""
    x, path = 0.1 * t_u, fitted(0.1 * t_u[:8], t_c[:8], "sgd", learning_rate=1e-3, epochs=40)
    held_out = (x[8:], path.values["w"] * x[8:] + path.values["b"])
    return fitted(x[:8], t_c[:8], "sgd", learning_rate=1e-3, validation=held_out, epochs=200, **options)


def test_early_stopping_goes_back_to_the_best_parameters(t_u, t_c):
    fit = overfitting(t_u, t_c, early_stopping=20)
    losses = fit.history["validation_loss"]
    best = int(np.argmin(losses))
    assert fit.status == "stopped_early"
    assert best == 40
    assert len(losses) == best + 21
    assert fit.values == {"w": fit.history["w"][best - 1], "b": fit.history["b"][best - 1]}
    assert fit.validation_loss == pytest.approx(losses[best], rel=1e-14)


def test_what_is_no_improvement_worth_naming_uses_patience_up(t_u, t_c):
    coarse = overfitting(t_u, t_c, early_stopping=gradfit.EarlyStopping(20, min_delta=0.2))
    assert len(coarse.history["epoch"]) < len(overfitting(t_u, t_c, early_stopping=20).history["epoch"])


def test_patience_beyond_the_end_still_keeps_the_best_parameters(t_u, t_c):
    fit = overfitting(t_u, t_c, early_stopping=5000)
    best = int(np.argmin(fit.history["validation_loss"]))
    assert fit.status == "completed"
    assert fit.values["w"] == fit.history["w"][best - 1]


def test_a_validation_loss_that_still_falls_at_the_end_is_judged_by_the_distance(t_u, t_c):
    fit = fitted(0.1 * t_u, t_c, "sgd", learning_rate=1e-3, validation=[0, 1, 2], early_stopping=10, epochs=20)
    assert fit.history["validation_loss"].argmin() == 19
    assert fit.status == "not_converged"


def test_divergence_stops_early_and_keeps_the_lowest_loss(t_u, t_c):
    fit = fitted(t_u, t_c, "sgd", learning_rate=1e-2, epochs=5000)  # the notebook's: raw readings
    assert fit.status == "diverged"
    assert not fit.success
    assert "learning rate" in fit.message
    assert len(fit.history["epoch"]) < 20
    assert np.isfinite(fit.history["train_loss"]).all()
    assert fit.values == START  # the first loss was the lowest


def test_a_last_step_too_far_is_seen_too(t_u, t_c):
    fit = fitted(t_u, t_c, "sgd", learning_rate=1e20, epochs=1)
    assert fit.status == "diverged"
    assert fit.values == START


def test_a_start_that_is_not_finite_is_named(t_u, t_c):
    def blows_up(t_u, w, b):
        return torch.exp(1000 * w * t_u) + b

    for scale in (True, False):
        fit = gradfit.fit(blows_up, t_u, t_c, method="adam", scale=scale, start=[1.0, 1.0], on_failure="ignore")
        assert fit.status == "not_finite"
        assert "w = 1" in fit.message
        assert len(fit.history["epoch"]) == 1


def test_a_gradient_that_is_not_finite_is_told_from_a_rate_too_high():
    def size(x, a):
        return torch.sqrt(a**2) * x  # no derivative at 0

    x = np.arange(1.0, 6.0)
    fit = gradfit.fit(size, x, 2 * x, start={"a": 0.0}, method="sgd", learning_rate=1e-3, scale=False, on_failure="ignore")
    assert fit.status == "diverged"
    assert "epoch 1 is finite and its gradient is not" in fit.message
    assert fit.values["a"] == 0


# --- bounds, fixed, tied, vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["sgd", "adam", "rprop"])
def test_steps_are_projected_onto_the_bounds(method, dtype, t_u, t_c):
    bound = 0.1 + 0.2  # no binary fraction
    fit = gradfit.fit(celsius, t_u, t_c, start={"w": 0.15, "b": 0.0}, bounds={"w": (0.1, bound)}, method=method, dtype=dtype)
    assert fit.success
    assert fit.params["w"].value == bound
    assert fit.params["w"].at_bound
    assert fit.history["w"].max() <= bound * (1 + 1e-6)
    expected = np.mean(t_c - bound * t_u)
    assert fit.params["b"].value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [True, False])
def test_fixed_and_tied_parameters_follow_the_reduced_model(scale, t_u, t_c):
    options = {"method": "adam", "learning_rate": 0.01, "epochs": EPOCHS, "scale": scale, "on_failure": "ignore"}
    fixed = gradfit.fit(celsius, t_u, t_c, start={"w": 1.0}, fixed={"b": -17.0}, **options)
    reduced = gradfit.fit(lambda t_u, w: w * t_u + -17.0, t_u, t_c, start={"w": 1.0}, **options)
    assert np.array_equal(fixed.history["w"], reduced.history["w"])
    tied = gradfit.fit(celsius, t_u, t_c, start={"w": 1.0}, tied={"b": "2*w"}, **options)
    reduced = gradfit.fit(lambda t_u, w: w * t_u + 2 * w, t_u, t_c, start={"w": 1.0}, **options)
    np.testing.assert_allclose(tied.history["w"], reduced.history["w"], rtol=1e-13)


@pytest.mark.parametrize("method", ["sgd", "adam", "lbfgs"])
def test_with_everything_fixed_there_is_nothing_to_descend(method, t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c, fixed={"w": 0.5, "b": -17.0}, method=method)
    assert fit.status == "converged"
    assert fit.loss == pytest.approx(np.mean((0.5 * t_u - 17 - t_c) ** 2))
    assert len(fit.history["epoch"]) == 1


def test_a_vector_parameter_is_the_same_as_its_elements(t_u, t_c):
    def vector(t_u, c):
        return c[0] * t_u + c[1]

    one = gradfit.fit(vector, t_u, t_c, start={"c": [1.0, 0.0]}, method="sgd", epochs=50, on_failure="ignore")
    two = gradfit.fit(celsius, t_u, t_c, start=START, method="sgd", epochs=50, on_failure="ignore")
    assert np.array_equal(one.history["c[0]"], two.history["w"])
    assert np.array_equal(one.history["c[1]"], two.history["b"])


# --- torch modules -------------------------------------------------------------------------------------------------------


def network(*layers):
    torch.manual_seed(3)
    return torch.nn.Sequential(*(layer() for layer in layers)).double()


def hidden():
    return torch.nn.Linear(1, 5)


def out():
    return torch.nn.Linear(5, 1)


def train_by_hand(module, x, y, optimizer, *, epochs=EPOCHS, seed=0, **options):
    module = copy.deepcopy(module).train()
    descent = optimizer([p for p in module.parameters() if p.requires_grad], **options)
    losses = []
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    for _ in range(epochs):
        loss = ((module(x).squeeze(1) - y) ** 2).mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    torch.random.set_rng_state(state)
    return np.array(losses), module


@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS", "Adafactor", "Rprop"])
def test_a_module_is_trained_as_by_hand(name, t_u, t_c):
    module = network(hidden, torch.nn.Tanh, out)
    untouched = copy.deepcopy(module.state_dict())
    x, y = torch.tensor(0.1 * t_u)[:, None], torch.tensor(t_c)
    optimizer = getattr(torch.optim, name)
    fit = gradfit.fit(module, 0.1 * t_u, t_c, method=name, learning_rate=0.01, epochs=EPOCHS, on_failure="ignore")
    if name == "LBFGS":
        own = copy.deepcopy(module)
        descent = torch.optim.LBFGS(own.parameters(), lr=0.01)

        def closure():
            descent.zero_grad()
            loss = ((own(x).squeeze(1) - y) ** 2).mean()
            loss.backward()
            return loss

        losses = [descent.step(closure).item() for _ in range(EPOCHS)]
    else:
        losses, own = train_by_hand(module, x, y, optimizer, lr=0.01)
    np.testing.assert_allclose(fit.history["train_loss"], losses, rtol=1e-12)
    last = torch.cat([p.detach().reshape(-1) for p in own.parameters()]).numpy()
    names = [name for name in fit.history.keys() if name.startswith(("0.", "2."))]  # noqa: SIM118
    np.testing.assert_allclose([fit.history[name][-1] for name in names], last, rtol=1e-12, atol=1e-15)
    assert all(torch.equal(value, untouched[key]) for key, value in module.state_dict().items())


def test_muon_moves_the_matrices_of_a_module_and_refuses_numbers(t_u, t_c):
    x, y = np.stack([0.1 * t_u, np.ones(11)], 1), t_c
    module = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 1, bias=False)).double()
    fit = gradfit.fit(module, x[:, 0], x[:, 1], y, method="muon", learning_rate=0.02, epochs=EPOCHS, on_failure="ignore")
    losses, _ = train_by_hand(module, torch.tensor(x), torch.tensor(y), torch.optim.Muon, lr=0.02)
    np.testing.assert_allclose(fit.history["train_loss"], losses, rtol=1e-12)
    with pytest.raises(ParameterError, match=r"Muon.*w, b"):
        gradfit.fit(celsius, t_u, t_c, method="muon")
    with pytest.raises(ParameterError, match=r"Muon.*0\.bias"):
        gradfit.fit(network(hidden, torch.nn.Tanh, out), t_u, t_c, method="muon")


def test_dropout_is_drawn_from_the_seed(t_u, t_c):
    module = network(hidden, torch.nn.Tanh, lambda: torch.nn.Dropout(0.5), out)
    options = {"method": "adam", "epochs": EPOCHS, "on_failure": "ignore"}
    torch.manual_seed(11)
    first = gradfit.fit(module, 0.1 * t_u, t_c, seed=1, **options)
    torch.manual_seed(12)
    again, other = (gradfit.fit(module, 0.1 * t_u, t_c, seed=seed, **options) for seed in (1, 2))
    assert np.array_equal(first.history["train_loss"], again.history["train_loss"])
    assert not np.array_equal(first.history["train_loss"], other.history["train_loss"])
    losses, _ = train_by_hand(module, torch.tensor(0.1 * t_u)[:, None], torch.tensor(t_c), torch.optim.Adam, lr=0.001, seed=1)
    np.testing.assert_allclose(first.history["train_loss"], losses, rtol=1e-12)


def test_dropout_leaves_the_global_generator_alone(t_u, t_c):
    module = network(hidden, torch.nn.Tanh, lambda: torch.nn.Dropout(0.5), out)
    before = torch.random.get_rng_state()
    gradfit.fit(module, 0.1 * t_u, t_c, method="adam", epochs=3, on_failure="ignore")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batch_norm_learns_from_the_steps_of_the_fit_and_nothing_else(t_u, t_c):
    module = network(hidden, lambda: torch.nn.BatchNorm1d(5), torch.nn.Tanh, out)
    x, y = torch.tensor(0.1 * t_u)[:, None], torch.tensor(t_c)
    options = {"method": "adam", "learning_rate": 0.01, "epochs": EPOCHS, "on_failure": "ignore"}
    fit = gradfit.fit(module, 0.1 * t_u, t_c, **options)
    _, own = train_by_hand(module, x, y, torch.optim.Adam, lr=0.01)
    with torch.no_grad():
        expected = own.eval()(x).squeeze(1).numpy()
    np.testing.assert_allclose(fit.predict(0.1 * t_u), expected, rtol=1e-10)


def test_batch_norm_is_trained_as_by_hand(t_u, t_c):
    module = network(hidden, lambda: torch.nn.BatchNorm1d(5), torch.nn.Tanh, out)
    x, y = torch.tensor(0.1 * t_u)[:, None], torch.tensor(t_c)
    fit = gradfit.fit(module, 0.1 * t_u, t_c, method="adam", learning_rate=0.01, epochs=EPOCHS, on_failure="ignore")
    losses, _ = train_by_hand(module, x, y, torch.optim.Adam, lr=0.01)
    np.testing.assert_allclose(fit.history["train_loss"], losses, rtol=1e-12)


# --- default settings ----------------------------------------------------------------------------------------------------

CONVERGING = ["SGD", *SCALED]


@pytest.mark.parametrize("name", CONVERGING)
def test_with_default_settings_raw_data_reach_the_minimum(name, t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c, method=name)
    assert fit.status == "converged"
    assert fit.values["w"] == pytest.approx(0.53677192, abs=5e-4)  # 0.01 standard errors
    assert fit.values["b"] == pytest.approx(-17.3047855, abs=3e-2)


def exponential(x, a, k, c):
    return a * torch.exp(-k * x) + c


def peak(x, height, centre, width, offset):
    return height * torch.exp(-0.5 * ((x - centre) / width) ** 2) + offset


def michaelis_menten(x, v, k):
    return v * x / (k + x)


def curved(which):
    random = np.random.default_rng(1)
    if which == "decay":
        x = np.linspace(0, 10, 40)
        return exponential, x, 5 * np.exp(-0.7 * x) + 1 + random.normal(0, 0.1, 40), {"a": 3.0, "k": 1.0, "c": 0.0}
    if which == "peak":
        x = np.linspace(-5, 8, 60)
        y = 3 * np.exp(-0.5 * ((x - 1.2) / 0.8) ** 2) + 0.5 + random.normal(0, 0.1, 60)
        return peak, x, y, {"height": 2.0, "centre": 0.5, "width": 1.0, "offset": 0.0}
    x = np.array([0.5, 1, 2, 3, 5, 8, 12, 20, 30, 50])
    return michaelis_menten, x, 2.4 * x / (4 + x) + random.normal(0, 0.03, 10), {"v": 1.0, "k": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["decay", "peak", "michaelis_menten"])
@pytest.mark.parametrize("name", CONVERGING)
def test_with_default_settings_curved_models_reach_the_minimum(name, which):
    model, x, y, start = curved(which)
    best = gradfit.fit(model, x, y, start=start)
    fit = gradfit.fit(model, x, y, start=start, method=name)
    off = np.array([fit.values[key] - best.values[key] for key in best.values])
    assert fit.status == "converged"
    assert np.sqrt(off @ np.linalg.solve(best.covariance, off)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("by", "offset"), [((1e8, 1), (0, 0)), ((1, 1e-8), (0, 0)), ((1, 1), (1e3, 0)), ((1, 1), (0, 1e3))])
@pytest.mark.parametrize("name", CONVERGING)
def test_success_is_never_claimed_away_from_the_minimum(name, by, offset, t_u, t_c):
    x, y = t_u * by[0] + offset[0], t_c * by[1] + offset[1]
    best = gradfit.fit(celsius, x, y)
    fit = gradfit.fit(celsius, x, y, method=name, on_failure="ignore")
    off = np.array([fit.values[key] - best.values[key] for key in best.values])
    near = np.sqrt(off @ np.linalg.solve(best.covariance, off)) < 0.02
    assert fit.success == near


@settings(max_examples=15, deadline=None)
@given(
    method=st.sampled_from(["sgd", "adam"]),
    x_unit=st.floats(-8, 8).map(lambda power: 10.0**power),
    y_unit=st.floats(-8, 8).map(lambda power: 10.0**power),
)
def test_the_answer_does_not_depend_on_units(method, x_unit, y_unit):
    x, y = np.array([1.0, 2.0, 3.0, 5.0, 8.0]), np.array([2.0, 3.0, 5.0, 6.0, 11.0])
    options = {"method": method, "epochs": 100, "on_failure": "ignore"}
    here = gradfit.fit(celsius, x, y, start={"w": 0.3, "b": 0.2}, **options)
    start = {"w": 0.3 * y_unit / x_unit, "b": 0.2 * y_unit}
    there = gradfit.fit(celsius, x * x_unit, y * y_unit, start=start, **options)
    assert there.values["w"] * x_unit / y_unit == pytest.approx(here.values["w"], rel=1e-9)
    assert there.values["b"] / y_unit == pytest.approx(here.values["b"], rel=1e-9)
    assert there.status == here.status


def test_powers_of_two_as_units_change_no_bit(t_u, t_c):
    here = gradfit.fit(celsius, t_u, t_c, start=START, method="sgd", epochs=100, on_failure="ignore")
    start = {"w": 2.0**20, "b": 0.0}
    there = gradfit.fit(celsius, t_u * 2.0**-40, t_c * 2.0**-20, start=start, method="sgd", epochs=100, on_failure="ignore")
    assert there.values["w"] == here.values["w"] * 2.0**20
    assert there.values["b"] == here.values["b"] * 2.0**-20


def test_a_first_step_onto_a_steep_slope_is_shortened():
    model, x, y, start = curved("decay")
    fit = gradfit.fit(model, x, y, start=start, method="sgd", epochs=20, on_failure="ignore")
    losses = fit.history["train_loss"]
    assert (np.diff(losses) < 0).all()  # 1/curvature at the start throws k from 1 to -0.2 and from there to 11842


def test_a_default_rate_falls_where_steps_do_not_shrink_by_themselves_and_a_given_rate_stays(t_u, t_c):
    falling = gradfit.fit(celsius, t_u, t_c, method="rmsprop", epochs=100, on_failure="ignore").history["learning_rate"]
    assert falling[0] == SCALED["RMSprop"].rate
    assert falling[-1] == pytest.approx(falling[0] * SCALED["RMSprop"].falls_to ** 0.99)
    given_rate = gradfit.fit(celsius, t_u, t_c, method="rmsprop", learning_rate=0.01, epochs=100, on_failure="ignore")
    assert set(given_rate.history["learning_rate"]) == {0.01}


def test_an_optimizer_of_ones_own_is_an_optimizer(t_u, t_c):
    class Own(torch.optim.SGD):
        pass

    own, plain = (gradfit.fit(celsius, t_u, t_c, method=of, learning_rate=0.1, epochs=1000) for of in (Own, "sgd"))
    assert own.values == plain.values


@pytest.mark.parametrize("spelled", ["adam", "ADAM", torch.optim.Adam])
def test_names_are_read_in_any_spelling(spelled):
    assert (
        repr(GradientDescent(spelled, betas=(0.5, 0.9)))
        == "GradientDescent(Adam, learning_rate=None, epochs=5000, betas=(0.5, 0.9))"
    )
