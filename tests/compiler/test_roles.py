"""What the graph of a model says of its parameters: units, places, linear ones."""

import numpy as np
import pytest
import torch

from gradfit.compiler import calling
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.units import UNIT_OF_TARGET, roles
from gradfit.data.dataset import Dataset
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters

Y = UNIT_OF_TARGET
X = np.linspace(0.5, 3, 12)


def kernel_of(function, *, columns=("x",)):
    model = function_model(function, count=len(columns), target="y")
    data = Dataset({name: X + place for place, name in enumerate(columns)}, np.cos(X), "y", None, np.arange(len(X)))
    measure = losses.resolve("squared", data)
    return calling.build(model, parameters(model.defaults), data, measure, dtype=torch.float64, begun=False).eager


CASES = {  # model, and of each parameter: powers of units, place, whether linear
    "decay": (lambda x, a, b: a * torch.exp(-b * x), {"a": ({Y: 1}, "", True), "b": ({"x": -1}, "", False)}),
    "peak": (
        lambda x, a, c, w: a / w * torch.exp(-(((x - c) / w) ** 2)),
        {"a": ({"x": 1, Y: 1}, "", True), "c": ({"x": 1}, "x", False), "w": ({"x": 1}, "", False)},
    ),
    "wave": (
        lambda x, a, w, p: a * torch.sin(w * x + p),
        {"a": ({Y: 1}, "", True), "w": ({"x": -1}, "", False), "p": ({}, "", False)},
    ),
    "ratio": (
        lambda x, a, b, c: (a + b * x) / (1 + c * x**2),
        {"a": ({Y: 1}, "", True), "b": ({"x": -1, Y: 1}, "", True), "c": ({"x": -2}, "", False)},
    ),
    "root": (lambda x, a, b: torch.sqrt(a + b * x), {"a": ({Y: 2}, "", False), "b": ({Y: 2, "x": -1}, "", False)}),
    "power": (lambda x, a, n: a * x**n, {"a": (None, "", True), "n": ({}, "", False)}),
    "product": (lambda x, a, b: a * b * x, {"a": (None, "", True), "b": (None, "", False)}),
    "celsius": (lambda x, a, b: a * torch.exp(b / (x + 273.15)), {"a": ({Y: 1}, "", True), "b": ({"x": 1}, "", False)}),
    "switch": (
        lambda x, a, b, c: torch.where(x < c, a * x, b * x),
        {"a": ({"x": -1, Y: 1}, "", True), "b": ({"x": -1, Y: 1}, "", True), "c": ({"x": 1}, "", False)},
    ),
}


@pytest.mark.parametrize(("model", "expected"), CASES.values(), ids=CASES.keys())
def test_units_places_and_linear_parameters_are_read_from_the_model(model, expected):
    found = roles(kernel_of(model))
    for name, (powers, column, linear) in expected.items():
        role = found[name]
        own = None if role.powers is None else {unit: power for unit, power in role.powers.items() if power}
        assert own == (None if powers is None else pytest.approx(powers)), name
        assert (role.column, role.linear) == (column, linear), name


def test_two_inputs_have_units_of_their_own():
    found = roles(kernel_of(lambda x, t, a, b, c: a * torch.exp(-b * x - c * t), columns=("x", "t")))
    assert {name: power for name, power in found["c"].powers.items() if power} == {"t": -1}


def test_a_model_that_is_no_graph_says_so():
    with pytest.raises(Untraceable):
        roles(kernel_of(lambda x, a, b: np.array([float(a) * float(u) + float(b) for u in x])))
