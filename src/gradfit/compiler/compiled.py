"""The native engine: the quantities of a :class:`~gradfit.compiler.kernel.Kernel` from compiled code.

``compile_kernel`` takes a kernel of the torch engine, traces its model, compiles it, and tries it against torch on some of the
rows. What it gives knows the same things and computes them faster; where something is asked for that was not compiled (the
prediction as a differentiable tensor), it asks the torch engine.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg.blas import ddot
from torch import Tensor

from gradfit.compiler import descent_code, model_code, native
from gradfit.compiler.eager import EagerKernel, tensors
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.kernel import Linearization
from gradfit.compiler.row_trace import check_rows, hessian_row, loss_row, prediction_row
from gradfit.compiler.rows import RowSource
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model.loss import Loss, gauss_newton_rows
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

TRIED_ROWS = 64
NOTHING = np.empty(0)
AGREEMENT = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
}  # of compiled and eager values, relative to the largest: orders of rounding differ
NUMPY = {"double": np.float64, "single": np.float32}


@dataclass(frozen=True)
class ModelCode:
    """Compiled code of a model and a loss, for any data.

    Attributes
    ----------
    prediction, loss
        Sources of one row, of the prediction in double precision and of the loss in the fit's; the latter None for a loss that
        is compiled from the former.
    """

    prediction: RowSource
    loss: RowSource

    @functools.cached_property
    def objects(self) -> dict[bool, bytes]:
        """Object files of the model's functions, with and without weights, as they are asked for."""
        return {}

    def model_object(self, weighted: bool) -> bytes:
        """Object file of the model's functions."""
        if weighted not in self.objects:
            self.objects[weighted] = model_code.model_object(self.prediction, weighted=weighted)
        return self.objects[weighted]

    @functools.cached_property
    def variants(self) -> dict[tuple[str, ...], Any]:
        """The same model compiled for errors in some inputs, as they are asked for; see :mod:`gradfit.compiler.orthogonal`."""
        return {}

    @functools.cached_property
    def _linked(self) -> dict[tuple[str, bool], native.Function]:
        return {}

    def linked(self, name: str, *, weighted: bool, algorithm: Callable[[], bytes]) -> native.Function:
        """Link an algorithm that asks the model for its numbers (:mod:`gradfit.methods.solving`) with it, once; give its function."""
        if (name, weighted) not in self._linked:
            with native.COMPILING:  # of two threads one links: what the other would replace is freed, and may be running
                if (name, weighted) not in self._linked:
                    library = native.load([algorithm(), self.model_object(weighted)], [name])
                    self._linked[name, weighted] = native.Function(library, name, ctypes.c_int64, 1)
        return self._linked[name, weighted]

    @functools.cached_property
    def _functions(self) -> dict[tuple[str, bool], native.Function]:
        return {}

    def function(self, name: str, *, weighted: bool) -> Any:
        """Find one of the model's functions, or ``gf_loss``."""
        if (name, weighted) not in self._functions:
            if name == "gf_loss":
                library = native.load([descent_code.loss_object(self.loss)], [name])
                self._functions[name, weighted] = native.Function(library, name, ctypes.c_double, 3)
            else:
                library = native.load([self.model_object(weighted)], model_code.NAMES)
                counts = {"gf_linearize": 4, "gf_residual": 3, "gf_sum_of_squares": 2, "gf_predict": 4}
                for own, count in counts.items():
                    self._functions[own, weighted] = native.Function(library, own, ctypes.c_double, count)
        return self._functions[name, weighted].call


