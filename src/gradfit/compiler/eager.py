"""The torch engine: every quantity from plain torch. The general path, and the reference for any other.

A model is called in the first of these ways that works:

1. on tensors, all rows at once, numpy and math names translated (:mod:`gradfit.compiler.bridge`): exact derivatives;
2. on numpy arrays, all rows at once: central finite differences, as scipy does;
3. on tensors, one row at a time, for functions of single numbers (``if x > x0: ...``): exact derivatives;
4. on numbers, one row at a time, for such functions without a torch counterpart: central finite differences.

A way works when it gives one real value per row, twice the same, and its derivative by each parameter agrees with a finite
difference: a model that turns a parameter into a plain number (``float(w)``) would otherwise lose its gradient unseen.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradfit.compiler.bridge import Untranslatable, on_tensors
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.errors import GradfitError, ModelError
from gradfit.model.loss import Loss, gauss_newton_rows
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

RELATIVE_STEP = np.finfo(np.float64).eps ** (1 / 3)  # central differences: balances rounding and truncation
AGREEMENT = 1e-3  # between a derivative and its finite difference in float64; a lost gradient is off by the whole
SHRINKING = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # trial steps, until two agree: some models turn many times in a small step
CHECKED_ROWS = 1000
# torch counts the levels of forward mode for the whole process, not per thread: two at once clear each other's derivatives.
FORWARD_MODE = threading.RLock()
TRIALS = 3  # points at which a parameter may show that it matters

Call = Callable[..., Any]


@dataclass(frozen=True)
class EagerKernel:
    """Prediction, loss and derivatives of a model on one data set, by plain torch.

    Attributes
    ----------
    call
        ``call(**data, **parameters) -> (n,)`` on tensors.
    numeric
        Whether derivatives are finite differences.
    reason
        Why this engine and this way, a sentence for the report.
    """

    model: Model
    parameters: Parameters
    loss_function: Loss
    call: Call = field(repr=False)
    columns: dict[str, Tensor] = field(repr=False)
    target: Tensor = field(repr=False)
    sigma: Tensor | None = field(repr=False)
    numeric: bool = False
    reason: str = ""

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.target)

    @property
    def loss_kind(self) -> str:
        """Which statistics the loss allows."""
        return self.loss_function.kind

    @property
    def signal(self) -> float:
        """Mean square of target / sigma."""
        return float(((self.target if self.sigma is None else self.target / self.sigma).double() ** 2).mean())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation."""
        return self.target.dtype

    def on(self, data: Dataset) -> EagerKernel:
        """Give the same model on other rows, for instance the validation set."""
        return replace(self, **_tensors(data, self.dtype))

    def in_precision(self, dtype: torch.dtype) -> EagerKernel:
        """Give the same kernel in another precision."""
        if dtype == self.dtype:
            return self
        model = self.model.in_precision(dtype)
        call = self.call if model is self.model else model.function
        columns = {name: column.to(dtype) for name, column in self.columns.items()}
        sigma = None if self.sigma is None else self.sigma.to(dtype)
        return replace(self, model=model, call=call, columns=columns, target=self.target.to(dtype), sigma=sigma)

    def predict(self, theta: Tensor, columns: dict[str, Tensor] | None = None) -> Tensor:
        """Prediction of each row, (n,); differentiable."""
        inputs = self.columns if columns is None else columns
        if self.numeric:
            return _numeric_prediction(self, theta, inputs)
        return self.call(**inputs, **self._values(theta))  # type: ignore[no-any-return]

    @functools.cached_property
    def _values(self) -> Callable[[Tensor], dict[str, Tensor]]:
        return self.parameters.namer(self.dtype)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean loss, a scalar; differentiable. A module is in training mode for it while gradients are taken, and only then."""
        module = self.model.module
        if module is None or not torch.is_grad_enabled():
            return self._loss(theta, rows)
        module.train()
        try:
            return self._loss(theta, rows)
        finally:
            module.eval()

    def _loss(self, theta: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            with _naming(self, theta):
                prediction = self.predict(theta)
            return self.loss_function.mean(prediction, self.target, self.sigma)
        columns = {name: column[rows] for name, column in self.columns.items()}
        sigma = None if self.sigma is None else self.sigma[rows]
        with _naming(self, theta):
            prediction = self.predict(theta, columns)
        return self.loss_function.mean(prediction, self.target[rows], sigma)

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss as a number, evaluated without autograd."""
        with torch.no_grad():
            return float(self.loss(torch.as_tensor(theta, dtype=self.dtype)))

    def jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """Prediction (n,) and its exact derivative by the free parameters (n, p), as float64 arrays."""
        if self.numeric:
            here = np.asarray(theta, dtype=np.float64)
            with _naming(self, here):
                return _numeric_value(self, here, self.columns), _differences(self, here, self.columns)
        point = torch.as_tensor(theta, dtype=self.dtype)
        with _naming(self, point):
            try:
                value, columns = _forward_mode(self.predict, point)
            except (NotImplementedError, RuntimeError):  # an operator without forward derivative: one backward pass per row
                value, columns = _reverse_mode(self.predict, point)
        return value.double().numpy(), columns.double().numpy()

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """(prediction - target) / sigma, (n,), and its derivative (n, p), whatever the loss."""
        prediction, derivative = self.jacobian(theta)
        weight = 1.0 if self.sigma is None else 1 / self.sigma.double().numpy()
        return (prediction - self.target.double().numpy()) * weight, (derivative.T * weight).T

    def linearize(self, theta: Floats) -> Linearization | None:
        """Write the loss near theta as a sum of squares; None where it has no such form."""
        prediction, derivative = self.jacobian(theta)
        value = torch.from_numpy(prediction)
        sigma = None if self.sigma is None else self.sigma.double()
        rows = gauss_newton_rows(self.loss_function, value, self.target.double(), sigma)
        if rows is None:
            return None
        weight = rows.weight.numpy()
        return Linearization(rows.residual.numpy(), weight[:, None] * derivative, prediction, weight, rows.bend.numpy())


