"""The compiled engine under attack: whatever changes between calls, whatever comes in, it gives what the torch engine gives."""

from __future__ import annotations

import concurrent.futures
import copy
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradfit
from gradfit.compiler import cache
from gradfit.errors import GradfitError, ModelError

X = np.linspace(0.1, 4, 60)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.02 * np.random.default_rng(0).standard_normal(60)
T_U = np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
T_C = np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
FACTOR = 1.0


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Point to a cache of this test's own, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRADFIT_CACHE_DIR", str(folder))
    return folder


def decay(x, a=2.0, b=1.0, c=0.3):
    return a * torch.exp(-b * x) + c


def celsius(t_u, w=1.0, b=0.0):
    return w * t_u + b


def attempt(model: Any, *arrays: Any, **options: Any) -> tuple[Any, list[str]]:
    """Fit; give the result or gradfit's own error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")
        try:
            return gradfit.fit(model, *arrays, **options), [str(each.message) for each in caught]
        except GradfitError as error:
            return error, []


def same(model: Any, *arrays: Any, engine: str = "native", rtol: float = 1e-7, path: bool = True, **options: Any) -> Any:
    """Both engines give the same result, history and words; ``engine`` is the one that "auto" should choose, "" for either."""
    ours, said = attempt(model, *arrays, **options)
    theirs, expected = attempt(model, *arrays, engine="torch", **options)
    if isinstance(theirs, GradfitError):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return ours
    assert not isinstance(ours, GradfitError), ours
    assert not engine or ours.engine == engine, ours.engine_reason
    assert (ours.status, ours.message, said) == (theirs.status, theirs.message, expected)
    assert list(ours.warnings) == list(theirs.warnings)
    assert ours.diagnosis.letter == theirs.diagnosis.letter
    assert list(ours.history) == list(theirs.history)
    for name in theirs.names:
        np.testing.assert_allclose(ours.params[name].value, theirs.params[name].value, rtol=rtol)
        np.testing.assert_allclose(ours.params[name].stderr, theirs.params[name].stderr, rtol=1e-4)
    if path:
        for name in theirs.history:
            column = np.asarray(theirs.history[name])
            size = np.abs(column[np.isfinite(column)]).max(initial=0.0)
            np.testing.assert_allclose(ours.history[name], column, rtol=rtol, atol=rtol * size)
    return ours


def least_squares(model: Any, *arrays: Any, **options: Any) -> Any:
    """Levenberg-Marquardt stops within rounding of the minimum, not at the same bit: the last steps may differ in number."""
    return same(model, *arrays, rtol=1e-5, path=False, **options)


# --- nothing stale -------------------------------------------------------------------------------------------------------


def scaled_by(factor):
    return lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * factor)


class Instrument:
    factor = 1.0

    def read(self, x, a=1.0, b=0.5):
        return a * torch.exp(-b * x * self.factor)


def test_closures_that_differ_in_a_number_are_different_models():
    for factor in (1.0, 2.0, 3.0, 1.0):
        least_squares(scaled_by(factor), X, Y)


def test_one_function_follows_the_global_the_list_the_array_and_the_object_it_reads(monkeypatch):
    array, table, tensor, instrument, known = np.array([1.0]), [1.0], torch.tensor(1.0), Instrument(), {"factor": 1.0}
    get = known.get
    models = [
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * FACTOR),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * table[0]),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * float(array[0])),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * tensor),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * instrument.factor),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * get("factor")),
        lambda x, a=1.0, b=0.5: a * torch.exp(-b * x * float(os.environ["FACTOR"])),
        instrument.read,
    ]
    for factor in (1.0, 2.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        monkeypatch.setenv("FACTOR", str(factor))
        array[0], table[0], instrument.factor, known["factor"] = factor, factor, factor, factor
        tensor.fill_(factor)
        for model in models:
            least_squares(model, X, Y, engine="")


def test_a_model_that_asks_for_its_globals_by_name_is_followed(monkeypatch):
    def model(x, a=1.0, b=0.5):
        return a * torch.exp(-b * x * globals()["FACTOR"])

    for factor in (1.0, 2.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        least_squares(model, X, Y, engine="")


def test_a_model_that_reads_a_file_is_followed(tmp_path):
    place = tmp_path / "factor.txt"

    def model(x, a=1.0, b=0.5):
        return a * torch.exp(-b * x * np.loadtxt(str(place)).item())

    for factor in ("1", "2"):
        place.write_text(factor)
        least_squares(model, X, Y, engine="")


def test_a_function_given_another_body_or_other_defaults_is_another_model():
    def model(x, a=1.0, b=0.5):
        return a * torch.exp(-b * x)

    same(model, X, Y, method="adam", epochs=5)
    model.__defaults__ = (3.0, 0.7)
    same(model, X, Y, method="adam", epochs=5)
    model.__code__ = (lambda x, a=1.0, b=0.5: a * torch.exp(-2 * b * x)).__code__
    same(model, X, Y, method="adam", epochs=5)


def test_a_model_that_counts_its_rows_is_not_taken_for_one_that_does_not():
    def model(x, a=1.0, b=1.0):
        return a * torch.exp(-b * x) if len(x) > 20 else a * x + b

    least_squares(model, X[:5], Y[:5], engine="")
    least_squares(model, X, Y, engine="")


def test_rows_that_mix_only_away_from_the_start_are_noticed():
    def model(x, a=1.0, b=1.0, c=1.0):
        return a * torch.exp(-b * x) + torch.relu(c - 1.5) * x.mean() + c * 0.1

    same(model, X, Y + 3, engine="torch", method="adam", epochs=100, learning_rate=0.05)


def test_a_table_of_columns_after_a_column_is_looked_at_anew():
    least_squares(celsius, T_U, T_C)
    ours, _ = attempt(celsius, np.stack([T_U, T_U**2, T_U**3], 1), T_C)
    assert isinstance(ours, ModelError)
    assert "shape" in str(ours)


@pytest.mark.parametrize(
    "calls",
    [
        [{"bounds": {"b": (0, 1.0)}}, {"bounds": {"b": (0, 3.0)}}, {"bounds": {"b": (None, 1.2)}}, {}],
        [{"fixed": {"c": 0.5}}, {"fixed": {"c": 0.6}}, {"fixed": ["c"]}, {"fixed": ("a",)}, {}],
        [{"tied": {"c": "0.2*a"}}, {"tied": {"c": "0.3*a"}}, {"tied": {"c": lambda a: 0.25 * a}}],
        [{"loss": "huber", "f_scale": 0.01}, {"loss": "huber", "f_scale": 0.1}, {"loss": "cauchy", "f_scale": 0.1}, {}],
        [{"sigma": np.full(60, 0.02)}, {"sigma": np.linspace(0.01, 0.1, 60)}, {}, {"sigma": 0.5, "absolute_sigma": True}],
        [{"validation": 0.2}, {"validation": [1, 5, 9]}, {"validation": (X[:9], Y[:9])}, {"folds": 3}, {}],
    ],
    ids=lambda calls: "-".join(calls[0]),
)
def test_the_options_of_one_call_are_not_those_of_the_next(calls):
    for options in calls:
        same(decay, X, Y, method="adam", epochs=20, **options)
        least_squares(decay, X, Y, **options)


def test_starts_given_in_turn_are_each_their_own():
    starts = [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], {"a": 1.0, "b": 2.0}, {"b": 1.0, "a": 2.0}, {"a": 2, "b": 2}, np.ones(3), None]
    for start in starts + starts:
        same(decay, X, Y, start=start, method="adam", epochs=5, scale=False)


def test_data_of_another_precision_are_fitted_in_it():
    for kind, rtol in ((np.float64, 1e-7), (np.float32, 1e-3), (np.float64, 1e-7)):
        same(decay, X.astype(kind), Y.astype(kind), method="adam", epochs=30, rtol=rtol)


CHANGES = {
    "learning_rate": lambda method: setattr(method, "learning_rate", 0.02),
    "momentum": lambda method: method.options.update(momentum=0.9),
    "epochs": lambda method: setattr(method, "max_steps", 33),
    "batch_size": lambda method: setattr(method, "batch_size", 7),
    "scale": lambda method: setattr(method, "scale", True),
    "scheduler": lambda method: setattr(method, "scheduler", lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)),
    "optimizer": lambda method: (setattr(method, "optimizer", torch.optim.Adam), method.options.clear()),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_method_object_that_was_changed_does_what_it_says_now(change):
    method = gradfit.GradientDescent("sgd", learning_rate=0.01, epochs=20, scale=False, momentum=0.5)
    same(decay, X, Y, method=method)
    try:
        CHANGES[change](method)
    except (AttributeError, TypeError):
        return  # it cannot be changed: as good
    same(decay, X, Y, method=method)


def test_a_schedule_by_a_function_that_reads_a_global_follows_it(monkeypatch):
    method = gradfit.GradientDescent(
        "sgd", learning_rate=0.05, epochs=20, scheduler="LambdaLR", scheduler_options={"lr_lambda": lambda epoch: FACTOR**epoch}
    )
    for factor in (0.9, 0.5):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        same(decay, X, Y, method=method)


def test_an_optimizer_and_a_loss_of_ones_own_that_read_a_global_follow_it(monkeypatch):
    class Own(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for leaf in group["params"]:
                    leaf.add_(leaf.grad, alpha=-group["lr"] * FACTOR)

    def loss(prediction, target):
        return torch.abs(prediction - target) ** (1 + FACTOR)

    for factor in (0.9, 0.5):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        same(decay, X, Y, method=Own, learning_rate=0.01, epochs=10)
        same(decay, X, Y, loss=loss, method="adam", epochs=10)


# --- models that are none, or hard ---------------------------------------------------------------------------------------

COUNTED = []


def branching(x, a=1.0, b=1.0):
    return a * torch.exp(-b * x) if a > 0 else b * x


def counting(x, a=1.0, b=1.0):
    COUNTED.append(1)
    return a * torch.exp(-b * x)


def asking_whether_any(x, a=1.0, b=1.0):
    made = a * torch.exp(-b * x)
    return b * x if torch.isnan(made).any() else made


FALLS_BACK = {
    "python if": branching,
    "a list that grows": counting,
    "any": asking_whether_any,
    "a number of the first row": lambda x, a=1.0, b=1.0: a * torch.exp(-b * x) * x[0].item(),
    "the first row": lambda x, a=1.0, b=1.0: a * torch.exp(-b * (x - x[0])),
    "a mean": lambda x, a=1.0, b=1.0: a * torch.exp(-b * x) - x.mean() * b,
    "a running sum": lambda x, a=1.0, b=1.0: torch.cumsum(a * torch.exp(-b * x), 0),
    "sorted": lambda x, a=1.0, b=1.0: torch.sort(a * torch.exp(-b * x)).values,
    "turned round": lambda x, a=1.0, b=1.0: a * torch.exp(-b * x.flip(0)),
    "shifted": lambda x, a=1.0, b=1.0: a * torch.exp(-b * torch.roll(x, 1)),
}


@pytest.mark.parametrize("name", FALLS_BACK)
def test_what_is_no_graph_of_one_row_stays_with_torch_and_says_why(name):
    fit = same(FALLS_BACK[name], X, Y, engine="torch", method="adam", epochs=10)
    assert "not compiled" in fit.engine_reason
    with pytest.raises(ModelError, match="cannot be compiled"):
        gradfit.fit(FALLS_BACK[name], X, Y, engine="native")


def half_masked(x, a=1.0, b=1.0):
    made = a * torch.exp(-b * x)
    made[x > 1] = 0.5
    return made


HARD = {
    "assigned by a mask": half_masked,
    "equal starts": lambda x, a=1.0, b=1.0: a * torch.exp(-b * x),
    "whole numbers": lambda x, a=1, b=2: a * torch.exp(-b * x),
    "a vector": lambda x, p=(1.0, 1.0, 0.1): p[0] * torch.exp(-p[1] * x) + p[2],
    "a sum over a vector": lambda x, p=(1.0, 2.0), k=(0.1, 1.0): (p * torch.exp(-k * x[:, None])).sum(1),
    "a product with a matrix": lambda x, c=(1.0, 0.5, 0.2): torch.stack([x**0, x, x**2], 1) @ c,
    "a power": lambda x, a=2.0, b=1.0: b * x**a,
    "a kink": lambda x, a=2.0, b=1.0: b * (x - a).abs(),
    "NaN at the start": lambda x, a=-1.0, b=1.0: b * torch.log(a * x),
    "infinity at the start": lambda x, a=1000.0, b=1.0: b * torch.exp(a * x),
    "NaN in some rows": lambda x, a=1.0, b=1.0: b * torch.log(x - a),
    "data ignored": lambda x, a=1.0: a * torch.ones_like(x),
    "numpy": lambda x, a=1.0, b=1.0: a * np.exp(-b * x),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_a_hard_model_is_compiled_and_goes_torchs_way(name, method):
    same(HARD[name], X, Y, method=method, epochs=30, learning_rate=0.01, scale=False)


GUARDED = {
    "logarithm": lambda x, a=1.0, b=1.0: torch.where(x > 1, b * torch.log(x - a), a * x),
    "root": lambda x, a=2.0, b=1.0: torch.where(x < a, b * torch.sqrt(a - x), 0 * a * x),
}


@pytest.mark.parametrize("name", GUARDED)
def test_a_branch_not_taken_does_not_spoil_the_jacobian(name):
    ours, theirs = (attempt(GUARDED[name], X, Y, engine=engine)[0] for engine in ("auto", "torch"))
    assert ours.status == theirs.status
    np.testing.assert_allclose(list(ours.values.values()), list(theirs.values.values()), rtol=1e-4)


@pytest.mark.parametrize("name", ["exp", "where", "target", "sigma", "context", "value", "d_a", "v0", "inf", "λ", "ret", "along"])
def test_a_parameter_and_a_column_may_have_any_name(name):
    names: dict[str, Any] = {"torch": torch}
    exec(f"def by_parameter(q, {name}=1.0, b=2.0): return torch.exp(-{name} * q) * b", names)  # noqa: S102 - written here
    exec(f"def by_column({name}, w=1.0, b=2.0): return torch.exp(-w * {name}) * b", names)  # noqa: S102
    for model in (names["by_parameter"], names["by_column"]):
        fit = least_squares(model, X, Y)
        compile(fit.source, "source", "exec")


@pytest.mark.parametrize(("u", "v"), [("lambda", "class"), ("a b", "c d"), ("x-1", "y 2"), ("λ", "é"), ("1", "2")])
def test_columns_of_a_formula_may_have_any_name(u, v):
    fit = same(f"`{v}` = w*exp(-k*`{u}`)", data={u: X, v: Y}, rtol=1e-5, path=False)
    if not isinstance(fit, GradfitError):
        compile(fit.source, "source", "exec")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 4},
        {"averaging": "ema"},
        {"validation": 0.2},
        {"validation": 0.2, "early_stopping": 500},
        {"scheduler": "ReduceLROnPlateau"},
        *({"epochs": epochs} for epochs in (1, 2, 5, 8)),
    ],
    ids=str,
)
def test_a_rate_too_high_ends_in_the_same_words_with_the_same_history(options):
    same(celsius, T_U, T_C, **{"method": "sgd", "learning_rate": 1e-2, "scale": False, "epochs": 3000, **options})


# --- data ----------------------------------------------------------------------------------------------------------------


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


ARRAYS = {
    **{kind: lambda values, kind=kind: np.rint(values).astype(kind) for kind in ("i1", "i8", "f2", ">f8", ">i4", "f16")},
    "objects": lambda values: values.astype(object),
    "complex": lambda values: values + 0j,
    "not in one piece": lambda values: np.repeat(values, 2)[::2],
    "backwards": lambda values: values[::-1],
    "read-only": read_only,
    "masked": lambda values: np.ma.array(values, mask=False),
    "lists": list,
    "tensors": torch.tensor,
    "not aligned": lambda values: np.ndarray(values.shape, "f8", bytearray(b"\0" + values.tobytes()), 1),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_any_kind_are_right_or_refused(name):
    same(celsius, ARRAYS[name](T_U), ARRAYS[name](T_C), method="adam", epochs=10)
    least_squares(celsius, ARRAYS[name](T_U), ARRAYS[name](T_C))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 63, 64, 65, 1023, 10_000, 10_001])
def test_any_number_of_rows_is_right_or_refused(n):
    x = np.random.default_rng(n).standard_normal(n)
    same(celsius, x, 2 * x + 1 + np.random.default_rng(1).standard_normal(n), method="sgd", epochs=10)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-100, 1e100, 1e150])
def test_very_small_and_very_large_numbers_are_the_same_to_both(size):
    least_squares(celsius, T_U * size, T_C)
    if size > 1e-140:
        least_squares(celsius, T_U, T_C * size)
    for engine in ("native", "torch") if size < 1e-140 else ():
        with pytest.raises(gradfit.GradfitError, match="smaller squares vanish"):
            gradfit.fit(celsius, T_U, T_C * size, engine=engine)


@pytest.mark.parametrize("method", ["lm", "adam"])
def test_numbers_whose_squares_overflow_are_said_to_be_and_nothing_else_is(method):
    for x, y in ((T_U, T_C * 1e200), (np.full(4, 1.7e308), np.arange(4.0))):
        _, said = attempt(celsius, x, y, method=method)
        assert len(said) == 1
        assert said[0].startswith("The loss is not finite at the start")


# --- processes, threads, interrupts ---------------------------------------------------------------------------------------

PROGRAM = """
import numpy as np, torch, gradfit
x = np.linspace(0.1, 4, 60)
y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.01 * np.sin(50 * x)
model = lambda x, a=2.0, b=1.0, c=0.3: a * torch.exp(-b * x) + c
fit = gradfit.fit(model, x, y, engine="native")
print([value.hex() for value in fit.values.values()])
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "GRADFIT_CACHE_DIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def here() -> str:
    fit = gradfit.fit(
        lambda x, a=2.0, b=1.0, c=0.3: a * torch.exp(-b * x) + c, X, 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(50 * X)
    )
    assert fit.engine == "native"
    return f"{[value.hex() for value in fit.values.values()]}\n"


