r"""f as it is: called by Python, its derivatives by the user's jac or by finite differences; and any f as a kernel for the solver.

With W the whitening (:math:`1/\sigma`, or :math:`L^{-1}` of a covariance :math:`LL^T`), :math:`r = W(f - y)` and
:math:`J = W\,\partial f/\partial\theta`. A loss :math:`C^2 \sum_i \rho(z_i)`, :math:`z = (r/C)^2`, has the rows

.. math:: h_i = \rho_i' + 2 z_i \rho_i'', \quad s_i = \sqrt{\max(h_i, \rho_i')}, \quad r_i \to \rho_i' r_i / s_i, \quad J_i \to s_i J_i

References
----------
Triggs et al., *Bundle adjustment: a modern synthesis*, 2000, section 4.3 (robust losses in Gauss-Newton).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gradfit.compat.curve_errors import ChoiceError, CountError, ShapeError
from gradfit.compat.curve_options import Options
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.eager import central_difference
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model.loss import CURVATURE_FLOOR
from gradfit.typing import Floats

FINEST = 1e3  # roundings of a parameter, the smallest step of a difference
IMAGINARY = 1e-30  # step along the imaginary axis, relative; no difference is taken, so it may be as small as that


class Exhausted(Exception):
    """f was called as often as maxfev allows."""


class Curve(Protocol):
    """f on its x."""

    calls: int
    exact: bool

    def value(self, theta: Floats) -> Floats:
        """Values of f, (n,)."""

    def slope(self, theta: Floats) -> Floats:
        """Their derivatives, (n, p)."""

    def at_end(self, theta: Floats) -> Floats:
        """Values of f where the fit has ended, (n,), which no limit forbids."""


class Compiled:
    """f compiled."""

    exact = True

    def __init__(self, kernel: NativeKernel) -> None:
        self.kernel, self.calls = kernel, 0

    def value(self, theta: Floats) -> Floats:
        """Values of f, (n,)."""
        self.calls += 1
        return self.kernel.jacobian(theta)[0]

    def slope(self, theta: Floats) -> Floats:
        """Their derivatives, (n, p)."""
        return self.kernel.jacobian(theta)[1]

    def at_end(self, theta: Floats) -> Floats:
        """Values of f where the fit has ended, (n,)."""
        return self.kernel.jacobian(theta)[0]


class Called:
    """f as it is.

    Parameters
    ----------
    n
        How many values are expected; None where that is to be learned from f.
    lower, upper
        Bounds, which no finite difference crosses.
    """

    def __init__(
        self, f: Callable[..., Any], x: Any, n: int | None, jac: Any, options: Options, lower: Floats, upper: Floats
    ) -> None:
        self.f, self.x, self.n, self.options = f, x, n, options
        self.jac = jac if callable(jac) else None
        self.lower, self.upper = lower, upper
        self.calls, self.unit = 0, float(np.finfo(np.float64).eps)
        self.exact = self.jac is not None or options.complex_step
        self.before: Floats | None = None  # x as it was
        self.last: tuple[Floats, Floats] | None = None
        self.norms: Floats | None = None  # of the derivatives last found, (p,)

    def begin(self, theta: Floats) -> Floats:
        """Call f for the first time, at the start, (n,); from then on n is known.

        Raises
        ------
        CountError
            f takes another number of parameters.
        ModelError
            f changes x in place, gives no such array, or a value that is not finite.
        """
        self.before = self.x.copy() if isinstance(self.x, np.ndarray) else None
        try:
            given = self._call(theta)
        except TypeError as error:
            if _takes(self.f, len(theta)):
                raise
            raise CountError(
                f"f does not take {len(theta)} parameters: {error}; give p0 as many values as f has parameters."
            ) from error
        self.check_data()
        value = self._array(given)
        self.n = len(value)
        self.last = theta.copy(), value
        return value

    def check_data(self) -> None:
        """Refuse an f that has changed its x, which is put back.

        Raises
        ------
        ModelError
            It has.
        """
        if self.before is not None and not np.array_equal(self.before, self.x, equal_nan=True):
            self.x[...] = self.before
            raise ModelError(f"{_label(self.f)} changes its xdata in place; compute a new array instead.")

    def value(self, theta: Floats) -> Floats:
        """Values of f, (n,); the last ones are kept, so that f is not called twice for the same parameters."""
        if self.last is None or not np.array_equal(self.last[0], theta):
            self.last = theta.copy(), self._array(self._call(theta))
        return self.last[1]

    def slope(self, theta: Floats) -> Floats:
        """Derivatives of the values, (n, p)."""
        if self.jac is not None:
            return self._by_jac(theta)
        self.calls += len(theta)  # as scipy counts differences, however many calls it takes
        return self._by_complex_step(theta) if self.options.complex_step else self._by_differences(theta)

    def at_end(self, theta: Floats) -> Floats:
        """Values of f where the fit has ended, (n,), which no limit forbids."""
        if self.last is not None and np.array_equal(self.last[0], theta):
            return self.last[1]
        return self._array(self.f(self.x, *theta))

    def _call(self, theta: Floats) -> Any:
        if self.options.evaluations is not None and self.calls >= self.options.evaluations:
            raise Exhausted
        self.calls += 1
        return self.f(self.x, *theta)

    def _array(self, given: Any) -> Floats:
        """Read what f gave as n real numbers."""
        if type(given) is np.ndarray and given.dtype == np.float64 and given.shape == (self.n,):
            return given.copy()  # f may use the array again
        if given is None:
            raise ShapeError(f"{_label(self.f)} gave None; does it end with a return?")
        array = np.ma.filled(given.astype(np.float64), np.nan) if isinstance(given, np.ma.MaskedArray) else np.asarray(given)
        if array.dtype.kind == "O":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise ShapeError(f"{_label(self.f)} gave no real numbers: {error}.") from error
        if array.dtype.kind not in "fiub":
            raise ShapeError(f"{_label(self.f)} gave values of type {array.dtype}; expected real numbers.")
        if array.dtype.kind == "f":
            self.unit = max(self.unit, float(np.finfo(array.dtype).eps))
        if array.ndim > 1 and max(array.shape) == array.size:  # a row or a column
            array = array.reshape(-1)
        n = array.size if self.n is None else self.n
        if array.size == 1 and array.ndim <= 1:
            return np.full(n, float(array.reshape(-1)[0]))
        if array.shape != (n,):
            raise ShapeError(
                f"{_label(self.f)} gave shape {array.shape} for {n} points; expected ({n},), one value per point. "
                "Return result.ravel() if the values are in the order of ydata."
            )
        return array.astype(np.float64)

    def _by_jac(self, theta: Floats) -> Floats:
        assert self.jac is not None
        given = self.jac(self.x, *theta)
        array = np.asarray(given.toarray() if hasattr(given, "toarray") else given)
        array = array.T if self.options.transposed else array
        expected = (self.n, len(theta))
        if array.shape == (self.n,) and len(theta) == 1:
            array = array[:, np.newaxis]
        if array.shape != expected or array.dtype.kind not in "fiub":
            raise ShapeError(
                f"The return value of `jac` has wrong shape: expected {expected}, actual {array.shape} of {array.dtype}; "
                "give one row per point and one column per parameter."
            )
        return array.astype(np.float64)

    def _by_complex_step(self, theta: Floats) -> Floats:
        columns = []
        for place, number in enumerate(theta):
            point = theta.astype(np.complex128)
            step = IMAGINARY * max(abs(number), 1.0)
            point[place] += 1j * step
            array = np.asarray(self.f(self.x, *point))
            columns.append(np.broadcast_to(array.imag.reshape(-1) / step, (self.n or array.size,)))
        return np.stack(columns, axis=1)

    def _by_differences(self, theta: Floats) -> Floats:
        """Central differences; error about the precision of f to the power 2/3."""
        size = np.where(theta != 0, np.abs(theta), 1.0)
        if self.options.step is not None:
            return self._differenced(theta, self.options.step * size)
        if self.norms is None:
            self.norms = np.linalg.norm(self._differenced(theta, np.sqrt(self.unit) * size), axis=0)
        slope = self._differenced(theta, self._steps(theta, size))
        self.norms = np.linalg.norm(slope, axis=0)
        return slope

    def _steps(self, theta: Floats, size: Floats) -> Floats:
        r"""Steps that balance rounding and truncation, (p,): :math:`L\,(\epsilon \lVert f \rVert/V)^{1/3}`.

        V is the variation of the values about their mean, and :math:`L = V/\lVert \partial f/\partial\theta \rVert` how far a parameter
        goes for f to change by as much: a peak of width 0.01 at 574 is not to be differenced in steps of a part of 574.
        """
        value = self.value(theta)
        whole = float(np.linalg.norm(value))
        variation = float(np.linalg.norm(value - value.mean())) or whole
        usual: Floats = self.unit ** (1 / 3) * size
        if not (self.norms is not None and 0 < variation < np.inf and np.isfinite(self.norms).all()):
            return usual
        with np.errstate(divide="ignore", over="ignore"):
            own = variation / self.norms * (self.unit * whole / variation) ** (1 / 3)
        return np.asarray(np.clip(own, FINEST * self.unit * size, usual))

    def _differenced(self, theta: Floats, steps: Floats) -> Floats:
        columns = []
        for place, (step, lower, upper) in enumerate(zip(steps, self.lower, self.upper, strict=True)):
            column = central_difference(lambda point: self._array(self.f(self.x, *point)), theta, place, step, lower, upper)
            columns.append(np.full(self.n or 1, np.nan) if column is None else column)
        return np.stack(columns, axis=1)


class Residuals:
    """A curve against its data, as the solver looks at it.

    Parameters
    ----------
    theta
        All parameters, (p,); those that are not ``free`` stay there.
    free
        (p,), which parameters the solver moves.
    """

    def __init__(self, curve: Curve, data: Dataset, options: Options, theta: Floats, free: np.ndarray) -> None:
        self.curve, self.data, self.options = curve, data, options
        self.theta, self.free = theta.copy(), free
        self.n = data.n
        self.loss_kind = "least_squares" if options.rho is None else "robust"

    def whole(self, theta: Floats) -> Floats:
        """Give all parameters, for some of the free ones."""
        point = self.theta.copy()
        point[self.free] = theta
        return point

    def residual(self, theta: Floats) -> Floats:
        """Whitened residual r, (n,)."""
        return self.data.white(self.curve.value(self.whole(theta)) - self.data.target)

    def linearize(self, theta: Floats) -> Linearization:
        """Write the loss near theta as a sum of squares."""
        point = self.whole(theta)
        with np.errstate(all="ignore"):
            residual = self.residual(theta)
        slope = self.curve.slope(point)
        with np.errstate(all="ignore"):
            jacobian = self.data.white(slope[:, self.free])
            prediction = residual + self.data.white(self.data.target)
            if self.options.rho is None:
                return Linearization(residual, jacobian, prediction, np.ones(self.n), np.ones(self.n))
            _, first, own = self._bent(residual)
            used = np.maximum(own, first)
            weight = np.sqrt(np.maximum(used, CURVATURE_FLOOR * used.max()))
            return Linearization(first * residual / weight, weight[:, np.newaxis] * jacobian, prediction, weight, own / weight**2)

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss."""
        with np.errstate(all="ignore"):
            residual = self.residual(theta)
            return float(np.mean(residual**2 if self.options.rho is None else self._bent(residual)[0]))

    def curved(self, theta: Floats) -> Floats:
        """J whose square is the curvature of the loss itself, (n, p); a row that curves downwards counts for nothing."""
        near = self.linearize(theta)
        return np.sqrt(np.maximum(near.bend, 0.0))[:, np.newaxis] * near.jacobian

    def _bent(self, residual: Floats) -> tuple[Floats, Floats, Floats]:
        """Loss, rho' and h of each row."""
        assert self.options.rho is not None
        scale = self.options.f_scale
        z = (residual / scale) ** 2
        given = np.asarray(self.options.rho(z), dtype=np.float64)
        if given.shape != (3, self.n):
            raise ChoiceError(
                f"The return value of `loss` callable has wrong shape {given.shape}; expected (3, {self.n}): rho, rho', rho'' of z."
            )
        value, first, second = given
        return scale**2 * value, first, first + 2 * z * second


def _takes(f: Callable[..., Any], count: int) -> bool:
    """Whether f can be called with x and so many parameters, as far as its signature tells."""
    try:
        inspect.signature(f).bind(None, *range(count))
    except TypeError:
        return False
    except ValueError:  # no signature to be read
        return True
    return True


def _label(f: Callable[..., Any]) -> str:
    name = getattr(f, "__name__", type(f).__name__)
    return "f" if name == "<lambda>" else name
