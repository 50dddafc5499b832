"""What can be done with a result: predict, keep, load again without the function, read the history."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import gradfit


def decay(x, a, t=1.0, c=gradfit.Parameter(0.1, lower=0)):
    return a * np.exp(-x / t) + c


@pytest.fixture
def data():
    x = np.linspace(0, 5, 40)
    return x, 3 * np.exp(-x / 1.5) + 0.5 + np.random.default_rng(1).normal(0, 0.05, 40)


def test_a_loaded_result_is_the_saved_one_and_predicts_without_its_function(data, tmp_path):
    x, y = data
    fit = gradfit.fit(decay, x, y)
    fit.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    assert loaded.values == fit.values
    assert loaded.report() == fit.report()
    np.testing.assert_array_equal(loaded.covariance, fit.covariance)
    np.testing.assert_array_equal(loaded.history["train_loss"], fit.history["train_loss"])
    np.testing.assert_allclose(loaded.predict([0.3, 7.0]), fit.predict([0.3, 7.0]), rtol=1e-14)
    for ours, theirs in zip(loaded.predict([0.3], interval="prediction"), fit.predict([0.3], interval="prediction"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert loaded.to_json() == fit.to_json()
    assert loaded.to_html() == fit.to_html()


def test_a_formula_is_stored_as_its_text(t_u, t_c, tmp_path):
    fit = gradfit.fit("温度 = 斜率*`读 数` + b", data={"读 数": t_u, "温度": t_c}, fixed={"b": -17.0})
    fit.save(tmp_path / "温度.json")
    loaded = gradfit.load(tmp_path / "温度.json")
    assert loaded.predict({"读 数": [10.0]}) == pytest.approx(fit.predict([10.0]), rel=1e-15)
    assert json.loads((tmp_path / "温度.json").read_text(encoding="utf-8"))["model"]["text"] == "温度 = 斜率*`读 数` + b"


def test_a_model_that_is_no_graph_says_what_a_loaded_result_needs(t_u, t_c, tmp_path):
    fit = gradfit.fit(lambda t, w, b: w * (t - t.mean()) + b, t_u, t_c)
    fit.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    assert loaded.values == fit.values
    assert "0.537" in loaded.report()
    loaded.to_html()
    with pytest.raises(gradfit.ModelError, match="cannot predict"):
        loaded.predict([1.0])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "gradfit fit"}', '{"format": "gradfit fit", "schema": 99}', "null"])
def test_a_file_that_is_no_saved_fit_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(gradfit.StorageError):
        gradfit.load(tmp_path / "x.json")


def test_predict_takes_arrays_tables_and_single_numbers(data):
    x, y = data
    fit = gradfit.fit(decay, x, y)
    assert fit.predict(1.0) == fit.predict([1.0]) == fit.predict({"x": [1.0]}) == fit.predict(data={"x": np.array([1.0])})
    for wrong in ((), ([1.0], [2.0])):
        with pytest.raises(gradfit.DataError):
            fit.predict(*wrong)
    with pytest.raises(gradfit.DataError, match="unknown column"):
        fit.predict({"z": [1.0]})
    with pytest.raises(gradfit.DataError, match="NaN or infinite"):
        fit.predict([math.nan])
    with pytest.raises(gradfit.OptionError, match="interval"):
        fit.predict([1.0], interval="credible")
    with pytest.raises(gradfit.OptionError, match="level"):
        fit.predict([1.0], interval="confidence", level=95)


def test_the_history_is_a_table(t_u, t_c):
    pandas = pytest.importorskip("pandas")
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, method="adam", epochs=20, on_failure="ignore")
    columns = ["epoch", "train_loss", "validation_loss", "learning_rate", "w", "b", "grad_w", "grad_b"]
    assert list(fit.history.columns) == columns
    assert pandas.DataFrame(dict(fit.history)).equals(fit.history.to_pandas())
    assert fit.history.row(-1)["w"] == fit.history.row(20)["w"] == fit.history["w"][19]
    assert fit.history["epoch"].tolist() == list(range(1, 21))
    for wrong in (0, 21, -21):
        with pytest.raises(gradfit.DataError):
            fit.history.row(wrong)
    with pytest.raises(gradfit.DataError, match="train_loss"):
        fit.history["trainloss"]


def test_vector_parameters_are_named_by_element_and_given_back_as_arrays(data):
    x, y = data
    fit = gradfit.fit(lambda x, c: c[0] + c[1] * x + c[2] * x**2, x, y, start={"c": [0.0, 0.0, 0.0]})
    assert fit.names == ("c[0]", "c[1]", "c[2]")
    np.testing.assert_allclose(fit.values["c"], np.polyfit(x, y, 2)[::-1], rtol=1e-8)


def test_a_module_is_trained_on_a_copy_and_given_back_fitted(data):
    x, y = data
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit = gradfit.fit(network, x, y, learning_rate=0.02, epochs=300, validation=0.25)
    assert fit.loss < 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    fitted = fit.module()
    with torch.no_grad():
        np.testing.assert_allclose(fitted(torch.tensor([[0.5]])).item(), fit.predict([0.5])[0], rtol=1e-5)


def test_a_validation_set_of_ones_own_serves(data):
    x, y = data
    fit = gradfit.fit(decay, x[::2], y[::2], validation=(x[1::2], y[1::2]))
    assert fit.record.n_validation == 20
    assert fit.validation_loss == pytest.approx(np.mean((fit.predict(x[1::2]) - y[1::2]) ** 2))
    rows = gradfit.fit(decay, x, y, validation=list(range(1, 40, 2)))
    assert rows.values == fit.values


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"method": "newton"}, gradfit.OptionError, "unknown method 'newton'"),
        ({"engine": "numba"}, gradfit.OptionError, "native, torch"),
        ({"lerning_rate": 0.1, "method": "sgd"}, gradfit.OptionError, "Did you mean 'learning_rate'"),
        ({"validaton": 0.2}, gradfit.OptionError, "Did you mean 'validation'"),
        ({"loss": "l2"}, gradfit.OptionError, "squared"),
        ({"start": {"v": 1}}, gradfit.ParameterError, "unknown parameter 'v'"),
        ({"bounds": {"a": (2, 1)}}, gradfit.ParameterError, "lower < upper"),
        ({"start": {"a": 5}, "bounds": {"a": (0, 1)}}, gradfit.ParameterError, "outside its bounds"),
        ({"validation": 0.2, "folds": 3}, gradfit.OptionError, "choose one"),
        ({"sigma": -1.0}, gradfit.DataError, "positive"),
        ({"seed": -1}, gradfit.OptionError, "seed"),
        ({"on_failure": "shout"}, gradfit.OptionError, "on_failure"),
        ({"dtype": "float16"}, gradfit.OptionError, "float32"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_known(call, error, says, data):
    with pytest.raises(error, match=says):
        gradfit.fit(decay, *data, **call)
