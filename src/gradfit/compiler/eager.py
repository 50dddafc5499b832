"""The torch engine: every quantity from plain torch. The general path, and the reference for any other.

How a model is called, and whether what it gives can be trusted, is settled beforehand in :mod:`gradfit.compiler.calling`.
"""

from __future__ import annotations

import functools
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

from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.errors import GradfitError, ModelError
from gradfit.model.loss import Loss, gauss_newton_rows
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

RELATIVE_STEP = np.finfo(np.float64).eps ** (1 / 3)  # central differences: balances rounding and truncation
SHARES = tuple(10.0**-power for power in range(8))  # of that step, until the differences of two agree
SETTLED = 1e-5  # relative: then the step need not shrink
FEW_ROWS = 8  # for each parameter: up to here a backward pass per row takes less time than a forward one per parameter
# torch counts the levels of forward mode for the whole process, not per thread: two at once clear each other's derivatives.
FORWARD_MODE = threading.RLock()
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
    engine = "torch"
    source = ""

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

    @property
    def eager(self) -> EagerKernel:
        """The same kernel on the torch engine: itself."""
        return self

    def on(self, data: Dataset) -> EagerKernel:
        """Give the same model on other rows, for instance the validation set."""
        return replace(self, **tensors(data, self.dtype))

    def in_precision(self, dtype: torch.dtype) -> EagerKernel:
        """Give the same kernel in another precision."""
        if dtype == self.dtype:
            return self
        model = self.model.in_precision(dtype)
        call = self.call if model is self.model else model.function
        columns = {name: column.to(dtype) for name, column in self.columns.items()}
        sigma = None if self.sigma is None else self.sigma.to(dtype)
        return replace(self, model=model, call=call, columns=columns, target=self.target.to(dtype), sigma=sigma)

    def in_double(self) -> EagerKernel:
        """Give the kernel in float64; itself where the model insists on its own precision (float32 weights it holds)."""
        wide = self.in_precision(torch.float64)
        try:
            wide.mean_loss(wide.parameters.start)
        except (RuntimeError, ModelError):
            return self
        return wide

    def predict(self, theta: Tensor, columns: dict[str, Tensor] | None = None) -> Tensor:
        """Prediction of each row, (n,); differentiable. The model gets copies of its columns: what it does to them lasts for one call."""
        inputs = self.columns if columns is None else columns
        if inputs is self.columns and self.model.kind == "function" and not self.numeric:
            inputs = {name: column.clone() for name, column in inputs.items()}
        if self.numeric:
            return _numeric_prediction(self, theta, inputs)
        return self.call(**inputs, **self._values(theta))  # type: ignore[no-any-return]

    @functools.cached_property
    def _shrunk(self) -> Floats:
        """Shares of the plain steps of finite differences, (p,), found at the start."""
        theta = self.parameters.start
        with np.errstate(all="ignore"):
            return np.array([_fitting_share(self, theta, index) for index in range(len(theta))])

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
            return self.loss_function.mean(self.predicted(theta, self.columns), self.target, self.sigma)
        columns = {name: column[rows] for name, column in self.columns.items()}
        sigma = None if self.sigma is None else self.sigma[rows]
        return self.loss_function.mean(self.predicted(theta, columns), self.target[rows], sigma)

    def predicted(self, theta: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """Predict; say for which parameters a model raised. Not by ``_naming``, which costs a tenth of a small model."""
        try:
            return self.predict(theta, columns)
        except GradfitError:
            raise
        except (Exception, SystemExit) as error:
            raise _named(self, theta, error) from error

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss as a number, evaluated without autograd."""
        with torch.no_grad():
            return float(self.loss(torch.as_tensor(theta, dtype=self.dtype)))

    def hessian_product(self, theta: Floats, vector: Floats) -> Floats:
        """Hessian of the mean loss times a vector, (p,), by differentiating twice."""
        return hessian_product(self.loss, theta, vector, self.dtype)

    def jacobian(self, theta: Floats, columns: dict[str, Tensor] | None = None) -> tuple[Floats, Floats]:
        """Prediction (n,) and its exact derivative by the free parameters (n, p), as float64 arrays; at other inputs on request."""
        inputs = self.columns if columns is None else columns
        if self.numeric:
            here = np.asarray(theta, dtype=np.float64)
            with _naming(self, here):
                return _numeric_value(self, here, inputs), _differences(self, here, inputs)
        point = torch.as_tensor(theta, dtype=self.dtype)
        predict = functools.partial(self.predict, columns=inputs)
        with _naming(self, point):
            if self.n <= FEW_ROWS * len(point):
                value, slopes = _reverse_mode(predict, point)
                if torch.isfinite(slopes).all():  # a row without a value may spoil others backwards, not forwards
                    return value.double().numpy(), slopes.double().numpy()
            try:
                value, slopes = _forward_mode(predict, point)
            except (NotImplementedError, RuntimeError):  # an operator without forward derivative: one backward pass per row
                value, slopes = _reverse_mode(predict, point)
        return value.double().numpy(), slopes.double().numpy()

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


def tensors(data: Dataset, dtype: torch.dtype) -> dict[str, Any]:
    """Columns, target and sigma of a data set, as the kernel holds them."""
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
    except (Exception, SystemExit) as error:
        raise _named(kernel, theta, error) from error


def _named(kernel: EagerKernel, theta: Tensor | Floats, error: BaseException) -> ModelError:
    free, numbers = kernel.parameters.free_elements, theta.tolist()
    where = ", ".join(f"{name} = {number:g}" for name, number in zip(free[:6], numbers, strict=False))
    return ModelError(
        f"{kernel.model.label} raised {type(error).__name__} at {where}: {error}; return NaN where it has no value, or set bounds."
    )


def hessian_product(loss: Callable[[Tensor], Tensor], theta: Floats, vector: Floats, dtype: torch.dtype) -> Floats:
    """Hessian of a differentiable loss times a vector, (p,), by differentiating twice."""
    point = torch.as_tensor(theta, dtype=dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point, create_graph=True)
    along = torch.as_tensor(vector, dtype=dtype)
    if not gradient.requires_grad:
        return np.zeros(len(along))
    return torch.autograd.grad(gradient @ along, point)[0].double().numpy()


# --- derivatives -------------------------------------------------------------------------------------------------------


@functools.cache
def _prepare_forward_mode() -> None:
    """Let torch load its forward derivatives: it does so once, with remarks on itself that are not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]


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
    """One backward pass per row: quicker for few rows, and for operators that have no forward derivative."""
    point = theta.clone().requires_grad_()
    value = predict(point)
    if not value.requires_grad:
        return value, torch.zeros((len(value), len(point)), dtype=theta.dtype)
    rows = [torch.autograd.grad(row, point, retain_graph=True)[0] for row in value]
    return value.detach(), torch.stack(rows)


