"""Ready models by name in a formula."""

import numpy as np
import pytest

import gradfit
from gradfit.model.ready import ready_formula

ENERGY = np.linspace(0, 10, 80)
COUNTS = 5 * np.exp(-((ENERGY - 4) ** 2) / 2) + 3 * np.exp(-((ENERGY - 7) ** 2) / 0.5) + 1 + 0.01 * np.sin(30 * ENERGY)
TABLE = {"energy": ENERGY, "counts": COUNTS}


def test_a_formula_of_ready_models_is_fitted_from_their_guesses():
    fit = gradfit.fit("counts = a:gaussian(energy) + b:gaussian(energy) + constant(energy)", data=TABLE)
    assert fit.beginning.kind == "shape"
    assert sorted([fit.values["a_center"], fit.values["b_center"]]) == pytest.approx([4, 7], abs=0.02)
    assert fit.values["c"] == pytest.approx(1, abs=0.02)


def test_it_is_saved_and_predicts_again(tmp_path):
    fit = gradfit.fit("counts = lorentzian(energy) + line(energy)", data=TABLE, on_failure="ignore")
    fit.save(tmp_path / "fit.json")
    np.testing.assert_array_equal(gradfit.load(tmp_path / "fit.json").predict(ENERGY), fit.predict(ENERGY))


def test_products_bind_stronger_than_sums_and_polynomials_have_degrees():
    target, shape = ready_formula("y = e:exponential(x) * sine(x) + polynomial(x, 2)")
    values = {
        "e_amplitude": 2.0,
        "e_decay": 3.0,
        "amplitude": 1.5,
        "frequency": 0.5,
        "phase": 0.1,
        "c0": 1.0,
        "c1": 2.0,
        "c2": 3.0,
    }
    x = np.linspace(0, 4, 9)
    expected = 2 * np.exp(-x / 3) * 1.5 * np.sin(np.pi * x + 0.1) + 1 + 2 * x + 3 * x**2
    np.testing.assert_allclose(shape(x, **values), expected, rtol=1e-13)
    assert target == "y"


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("counts = gaussian(energy) + a*energy", "mixes ready models"),
        ("counts = gausian(energy) + line(energy)", "unknown ready model 'gausian'.*'gaussian'"),
        ("counts = gaussian(energy) + gaussian(energy)", "more than once.*b:gaussian"),
        ("counts = polynomial(energy)", "a polynomial has a degree"),
        ("counts = gaussian(energy, 2)", "no other ready model has one"),
        ("gaussian(energy)", "which column"),
        ("counts = " + " + ".join(f"p{k}:gaussian(energy)" for k in range(60)), "mixes ready models|at most"),
    ],
)
def test_what_is_no_formula_of_ready_models_is_refused(text, saying):
    with pytest.raises(gradfit.FormulaError, match=saying):
        gradfit.fit(text, data=TABLE)


def test_who_forgot_the_column_is_told_how_to_write_it():
    with pytest.raises(gradfit.ModelError, match=r"gaussian is a ready model: write gaussian\(energy\)"):
        gradfit.fit("counts = gaussian + line", data=TABLE)
    with pytest.raises(gradfit.ModelError, match=r"which column x is, with \.of\('energy'\)"):
        gradfit.fit(gradfit.lineshapes.gaussian, data=TABLE, target="counts")


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(gradfit.ModelError, match="nothing"):
        gradfit.fit("counts = gaussian(nothing)", data=TABLE)