def build(model: Model, parameters: Parameters, data: Dataset, loss: Loss, *, dtype: torch.dtype) -> EagerKernel:
    """Build the kernel of a model: find the way to call it, and check what it gives.

    Raises
    ------
    ModelError
        The model raises, gives a wrong shape or type, changes its data, or does not depend on a parameter.
    """
    kernel = EagerKernel(model.in_precision(dtype), parameters, loss, model.function, **_tensors(data, dtype))
    kernel = _way_to_call(kernel)
    if model.kind != "module":  # a network may well have units that are silent at the start
        _check_dependence(kernel)
    return kernel


def _tensors(data: Dataset, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "columns": {name: torch.as_tensor(column, dtype=dtype) for name, column in data.columns.items()},
        "target": torch.as_tensor(data.target, dtype=dtype),
        "sigma": None if data.sigma is None else torch.as_tensor(data.sigma, dtype=dtype),
    }


@contextmanager
def _naming(kernel: EagerKernel, theta: Tensor | Floats) -> Iterator[None]:
    """Say for which parameters a model raised."""
    try:
        yield
    except GradfitError:
        raise
    except Exception as error:
        free, numbers = kernel.parameters.free_elements, theta.tolist()
        where = ", ".join(f"{name} = {number:g}" for name, number in zip(free[:6], numbers, strict=False))
        raise ModelError(
            f"{kernel.model.label} raised {type(error).__name__} at {where}: {error}; return NaN where it has no value, or set bounds."
        ) from error


# --- the way to call a model -------------------------------------------------------------------------------------------

# What a function written for the next way of calling says when it is called in this one.
EXPECTED = ("Can't call numpy()", "Boolean value of Tensor", "truth value of an array", "can be converted to")


def _way_to_call(kernel: EagerKernel) -> EagerKernel:
    function, names = kernel.model.function, kernel.model.data_names
    if kernel.model.kind != "function":
        vectorised = replace(kernel, call=function, reason="formulas and modules are torch computations.")
        _trial(vectorised)
        return vectorised
    translated = on_tensors(function)
    row = "the model takes one row at a time; "
    ways = [
        replace(kernel, call=translated, reason="the model runs on tensors; derivatives by autograd."),
        replace(kernel, call=function, numeric=True, reason="derivatives by finite differences"),
        replace(kernel, call=_row_by_row(translated, names), reason=f"{row}derivatives by autograd."),
        replace(kernel, call=_number_by_number(function, names), numeric=True, reason=f"{row}derivatives by finite differences"),
    ]
    failures: list[_Unusable] = []
    for way in ways:
        try:
            _trial(way)
        except _Unusable as failure:
            failures.append(failure)
            continue
        why = f": {failures[-1] if 'row' in way.reason else failures[0]}." if failures and way.numeric else ""
        return replace(way, reason=way.reason + why)
    cause = next((failure for failure in failures if not failure.expected), failures[-1])
    raise ModelError(
        f"{kernel.model.label} cannot be evaluated at the start: {cause}{_advice(cause, kernel)}"
    ) from cause.__cause__


