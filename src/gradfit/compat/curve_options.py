"""The keyword options of scipy's ``leastsq`` (method "lm") and ``least_squares`` ("trf", "dogbox"): what each means here.

=========================================  ==========================================================================
maxfev, max_nfev                           evaluations of f at most
epsfcn, diff_step                          steps of finite differences, where f is called as it is
factor                                     radius of the first step
diag, x_scale                              units in which steps are measured, where steps in units of their effect do not arrive
col_deriv                                  jac gives (p, M) instead of (M, p)
loss, f_scale                              the loss
verbose, callback                          after each step
ftol, xtol, gtol                           reached by definition: a fit goes on to the minimum, to rounding
tr_solver, tr_options, jac_sparsity,       without effect: how scipy computes a step or its differences, not what is computed
workers
=========================================  ==========================================================================

The values of those without effect are checked all the same.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from gradfit.compat.curve_errors import ChoiceError
from gradfit.errors import OptionError, unknown
from gradfit.model.loss import ROBUST
from gradfit.typing import Floats

Rho: TypeAlias = Callable[[Floats], Floats]
"""A loss as scipy has it: of z (n,), the squared residuals over f_scale², it gives rho, rho', rho'' (3, n)."""

METHODS = ("lm", "trf", "dogbox")
SCHEMES = ("2-point", "3-point", "cs")
TOLERANCES = ("ftol", "xtol", "gtol")
KNOWN = {
    "lm": (*TOLERANCES, "maxfev", "epsfcn", "factor", "diag", "col_deriv"),
    "trf": (
        *TOLERANCES, "maxfev", "max_nfev", "x_scale", "loss", "f_scale", "diff_step", "tr_solver", "tr_options", "jac_sparsity",
        "verbose", "callback", "workers",
    ),
}  # fmt: skip
SCIPY_EPSFCN = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Options:
    """What the options of a call ask for.

    Attributes
    ----------
    evaluations
        Of f at most; None for as many as it takes.
    radius
        Of the first step; None for the solver's own choice.
    step
        Relative step of finite differences, a number or (p,); None for the one that suits the precision of f.
    complex_step
        Whether differences are taken along the imaginary axis.
    rho, f_scale
        The loss; None for squared residuals.
    x_scale
        Units of the parameters, as ``least_squares`` takes them.
    transposed
        Whether jac gives one row per parameter.
    """

    evaluations: int | None = None
    radius: float | None = None
    step: Any = None
    complex_step: bool = False
    rho: Rho | None = None
    f_scale: float = 1.0
    x_scale: Any = 1.0
    transposed: bool = False
    verbose: int = 0
    callback: Callable[..., Any] | None = None


PLAIN = Options()


def read_options(method: str, jac: Any, options: Mapping[str, Any], p: int) -> Options:
    """Read the keyword options of a method.

    Raises
    ------
    OptionError
        An option the method does not have.
    ChoiceError
        A value it cannot have.
    """
    if not options and jac is None:
        return PLAIN
    if not (jac is None or callable(jac) or (isinstance(jac, str) and jac in SCHEMES)):
        raise ChoiceError(f"`jac` must be {', '.join(map(repr, SCHEMES))} or callable, not {jac!r}.")
    if "args" in options:
        raise ChoiceError(
            "'args' is not a supported keyword argument; bind further arguments of f by a lambda or functools.partial."
        )
    known = KNOWN["lm" if method == "lm" else "trf"]
    for name in options:
        if name not in known:
            raise OptionError(unknown(f"option of method {method!r},", name, known))
    _check_without_effect(options, p)
    read = Options(complex_step=jac == "cs" if isinstance(jac, str) else False, transposed=bool(options.get("col_deriv", False)))
    limit = options.get("max_nfev", options.get("maxfev"))
    if method == "lm" and limit == 0:  # scipy's word for its default
        limit = None
    if limit is not None:
        most = _positive("maxfev" if method == "lm" else "max_nfev", limit)
        read = replace(read, evaluations=math.ceil(most))
    if options.get("factor") is not None:
        read = replace(read, radius=_positive("factor", options["factor"]))
    if options.get("epsfcn") is not None:
        error = max(_number("epsfcn", options["epsfcn"]), SCIPY_EPSFCN)
        read = replace(read, step=error ** (1 / 3) if error > SCIPY_EPSFCN else None)
    if options.get("diff_step") is not None:
        read = replace(read, step=np.abs(_per_parameter("diff_step", options["diff_step"], p)))
    return _watching(_with_loss(_scaled(read, options, p), options), options)