@dataclass(frozen=True, slots=True)
class Context:
    """Data as compiled code sees them: arrays, and the table that says where they are."""

    n: int
    arrays: tuple[np.ndarray, ...] = field(repr=False)
    words: np.ndarray = field(repr=False)
    address: int

    @classmethod
    def of(cls, data: Dataset, extra: Sequence[Floats], fixed: Floats, dtype: str) -> Context:
        """Describe the rows of a data set, the columns that come after the target, and the fixed numbers.

        Arrays are copied only where compiled code wants them otherwise.
        """
        kind = NUMPY[dtype]
        assert all(column.ndim == 1 for column in data.columns.values()), "compiled code reads one number per row"
        if data.block is not None and not extra and dtype == "double":
            begin, step = address_of(data.block), 8 * data.n
            arrays: tuple[np.ndarray, ...] = (data.block,)
            places = [begin + step * row for row in range(len(data.block))]
        else:
            columns = (*data.columns.values(), data.target, *extra)
            arrays = tuple(np.ascontiguousarray(column, dtype=kind) for column in columns)
            places = [address_of(array) for array in arrays]
        if len(fixed):
            arrays = (fixed := fixed.astype(kind), *arrays)
        words = np.array([data.n, address_of(fixed) if len(fixed) else 0, *places], dtype=np.int64)
        return cls(data.n, arrays, words, address_of(words))


@dataclass(frozen=True)
class Tables:
    """Many data sets for compiled code.

    Attributes
    ----------
    columns
        What the context of each holds after the fixed numbers, (n,) for all or (count, n).
    offsets
        Target / sigma, (count, n).
    linear
        Whether they differ by their offsets alone, so that residuals differ by just that.
    """

    columns: list[Floats]
    offsets: Floats
    linear: bool

    def some(self, places: np.ndarray) -> Tables:
        """Give some of the data sets."""
        assert self.linear, "other offsets are written by the compiled code, where it was told to"
        columns = [column[places] if column.ndim == 2 else column for column in self.columns]
        return Tables(columns, self.offsets[places], self.linear)


def address_of(array: np.ndarray) -> int:
    """Where an array's numbers begin."""
    try:
        return ctypes.addressof(FIRST_BYTE(array))  # type: ignore[arg-type]  # three times faster than asking the array
    except (TypeError, ValueError):  # read-only, empty or not in one piece
        return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


FIRST_BYTE = ctypes.c_char.from_buffer


