"""What the data do not determine: told in words that are true far from the fit, warned of at once, and never where the data suffice."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

import gradfit
from gradfit.cli import main

X = np.linspace(0.2, 2.0, 30)
FUNCTIONS = {name: getattr(np, name) for name in ("exp", "log", "sin", "sqrt")}
ONLY = re.compile(r"only (.*) (?:is|are) determined by the data$")


def noise(seed=0, size=0.05, n=30):
    return np.random.default_rng(seed).normal(0, size, n)


def line(x=X):
    return 3 * x + 1 + noise(n=len(x))


def value(formula, **names):
    with np.errstate(all="ignore"):
        return eval(formula, FUNCTIONS | names)  # noqa: S307 - the formulas of this file


def told(fit):
    """What is said to be determined, by the names without error."""
    return {name: ONLY.match(estimate.reason)[1] for name, estimate in fit.params.items() if estimate.reason}


def assert_true_far_away(fit, formula, x=X, trials=20):
    """Choose other parameters with the same values of what is said to be determined; the predictions must be the same."""
    at = {name: estimate.value for name, estimate in fit.params.items()}
    here = value(formula, **at, x=x) * np.ones_like(x)
    for reason in {estimate.reason for estimate in fit.params.values() if estimate.reason}:
        kept = re.split(", | and ", ONLY.match(reason)[1])
        names = [name for name, estimate in fit.params.items() if estimate.reason == reason]
        levels = np.array([value(form, **at) for form in kept])
        generator, found = np.random.default_rng(1), 0
        for _ in range(trials):
            solved = list(generator.permutation(names)[: len(kept)])
            there = at | {name: at[name] * generator.uniform(0.5, 2) for name in names}

            def off(numbers, there=there, solved=solved, kept=kept, levels=levels):
                return [value(form, **there | dict(zip(solved, numbers, strict=True))) for form in kept] - levels

            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                root = scipy.optimize.root(off, [at[name] for name in solved], tol=1e-13)
            there |= dict(zip(solved, root.x.tolist(), strict=True))
            if not root.success or np.abs(root.fun).max() > 1e-9:
                continue
            other = value(formula, **there, x=x)
            if np.isfinite(other).all():
                found += 1
                np.testing.assert_allclose(other, here, rtol=0, atol=1e-6 * np.abs(here).max(), err_msg=f"{formula}: {reason}")
        assert found >= 2, reason


SENTENCES = [
    ("(a + b)*x + c", "a + b", {"a", "b"}),
    ("(a - b)*x + c", "a - b", {"a", "b"}),
    ("(a + 2.5*b)*x + c", "2*a + 5*b", {"a", "b"}),
    ("a*b*x + c", "a*b", {"a", "b"}),
    ("a/b*x + c", "a/b", {"a", "b"}),
    ("a**2*b*x + c", "a**2*b", {"a", "b"}),
    ("a*exp(b + c*x)", "a*exp(b)", {"a", "b"}),
    ("(a + b + c)*x + d", "a + b + c", {"a", "b", "c"}),
    ("a*b*c*x", "a*b*c", {"a", "b", "c"}),
    ("(a + b)*c*x + d", "(a + b)*c", {"a", "b", "c"}),
    ("(a*b + c)*x + d", "a*b + c", {"a", "b", "c"}),
    ("a*x + b*x + b + c", "b + c and a + b", {"a", "b", "c"}),
    ("(exp(a) + b)*x + c", "exp(a) + b", {"a", "b"}),
    ("sqrt(a**2 + b**2)*x + c", "a**2 + b**2", {"a", "b"}),
    ("x/(1/a + 1/b) + c", "1/a + 1/b", {"a", "b"}),
    ("a**b*x + c", "a**b", {"a", "b"}),
]


@pytest.mark.parametrize(("formula", "form", "names"), SENTENCES, ids=[row[0] for row in SENTENCES])
def test_what_is_determined_is_told_and_true(formula, form, names):
    start = {"a": 1.5, "b": 1.2} if "**b" in formula or "exp(a)" in formula else {}
    with pytest.warns(gradfit.UndeterminedWarning, match=re.escape(f"only {form} ")):
        fit = gradfit.fit(f"y = {formula}", data={"x": X, "y": line()}, start=start)
    assert fit.success
    assert told(fit) == dict.fromkeys(sorted(names), form)
    assert all(math.isnan(fit.params[name].stderr) == (name in names) for name in fit.params)
    assert_true_far_away(fit, formula)
    assert any(f"only {form} " in warning for warning in fit.warnings)


def test_a_sum_and_a_product_of_equal_factors_are_told_apart():
    # At a = b the direction is (1, -1) for both.
    for formula, form in (("(a + b)*x", "a + b"), ("a*b*x", "a*b")):
        with pytest.warns(gradfit.UndeterminedWarning):
            fit = gradfit.fit(f"y = {formula}", data={"x": X, "y": line()}, start=[1.0, 1.0])
        assert fit.params["a"].value == pytest.approx(fit.params["b"].value)
        assert told(fit)["a"] == form


def test_two_pairs_are_told_by_themselves():
    with pytest.warns(gradfit.UndeterminedWarning) as caught:
        fit = gradfit.fit("y = (a + b)*x + c*d", data={"x": X, "y": line()})
    assert told(fit) == {"a": "a + b", "b": "a + b", "c": "c*d", "d": "c*d"}
    assert len(caught) == 1
    assert "a can rise by any amount while b falls by as much" in str(caught[0].message)
    assert "c can be multiplied by any number while d is divided by it" in str(caught[0].message)


def test_the_others_have_their_errors():
    data = {"x": X, "y": line()}
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c", data=data)
    plain = gradfit.fit("y = a*x + c", data=data)
    # the same sum of squares, over one degree of freedom fewer
    assert fit.params["c"].stderr == pytest.approx(plain.params["c"].stderr * math.sqrt(28 / 27), rel=1e-9)


@pytest.mark.parametrize(
    ("x", "formula", "form"),
    [(np.full(9, 3.0), "a*x + b", "3*a + b"), (np.full(9, 3.7), "a*x + b", "3.7*a + b"), (np.full(9, math.pi), "a*x + b", "3.142*a + b"),
     (np.arange(9) % 2.0, "a*x**2 + b*x + c", "a + b"), (np.full(9, 3.0), "a*x**b", "a*exp(1.099*b)")],
)  # fmt: skip
def test_inputs_that_repeat_determine_combinations(x, formula, form):
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(f"y = {formula}", data={"x": x, "y": 5 + noise(n=9)})
    assert set(told(fit).values()) == {form}


def test_a_form_nobody_tries_is_told_near_these_values():
    def model(x, a, b, c):
        return torch.sinh(a + torch.atan(b) * a) * x + c

    with pytest.warns(gradfit.UndeterminedWarning, match="near these values"):
        fit = gradfit.fit(model, X, line())
    assert re.fullmatch(r"only .*a.*b is determined by the data, near these values", fit.params["a"].reason)


def test_a_parameter_whose_factor_is_zero_says_so():
    with pytest.warns(gradfit.FitWarning, match="plateau where b changes nothing"):
        fit = gradfit.fit("y = a*exp(-b*x)", data={"x": X, "y": 0 * X}, start={"a": 0.0, "b": 1.0})
    assert fit.params["b"].reason == "b has no influence because a is 0"
    assert fit.params["a"].reason == "the fit did not reach its minimum"


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_names_of_elements_ties_and_bounds_are_respected(engine):
    def model(x, c):
        return (c[0] + c[1]) * x + c[2]

    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(model, X, line(), start={"c": [1.0, 2.0, 3.0]}, engine=engine)
    assert told(fit) == {"c[0]": "c[0] + c[1]", "c[1]": "c[0] + c[1]"}
    data = {"x": X, "y": line()}
    for options in ({"tied": {"b": "2*a"}}, {"fixed": {"b": 1.0}}, {"bounds": {"a": (0, 1)}, "start": {"a": 1.0, "b": 0.0}}):
        fit = gradfit.fit("y = (a + b)*x + c", data=data, engine=engine, **options)  # no warning
        assert math.isfinite(fit.params["c"].stderr)
    with pytest.warns(gradfit.UndeterminedWarning, match=r"only a \+ b and 2\*b \+ c are"):
        fit = gradfit.fit("y = (a + b)*x + c + d", data=data, tied={"d": "2*b"}, engine=engine)
    assert math.isnan(fit.params["d"].stderr)
    assert "follows" in fit.params["d"].reason


def test_many_parameters_are_not_all_listed():
    names = [f"a{index}" for index in range(12)]
    with pytest.warns(gradfit.UndeterminedWarning, match="one combination of a0, .* and 4 more"):
        fit = gradfit.fit(f"y = ({' + '.join(names)})*x + c", data={"x": X, "y": line()})
    assert math.isfinite(fit.params["c"].stderr)


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "poisson"])
def test_other_losses_tell_it_too(loss):
    counts = np.random.default_rng(3).poisson(3 * X + 5).astype(float)
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = a*b*x + c", data={"x": X, "y": counts}, loss=loss)
    assert told(fit) == {"a": "a*b", "b": "a*b"}
    assert fit.params["c"].stderr > 0


def test_finite_differences_tell_it_too():
    def model(x, a, b, c):
        return np.interp(x, [0, 1, 2, 3], [c, c + a * b, c + 2 * a * b, c + 3 * a * b])

    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(model, X, line())
    assert told(fit) == {"a": "a*b", "b": "a*b"}


# --- the warning --------------------------------------------------------------------------------------------------------


def test_the_warning_is_one_class_of_gradfits_and_of_scipys():
    kind = gradfit.UndeterminedWarning
    assert issubclass(kind, gradfit.FitWarning)
    assert issubclass(kind, scipy.optimize.OptimizeWarning)
    from gradfit import errors
    from gradfit.errors import UndeterminedWarning

    assert kind is UndeterminedWarning is errors.UndeterminedWarning
    copy = pickle.loads(pickle.dumps(kind("text")))
    assert type(copy) is kind
    assert copy.args == ("text",)
    with pytest.raises(AttributeError, match="no attribute 'Undetermined'"):
        errors.Undetermined


def test_the_warning_costs_no_import_of_scipys_optimizers_before_it_is_needed():
    code = (
        "import sys, gradfit, gradfit.errors; x = [0.0, 1, 2, 3]; a = 'scipy.optimize' in sys.modules;"
        "gradfit.fit('y = a*x + b', data={'x': x, 'y': [1.0, 2, 3, 5]}); print(a, 'scipy.optimize' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_call_warns_whatever_on_failure_says():
    data = {"x": X, "y": line()}
    for choice in ("ignore", "warn", "raise"):
        for _ in range(2):
            with pytest.warns(gradfit.UndeterminedWarning):
                assert gradfit.fit("y = (a + b)*x + c", data=data, on_failure=choice).success
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradfit.UndeterminedWarning)
        gradfit.fit("y = (a + b)*x + c", data=data)


def test_the_short_way_of_a_repeated_call_warns_each_time():
    def model(x, a, b, c):
        return (a + b) * x + c

    for _ in range(4):
        with pytest.warns(gradfit.UndeterminedWarning, match="a \\+ b") as caught:
            gradfit.fit(model, X, line())
        assert caught[0].filename == __file__


def test_a_fit_that_did_not_arrive_is_not_said_to_be_undetermined():
    with pytest.warns(gradfit.FitWarning) as caught:
        gradfit.fit("y = a*exp(b*x)*c", data={"x": X, "y": line()}, start=[1.0, 1.0, 1.0], max_steps=1)
    assert not any(issubclass(warning.category, gradfit.UndeterminedWarning) for warning in caught)


def test_a_network_is_not_warned_of():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    fit = gradfit.fit(net, X[:, None], line(), method="lbfgs")
    assert any("determine" in warning for warning in fit.warnings)


def test_the_command_line_says_it_in_the_report_and_once_on_stderr(tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in zip(X, line(), strict=True)))
    assert main(["fit", str(table), "y = (a + b)*x + c"]) == 0
    out, err = capsys.readouterr()
    sentence = "only a + b is determined by the data (a can rise by any amount while b falls by as much)"
    assert sentence in out
    assert err.splitlines() == [f"gradfit: no error is given for a, b: {sentence}."]


# --- never where the data suffice ---------------------------------------------------------------------------------------

BASES = {
    "a*x + b": {"a": (-3, 3), "b": (-3, 3)},
    "a + b*x + c*x**2 + d*x**3": {"a": (-1, 1), "b": (-1, 1), "c": (0.5, 1), "d": (-1, -0.5)},
    "a*exp(-b*x) + c": {"a": (1, 5), "b": (0.3, 3), "c": (-1, 1)},
    "a*exp(-b*x) + c*exp(-d*x)": {"a": (1, 5), "b": (0.2, 0.8), "c": (1, 5), "d": (2, 6)},
    "a*exp(-((x - m)/s)**2) + c": {"a": (1, 5), "m": (0.5, 1.5), "s": (0.2, 0.8), "c": (-1, 1)},
    "a*sin(f*x + p) + c": {"a": (1, 3), "f": (2, 6), "p": (0, 2), "c": (-1, 1)},
    "v*x/(k + x)": {"v": (1, 5), "k": (0.2, 3)},
}


def drawn(index):
    """A random problem: formula, truth, x, y."""
    generator = np.random.default_rng(100 + index)
    formula = list(BASES)[index % len(BASES)]
    truth = {name: float(generator.uniform(*span)) for name, span in BASES[formula].items()}
    n = int(generator.choice([len(truth) + 2, 12, 60]))
    x = np.linspace(0.1, 2.0, n)
    clean = value(formula, **truth, x=x)
    y = clean + generator.normal(0, 1, n) * np.ptp(clean) * float(generator.choice([1e-6, 1e-3, 0.02]))
    return formula, truth, x, y, generator


@pytest.mark.parametrize("index", range(42))
def test_nothing_that_the_data_determine_is_called_undetermined(index):
    formula, truth, x, y, _ = drawn(index)
    fit = gradfit.fit(f"y = {formula}", data={"x": x, "y": y}, start=truth, engine="torch" if index % 5 == 0 else "auto")
    assert fit.success
    assert all(math.isfinite(estimate.stderr) for estimate in fit.params.values())


def sums_and_products(form, aim, generator):
    """Values of u and w at which a form of theirs has a value."""
    u = float(generator.uniform(0.5, 1.5) * generator.choice([-1, 1]))
    return {
        "u + w": (u, aim - u), "u - w": (u, u - aim), "u + 2*w": (u, (aim - u) / 2), "u*w": (u, aim / u), "u/w": (u * aim, u),
        "u**2*w": (u, aim / u**2), "u*exp(w)": (aim / math.exp(u), u), "exp(u) + w": (u, aim - math.exp(u)),
    }[form]  # fmt: skip


FORMS = ("u + w", "u - w", "u + 2*w", "u*w", "u/w", "u**2*w", "u*exp(w)", "exp(u) + w")


@pytest.mark.parametrize("index", range(28))
def test_a_parameter_replaced_by_two_is_called_undetermined_in_true_words(index):
    formula, truth, x, y, generator = drawn(index)
    name, form = str(generator.choice(list(truth))), FORMS[index % len(FORMS)]
    u, w = sums_and_products(form, truth.pop(name), generator)
    doubled = re.sub(rf"\b{name}\b", f"({form})", formula)
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(f"y = {doubled}", data={"x": x, "y": y}, start=truth | {"u": u, "w": w})
    assert set(told(fit)) == {"u", "w"}
    assert_true_far_away(fit, doubled, x)
