"""Errors in x: a model on rows whose inputs are measured too, as the kernel of an ordinary least-squares fit.

The residual of a row is its distance from the nearest point of the model (:mod:`gradfit.compiler.nearest`), a function of the
parameters with an exact derivative. So everything that fits, judges and draws intervals from sums of squares serves here too, and
nothing of it knows of errors in x. The model is compiled where it can be; otherwise torch or numpy compute the same numbers.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.compiler import native, nearest
from gradfit.compiler.compiled import Context, ModelCode, NativeKernel, Tables, address_of
from gradfit.compiler.eager import RELATIVE_STEP, EagerKernel, _numeric_value
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.kernel import Linearization
from gradfit.compiler.nearest import Look
from gradfit.compiler.orthogonal_code import COUNTS, OrthogonalRow, model_object
from gradfit.compiler.row_trace import curved_row
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

ARRAYS = SimpleNamespace(
    where=np.where, abs=np.abs, sqrt=np.sqrt, maximum=np.maximum,
    rarely=lambda condition, usual, exceptional: np.where(condition, exceptional(), usual),
)  # fmt: skip
LEAST_STEP, LARGEST_STEP = 1e-4, 1e-2  # of finite differences by x, in deviations of x
TRIED_ROWS = 64
ALIKE = 1e-9  # predictions of some rows, and the same among all, relative to the largest


@dataclass(frozen=True)
class Nearest:
    """The points of the model nearest to the rows.

    Attributes
    ----------
    errors
        d, by input, (n,).
    prediction, weight
        f(x + d), and 1 / sqrt(σ² + a.a), which makes distances of residuals, (n,).
    """

    errors: Mapping[str, Floats]
    prediction: Floats
    weight: Floats


def sigma_of(data: Dataset) -> Floats:
    """Deviation of the target, (n,): 1 where none was given."""
    return np.ones(data.n) if data.sigma is None else data.sigma


class _Distances:
    """What follows from the distances and their derivative alone, for either engine."""

    data: Dataset

    def linearize(self, theta: Floats) -> Linearization:
        """Distances and their derivative; the prediction is that of the nearest points, the weight 1 / sqrt(σ² + a.a)."""
        raise NotImplementedError

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """Distances, (n,), and their derivative (n, p)."""
        near = self.linearize(theta)
        return near.residual, near.jacobian

    def rooted(self, errors: Mapping[str, Floats]) -> Any:
        """Give the same kernel with a search that begins at given errors in x, (n,) by name, instead of 0."""
        deviations = self.data.sigma_x or {}
        with np.errstate(divide="ignore", invalid="ignore"):
            origin = {name: np.where(deviations[name] > 0, own / deviations[name], 0.0) for name, own in errors.items()}
        return replace(self, origin=origin)  # type: ignore[type-var]  # both are dataclasses

    def _gradient(self, theta: Floats) -> Floats:
        return self.linearize(theta).gradient

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean square of the distances, a scalar; differentiable once."""
        assert rows is None, "errors in x are fitted by Levenberg-Marquardt, to all rows"
        return _MeanSquare.apply(theta, self)  # type: ignore[no-any-return,no-untyped-call]

    def hessian_product(self, theta: Floats, vector: Floats) -> Floats:
        """Hessian of the mean loss times a vector, (p,), by differences of the exact gradient."""
        size = float(np.abs(vector).max()) or 1.0
        step = RELATIVE_STEP * max(float(np.abs(theta).max()), 1.0) / size
        return (self._gradient(theta + step * vector) - self._gradient(theta - step * vector)) / (2 * step)


class _MeanSquare(torch.autograd.Function):
    """The mean square as a torch operation."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, kernel: _Distances) -> Tensor:
        near = kernel.linearize(theta.detach().double().numpy())
        ctx.gradient = torch.from_numpy(near.gradient).to(theta.dtype)
        return torch.tensor(float(near.residual @ near.residual) / len(near.residual), dtype=theta.dtype)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient * outward[0], None


# --- compiled ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrthogonalCode(ModelCode):
    """Compiled code of a model with errors in some inputs.

    Attributes
    ----------
    plain
        That of the same model without.
    row
        What was compiled.
    """

    plain: ModelCode
    row: OrthogonalRow

    def model_object(self, weighted: bool) -> bytes:
        """Object file of the model's functions; every row has a sigma."""
        if weighted not in self.objects:
            self.objects[weighted] = model_object(self.row)
        return self.objects[weighted]

    def function(self, name: str, *, weighted: bool) -> Any:
        """Find one of the model's functions."""
        if not self._functions:
            library = native.load([self.model_object(weighted)], tuple(COUNTS))
            for own, count in COUNTS.items():
                self._functions[own, weighted] = native.Function(library, own, ctypes.c_double, count)
        return self._functions[name, weighted].call