@dataclass(frozen=True)
class NativeKernel:
    """A model on its data, compiled.

    Attributes
    ----------
    base
        The kernel of the torch engine; its own data do not matter.
    data
        Rows.
    parameters
        Their start and their fixed values are those of this fit.
    code
        What was compiled.
    """

    base: EagerKernel
    data: Dataset
    parameters: Parameters
    code: ModelCode = field(repr=False)

    # --- what the torch engine knows ------------------------------------------------------------------------------------

    @functools.cached_property
    def eager(self) -> EagerKernel:
        """The same kernel on the torch engine."""
        return replace(self.base, parameters=self.parameters, **tensors(self.data, self.base.dtype))

    @property
    def model(self) -> Model:
        """The model."""
        return self.base.model

    @property
    def loss_function(self) -> Loss:
        """The loss."""
        return self.base.loss_function

    @property
    def numeric(self) -> bool:
        """Never: derivatives are exact."""
        return False

    engine = "native"

    @property
    def reason(self) -> str:
        """Why this engine."""
        return "the model is compiled; its derivatives are those of torch's autograd."

    @property
    def source(self) -> str:
        """The compiled function of one row."""
        return self.code.prediction.text if self.loss_kind == "least_squares" else self.code.loss.text

    @property
    def n(self) -> int:
        """Rows."""
        return self.data.n

    @property
    def loss_kind(self) -> str:
        """Which statistics the loss allows."""
        return self.base.loss_function.kind

    @property
    def offset(self) -> Floats:
        """Target over sigma, (n,)."""
        return self.data.target if self.data.sigma is None else self.data.target / self.data.sigma

    @property
    def signal(self) -> float:
        """Mean square of target / sigma."""
        return float(ddot(self.offset, self.offset)) / self.n  # infinite where it overflows, without a word

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the fit."""
        return self.base.dtype

    def predict(self, theta: Tensor, columns: dict[str, Tensor] | None = None) -> Tensor:
        """Prediction of each row, (n,); differentiable, by torch."""
        return self.eager.predict(theta, columns)

    def on(self, data: Dataset) -> NativeKernel:
        """Give the same model on other rows."""
        return NativeKernel(self.base, data, self.parameters, self.code)

    def in_double(self) -> NativeKernel:
        """Give the kernel in double precision."""
        if self.dtype == torch.float64:
            return self
        return compile_kernel(self.eager.in_precision(torch.float64), self.data, checked=False)

    # --- data for compiled code -----------------------------------------------------------------------------------------

    @property
    def _fixed(self) -> Floats:
        specs = self.parameters.specs.values()
        parts = [np.ravel(spec.start) for spec in specs if spec.fixed and spec.tied is None]
        return np.concatenate(parts) if parts else NOTHING

    @functools.cached_property
    def context(self) -> Context:
        """Data in double precision with weights, for the model's functions."""
        weights = () if self.data.sigma is None else (1 / self.data.sigma,)
        return Context.of(self.data, weights, self._fixed, "double")

    def context_for(self, offset: Floats) -> Context:
        """Fill ``offset``, (n,), with target / sigma, and give the context of a solver that has it."""
        offset[:] = self.offset
        return self.context

    def tables(self, target: Floats, index: np.ndarray | None, columns: Mapping[str, Floats]) -> Tables:
        """Lay out resampled rows.

        Parameters
        ----------
        target
            (count, n), of each data set.
        index
            (count, n), which rows these are; None: all, in order.
        columns
            Inputs that were drawn too, (count, n) each.
        """

        def rows(column: Floats) -> Floats:
            return column if index is None else column[index]

        own = [columns.get(name, rows(column)) for name, column in self.data.columns.items()]
        if self.data.sigma is None:
            return Tables([*own, target], target, linear=not columns)
        weight = rows(1 / self.data.sigma)
        return Tables([*own, target, weight], target * weight, linear=not columns)

    @functools.cached_property
    def loss_context(self) -> Context:
        """Data in the fit's precision with sigma, for the loss."""
        if self.data.sigma is None and self.code.loss.dtype == "double":
            return self.context
        sigma = () if self.data.sigma is None else (self.data.sigma,)
        return Context.of(self.data, sigma, self._fixed, self.code.loss.dtype)

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""
        return self.data.sigma is not None

    def _theta(self, theta: Any, kind: Any = np.float64) -> np.ndarray:
        return np.ascontiguousarray(theta, dtype=kind)

    # --- quantities -----------------------------------------------------------------------------------------------------

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean loss over all rows, or over some; differentiable."""
        if rows is not None:
            return self.eager.loss(theta, rows)
        return _CompiledLoss.apply(theta, self)  # type: ignore[no-any-return,no-untyped-call]

    def loss_and_gradient(self, theta: Any) -> tuple[float, Floats]:
        """Mean loss, and its gradient by the free numbers, (p,)."""
        point = self._theta(theta, NUMPY[self.code.loss.dtype])
        gradient = np.empty(len(point))
        function = self.code.function("gf_loss", weighted=self.weighted)
        loss = function(address_of(point), self.loss_context.address, address_of(gradient))
        return loss, gradient

    def hessian_product(self, theta: Floats, vector: Floats) -> Floats:
        """Hessian of the mean loss times a vector, (p,)."""
        source, function = self._hessian
        point = self._theta(np.concatenate([theta, vector]), NUMPY[source.dtype])
        product = np.empty(len(self.parameters.start))
        function.call(address_of(point), self.loss_context.address, address_of(product))
        return product

    @functools.cached_property
    def _hessian(self) -> tuple[RowSource, native.Function]:
        source = hessian_row(self.eager)
        library = native.load([descent_code.loss_object(source)], ["gf_loss"])
        return source, native.Function(library, "gf_loss", ctypes.c_double, 3)

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss as a number."""
        if self.loss_kind == "least_squares" and self.dtype == torch.float64:
            point = self._theta(theta)
            function = self.code.function("gf_sum_of_squares", weighted=self.weighted)
            return function(address_of(point), self.context.address) / self.n  # type: ignore[no-any-return]
        return self.loss_and_gradient(theta)[0]

    def jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """Prediction (n,) and its exact derivative by the free parameters (n, p)."""
        return self._rows("gf_predict", theta)

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """(prediction - target) / sigma, (n,), and its derivative (n, p), whatever the loss."""
        return self._rows("gf_linearize", theta)

    def _rows(self, name: str, theta: Floats) -> tuple[Floats, Floats]:
        point = self._theta(theta)
        value, derivative = np.empty(self.n), np.empty((len(point), self.n))
        function = self.code.function(name, weighted=self.weighted)
        function(address_of(point), self.context.address, address_of(value), address_of(derivative))
        return value, derivative.T

    def linearize(self, theta: Floats) -> Linearization | None:
        """Write the loss near theta as a sum of squares; None where it has no such form."""
        if self.loss_kind == "least_squares":
            residual, jacobian = self.residual(theta)
            weight = np.ones(self.n) if self.data.sigma is None else 1 / self.data.sigma
            return Linearization(residual, jacobian, residual / weight + self.data.target, weight, np.ones(self.n))
        prediction, derivative = self.jacobian(theta)
        sigma = None if self.eager.sigma is None else self.eager.sigma.double()
        rows = gauss_newton_rows(self.loss_function, torch.from_numpy(prediction), self.eager.target.double(), sigma)
        if rows is None:
            return None
        weight = rows.weight.numpy()
        return Linearization(rows.residual.numpy(), weight[:, None] * derivative, prediction, weight, rows.bend.numpy())


