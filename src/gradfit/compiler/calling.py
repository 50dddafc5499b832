"""The way to call a model: find one that works, and check what it gives.

A model is called in the first of these ways that works:

1. on tensors, all rows at once, numpy and math names translated (:mod:`gradfit.compiler.bridge`): exact derivatives;
2. on numpy arrays, all rows at once: central finite differences, as scipy does;
3. on tensors, one row at a time, for functions of single numbers (``if x > x0: ...``): exact derivatives;
4. on numbers, one row at a time, for such functions without a torch counterpart: central finite differences.

A way works when it gives one real value per row, twice the same, and its derivative by each parameter agrees with a finite
difference: a model that turns a parameter into a plain number (``float(w)``) would otherwise lose its gradient unseen.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradfit.compiler.bridge import Untranslatable, on_tensors
from gradfit.compiler.compiled import ModelCode, NativeKernel, compile_kernel
from gradfit.compiler.correlated import AnyKernel, CorrelatedKernel
from gradfit.compiler.eager import Call, EagerKernel, tensors
from gradfit.compiler.fingerprint import fingerprint, outside, side_effect
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.kernel import Kernel
from gradfit.compiler.orthogonal import with_errors_in_x
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model.loss import Loss
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

SomeKernel = TypeVar("SomeKernel", bound=AnyKernel)
AGREEMENT = 1e-3  # between a derivative and its finite difference in float64; a lost gradient is off by the whole
SHRINKING = (
    1.0,
    1e-1,
    1e-2,
    1e-3,
    1e-4,
    1e-5,
    1e-6,
    1e-7,
)  # trial steps, until two agree: some models turn many times in a small step
CHECKED_ROWS = 1000
TRIALS = 3  # points at which a parameter may show that it matters
FAR = (0.1, 1.0, 10.0, 100.0)  # of the start's size: points at which an element of a vector may


def build(
    model: Model,
    parameters: Parameters,
    data: Dataset,
    loss: Loss,
    *,
    dtype: torch.dtype,
    engine: str = "torch",
    begun: bool = True,
) -> AnyKernel:
    """Build the kernel of a model: find the way to call it, check what it gives, compile it where that can be done.

    Parameters
    ----------
    engine
        "torch", "native" (which must be possible), or "auto": compiled where possible.
    begun
        Whether the fit will begin at the parameters' start; where it will not, a parameter may be without effect there.

    Raises
    ------
    ModelError
        The model raises, gives a wrong shape or type, changes its data, or does not depend on a parameter.
    """
    special = data.covariance is not None or data.sigma_x is not None
    kernel = alone(model, parameters, data.independent() if special else data, loss, dtype=dtype, engine=engine)
    if begun:
        depending(kernel)
    if data.covariance is not None:
        return CorrelatedKernel(kernel, data)
    return with_errors_in_x(kernel, data, strict=engine == "native") if data.sigma_x is not None else kernel


def begun_at(kernel: AnyKernel, parameters: Parameters) -> AnyKernel:
    """Give a kernel whose fit begins elsewhere."""
    if isinstance(kernel, CorrelatedKernel):
        return replace(kernel, inner=replace(kernel.inner, parameters=parameters))
    return replace(kernel, parameters=parameters)


def alone(
    model: Model, parameters: Parameters, data: Dataset, loss: Loss, *, dtype: torch.dtype, engine: str
) -> EagerKernel | NativeKernel:
    """Build the kernel for rows that are independent of each other, whether or not every parameter has an effect."""
    plain = EagerKernel(model.in_precision(dtype), parameters, loss, model.function, **tensors(data, dtype))
    key = None if engine == "torch" else _key(plain)
    if key is not None and key in KNOWN:
        call, code = KNOWN[key]
        return NativeKernel(replace(plain, call=call), data, parameters, code)
    before = outside(model.function)
    eager = _way_to_call(plain)
    if engine == "torch":
        return eager
    kernel = _compiled(eager, data, before, strict=engine == "native")
    if key is not None and isinstance(kernel, NativeKernel):
        KNOWN[key] = (kernel.base.call, kernel.code)
        while len(KNOWN) > MOST_KNOWN:
            KNOWN.pop(next(iter(KNOWN)))
    return kernel


# Models compiled before, by everything they compute with: what was tried of them then holds for any data.
KNOWN: dict[Hashable, tuple[Call, ModelCode]] = {}
MOST_KNOWN = 128


def _key(kernel: EagerKernel) -> Hashable | None:
    """Name a kernel by everything but its data; None where that cannot be done."""
    parameters = kernel.parameters
    layout = tuple(
        (name, parameters.shape(name), parameters.specs[name].fixed, name in parameters.ties) for name in parameters.names
    )
    computed = (kernel.model.function, kernel.loss_function.pointwise, *parameters.ties.values())
    prints = tuple(map(fingerprint, computed))
    if None in prints:
        return None
    shapes = tuple((name, column.dim()) for name, column in kernel.columns.items())
    return (prints, layout, shapes, kernel.dtype, kernel.sigma is None, kernel.loss_function.kind, kernel.loss_function.whole)


def depending(kernel: SomeKernel) -> SomeKernel:
    """Refuse a parameter without effect; a network may well have units that are silent at the start."""
    if kernel.model.kind != "module":
        _check_dependence(kernel)
    return kernel


def _compiled(kernel: EagerKernel, data: Dataset, before: Hashable, *, strict: bool) -> EagerKernel | NativeKernel:
    """Compile a kernel; where that cannot be done, keep it and say why."""
    try:
        changed = side_effect(kernel.model.function)
        if changed:
            raise Untraceable(f"{changed}, and compiled code would do so only once")
        compiled = compile_kernel(kernel, data)
        if outside(kernel.model.function) != before:
            raise Untraceable("it changes something outside itself when it is called")
        return compiled
    except Untraceable as why:
        if strict:
            raise ModelError(
                f"engine='native' was asked for, and {kernel.model.label} cannot be compiled: {why}. Use engine='torch', or leave it out."
            ) from why
        reason = f"{kernel.reason.rstrip('.')}; not compiled: {why}." if not kernel.numeric else kernel.reason
        return replace(kernel, reason=reason)


# What a function written for the next way of calling says when it is called in this one.
EXPECTED = ("Can't call numpy()", "Boolean value of Tensor", "truth value of an array", "can be converted to")


def _way_to_call(kernel: EagerKernel) -> EagerKernel:
    function, names = kernel.model.function, kernel.model.data_names
    if kernel.model.kind != "function":
        vectorised = replace(kernel, call=function, reason="formulas and modules are torch computations.")
        try:
            _trial(vectorised)
        except _Unusable as failure:
            raise ModelError(f"{kernel.model.label} cannot be fitted: {failure}; let it give one number per row.") from failure
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
    except (Exception, SystemExit) as error:
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
        if not kernel.numeric:
            _check_as_on_arrays(kernel, prediction)
        try:
            lost = () if kernel.numeric else _lost_gradients(kernel)
        except (RuntimeError, NotImplementedError, ModelError) as error:  # no derivative, or another shape off the start
            raise _Unusable(f"near the start {type(error).__name__}: {error}".rstrip(".")) from error
        if lost:
            raise _Unusable(
                f"the model turns {', '.join(lost)} into a plain number, which loses its gradient "
                "(no float(), int(), .item(), .detach(), torch.tensor() of a parameter)"
            )


def _unharmed(kernel: EagerKernel, theta: Tensor) -> Any:
    """Predict from a copy of the data; refuse the model if it changed them."""
    given = {name: column.clone() for name, column in kernel.columns.items()}
    try:
        return kernel.predict(theta, given)
    finally:
        changed = [name for name, column in kernel.columns.items() if not torch.equal(column, given[name])]
        if changed:
            raise ModelError(f"{kernel.model.label} changes its input {changed[0]!r} in place; compute a new array instead.")


def _check_repeats(kernel: EagerKernel, first: Tensor) -> None:
    """Refuse a model that draws random numbers: no method could tell its noise from a descent."""
    with torch.no_grad():
        again = kernel.predict(torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype))
    if not torch.allclose(again, first.detach(), rtol=_same(kernel), atol=0, equal_nan=True):
        raise ModelError(
            f"{kernel.model.label} gives other values when called again with the same parameters; "
            "draw its random numbers once, outside, or keep no state between calls."
        )


def _check_as_on_arrays(kernel: EagerKernel, first: Tensor) -> None:
    """Refuse a way of calling in which the model gives other values than on numpy arrays.

    The same text may mean two things: ``x.std()`` divides by n - 1 in torch and by n in numpy, ``x.sort()`` sorts in place only there.
    A model that does not run on arrays is a model of tensors, and means what torch says.
    """
    values = kernel.parameters.namer(torch.float64)(torch.from_numpy(kernel.parameters.start.copy()))
    arguments = {name: value.numpy().copy() if value.dim() else float(value) for name, value in values.items()}
    data = {name: column.double().numpy().copy() for name, column in kernel.columns.items()}
    try:
        with np.errstate(all="ignore"):
            theirs = torch.from_numpy(np.array(kernel.model.function(**data, **arguments), dtype=np.float64))
    except (Exception, SystemExit):  # noqa: BLE001  # whatever a function written for tensors makes of arrays
        return
    ours, size = first.detach().double(), float(theirs.abs().nan_to_num(posinf=0.0).max()) if theirs.numel() else 0.0
    if theirs.shape == ours.shape and not torch.allclose(ours, theirs, rtol=0, atol=_alike(kernel) * size, equal_nan=True):
        raise _Unusable("the model gives other values on torch tensors than on numpy arrays, and numpy's are taken")


def _same(kernel: EagerKernel) -> float:
    """How far the values of two calls may differ: by rounding, where threads add up in another order."""
    return 1e-9 if kernel.dtype == torch.float64 else 1e-5


def _alike(kernel: EagerKernel) -> float:
    """How far torch and numpy may differ, relative to the largest value: special functions are not the same to the last digits."""
    return 1e-6 if kernel.dtype == torch.float64 else 1e-3


# --- is the gradient whole? --------------------------------------------------------------------------------------------


def _lost_gradients(kernel: EagerKernel) -> list[str]:
    """Names of parameters whose derivative by autograd is not the derivative of the prediction.

    A random mixture of rows is differentiated by each parameter, by autograd and by finite differences, at points a little
    off the start (at the start itself derivatives may vanish, or have a kink).
    """
    wide = kernel.in_double()
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
    before, rounding = np.nan, 0.0
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
        nothing = difference == 0 and before == 0  # a step may well leap over all that changes
        if not nothing and abs(difference - before) <= agreement * max(abs(difference), abs(before)) + rounding:
            return difference, rounding
        before = difference
    return (0.0, rounding) if before == 0 else None


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


def _check_dependence(kernel: AnyKernel) -> None:
    """Refuse a parameter that moves no prediction, at the start or near it."""
    silent = (kernel.jacobian(kernel.parameters.start)[1] == 0).all(axis=0)
    if not silent.any():
        return
    for theta in _points_near(kernel.parameters, np.random.default_rng(0), TRIALS)[1:]:
        silent &= (kernel.jacobian(theta)[1] == 0).all(axis=0)
    if silent.any():
        silent &= ~absent(kernel, kernel.parameters)
    names = [name for name, none in zip(kernel.parameters.free_elements, silent, strict=True) if none]
    if names:
        raise ModelError(
            f"{kernel.model.label} does not depend on {', '.join(names)} near the start: no prediction changes with it. "
            "Remove it from the model, fix it, or start where it matters."
        )


def absent(kernel: Kernel, parameters: Parameters) -> np.ndarray:
    """Which free numbers the model does not contain, (p,): elements of a vector that move no prediction, near the start or far.

    Others of the same vector do. A vector may well be longer than what a model takes of it; a parameter of its own that moves nothing
    is a slip.
    """
    generator = np.random.default_rng(0)
    size = np.where(parameters.start != 0, np.abs(parameters.start), 1.0)
    silent = np.ones(len(size), dtype=bool)
    for reach in FAR:
        theta = np.clip(
            parameters.start + reach * size * generator.standard_normal(len(size)), parameters.lower, parameters.upper
        )
        silent &= (kernel.residual(theta)[1] == 0).all(axis=0)
    place = 0
    for name in parameters.free_names:
        own = slice(place, place + math.prod(parameters.shape(name)))
        silent[own] &= not silent[own].all()
        place = own.stop
    return silent


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