def orthogonal_code(base: EagerKernel, code: ModelCode, inexact: tuple[str, ...]) -> OrthogonalCode:
    """Compile a model that is compiled already for errors in some inputs, once.

    Raises
    ------
    Untraceable
        Its second derivatives are no graph of single numbers.
    """
    if inexact not in code.variants:
        row = OrthogonalRow(curved_row(base, inexact), tuple(map(list(base.columns).index, inexact)))
        code.variants[inexact] = OrthogonalCode(code.prediction, code.loss, code, row)
    return code.variants[inexact]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NativeOrthogonalKernel(_Distances, NativeKernel):
    """A compiled model on rows with errors in x.

    Attributes
    ----------
    origin
        Where the search for the nearest points begins, in deviations of x, by name; None: at 0.
    """

    code: OrthogonalCode = field(repr=False)
    origin: Mapping[str, Floats] | None = field(default=None, repr=False)
    weighted = True

    @property
    def source(self) -> str:
        """The compiled function of one row."""
        return self.code.row.source.text

    @property
    def inexact(self) -> tuple[str, ...]:
        """Inputs with errors, in the order of the compiled code."""
        names = tuple(self.data.columns)
        return tuple(names[place] for place in self.code.row.inexact)

    @property
    def eager(self) -> EagerKernel:
        """The model on the torch engine, for predictions."""
        return self._plain.eager

    @functools.cached_property
    def _plain(self) -> NativeKernel:
        return NativeKernel(self.base, self.data.independent(), self.parameters, self.code.plain)

    @property
    def signal(self) -> float:
        """Mean square of the prediction in units of the distances, at the start."""
        near = self.linearize(self.parameters.start)
        return float(np.mean((near.prediction * near.weight) ** 2))

    def on(self, data: Dataset) -> NativeKernel:
        """Give the same model on other rows."""
        if data.sigma_x is None:
            return NativeKernel(self.base, data, self.parameters, self.code.plain)
        return NativeOrthogonalKernel(self.base, data, self.parameters, self.code)

    def in_double(self) -> NativeOrthogonalKernel:
        """Give the kernel in double precision, which it has."""
        return self

    @functools.cached_property
    def context(self) -> Context:
        """Data for the compiled functions, with room for what they write."""
        return Context.of(self.data, (*self._deviations, *self._origins, np.empty(self.n)), self._fixed, "double")

    @property
    def _deviations(self) -> tuple[Floats, ...]:
        assert self.data.sigma_x is not None
        return (sigma_of(self.data), *(self.data.sigma_x[name] for name in self.inexact))

    @property
    def _origins(self) -> tuple[Floats, ...]:
        if self.origin is None:
            return (np.zeros(self.n),) * len(self.inexact)
        return tuple(self.origin[name] for name in self.inexact)

    def context_for(self, offset: Floats) -> Context:
        """Give a context that fills ``offset`` whenever it linearizes."""
        words = self.context.words.copy()
        words[-1] = address_of(offset)
        return replace(self.context, words=words, address=address_of(words))

    def tables(self, target: Floats, index: np.ndarray | None, columns: Mapping[str, Floats]) -> Tables:
        """Lay out resampled rows."""

        def rows(column: Floats) -> Floats:
            return column if index is None else column[index]

        offsets = np.empty(target.shape)
        own = [columns.get(name, rows(column)) for name, column in self.data.columns.items()]
        return Tables([*own, target, *map(rows, (*self._deviations, *self._origins)), offsets], offsets, linear=False)

    def mean_loss(self, theta: Floats) -> float:
        """Mean square of the distances."""
        point = self._theta(theta)
        function = self.code.function("gf_sum_of_squares", weighted=True)
        return function(address_of(point), self.context.address) / self.n  # type: ignore[no-any-return]

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """Distances, (n,), and their derivative (n, p)."""
        return self._rows("gf_linearize", theta)

    def linearize(self, theta: Floats) -> Linearization:
        """Distances and their derivative."""
        residual, jacobian = self.residual(theta)
        found = self.nearest(theta)
        return Linearization(residual, jacobian, found.prediction, found.weight, np.ones(self.n))

    def nearest(self, theta: Floats) -> Nearest:
        """Give the nearest points."""
        point, errors = self._theta(theta), np.empty((len(self.inexact), self.n))
        prediction, weight = np.empty(self.n), np.empty(self.n)
        function = self.code.function("gf_nearest", weighted=True)
        function(*map(address_of, (point, self.context.words, errors, prediction, weight)))
        return Nearest(dict(zip(self.inexact, errors, strict=True)), prediction, weight)


