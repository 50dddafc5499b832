"""A function, a formula or a module becomes a model: which names are data, which are parameters; slips are caught."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradfit.errors import FormulaError, ModelError
from gradfit.model.model import check_has_parameters, formula_model, function_model, module_model
from gradfit.model.parameters import Parameter


def line(x, w, b):
    return w * x + b


def test_arguments_that_are_columns_are_data_and_the_rest_parameters():
    model = function_model(line, columns=["y", "x", "note"], target="y")
    assert (model.data_names, tuple(model.defaults), model.target, model.label) == (("x",), ("w", "b"), "y", "line")
    assert "return w * x + b" in model.text


def test_the_first_arguments_are_data_where_arrays_were_given():
    assert function_model(line, count=2).data_names == ("x", "w")


BOUNDED, VECTOR = Parameter(2, 0, 3), np.array([1.0, 2.0])


def test_numbers_in_the_signature_are_starts_and_other_defaults_options():
    def model(x, a=1.5, b=BOUNDED, c=VECTOR, flag=True, mode="fast"):
        return x

    defaults = function_model(model, columns=["x"]).defaults
    assert tuple(defaults) == ("a", "b", "c")
    assert (defaults["a"].start, defaults["b"].upper) == (1.5, 3)


def test_arguments_by_position_only_are_passed_as_such():
    def model(x, w, /, b):
        return w * x + b

    assert function_model(model, count=1).function(x=2, w=3, b=1) == 7


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *a: 0, r"takes \*a"),
        (lambda x, **k: 0, "takes"),
        (lambda: 0, "takes no arguments"),
        (max, "cannot be read"),
        (torch.sin, "cannot be read"),
        (lambda z, w: z, "no argument of the model is a column"),
    ],
)
def test_a_function_whose_arguments_say_nothing_is_refused(function, message):
    with pytest.raises(ModelError, match=message):
        function_model(function, columns=["x", "y"], target="y")


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ModelError, match="has no parameters"):
        check_has_parameters(function_model(lambda x: x, columns=["x", "y"], target="y"))


def test_more_arrays_than_arguments_are_refused():
    with pytest.raises(ModelError, match="takes 3 arguments and 5 arrays"):
        function_model(line, count=5)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("t_c = w*t_v + b", ["t_u", "t_c"], "Did you mean 't_u', not 't_v'"),
        ("y = w*x + k*t_v", ["x", "t_u", "y"], "'t_v' is no column; did you mean 't_u'"),
        ("y = w*x + k*pressure", ["x", "presure", "y"], "did you mean 'presure'"),
        ("y = w*x + k*Time", ["x", "time", "y"], "did you mean 'time'"),
    ],
)
def test_a_name_one_letter_off_a_column_is_taken_for_a_slip(text, columns, message):
    with pytest.raises(ModelError, match=message):
        formula_model(text, columns=columns)


def test_a_slip_in_the_arguments_of_a_function_is_caught_too():
    with pytest.raises(ModelError, match="did you mean 'presure'"):
        function_model(lambda x, pressure, w: x, columns=["x", "presure", "y"], target="y")


def test_a_name_given_as_parameter_is_no_slip():
    model = formula_model("y = w*x + k*t_v", columns=["x", "t_u", "y"], parameters={"t_v"})
    assert tuple(model.defaults) == ("w", "k", "t_v")


@pytest.mark.parametrize("text", ["y = x_2*x_1", "y = a*x_1 + c", "y = w1*x_1"])
def test_numbered_parameters_are_no_slips(text):
    assert formula_model(text, columns=["x_1", "x_3", "y", "w2", "d"]).data_names == ("x_1",)


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("w*x", {}, FormulaError, "which column does 'w\\*x' describe"),
        ("y = w*x", {"target": "z"}, FormulaError, "leave one out"),
        ("y = w*y", {}, ModelError, "is the target and also an input"),
        ("y = w*x", {"parameters": {"x"}}, ModelError, "is a column of the data and was also given as a parameter"),
        ("y = 3", {}, ModelError, "no argument of the model is a column"),
        ("y = w*x*pi", {}, FormulaError, "`pi` in backticks"),
    ],
)
def test_a_formula_that_contradicts_its_table_is_refused(text, options, error, message):
    with pytest.raises(error, match=message):
        formula_model(text, columns=["x", "y", "pi"], **options)


def evaluate(text: str, **values: float) -> float:
    model = formula_model(text, columns=[*values, "y"])
    given = {name: torch.tensor(value) for name, value in values.items()}
    return float(model.function(**given, **{name: torch.tensor(1.0) for name in model.defaults}))


def test_columns_that_differ_only_in_their_encoding_are_kept_apart():
    assert evaluate("y = w*`x²` + 10*x2", **{"x²": 3.0, "x2": 5.0}) == 53
    assert evaluate("y = w*x2", **{"x²": 3.0, "x2": 5.0}) == 5


def test_a_column_is_found_however_its_letters_are_encoded():
    micro_sign = {"\u00b5": 3.0}
    assert evaluate("y = w*\u03bc", **micro_sign) == 3  # the Greek letter
    assert evaluate("y = w*ｘ１", x1=3.0) == 3


def test_a_name_that_may_be_two_columns_is_refused():
    with pytest.raises(FormulaError, match="in backticks"):
        formula_model("y = w*fi", columns=["ﬁ", "ｆｉ", "y"])


def test_a_column_that_python_spells_otherwise_is_refused_for_functions():
    with pytest.raises(ModelError, match="rename the column"):
        function_model(lambda x, µ, w: x, columns=["x", "µ", "y"], target="y")


def test_a_column_called_pi_is_found_in_backticks():
    assert evaluate("y = w*`pi`", pi=2.0) == 2


def test_chinese_names_are_names():
    model = formula_model("温度 = 斜率*读数 + 截距", columns=["读数", "温度"])
    assert (model.data_names, tuple(model.defaults), model.target) == (("读数",), ("斜率", "截距"), "温度")


def test_a_module_is_copied_and_its_frozen_parameters_stay_fixed():
    module = torch.nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    model = module_model(module, ["x"], "y")
    assert model.module is not module
    assert model.defaults["bias"].fixed
    assert not model.defaults["weight"].fixed
    x = torch.tensor([1.0, 2.0])
    with torch.no_grad():
        assert model.function(x=x, **dict(module.named_parameters())).shape == (2,)
