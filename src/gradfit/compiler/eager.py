"""The torch engine: every quantity from plain torch. The general path, and the reference for any other.

A model is called in the first of these ways that works:

1. on tensors, all rows at once, numpy and math names translated (:mod:`gradfit.compiler.bridge`): exact derivatives;
2. on numpy arrays, all rows at once: central finite differences, as scipy does;
3. on tensors, one row at a time, for functions of single numbers (``if x > x0: ...``): exact derivatives.

A way works when it gives one finite-typed value per row and its derivative agrees with a finite difference: a model that
turns a parameter into a plain number (``float(w)``) would otherwise lose its gradient unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.compiler.bridge import Untranslatable, on_tensors
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model.loss import Loss, gauss_newton_rows
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

RELATIVE_STEP = np.finfo(np.float64).eps ** (1 / 3)  # central differences: balances rounding and truncation
AGREEMENT = 1e-3  # between a derivative and its finite difference; a lost gradient is off by the whole
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
        return self.call(**inputs, **self.parameters.namer(self.dtype)(theta))  # type: ignore[no-any-return]

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean loss, a scalar; differentiable."""
        if rows is None:
            return self.loss_function.mean(self.predict(theta), self.target, self.sigma)
        columns = {name: column[rows] for name, column in self.columns.items()}
        sigma = None if self.sigma is None else self.sigma[rows]
        return self.loss_function.mean(self.predict(theta, columns), self.target[rows], sigma)

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss as a number, evaluated without autograd."""
        with torch.no_grad():
            return float(self.loss(torch.as_tensor(theta, dtype=self.dtype)))

    def jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """Prediction (n,) and its exact derivative by the free parameters (n, p), as float64 arrays."""
        if self.numeric:
            here = np.asarray(theta, dtype=np.float64)
            return _numeric_value(self, here, self.columns), _differences(self, here, self.columns)
        point = torch.as_tensor(theta, dtype=self.dtype)
        try:
            value, columns = _forward_mode(self.predict, point)
        except (NotImplementedError, RuntimeError):  # an operator without forward derivative: reverse mode, twice
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
        residual, weight = (part.numpy() for part in rows)
        return Linearization(residual, weight[:, None] * derivative, prediction, weight)


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


# --- the way to call a model -------------------------------------------------------------------------------------------


def _way_to_call(kernel: EagerKernel) -> EagerKernel:
    function = kernel.model.function
    if kernel.model.kind != "function":
        vectorised = replace(kernel, call=function, reason="formulas and modules are torch computations.")
        _trial(vectorised)
        return vectorised
    translated = on_tensors(function)
    ways = [
        replace(kernel, call=translated, reason="the model runs on tensors; derivatives by autograd."),
        replace(kernel, call=function, numeric=True, reason="derivatives by finite differences"),
        replace(kernel, call=_row_by_row(translated), reason="the model takes one row at a time; derivatives by autograd."),
    ]
    failures: list[Exception] = []
    for way in ways:
        try:
            _trial(way)
        except _Unusable as failure:
            failures.append(failure)
            continue
        why = f": {failures[0]}." if failures and way.numeric else ""
        return replace(way, reason=way.reason + why)
    raise ModelError(f"{kernel.model.label} cannot be evaluated at the start: {failures[0]}") from failures[0].__cause__


class _Unusable(Exception):
    """One way of calling the model does not work; the text says why."""


def _trial(kernel: EagerKernel) -> None:
    """Call the model once at the start and look at what comes back.

    Raises
    ------
    ModelError
        What no other way of calling could mend: a wrong shape, data changed in place.
    _Unusable
        What another way might mend.
    """
    before = {name: column.clone() for name, column in kernel.columns.items()}
    start = torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype).requires_grad_()
    try:
        prediction = kernel.predict(start)
    except ModelError:
        raise
    except Exception as error:
        if kernel.model.kind != "function":
            raise ModelError(f"{kernel.model.label} raised {type(error).__name__} at the start: {error}") from error
        detail = str(error) if isinstance(error, Untranslatable) else f"{type(error).__name__}: {error}"
        raise _Unusable(detail.rstrip(".")) from error
    if any(not torch.equal(column, before[name]) for name, column in kernel.columns.items()):
        changed = next(name for name, column in kernel.columns.items() if not torch.equal(column, before[name]))
        raise ModelError(f"{kernel.model.label} changes its input {changed!r} in place; compute a new array instead.")
    if not isinstance(prediction, Tensor):
        raise _Unusable(f"the model gave {type(prediction).__name__} where a tensor of {kernel.n} predictions was expected")
    if prediction.shape != kernel.target.shape:
        raise ModelError(
            f"{kernel.model.label} gave shape {tuple(prediction.shape)} for {kernel.n} rows; expected ({kernel.n},), one value per row."
        )
    if prediction.is_complex() or not prediction.is_floating_point():
        raise ModelError(f"{kernel.model.label} gave values of type {prediction.dtype}; expected real floating-point numbers.")
    if kernel.model.kind == "function" and not kernel.numeric and not _gradient_holds(kernel):
        raise _Unusable("the model turns a parameter into a plain number, which loses its gradient")


def _gradient_holds(kernel: EagerKernel) -> bool:
    """Compare autograd with finite differences, along random directions and at up to two points."""
    generator = np.random.default_rng(0)
    wide = kernel.in_precision(torch.float64)
    points = _points_near(wide.parameters, generator, 2)
    return not points or any(_agrees(wide, theta, generator) for theta in points)


def _agrees(kernel: EagerKernel, theta: Floats, generator: np.random.Generator) -> bool:
    rows = torch.from_numpy(generator.standard_normal(kernel.n))
    direction = (
        generator.choice([-1.0, 1.0], len(theta)) * np.maximum(np.abs(theta), 1e-3) * generator.uniform(0.5, 1, len(theta))
    )
    point = torch.from_numpy(theta).requires_grad_()
    projected = torch.dot(rows, kernel.predict(point).double())
    slope = 0.0
    if projected.requires_grad:
        (gradient,) = torch.autograd.grad(projected, point, allow_unused=True)
        slope = 0.0 if gradient is None else float(gradient @ torch.from_numpy(direction))
    with torch.no_grad():
        ahead, behind = (
            kernel.predict(torch.from_numpy(theta + sign * RELATIVE_STEP * direction)).double() for sign in (1.0, -1.0)
        )
    difference = float(torch.dot(rows, ahead - behind)) / (2 * RELATIVE_STEP)
    rounding = 1e-16 * float(torch.dot(rows.abs(), ahead.abs())) / RELATIVE_STEP
    if not np.isfinite([slope, difference]).all():
        return True  # nothing to compare; the loop reports a start that is not finite
    return bool(abs(slope - difference) <= AGREEMENT * max(abs(slope), abs(difference)) + 10 * rounding)


def _points_near(parameters: Parameters, generator: np.random.Generator, count: int) -> list[Floats]:
    """Give the start and points a few percent off it, inside the bounds."""
    start = parameters.start
    if not len(start):
        return []
    shifts = [np.zeros(len(start)), *(generator.uniform(-0.05, 0.05, (count - 1, len(start))))]
    return [np.clip(start + shift * np.maximum(np.abs(start), 1.0), parameters.lower, parameters.upper) for shift in shifts]


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


def _row_by_row(call: Call) -> Call:
    """Call a function of single numbers once per row."""

    def rows(**values: Tensor) -> Tensor:
        n = max(len(value) for value in values.values() if value.dim())
        data = {name: value for name, value in values.items() if value.dim() and len(value) == n}
        rest = {name: value for name, value in values.items() if name not in data}
        parts = [call(**{name: column[row] for name, column in data.items()}, **rest) for row in range(n)]
        return torch.stack([torch.as_tensor(part, dtype=next(iter(data.values())).dtype) for part in parts])

    return rows


# --- derivatives -------------------------------------------------------------------------------------------------------


def _forward_mode(predict: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """One forward derivative per parameter: exact, and free of vmap's demands on the model."""
    value = torch.empty(0)
    columns = []
    for direction in torch.eye(len(theta), dtype=theta.dtype):
        value, tangent = torch.func.jvp(predict, (theta,), (direction,))  # type: ignore[misc]
        columns.append(tangent.detach())
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
    result = np.asarray(kernel.call(**data, **arguments))
    if result.shape != (n,):
        raise ModelError(f"{kernel.model.label} gave shape {result.shape} for {n} rows; expected ({n},), one value per row.")
    if result.dtype.kind not in "fiu":
        raise ModelError(f"{kernel.model.label} gave values of type {result.dtype}; expected real numbers.")
    return result.astype(np.float64)


def _differences(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor]) -> Floats:
    """Central finite differences, (n, p); error about 1e-10 of the prediction's own scale."""
    steps = RELATIVE_STEP * np.where(theta != 0, np.abs(theta), 1.0)
    derivative = []
    for index, step in enumerate(steps):
        ahead, behind = theta.copy(), theta.copy()
        ahead[index] += step
        behind[index] -= step
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
