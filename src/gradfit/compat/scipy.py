"""``curve_fit``: the signature, the words and the errors of :func:`scipy.optimize.curve_fit`; the solver is gradfit's.

::

    arguments, options  ->  f compiled, or called as it is  ->  Levenberg-Marquardt  ->  popt, pcov, infodict

What is deliberately another than in scipy stands in ``docs/curve_fit.md``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gradfit import errors
from gradfit.compat.curve_arguments import NO_BOUNDS, described, read_data, read_start
from gradfit.compat.curve_errors import ChoiceError, CountError
from gradfit.compat.curve_options import METHODS, Options, read_options
from gradfit.compat.curve_residuals import Called, Compiled, Exhausted, Residuals
from gradfit.compat.curve_solution import Fit, covariance, exhausted, information, solve
from gradfit.compat.curve_trace import Traced, layout_of
from gradfit.compat.curve_watch import watch_of
from gradfit.errors import FitError, FitWarning
from gradfit.typing import Floats

SUCCESS = {"lm": 1, "trf": 2, "dogbox": 2}  # what each calls "no further reduction of the sum of squares"
ROUGH = (
    "the sum of squares is lowest here in its values, and not by its derivative: f has a kink, a jump or noise. "
    "pcov, which is to first order, may be far off."
)
MESSAGE = "The sum of squares is at its minimum to rounding: further relative reductions are below any ftol."


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = NO_BOUNDS,
    method: str | None = None,
    jac: Any = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **kwargs: Any,
) -> Any:
    r"""Fit a function to data by least squares, with the signature and the results of :func:`scipy.optimize.curve_fit`.

    Minimises :math:`\sum_i ((f(x_i, \theta) - y_i)/\sigma_i)^2`, or :math:`r^T C^{-1} r` for a covariance matrix C.

    Parameters
    ----------
    f
        ``f(xdata, *parameters)``, giving M values. Functions of numpy or torch calls are compiled with their exact derivatives;
        others are called as they are.
    xdata
        (M,), (k, M), or anything f takes. Lists, tuples and arrays become float64.
    ydata
        (M,).
    p0
        (p,), starting values. Without it, 1 for each parameter that f names, or a value between the bounds.
    sigma
        One standard deviation, (M,) of them, or the covariance matrix (M, M), in the units of ydata.
    absolute_sigma
        Whether sigma are measured errors. Otherwise they are relative weights, and pcov is scaled by the reduced chi-square.
    check_finite
        Whether NaN and infinity are refused in the data. Default: True without ``nan_policy``.
    bounds
        Lower and upper bounds, each a number or (p,); or a :class:`scipy.optimize.Bounds`.
    method
        "lm", "trf", "dogbox": which options are known, and that "lm" knows no bounds. All run the same Levenberg-Marquardt solver.
    jac
        ``jac(xdata, *parameters)``, (M, p): used instead of our own derivatives. "2-point", "3-point", "cs": how to difference
        an f that cannot be compiled; central differences for the first two.
    full_output
        Also give infodict, mesg and ier.
    nan_policy
        "raise", or "omit" points with NaN.
    **kwargs
        Options of scipy's ``leastsq`` ("lm") or ``least_squares``; see :mod:`gradfit.compat.curve_options`.

    Returns
    -------
    popt : (p,)
        Parameters at the minimum.
    pcov : (p, p)
        Their covariance, to first order; all infinite, with a warning, where it cannot be estimated.
    infodict, mesg, ier
        With ``full_output``: the dictionary has nfev, fvec and for "lm" fjac, ipvt, qtf.

    Raises
    ------
    DataError, ParameterError, ModelError, ChoiceError
        Which are ValueErrors: data, starts, bounds, f or options that cannot be used.
    CountError, OptionError
        Which are TypeErrors: more parameters than points, unknown options.
    FitError
        Which is a RuntimeError: no minimum was found.

    Warns
    -----
    scipy.optimize.OptimizeWarning
        The covariance could not be estimated. Also a GradfitWarning.
    FitWarning
        The minimum shows in the values of f alone: a kink, a jump or noise.
    """
    start, lower, upper = read_start(f, p0, bounds)
    p = len(start)
    bounded = bounds is not NO_BOUNDS and bool(np.isfinite(lower).any() or np.isfinite(upper).any())
    chosen = _method(method, bounded)
    options = read_options(chosen, jac, kwargs, p)
    x, y, deviations = read_data(xdata, ydata, sigma, check_finite, nan_policy)
    if chosen == "lm" and y.size != 1 and p > y.size:
        raise CountError(
            f"The number of func parameters={p} must not exceed the number of data points={y.size}; give more points, or fix some parameters."
        )
    fit = _fit(f, x, y, deviations, (start, lower, upper), jac, options)
    if chosen == "lm" and p > fit.data.n:
        raise CountError(
            f"Improper input: func input vector length N={p} must not exceed func output vector length M={fit.data.n}."
        )
    watch = watch_of(options)
    solved = solve(fit, watch)
    if isinstance(fit.curve, Called):
        fit.curve.check_data()
    if watch is not None:
        watch.end(solved.solver, solved.evaluations, MESSAGE)
    pcov, why = covariance(solved, absolute=absolute_sigma)
    if why:
        warnings.warn(f"Covariance of the parameters could not be estimated: {why}.", errors.UndeterminedWarning, stacklevel=2)
    if solved.rough:
        warnings.warn(ROUGH, FitWarning, stacklevel=2)
    if not full_output:
        return solved.theta, pcov
    return solved.theta, pcov, information(solved, minpack=chosen == "lm"), MESSAGE, SUCCESS[chosen]


def _method(method: str | None, bounded: bool) -> str:
    if method is None:
        return "trf" if bounded else "lm"
    if method not in METHODS:
        raise ChoiceError(f"`method` must be 'trf', 'dogbox' or 'lm', not {method!r}.")
    if method == "lm" and bounded:
        raise ChoiceError("Method 'lm' only works for unconstrained problems. Use 'trf' or 'dogbox' instead.")
    return method


def _fit(
    f: Callable[..., Any],
    x: Any,
    y: Floats,
    deviations: Floats | None,
    box: tuple[Floats, Floats, Floats],
    jac: Any,
    options: Options,
) -> Fit:
    """Bring f and its data together: f compiled where it can be, otherwise as it is."""
    start, lower, upper = box
    layout = None if callable(jac) else layout_of(x, y.size)
    traced = None if layout is None else Traced(f, layout, len(start))
    possible = traced is not None and not traced.hopeless
    columns = layout.columns(x) if layout is not None and possible else {}
    data = described(y, deviations, columns)
    kernel = traced.kernel(data) if traced is not None else None
    called = None
    if kernel is None:
        called = Called(f, x, None if y.size == 1 else y.size, jac, options, lower, upper)
        try:
            value = called.begin(start)
        except Exhausted:
            raise FitError(exhausted(options.evaluations)) from None
        if len(value) != data.n:
            data = described(np.full(len(value), y[0]), deviations, {})
        elif traced is not None and possible and np.isfinite(value).all():
            kernel = traced.compile(data, start, value)
    if kernel is None:
        assert called is not None
        every = np.ones(len(start), dtype=bool)
        return Fit(Residuals(called, data, options, start, every), called, data, options, start, lower, upper, f)
    curve = Compiled(kernel)
    plain = options.rho is None and data.covariance is None
    on_data = kernel if plain else Residuals(curve, data, options, start, np.ones(len(start), dtype=bool))
    return Fit(on_data, curve, data, options, start, lower, upper, f)