class _Unusable(Exception):
    """One way of calling the model does not work; the text says why."""

    @property
    def expected(self) -> bool:
        """Whether it only says that the function was written for another way."""
        return isinstance(self.__cause__, Untranslatable) or any(part in str(self) for part in EXPECTED)


def _advice(failure: _Unusable, kernel: EagerKernel) -> str:
    mixed = "Double" in str(failure) and "Float" in str(failure)
    if mixed and kernel.dtype == torch.float64:
        return ". The model holds float32 values and the fit is in float64; pass dtype='float32', or make them float64."
    return "."


def _trial(kernel: EagerKernel) -> None:
    """Call the model at the start and look at what comes back.

    Raises
    ------
    ModelError
        What no other way of calling could mend: a wrong shape, data changed in place, another result at each call.
    _Unusable
        What another way might mend.
    """
    start = torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype).requires_grad_()
    try:
        prediction = _unharmed(kernel, start)
    except ModelError:
        raise
    except Exception as error:
        if kernel.model.kind != "function":
            raise ModelError(f"{kernel.model.label} raised {type(error).__name__} at the start: {error}") from error
        detail = str(error) if isinstance(error, Untranslatable) else f"{type(error).__name__}: {error}"
        if "Can't call numpy()" in detail:
            detail = "a numpy function was given a tensor (Can't call numpy() on Tensor)"
        raise _Unusable(detail.rstrip(".")) from error
    if not isinstance(prediction, Tensor):
        raise _Unusable(f"the model gave {type(prediction).__name__} where a tensor of {kernel.n} predictions was expected")
    if prediction.shape != kernel.target.shape:
        raise ModelError(
            f"{kernel.model.label} gave shape {tuple(prediction.shape)} for {kernel.n} rows; expected ({kernel.n},), one value per row."
        )
    if prediction.is_complex() or not prediction.is_floating_point():
        raise ModelError(f"{kernel.model.label} gave values of type {prediction.dtype}; expected real floating-point numbers.")
    if kernel.model.kind == "function":
        _check_repeats(kernel, prediction)
        lost = () if kernel.numeric else _lost_gradients(kernel)
        if lost:
            raise _Unusable(
                f"the model turns {', '.join(lost)} into a plain number, which loses its gradient "
                "(no float(), int(), .item(), .detach(), torch.tensor() of a parameter)"
            )


def _unharmed(kernel: EagerKernel, theta: Tensor) -> Any:
    """Predict; put the data back and refuse the model if it changed them."""
    before = {name: column.clone() for name, column in kernel.columns.items()}
    try:
        return kernel.predict(theta)
    finally:
        changed = [name for name, column in kernel.columns.items() if not torch.equal(column, before[name])]
        for name in changed:
            kernel.columns[name].copy_(before[name])
        if changed:
            raise ModelError(f"{kernel.model.label} changes its input {changed[0]!r} in place; compute a new array instead.")


def _check_repeats(kernel: EagerKernel, first: Tensor) -> None:
    """Refuse a model that draws random numbers: no method could tell its noise from a descent."""
    with torch.no_grad():
        again = kernel.predict(torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype))
    if not torch.allclose(again, first.detach(), rtol=1e-5, atol=0, equal_nan=True):
        raise ModelError(
            f"{kernel.model.label} gives other values when called again with the same parameters; "
            "draw its random numbers once, outside, or keep no state between calls."
        )


# --- is the gradient whole? --------------------------------------------------------------------------------------------


def _lost_gradients(kernel: EagerKernel) -> list[str]:
    """Names of parameters whose derivative by autograd is not the derivative of the prediction.

    A random mixture of rows is differentiated by each parameter, by autograd and by finite differences, at points a little
    off the start (at the start itself derivatives may vanish, or have a kink).
    """
    wide = _in_double(kernel)
    generator = np.random.default_rng(0)
    off_start_first = _points_near(wide.parameters, generator, 3)[::-1]
    waiting = {name: _direction(wide.parameters, name, generator) for name in wide.parameters.free_names}
    lost = []
    for theta in off_start_first:
        for name in list(waiting):
            verdict = _agrees(wide, theta, waiting[name], np.random.default_rng(1))
            if verdict is not None:
                del waiting[name]
                lost += [] if verdict else [name]
    return lost


def _in_double(kernel: EagerKernel) -> EagerKernel:
    wide = kernel.in_precision(torch.float64)
    try:
        wide.predict(torch.from_numpy(wide.parameters.start))
    except Exception:  # noqa: BLE001 - a model with float32 weights of its own is checked in float32
        return kernel
    return wide