@pytest.mark.slow
def test_processes_with_one_empty_cache_give_the_same_bits_as_this_one(own_cache):
    processes = [start(own_cache) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == [here()] * 2


@pytest.mark.slow
def test_a_process_killed_while_it_compiles_leaves_nothing_wrong_behind(own_cache):
    process = start(own_cache)
    until = time.monotonic() + 60
    while not (own_cache.exists() and any(own_cache.iterdir())) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert start(own_cache).communicate()[0] == here()


@pytest.mark.parametrize("damage", [lambda body: b"", lambda body: body[:40], lambda body: body[:100] + b"\x55" + body[101:]])
def test_a_damaged_file_is_not_read(own_cache, damage):
    cache.write("code.o", bytes(range(200)))
    assert cache.read("code.o") == bytes(range(200))
    (own_cache / "code.o").write_bytes(damage((own_cache / "code.o").read_bytes()))
    assert cache.read("code.o") is None


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null"])
def test_where_nothing_can_be_kept_everything_works(folder, monkeypatch):
    monkeypatch.setenv("GRADFIT_CACHE_DIR", folder)
    factor = 0.01 * len(folder)
    least_squares(lambda x, a=1.0, b=1.0: a * torch.exp(-b * x) + factor, X, Y)


def test_a_full_disk_is_no_error_and_leaves_no_half_file(own_cache, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    least_squares(lambda x, a=1.0, b=1.0: a * torch.exp(-b * x) + 0.28, X, Y)
    assert not any(own_cache.iterdir())


@pytest.mark.parametrize(
    "options", [{}, {"method": "adam", "epochs": 50}, {"method": "sgd", "epochs": 20, "batch_size": 9}], ids=str
)
def test_threads_give_what_one_after_the_other_gives(options):
    def one(place: int) -> Any:
        model, begin = scaled_by(1 + place % 4), [2 + 0.01 * place, 1.0]
        fit = gradfit.fit(model, X, Y, start=begin, on_failure="ignore", **options)
        return fit.values

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = list(threads.map(one, range(16)))
    assert together == list(map(one, range(16)))


def test_threads_may_fit_one_model_from_many_starts():
    expected = [attempt(decay, X, Y, start=[2.0 + 0.01 * place, 1.0, 0.3])[0].values for place in range(8)]

    def many(place: int) -> bool:
        return all(attempt_quietly(place) == expected[place] for _ in range(40))

    def attempt_quietly(place: int) -> Any:
        return gradfit.fit(decay, X, Y, start=[2.0 + 0.01 * place, 1.0, 0.3]).values

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(many, range(8)))


INTERRUPTED = """
import _thread, sys, threading, gradfit
options = eval(sys.argv[1])
x, y = [float(k) for k in range(11)], [2.0 * k + 1 for k in range(11)]
gradfit.fit(lambda x, w, b: w * x + b, x, y, method="sgd", epochs=5, on_failure="ignore", **options)
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    gradfit.fit(lambda x, w, b: w * x + b, x, y, method="sgd", learning_rate=1e-9, epochs=10**9, **options)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"validation": 0.2}], ids=str)
def test_an_interrupt_stops_a_long_descent(options):
    command = [sys.executable, "-c", INTERRUPTED, repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "interrupted\n", done.stderr


# --- results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"method": "adam", "epochs": 20}, {"loss": "huber"}], ids=str)
def test_a_result_lasts_whatever_comes_after_it(options, tmp_path):
    x, y = X.copy(), Y.copy()
    kept, _ = attempt(decay, x, y, **options)
    expected, _ = attempt(decay, X, Y, engine="torch", **options)
    x[:], y[:] = 0, 99
    for shift in range(3):
        attempt(decay, X * 2, Y + shift, **options)
    np.testing.assert_allclose(kept.predict(X), expected.predict(X), rtol=1e-5)
    np.testing.assert_allclose(kept.covariance, expected.covariance, rtol=1e-3)
    assert kept.report()
    assert kept.source
    compile(kept.source, "source", "exec")
    kept.to_html(tmp_path / "fit.html")
    kept.save(tmp_path / "fit.json")
    np.testing.assert_allclose(gradfit.load(tmp_path / "fit.json").predict(X), kept.predict(X), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"method": "adam", "epochs": 20}], ids=str)
def test_a_result_can_be_copied(options):
    kept, _ = attempt(decay, X, Y, **options)
    assert copy.copy(kept).values == kept.values
    assert copy.deepcopy(kept).values == kept.values


def test_the_same_call_gives_the_same_bits_in_any_order():
    calls = [{}, {"method": "adam", "epochs": 20}, {"method": "sgd", "epochs": 10, "batch_size": 9}, {"sigma": 0.1}]
    first = [attempt(decay, X, Y, **options)[0].values for options in calls]
    again = [attempt(decay, X, Y, **options)[0].values for options in reversed(calls)]
    assert first == again[::-1]


# --- options, and models made at random ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sgd", "adam", "rmsprop", "lbfgs", "lm"])
@pytest.mark.parametrize("every", [1, 7, 1000])
def test_the_lines_printed_are_the_same(method, every, capsys):
    printed = []
    for engine in ("auto", "torch"):
        attempt(
            decay,
            X,
            Y,
            method=method,
            every=every,
            engine=engine,
            **({} if method == "lm" else {"epochs": 4 if method == "lbfgs" else 20}),
        )
        printed.append(capsys.readouterr().out.splitlines())
    assert len(printed[0]) == len(printed[1])
    if method not in ("lm", "lbfgs"):  # their gradients at the minimum are rounding
        assert printed[0] == printed[1]


PIECES = ("torch.exp(-{}**2)", "torch.sin({})", "torch.tanh({})", "torch.log1p(({})**2)", "torch.sqrt(1 + ({})**2)", "torch.atan({})",
          "torch.sigmoid({})", "torch.erf({})", "torch.where({} > 0.3, {}, 0.5 * {})", "torch.nn.functional.softplus({})")  # fmt: skip


def random_model(seed: int) -> Any:
    """Compose a model of two parameters from a few functions."""
    generator = np.random.default_rng(seed)

    def expression(depth: int) -> str:
        if depth == 0:
            return str(generator.choice(["(a * x)", "(x - b)", "(a + b * x)", "(x / (2 + b**2))"]))
        if generator.random() < 0.5:
            return f"({expression(depth - 1)} {generator.choice(['+', '-', '*'])} {expression(depth - 1)})"
        return str(generator.choice(PIECES)).replace("{}", expression(depth - 1))

    names: dict[str, Any] = {"torch": torch}
    exec(f"def model(x, a=0.8, b=0.4): return a + b * x + {expression(3)}", names)  # noqa: S102 - written above
    return names["model"]


@pytest.mark.parametrize("seed", range(12))
def test_a_model_made_at_random_descends_as_torch_does(seed):
    model = random_model(seed)
    same(model, X, Y, method="sgd", learning_rate=1e-3, scale=False, epochs=20, rtol=1e-9)
    same(model, X, Y, method="adam", epochs=20, sigma=np.linspace(0.5, 1, 60), rtol=1e-8)
