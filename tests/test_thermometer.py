"""The main job, whole, on eleven points: the notebook's own numbers, from Python and from the command line.

The numbers are those the notebook prints (PyTorch, float32), and for the minimum the closed form of linear least squares.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import gradfit
from gradfit.cli import main

EVERY_500 = [7.860115, 3.828538, 3.092191, 2.957698, 2.933134, 2.928648, 2.927830, 2.927679, 2.927652, 2.927647]
MINIMUM = {"w": 0.53677192, "b": -17.3047855}
START = {"w": 1.0, "b": 0.0}


def celsius(t_u, w, b):
    return w * t_u + b


def single(values):
    return torch.tensor(values, dtype=torch.float32)


def test_levenberg_marquardt_finds_the_minimum_of_raw_data_without_any_setting(t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c)
    assert fit.success
    assert fit.status == "converged"
    assert fit.values["w"] == pytest.approx(MINIMUM["w"], abs=5e-9)
    assert fit.values["b"] == pytest.approx(MINIMUM["b"], abs=5e-8)
    assert fit.loss == pytest.approx(2.92764557, abs=5e-9)


def test_the_closed_form_agrees_with_levenberg_marquardt_and_with_numpy(t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c, method="linear")
    slope, intercept = np.polyfit(t_u, t_c, 1)
    assert fit.values["w"] == pytest.approx(slope, rel=1e-12)
    assert fit.values["b"] == pytest.approx(intercept, rel=1e-12)


def test_sgd_reproduces_the_notebook_epoch_by_epoch(t_u, t_c):
    fit = gradfit.fit(
        celsius, 0.1 * single(t_u), single(t_c), start=START, method="sgd", learning_rate=1e-2, epochs=5000, scale=False
    )
    np.testing.assert_allclose(fit.history["train_loss"][499::500], EVERY_500, rtol=1e-5)
    assert round(fit.values["w"], 4) == 5.3671
    assert round(fit.values["b"], 4) == -17.3012
    row = fit.history.row(500)
    assert round(row["grad_w"], 4) == -0.2252
    assert round(row["grad_b"], 4) == 1.2748
    assert list(fit.history["epoch"][[0, -1]]) == [1, 5000]


def test_the_first_gradient_on_raw_data_is_the_notebooks(t_u, t_c):
    row = gradfit.fit(
        celsius,
        single(t_u),
        single(t_c),
        start=START,
        method="sgd",
        learning_rate=1e-5,
        epochs=1,
        scale=False,
        on_failure="ignore",
    ).history.row(1)
    assert row["grad_w"] == pytest.approx(4517.2969, abs=1e-3)
    assert row["grad_b"] == pytest.approx(82.6000, abs=1e-4)
    assert (row["w"], row["b"]) == (pytest.approx(9.5483e-01, rel=5e-6), pytest.approx(-8.2600e-04, rel=1e-5))


def test_one_step_on_scaled_data_is_the_notebooks(t_u, t_c):
    fit = gradfit.fit(
        celsius,
        0.1 * single(t_u),
        single(t_c),
        start=START,
        method="sgd",
        learning_rate=1e-2,
        epochs=1,
        scale=False,
        on_failure="ignore",
    )
    assert fit.values == {"w": pytest.approx(1.7761, abs=5e-5), "b": pytest.approx(0.1064, abs=5e-5)}


def test_adam_on_raw_data_reproduces_the_notebook(t_u, t_c):
    fit = gradfit.fit(celsius, single(t_u), single(t_c), start=START, method="adam", learning_rate=1e-1, epochs=2000, scale=False)
    losses = fit.history["train_loss"][499::500]
    assert [f"{losses[0]:.4f}", f"{losses[1]:.4f}", f"{losses[2]:.6f}", f"{losses[3]:.6f}"] == [
        "7.6129",
        "3.0867",
        "2.928579",
        "2.927644",
    ]
    assert round(fit.values["w"], 4) == 0.5367
    assert round(fit.values["b"], 4) == -17.3021


def test_gradient_descent_on_raw_data_diverges_by_hand_and_converges_by_default(t_u, t_c):
    with pytest.warns(gradfit.FitWarning, match="Diverged at epoch"):
        by_hand = gradfit.fit(celsius, t_u, t_c, start=START, method="sgd", learning_rate=1e-2, epochs=5000, scale=False)
    assert not by_hand.success
    assert by_hand.diagnosis.verdict == "diverged"
    assert len(by_hand.history) < 100
    assert by_hand.values == START
    assert math.isnan(by_hand.params["w"].stderr)
    default = gradfit.fit(celsius, t_u, t_c, method="sgd")
    assert default.success
    assert default.values == {"w": pytest.approx(MINIMUM["w"], rel=1e-6), "b": pytest.approx(MINIMUM["b"], rel=1e-6)}


def test_errors_are_those_of_the_textbook(t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c)
    design = np.column_stack([t_u, np.ones(11)])
    residual = design @ [fit.values["w"], fit.values["b"]] - t_c
    expected = residual @ residual / 9 * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(fit.covariance, expected, rtol=1e-9)
    assert fit.names == ("w", "b")
    assert fit.dof == 9
    assert fit.params["w"].stderr == pytest.approx(math.sqrt(expected[0, 0]), rel=1e-9)
    half = 2.262157162798205 * fit.params["w"].stderr  # Student's t, 9 degrees of freedom, 97.5%
    assert fit.params["w"].upper - fit.values["w"] == pytest.approx(half, rel=1e-9)
    assert str(fit.params["w"]) == "w = 0.537 ± 0.036"


def test_the_split_is_the_notebooks_and_two_points_carry_no_verdict(t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c, method="sgd", validation=0.2, seed=3)
    shuffled = torch.randperm(11, generator=torch.Generator().manual_seed(3)).numpy()
    train, held_out = shuffled[:-2], shuffled[-2:]
    design = np.polyfit(t_u[train], t_c[train], 1)
    np.testing.assert_allclose([fit.values["w"], fit.values["b"]], design, rtol=1e-6)
    assert fit.validation_loss == pytest.approx(np.mean((np.polyval(design, t_u[held_out]) - t_c[held_out]) ** 2), rel=1e-5)
    assert (fit.n, fit.diagnosis.verdict, fit.diagnosis.letter) == (9, "too few points", None)


def test_the_command_line_gives_the_same_numbers(thermometer_csv, capsys):
    assert main(["fit", str(thermometer_csv), "t_c = w*t_u + b", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    values = {estimate["name"]: estimate["value"] for estimate in result["estimates"]}
    assert values == {"w": pytest.approx(MINIMUM["w"], abs=5e-9), "b": pytest.approx(MINIMUM["b"], abs=5e-8)}


def test_the_command_line_reproduces_the_notebooks_loop(tmp_path, t_u, t_c, capsys):
    table = tmp_path / "scaled.csv"
    table.write_text("t_un,t_c\n" + "".join(f"{0.1 * u:.2f},{c}\n" for u, c in zip(t_u, t_c, strict=True)))
    options = [
        "--method",
        "sgd",
        "--learning-rate",
        "0.01",
        "--epochs",
        "5000",
        "--start",
        "w=1,b=0",
        "--no-scale",
        "--dtype",
        "float32",
        "--every",
        "500",
    ]
    assert main(["fit", str(table), "t_c = w*t_un + b", *options]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("epoch") and not line.startswith("epoch 1 ")]
    np.testing.assert_allclose([float(line.split()[3]) for line in lines], EVERY_500, rtol=1e-5)
    assert "w 5.3671  b -17.3012" in lines[-1]
    assert "5.37 ± 0.36" in printed.out


@pytest.mark.parametrize("data", ["dict", "pandas", "polars", "csv", "parquet"])
def test_a_table_of_any_kind_gives_the_same_bits(data, t_u, t_c, tmp_path, thermometer_csv):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = {"t_u": t_u, "t_c": t_c}
    pandas.DataFrame(columns).to_parquet(tmp_path / "t.parquet")
    table = {
        "dict": columns,
        "pandas": pandas.DataFrame(columns),
        "polars": polars.DataFrame(columns),
        "csv": thermometer_csv,
        "parquet": tmp_path / "t.parquet",
    }[data]
    reference = gradfit.fit(celsius, t_u, t_c)
    assert gradfit.fit(celsius, data=table, target="t_c").values == reference.values
    assert gradfit.fit("t_c = w*t_u + b", data=table).values == reference.values


def test_a_linear_module_is_the_same_model(t_u, t_c):
    fit = gradfit.fit(torch.nn.Linear(1, 1), t_u, t_c, method="lm", dtype="float64")
    assert list(fit.values) == ["weight", "bias"]
    assert float(fit.values["weight"].item()) == pytest.approx(MINIMUM["w"], rel=1e-7)
    assert fit.params["bias[0]"].value == pytest.approx(MINIMUM["b"], rel=1e-7)
    assert fit.module()(torch.tensor([[10.0]], dtype=torch.float64)).item() == pytest.approx(fit.predict([10.0])[0], rel=1e-12)


def test_five_folds_give_a_cross_validated_loss(t_u, t_c):
    fit = gradfit.fit(celsius, t_u, t_c, folds=5, seed=1)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1)).numpy()
    expected = []
    for part in np.array_split(order, 5):
        rest = np.setdiff1d(order, part)
        expected.append(np.mean((np.polyval(np.polyfit(t_u[rest], t_c[rest], 1), t_u[part]) - t_c[part]) ** 2))
    np.testing.assert_allclose(fit.cross_validation, expected, rtol=1e-8)
    assert fit.values["w"] == pytest.approx(MINIMUM["w"], rel=1e-8)


def test_the_same_call_gives_the_same_bits(t_u, t_c):
    first, second = (
        gradfit.fit(celsius, t_u, t_c, method="adam", epochs=50, batch_size=4, validation=0.2, seed=5, on_failure="ignore")
        for _ in range(2)
    )
    assert first.to_json() == second.to_json()