def _direction(parameters: Parameters, name: str, generator: np.random.Generator) -> Floats:
    """Give +1 or -1 for the elements of one parameter, 0 for the others."""
    mine = np.repeat(
        [other == name for other in parameters.free_names],
        [math.prod(parameters.shape(other)) for other in parameters.free_names],
    )
    return np.where(mine, generator.choice([-1.0, 1.0], len(mine)), 0.0)


def _agrees(kernel: EagerKernel, theta: Floats, signs: Floats, generator: np.random.Generator) -> bool | None:
    """Compare autograd with a finite difference that has converged; None where there is none, or nothing changes."""
    direction = signs * np.where(theta != 0, np.abs(theta), 1.0)
    # Few rows: among very many, some always sit within one step of a jump.
    rows = torch.zeros(kernel.n, dtype=kernel.dtype)
    rows[generator.permutation(kernel.n)[:CHECKED_ROWS]] = 1.0
    rows *= torch.from_numpy(generator.standard_normal(kernel.n))
    point = torch.as_tensor(theta, dtype=kernel.dtype).requires_grad_()
    projected = torch.dot(rows, kernel.predict(point).to(kernel.dtype))
    slope = 0.0
    if projected.requires_grad:
        (gradient,) = torch.autograd.grad(projected, point, allow_unused=True)
        slope = 0.0 if gradient is None else float(gradient.double() @ torch.from_numpy(direction))
    agreement = AGREEMENT if kernel.dtype == torch.float64 else 0.1
    difference = _converged(kernel, theta, direction, rows, agreement)
    if difference is None or not np.isfinite(slope):
        return None
    value, rounding = difference
    scale = max(abs(slope), abs(value))
    return None if agreement * scale <= rounding else bool(abs(slope - value) <= agreement * scale + rounding)


def _converged(
    kernel: EagerKernel, theta: Floats, direction: Floats, rows: Tensor, agreement: float
) -> tuple[float, float] | None:
    """Shrink the step until two central differences agree; give the second, and its error by rounding."""
    before = np.nan
    for shrink in SHRINKING:
        with torch.no_grad():
            ahead, behind = (
                kernel.predict(torch.as_tensor(theta + sign * shrink * direction * _step(kernel), dtype=kernel.dtype))
                for sign in (1.0, -1.0)
            )
        step = 2 * shrink * _step(kernel)
        unit = float(torch.finfo(ahead.dtype).eps) if ahead.is_floating_point() else 1.0
        difference = float(torch.dot(rows, (ahead - behind).to(kernel.dtype))) / step
        rounding = 10 * unit * float(torch.dot(rows.abs(), ahead.to(kernel.dtype).abs())) / step
        if abs(difference - before) <= agreement * max(abs(difference), abs(before)) + rounding:
            return difference, rounding
        before = difference
    return None


def _step(kernel: EagerKernel) -> float:
    return float(torch.finfo(kernel.dtype).eps ** (1 / 3))


def _points_near(parameters: Parameters, generator: np.random.Generator, count: int) -> list[Floats]:
    """Give the start and points a few percent off it, inside the bounds."""
    start = parameters.start
    if not len(start):
        return []
    shifts = [np.zeros(len(start)), *(generator.uniform(-0.05, 0.05, (count - 1, len(start))))]
    size = np.where(start != 0, np.abs(start), 1.0)
    return [np.clip(start + shift * size, parameters.lower, parameters.upper) for shift in shifts]


def _check_dependence(kernel: EagerKernel) -> None:
    """Refuse a parameter that moves no prediction, at the start or near it."""
    generator = np.random.default_rng(0)
    silent = np.ones(len(kernel.parameters.start), dtype=bool)
    for theta in _points_near(kernel.parameters, generator, TRIALS):
        derivative = kernel.jacobian(theta)[1]
        silent &= (derivative == 0).all(axis=0)
        if not silent.any():
            return
    names = [name for name, none in zip(kernel.parameters.free_elements, silent, strict=True) if none]
    if names:
        raise ModelError(
            f"{kernel.model.label} does not depend on {', '.join(names)} near the start: no prediction changes with it. "
            "Remove it from the model, fix it, or start where it matters."
        )