# --- torch and numpy --------------------------------------------------------------------------------------------------


class _Cells(dict[str, Any]):
    """The cells of :mod:`gradfit.compiler.nearest`, as arrays."""

    def update(self, rows: np.ndarray, **changes: Any) -> None:  # type: ignore[override]  # the protocol's
        """Change cells in some rows."""
        for name, value in changes.items():
            self[name] = np.where(rows, value, self[name])


@dataclass(frozen=True)
class EagerOrthogonalKernel(_Distances, EagerKernel):
    """A model on rows with errors in x, on the torch engine.

    Attributes
    ----------
    data
        The rows.
    origin
        Where the search for the nearest points begins, in deviations of x, by name; None: at 0.
    """

    data: Dataset = field(repr=False, kw_only=True)
    origin: Mapping[str, Floats] | None = field(default=None, repr=False, kw_only=True)

    @property
    def inexact(self) -> tuple[str, ...]:
        """Inputs with errors."""
        assert self.data.sigma_x is not None
        return tuple(name for name in self.columns if name in self.data.sigma_x)

    @property
    def plain(self) -> EagerKernel:
        """The same model, as if x were exact."""
        return EagerKernel(**{own.name: getattr(self, own.name) for own in fields(EagerKernel)})

    def on(self, data: Dataset) -> EagerKernel:
        """Give the same model on other rows."""
        return orthogonal_on(self.plain, data) if data.sigma_x is not None else self.plain.on(data)

    def in_double(self) -> EagerOrthogonalKernel:
        """Give the kernel in double precision, which it has."""
        return self

    @property
    def signal(self) -> float:
        """Mean square of the prediction in units of the distances, at the start."""
        near = self.linearize(self.parameters.start)
        return float(np.mean((near.prediction * near.weight) ** 2))

    def mean_loss(self, theta: Floats) -> float:
        """Mean square of the distances."""
        _, distance, _, _ = self._found(theta)
        return float(distance @ distance) / self.n

    def linearize(self, theta: Floats) -> Linearization:
        """Distances and their derivative."""
        moved, distance, weight, look = self._found(theta)
        _, derivative = self.jacobian(theta, self._columns(moved))
        return Linearization(distance, weight[:, None] * derivative, look.prediction, weight, np.ones(self.n))

    def nearest(self, theta: Floats) -> Nearest:
        """Give the nearest points."""
        moved, _, weight, look = self._found(theta)
        errors = {name: u * deviation for name, u, deviation in zip(self.inexact, moved, self._deviations, strict=True)}
        return Nearest(errors, look.prediction, weight)

    @functools.cached_property
    def _deviations(self) -> list[Floats]:
        assert self.data.sigma_x is not None
        return [self.data.sigma_x[name] for name in self.inexact]

    def _found(self, theta: Floats) -> tuple[list[Floats], Floats, Floats, Look]:
        """Look for the nearest points: u, distances, 1 / sqrt(σ² + a.a), and the model there."""
        q, aim, sigma = len(self.inexact), self.data.target, sigma_of(self.data)
        with np.errstate(all="ignore"):
            moved = [np.zeros(self.n) if self.origin is None else self.origin[name] for name in self.inexact]
            cells = _Cells(nearest.begin(ARRAYS, self._look(theta, moved), moved, aim, sigma))
            for _ in range(1, nearest.MOST):
                if cells["ended"].all():
                    break
                moved = nearest.trial(cells, q)
                nearest.advance(ARRAYS, cells, self._look(theta, moved), moved, aim, sigma)
            moved = [cells[f"u{j}"] for j in range(q)]
            look = self._look(theta, moved)
            distance, weight = nearest.distance(ARRAYS, look, moved, cells["found"], aim, sigma)
        return moved, distance, weight, look

    def _columns(self, moved: list[Floats]) -> dict[str, Tensor]:
        columns = dict(self.columns)
        for name, u, deviation in zip(self.inexact, moved, self._deviations, strict=True):
            columns[name] = torch.from_numpy(self.data.columns[name] + deviation * u)
        return columns

    def _look(self, theta: Floats, moved: list[Floats]) -> Look:
        if self.numeric:
            return self._look_by_differences(theta, moved)
        columns = self._columns(moved)
        leaves = [columns[name].requires_grad_() for name in self.inexact]
        with torch.enable_grad():
            value = self.predicted(torch.as_tensor(theta, dtype=self.dtype), columns).double()
            slopes = _slopes(value, leaves)
            curvature = [_slopes(slope, leaves[: place + 1]) for place, slope in enumerate(slopes)]
        own = self._deviations
        return Look(
            value.detach().numpy(),
            [slope.detach().numpy() * deviation for slope, deviation in zip(slopes, own, strict=True)],
            [[part.detach().numpy() * own[i] * own[j] for j, part in enumerate(line)] for i, line in enumerate(curvature)],
        )

    def _look_by_differences(self, theta: Floats, moved: list[Floats]) -> Look:
        """Central differences by u; the curvature is left out, without it the search only takes longer."""
        here = np.asarray(theta, dtype=np.float64)

        def value(at: list[Floats]) -> Floats:
            return _numeric_value(self, here, self._columns(at))

        slopes = []
        for place, (name, deviation) in enumerate(zip(self.inexact, self._deviations, strict=True)):
            size = RELATIVE_STEP * float(np.abs(self.data.columns[name]).max())
            with np.errstate(divide="ignore"):
                step = np.clip(size / deviation, LEAST_STEP, LARGEST_STEP)
            ahead, behind = ([*moved[:place], moved[place] + sign * step, *moved[place + 1 :]] for sign in (1.0, -1.0))
            slopes.append((value(ahead) - value(behind)) / (2 * step))
        q = len(slopes)
        return Look(value(moved), slopes, [[np.zeros(self.n)] * (place + 1) for place in range(q)], curved=False)