def _scaled(read: Options, options: Mapping[str, Any], p: int) -> Options:
    for name in ("diag", "x_scale"):
        scale = options.get(name)
        if isinstance(scale, str) and name == "x_scale" and scale == "jac":
            read = replace(read, x_scale="jac")
        elif scale is not None:
            units = _per_parameter(name, scale, p)
            if not (units > 0).all():
                raise ChoiceError(f"`{name}` is {scale!r}; expected positive numbers.")
            read = replace(read, x_scale=1 / units if name == "diag" else units)
    return read


def _with_loss(read: Options, options: Mapping[str, Any]) -> Options:
    scale = _positive("f_scale", options.get("f_scale", 1.0))
    loss = options.get("loss", "linear")
    if callable(loss):
        return replace(read, rho=loss, f_scale=scale)
    known = ("linear", *ROBUST)
    if loss not in known:
        raise ChoiceError(f"`loss` must be one of {', '.join(known)} or a callable, not {loss!r}.")
    return read if loss == "linear" else replace(read, rho=_by_name(loss), f_scale=scale)


def _by_name(name: str) -> Rho:
    """Give a loss and its first two derivatives, which are torch's."""
    function = ROBUST[name]

    def rho(z: Floats) -> Floats:
        point = torch.as_tensor(z, dtype=torch.float64).requires_grad_()
        value = function(point)
        (first,) = torch.autograd.grad(value.sum(), point, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), point)
        return np.stack([part.detach().numpy() for part in (value, first, second)])

    return rho


def _watching(read: Options, options: Mapping[str, Any]) -> Options:
    verbose, callback = options.get("verbose", 0), options.get("callback")
    if verbose not in (0, 1, 2):
        raise ChoiceError(f"`verbose` must be in [0, 1, 2], not {verbose!r}.")
    if not (callback is None or callable(callback)):
        raise ChoiceError(f"callback is {callback!r}; expected a function of the intermediate result.")
    return replace(read, verbose=int(verbose), callback=callback)


def _check_without_effect(options: Mapping[str, Any], p: int) -> None:
    for name in TOLERANCES:
        if options.get(name) is not None and not _number(name, options[name]) >= 0:
            raise ChoiceError(f"{name} is {options[name]!r}; expected a number, 0 or more.")
    if options.get("tr_solver") not in (None, "exact", "lsmr"):
        raise ChoiceError(f"`tr_solver` must be None, 'exact' or 'lsmr', not {options['tr_solver']!r}.")
    if not isinstance(options.get("tr_options") or {}, Mapping):
        raise ChoiceError(f"tr_options is {options['tr_options']!r}; expected a dict.")


def _per_parameter(name: str, value: Any, p: int) -> Floats:
    try:
        numbers_given = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ChoiceError(f"`{name}` is {value!r}; expected a number, or one per parameter.") from None
    if numbers_given.shape not in ((), (1,), (p,)) or np.isnan(numbers_given).any():
        raise ChoiceError(f"Inconsistent shapes between `{name}` and `p0`: {value!r} for {p} parameters.")
    return np.broadcast_to(numbers_given, (p,))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ChoiceError(f"{name} is {value!r}; expected a number.")
    return float(value)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 < number < math.inf:
        raise ChoiceError(f"{name} is {value!r}; expected a positive number.")
    return number
