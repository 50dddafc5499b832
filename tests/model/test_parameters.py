"""Parameters: what the signature and the call say of them, joined; contradictions are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from gradfit.errors import ParameterError
from gradfit.model.parameters import Parameter, Parameters, parameters

LINE = {"w": Parameter(), "b": Parameter()}


def values(known: Parameters) -> dict[str, object]:
    theta = torch.as_tensor(known.start)
    return {name: tensor.tolist() for name, tensor in known.namer(torch.float64)(theta).items()}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({}, {"w": 1, "b": 1}),
        ({"start": {"w": 2}}, {"w": 2, "b": 1}),
        ({"start": [2, 3]}, {"w": 2, "b": 3}),
        ({"start": np.array([2.0, 3.0])}, {"w": 2, "b": 3}),
        ({"start": torch.tensor([2.0, 3.0], requires_grad=True)}, {"w": 2, "b": 3}),
        ({"start": {"w": torch.tensor(2.0, dtype=torch.bfloat16)}}, {"w": 2, "b": 1}),
        ({"start": {"w": np.float32(2)}}, {"w": 2, "b": 1}),
        ({"start": {"w": [1, 2, 3]}}, {"w": [1, 2, 3], "b": 1}),
        ({"fixed": {"b": 0}}, {"w": 1, "b": 0}),
        ({"fixed": ["b"], "start": {"b": 5}}, {"w": 1, "b": 5}),
        ({"fixed": "b", "start": {"b": 5}}, {"w": 1, "b": 5}),
        ({"fixed": {"w": 2, "b": 3}}, {"w": 2, "b": 3}),
        ({"tied": {"b": "2*w"}}, {"w": 1, "b": 2}),
        ({"tied": {"b": lambda w: 3 * w}}, {"w": 1, "b": 3}),
        ({"tied": {"b": "3"}}, {"w": 1, "b": 3}),
        ({"tied": {"b": "w"}, "start": {"w": [1, 2]}}, {"w": [1, 2], "b": [1, 2]}),
        ({"bounds": {"w": (0, 0.5)}}, {"w": 0.25, "b": 1}),
        ({"bounds": {"w": (5, None)}}, {"w": 10, "b": 1}),
        ({"bounds": {"w": (None, -5)}}, {"w": -10, "b": 1}),
        ({"bounds": {"w": (None, np.inf)}}, {"w": 1, "b": 1}),
    ],
)
def test_the_call_says_where_parameters_start(call, expected):
    assert values(parameters(LINE, **call)) == expected


@pytest.mark.parametrize("bounds", [(1.5e308, 1.79e308), (-1.7e308, -1.6e308), (1.7e308, None), (None, -1.7e308)])
def test_an_assumed_start_is_finite_and_inside_even_at_the_edge_of_float64(bounds):
    (start, _) = parameters(LINE, bounds={"w": bounds}).start
    assert np.isfinite(start)
    assert (bounds[0] or -np.inf) <= start <= (bounds[1] or np.inf)


def test_ties_are_computed_in_the_order_they_need():
    known = parameters({name: Parameter() for name in "abcd"}, tied={"a": "b + c", "b": "2*c", "c": "d + 1"})
    assert values(known) == {"a": 6, "b": 4, "c": 2, "d": 1}
    assert known.free_names == ("d",)


def test_derivatives_pass_through_ties():
    known = parameters(LINE, tied={"b": "w**2"})
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    known.namer(torch.float64)(theta)["b"].backward()
    assert theta.grad.item() == 6


def test_a_vector_parameter_has_one_name_per_number():
    known = parameters(LINE, start={"w": np.zeros((2, 2))}, bounds={"w": (-1, 1)})
    assert known.free_elements == ("w[0, 0]", "w[0, 1]", "w[1, 0]", "w[1, 1]", "b")
    assert known.lower.tolist() == [-1, -1, -1, -1, -np.inf]


def test_the_call_wins_over_the_signature():
    defaults = {"w": Parameter(2, 0, 5), "b": Parameter(1, fixed=True)}
    known = parameters(defaults, start={"w": 3}, bounds={"w": (1, None)})
    assert (known.start.tolist(), known.lower.tolist(), known.upper.tolist()) == ([3], [1], [np.inf])
    assert known.assumed == frozenset()


def test_starts_nobody_gave_are_marked_as_assumed():
    assert parameters(LINE, start={"w": 1}).assumed == {"b"}


REFUSED = {
    "an unknown name": ({"start": {"W": 1}}, "unknown parameter 'W'.*Did you mean 'w'"),
    "an unknown bound": ({"bounds": {"q": (0, 1)}}, "named in bounds"),
    "an unknown fixed": ({"fixed": ["q"]}, "named in fixed"),
    "an unknown tied": ({"tied": {"q": "w"}}, "named in tied"),
    "a number as name": ({"start": {1: 2}}, "unknown parameter '1'"),
    "too few starts": ({"start": [1]}, "start has 1 values for 2 parameters"),
    "one start for all": ({"start": 5}, "start has 1 values for 2 parameters"),
    "text for starts": ({"start": "ab"}, "expected a dict by parameter name"),
    "text as start": ({"start": {"w": "1"}}, "w is '1'; expected a number"),
    "None as start": ({"start": {"w": None}}, "w is None"),
    "True as start": ({"start": {"w": True}}, "w is True"),
    "NaN as start": ({"start": {"w": float("nan")}}, "finite"),
    "complex start": ({"start": {"w": 1j}}, "expected a number"),
    "complex tensor": ({"start": {"w": torch.tensor(1j)}}, "expected a number"),
    "empty start": ({"start": {"w": []}}, "finite"),
    "ragged start": ({"start": {"w": [[1], [2, 3]]}}, "expected a number"),
    "masked start": ({"start": {"w": np.ma.masked}}, "expected a number"),
    "NA as start": ({"start": {"w": pd.NA}}, "expected a number"),
    "a start beyond float64": ({"start": {"w": 10**5000}}, "beyond float64"),
    "start outside": ({"start": {"w": 3}, "bounds": {"w": (0, 1)}}, "outside its bounds"),
    "fixed outside": ({"fixed": {"w": 3}, "bounds": {"w": (0, 1)}}, "fixed value of w is 3, outside its bounds"),
    "part of a vector outside": ({"start": {"w": [0.5, 3]}, "bounds": {"w": (0, 1)}}, "outside its bounds"),
    "reversed bounds": ({"bounds": {"w": (2, 1)}}, "expected lower < upper"),
    "equal bounds": ({"bounds": {"w": (1, 1)}}, "expected lower < upper"),
    "NaN bound": ({"bounds": {"w": (float("nan"), 1)}}, "expected lower < upper"),
    "three bounds": ({"bounds": {"w": (0, 1, 2)}}, r"expected \(lower, upper\)"),
    "one bound": ({"bounds": {"w": 5}}, r"expected \(lower, upper\)"),
    "text for bounds": ({"bounds": {"w": "01"}}, r"expected \(lower, upper\)"),
    "texts in bounds": ({"bounds": {"w": ("0", "1")}}, r"expected \(lower, upper\)"),
    "bounds without order": ({"bounds": {"w": {0, 1}}}, r"expected \(lower, upper\)"),
    "a bound beyond float64": ({"bounds": {"w": (10**400, None)}}, r"expected \(lower, upper\)"),
    "bounds in a list": ({"bounds": [(0, 1), (0, 1)]}, "expected a dict by parameter name"),
    "fixed without value": ({"fixed": ["b"]}, "has no value"),
    "fixed at True": ({"fixed": {"b": True}}, "b is True"),
    "fixed as number": ({"fixed": 5}, "expected values by name"),
    "fixed as flag": ({"fixed": True}, "expected values by name"),
    "fixed and tied": ({"fixed": {"b": 1}, "tied": {"b": "w"}}, "both fixed and tied"),
    "tied and bounded": ({"bounds": {"b": (0, 1)}, "tied": {"b": "w"}}, "is tied and has bounds"),
    "tied to itself": ({"tied": {"b": "b"}}, "in a circle"),
    "a circle": ({"tied": {"b": "w", "w": "b"}}, "in a circle"),
    "tied to a stranger": ({"tied": {"b": "2*q"}}, "unknown parameter 'q'"),
    "tied with a target": ({"tied": {"b": "b = 2*w"}}, "without '='"),
    "tied to no formula": ({"tied": {"b": "import os"}}, "b is tied to 'import os'"),
    "tied to code": ({"tied": {"b": "__import__('os')"}}, "unknown function"),
    "tied to a number": ({"tied": {"b": 5}}, "expected a formula"),
    "tied to a builtin": ({"tied": {"b": min}}, "cannot be read"),
    "tied as text": ({"tied": "b=2*w"}, "expected a dict by parameter name"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_contradiction_is_refused_with_the_reason(call, message):
    with pytest.raises(ParameterError, match=message):
        parameters(LINE, **call)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Parameter(lower="a"), "expected"),
        (Parameter(lower=[0, 1]), "expected"),
        (Parameter(2, upper=1), "outside"),
        (Parameter("x"), "expected a number"),
        (Parameter(fixed=True), "has no value"),
        (Parameter(1, fixed=True, tied="b"), "both fixed and tied"),
    ],
)
def test_a_default_in_the_signature_is_checked_as_the_call_is(spec, message):
    with pytest.raises(ParameterError, match=message):
        parameters({"w": spec, "b": Parameter()})