def _numeric_value(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor]) -> Floats:
    """Call a numpy model as it is, on copies: neither the data nor the point may change under the fit."""
    values = kernel.parameters.namer(torch.float64)(torch.from_numpy(theta.copy()))
    arguments = {name: value.numpy().copy() if value.dim() else float(value) for name, value in values.items()}
    plain = {name: column.double().numpy() for name, column in columns.items()}
    data = {name: column.copy() for name, column in plain.items()}
    n = len(next(iter(data.values())))
    given = kernel.call(**data, **arguments)
    changed = [name for name in data if not np.array_equal(data[name], plain[name])]
    if changed:
        raise ModelError(f"{kernel.model.label} changes its input {changed[0]!r} in place; compute a new array instead.")
    if given is None:
        raise ModelError(f"{kernel.model.label} gave None; does it end with a return?")
    result = np.asarray(given)
    if result.dtype.kind == "O" and result.shape == ():
        raise ModelError(f"{kernel.model.label} gave {type(given).__name__}; expected an array of {n} numbers, one per row.")
    if result.shape != (n,):
        raise ModelError(f"{kernel.model.label} gave shape {result.shape} for {n} rows; expected ({n},), one value per row.")
    if result.dtype.kind not in "fiu":
        raise ModelError(f"{kernel.model.label} gave values of type {result.dtype}; expected real numbers.")
    return result.astype(np.float64)


def _differences(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor]) -> Floats:
    """Central finite differences, (n, p); error about 1e-10 of the prediction's own scale."""
    steps = kernel._shrunk * _plain_steps(theta)
    derivative = [_difference(kernel, theta, columns, index, step) for index, step in enumerate(steps)]
    return np.stack(derivative, axis=1) if derivative else np.empty((kernel.n, 0))


def _plain_steps(theta: Floats) -> Floats:
    return RELATIVE_STEP * np.where(theta != 0, np.abs(theta), 1.0)


def _difference(kernel: EagerKernel, theta: Floats, columns: dict[str, Tensor], index: int, step: float) -> Floats:
    """Central difference by one parameter, (n,)."""
    known = kernel.parameters
    difference = central_difference(
        lambda point: _numeric_value(kernel, point, columns), theta, index, step, known.lower[index], known.upper[index]
    )
    return np.full(kernel.n, np.nan) if difference is None else difference


def central_difference(
    value: Callable[[Floats], Floats], theta: Floats, index: int, step: float, lower: float, upper: float
) -> Floats | None:
    """Difference quotient by one parameter, (n,), within its bounds; None where the step is lost in rounding."""
    ahead, behind = theta.copy(), theta.copy()
    ahead[index] = min(theta[index] + step, upper)  # beyond a bound the model may have no value
    behind[index] = max(theta[index] - step, lower)
    gap = ahead[index] - behind[index]  # the step as the computer holds it
    return None if gap == 0 else np.asarray((value(ahead) - value(behind)) / gap)


def _fitting_share(kernel: EagerKernel, theta: Floats, index: int) -> float:
    """Share of the plain step at which differences by a parameter have settled; 1 where the plain one has.

    The place of a narrow peak far from the origin changes all within a small part of its own size.
    """
    plain = _plain_steps(theta)[index]
    before = _difference(kernel, theta, kernel.columns, index, plain)
    found, least = 1.0, np.inf
    for share in SHARES:
        after = _difference(kernel, theta, kernel.columns, index, share * plain / 10)
        size, error = float(np.max(np.abs(after))), float(np.max(np.abs(after - before)))
        if error < least * size:
            found, least = share, error / size
        if least <= SETTLED:
            break
        before = after
    return found


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