class _CompiledLoss(torch.autograd.Function):
    """The mean loss as a torch operation, computed with its gradient by compiled code."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, kernel: NativeKernel) -> Tensor:
        loss, gradient = kernel.loss_and_gradient(theta.detach().numpy())
        ctx.gradient = torch.from_numpy(gradient).to(theta.dtype)
        return torch.tensor(loss, dtype=theta.dtype)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient * outward[0], None


def compile_kernel(kernel: EagerKernel, data: Dataset, *, checked: bool = True) -> NativeKernel:
    """Compile a kernel of the torch engine.

    Raises
    ------
    Untraceable
        It is no graph of single numbers, or its graph does not give what the model gives; the text says why.
    """
    if kernel.model.kind == "module":
        raise Untraceable("it is a torch module, which computes with matrices")
    if kernel.numeric:
        raise Untraceable(kernel.reason.rstrip("."))
    if "one row at a time" in kernel.reason:
        raise Untraceable("it may do something else for each row")
    check_rows(kernel)
    compiled = NativeKernel(kernel, data, kernel.parameters, ModelCode(prediction_row(kernel), loss_row(kernel)))
    if checked:
        _compare(compiled)
    return compiled


def _compare(kernel: NativeKernel) -> None:
    """Compare compiled and eager values on some rows, at the start and a little off it."""
    start = kernel.parameters.start
    rows = np.linspace(0, kernel.n - 1, min(kernel.n, TRIED_ROWS)).astype(np.int64)
    few = kernel.on(kernel.data.rows(rows))
    for point in (start, np.clip(start * 1.01 + 1e-3, kernel.parameters.lower, kernel.parameters.upper)):
        theta = torch.as_tensor(point, dtype=kernel.dtype)
        with torch.no_grad():
            try:
                theirs, loss = few.eager.predict(theta).double().numpy(), float(few.eager.loss(theta))
            except (ModelError, RuntimeError):
                continue
        ours = few.jacobian(point)[0]
        rtol = AGREEMENT[kernel.dtype]
        if not _alike(ours, theirs, rtol):
            raise Untraceable("it gives other values for all rows at once than for each row by itself")
        # Where the model goes through every point, the loss is what rounding leaves of the residuals.
        rounding = (rtol * float(np.abs(theirs).max(initial=0.0))) ** 2
        own = few.loss_and_gradient(point)[0]
        if not (abs(own - loss) <= rounding or _alike(np.array([own]), np.array([loss]), rtol)):
            raise Untraceable(f"its loss {kernel.loss_function.name} is no mean over rows")


def _alike(ours: Floats, theirs: Floats, rtol: float) -> bool:
    finite = theirs[np.isfinite(theirs)]
    size = float(np.abs(finite).max(initial=0.0))
    return np.allclose(ours, theirs, rtol=rtol, atol=rtol * size, equal_nan=True)