def _row_by_row(call: Call, names: tuple[str, ...]) -> Call:
    """Call a function of single numbers once per row."""

    def rows(**values: Tensor) -> Tensor:
        data = {name: values.pop(name) for name in names}
        if all(column.dim() == 0 for column in data.values()):
            return call(**data, **values)  # type: ignore[no-any-return]
        n, dtype = len(data[names[0]]), data[names[0]].dtype
        parts = [call(**{name: column[row] for name, column in data.items()}, **values) for row in range(n)]
        return torch.stack([torch.as_tensor(part, dtype=dtype) for part in parts])

    return rows


def _number_by_number(function: Call, names: tuple[str, ...]) -> Call:
    """Call a function of plain numbers once per row."""

    def rows(**values: Any) -> Any:
        data = [values.pop(name).tolist() for name in names]
        return np.asarray([function(**dict(zip(names, row, strict=True)), **values) for row in zip(*data, strict=True)])

    return rows


# --- derivatives -------------------------------------------------------------------------------------------------------


@functools.cache
def _prepare_forward_mode() -> None:
    """Let torch load its forward derivatives: it does so once, with remarks on itself that are not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            pass


def _forward_mode(predict: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """One forward derivative per parameter: exact, and free of vmap's demands on the model."""
    value = torch.empty(0)
    columns = []
    with FORWARD_MODE:
        _prepare_forward_mode()
        for direction in torch.eye(len(theta), dtype=theta.dtype):
            with forward_ad.dual_level():
                dual = predict(forward_ad.make_dual(theta, direction))  # type: ignore[no-untyped-call]
                value, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
            columns.append(torch.zeros_like(value) if tangent is None else tangent.detach())
    if not columns:
        return predict(theta).detach(), torch.empty((len(predict(theta)), 0), dtype=theta.dtype)
    return value.detach(), torch.stack(columns, dim=1)


def _reverse_mode(predict: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """One backward pass per row: slower, for operators that have no forward derivative."""
    point = theta.clone().requires_grad_()
    value = predict(point)
    rows = [torch.autograd.grad(row, point, retain_graph=True)[0] for row in value]
    return value.detach(), torch.stack(rows)


def _numeric_value(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor]) -> Floats:
    """Call a numpy model as it is."""
    values = kernel.parameters.namer(torch.float64)(torch.from_numpy(theta))
    arguments = {name: value.numpy() if value.dim() else float(value) for name, value in values.items()}
    data = {name: column.double().numpy() for name, column in columns.items()}
    n = len(next(iter(data.values())))
    given = kernel.call(**data, **arguments)
    if given is None:
        raise ModelError(f"{kernel.model.label} gave None; does it end with a return?")
    result = np.asarray(given)
    if result.shape != (n,):
        raise ModelError(f"{kernel.model.label} gave shape {result.shape} for {n} rows; expected ({n},), one value per row.")
    if result.dtype.kind not in "fiu":
        raise ModelError(f"{kernel.model.label} gave values of type {result.dtype}; expected real numbers.")
    return result.astype(np.float64)


def _differences(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor]) -> Floats:
    """Central finite differences, (n, p); error about 1e-10 of the prediction's own scale."""
    steps = RELATIVE_STEP * np.where(theta != 0, np.abs(theta), 1.0)
    lower, upper = kernel.parameters.lower, kernel.parameters.upper
    derivative = []
    for index, step in enumerate(steps):
        ahead, behind = theta.copy(), theta.copy()
        ahead[index] = min(theta[index] + step, upper[index])  # beyond a bound the model may have no value
        behind[index] = max(theta[index] - step, lower[index])
        gap = ahead[index] - behind[index]  # the step as the computer holds it
        derivative.append((_numeric_value(kernel, ahead, columns) - _numeric_value(kernel, behind, columns)) / gap)
    return np.stack(derivative, axis=1) if derivative else np.empty((kernel.n, 0))


class _Numeric(torch.autograd.Function):
    """A numpy model as a torch operation whose backward pass uses finite differences."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, kernel: EagerKernel, columns: dict[str, Tensor]) -> Tensor:
        ctx.theta, ctx.kernel, ctx.columns = theta.detach().double().numpy().copy(), kernel, columns
        return torch.as_tensor(_numeric_value(kernel, ctx.theta, columns), dtype=theta.dtype)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None, None]:
        derivative = torch.as_tensor(_differences(ctx.kernel, ctx.theta, ctx.columns), dtype=outward[0].dtype)
        return derivative.T @ outward[0], None, None


def _numeric_prediction(kernel: EagerKernel, theta: Tensor, columns: dict[str, Tensor]) -> Tensor:
    return _Numeric.apply(theta, kernel, columns)  # type: ignore[no-any-return,no-untyped-call]
