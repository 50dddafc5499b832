"""What people try in their first ten minutes, and what once went wrong there."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

import gradfit


def line(x, a, b):
    return a * x + b


@pytest.fixture
def data():
    x = np.linspace(1, 5, 20)
    return x, 2 * x + 1 + np.random.default_rng(0).normal(0, 0.1, 20)


def test_a_network_of_ten_thousand_weights_has_a_small_page_and_file(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(1, 100), torch.nn.Tanh(), torch.nn.Linear(100, 100), torch.nn.Linear(100, 1))
    x = np.linspace(0, 5, 60)
    fit = gradfit.fit(network, x, np.sin(x), epochs=20, validation=0.2)
    fit.save(tmp_path / "fit.json")
    assert (tmp_path / "fit.json").stat().st_size < 10_000_000
    assert len(fit.to_html().encode()) < 150_000
    assert len(repr(fit)) < 5000
    assert gradfit.load(tmp_path / "fit.json").history.columns == fit.history.columns


def test_parameters_named_like_columns_of_the_history_do_not_replace_them(data):
    x, y = data
    fit = gradfit.fit(lambda x, epoch, train_loss: epoch * x + train_loss, x, y)
    plain = gradfit.fit(line, x, y)
    np.testing.assert_array_equal(fit.history["train_loss"], plain.history["train_loss"])
    np.testing.assert_array_equal(fit.history["param_epoch"], plain.history["a"])
    np.testing.assert_array_equal(fit.history["grad_train_loss"], plain.history["grad_b"])


@pytest.mark.parametrize("offset", [0.0, 1e6, 1.7e9])
def test_a_line_over_unix_time_is_found(offset):
    x = np.arange(100.0)
    y = 2 * x + np.sin(x)
    fit = gradfit.fit(line, x + offset, y)
    assert fit.success
    assert fit.values["a"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-5)


def test_what_partial_binds_stays_bound(data):
    fit = gradfit.fit(functools.partial(lambda x, a, b, c: a * x + b + c, c=3), *data)
    assert list(fit.values) == ["a", "b"]
    assert fit.values["b"] == pytest.approx(gradfit.fit(line, *data).values["b"] - 3, rel=1e-7)


def test_a_loss_without_a_floor_is_no_success(data):
    fit = gradfit.fit(line, *data, loss=lambda prediction, target: prediction - target, on_failure="ignore")
    assert fit.status == "diverged"


def test_a_wave_is_found_without_a_start():
    x = np.linspace(0, 20, 200)
    fit = gradfit.fit("y = a*sin(w*x + p)", data={"x": x, "y": np.sin(3 * x + 1)})
    assert abs(fit.values["w"]) == pytest.approx(3, rel=1e-9)
    assert fit.beginning.kind == "search"


def test_a_model_that_ends_the_program_is_an_error_of_the_model(data):
    def leaves(x, a):
        raise SystemExit(3)

    with pytest.raises(gradfit.ModelError, match="SystemExit"):
        gradfit.fit(leaves, *data)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("StepLR", {"step_size": 0}),
        ("CosineAnnealingLR", {"T_max": 0}),
        ("ExponentialLR", {"gamma": "x"}),
        ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (5 - epoch)}),
        (lambda optimizer: 1 / 0, None),
    ],
)
def test_a_scheduler_that_cannot_work_is_refused(scheduler, options, data):
    with pytest.raises(gradfit.OptionError, match="scheduler"):
        gradfit.fit(line, *data, method="sgd", epochs=10, scheduler=scheduler, scheduler_options=options)


@pytest.mark.parametrize(("formula", "says"), [("y = c", r"c \+ 0\*x"), ("y = x + 1", "no parameters")])
def test_a_formula_without_data_or_parameters_says_what_to_write(formula, says, data):
    with pytest.raises(gradfit.ModelError, match=says):
        gradfit.fit(formula, data={"x": data[0], "y": data[1]})


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_without_a_terminal_can_fit(stream):
    script = f"import sys; sys.{stream} = None; import gradfit; assert gradfit.fit(lambda x, a, b: a*x + b, [1, 2, 3], [1, 2, 4]).success"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_options_of_the_wrong_kind_are_refused(data):
    for wrong in ({"sigma": True}, {"sigma": 1.0, "absolute_sigma": "yes"}):
        with pytest.raises(gradfit.OptionError, match="sigma"):
            gradfit.fit(line, *data, **wrong)