def _slopes(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Derivative of each row by its own inputs, which can be differentiated again."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value.sum(), leaves, create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(found, leaves, strict=True)]


# --- either -----------------------------------------------------------------------------------------------------------

OrthogonalKernel = NativeOrthogonalKernel | EagerOrthogonalKernel


def orthogonal_on(kernel: EagerKernel, data: Dataset) -> EagerOrthogonalKernel:
    """Put a kernel of the torch engine on rows with errors in x."""
    own = {part.name: getattr(kernel.on(data), part.name) for part in fields(EagerKernel)}
    return EagerOrthogonalKernel(**own, data=data)


def compiled_on(base: EagerKernel, code: ModelCode, data: Dataset, parameters: Parameters) -> NativeOrthogonalKernel:
    """Put a compiled model on rows with errors in x.

    Raises
    ------
    Untraceable
        Its second derivatives cannot be compiled.
    """
    assert data.sigma_x is not None
    inexact = tuple(name for name in data.columns if name in data.sigma_x)
    return NativeOrthogonalKernel(base, data, parameters, orthogonal_code(base, code, inexact))


def plain_code(kernel: NativeKernel) -> ModelCode:
    """Give the compiled code of a model as it is without errors in x."""
    return kernel.code.plain if isinstance(kernel, NativeOrthogonalKernel) else kernel.code


def with_errors_in_x(kernel: EagerKernel | NativeKernel, data: Dataset, *, strict: bool) -> OrthogonalKernel:
    """Put a kernel on rows with errors in x, compiled where it is and can be.

    Parameters
    ----------
    strict
        Whether it must be compiled.

    Raises
    ------
    ModelError
        A row's prediction depends on the other rows; or the model cannot be compiled, and has to be.
    """
    if isinstance(kernel, NativeKernel):
        try:
            return compiled_on(kernel.base, kernel.code, data, kernel.parameters)
        except Untraceable as why:
            if strict:
                raise ModelError(
                    f"engine='native' was asked for, and {kernel.model.label} cannot be compiled with errors in x: {why}. "
                    "Use engine='torch', or leave it out."
                ) from why
            eager = replace(kernel.eager, reason=f"derivatives by autograd; not compiled: {why}.")
    else:
        eager = kernel
    _check_rows(eager)
    return orthogonal_on(eager, data)


def _check_rows(kernel: EagerKernel) -> None:
    """Refuse a model that mixes rows: the error in one x would move other rows' predictions."""
    rows = np.linspace(0, kernel.n - 1, min(kernel.n - 1, TRIED_ROWS)).astype(np.int64)
    theta = torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype)
    with torch.no_grad():
        whole = kernel.predict(theta).double().numpy()[rows]
        try:
            few = kernel.predict(theta, {name: column[rows] for name, column in kernel.columns.items()}).double().numpy()
        except Exception:  # noqa: BLE001  # whatever a model does that insists on all its rows
            few = np.empty(0)
    size = float(np.abs(whole[np.isfinite(whole)]).max(initial=0.0))
    if few.shape != whole.shape or not np.allclose(few, whole, rtol=ALIKE, atol=ALIKE * size, equal_nan=True):
        raise ModelError(
            f"{kernel.model.label} gives other values for some rows than for all at once; with sigma_x each row must depend on its own x "
            "alone. Compute what comes from all rows beforehand, and pass it as data."
        )
