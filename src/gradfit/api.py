"""The public verbs: fit, load. They put the rooms together and compute nothing."""

from __future__ import annotations

import dataclasses
import inspect
import os
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TextIO

import numpy as np
import torch

from gradfit import errors
from gradfit.compiler import calling, eager
from gradfit.compiler.calling import depending
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel, CorrelatedKernel
from gradfit.compiler.orthogonal import plain_code
from gradfit.compiler.saved_graph import from_dict
from gradfit.data.dataset import Dataset, dataset, plain_rows
from gradfit.data.sources import Table, read
from gradfit.data.split import k_folds, split
from gradfit.drivers.monitor import check_progress, monitored
from gradfit.drivers.short import Ended
from gradfit.drivers.single import cross_validate, fit_one
from gradfit.errors import DataError, FitError, FitWarning, ModelError, OptionError, StorageError, unknown
from gradfit.methods.differential_evolution import DifferentialEvolution
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.linear_least_squares import LinearLeastSquares
from gradfit.methods.method import Method
from gradfit.methods.optimizers import OPTIMIZERS
from gradfit.model import loss as losses
from gradfit.model.model import Model, check_has_parameters, formula_model, function_model, module_model
from gradfit.model.parameters import Parameter, Parameters, parameters
from gradfit.plans import MEMORY, Plan, inexact_names, is_plain, names_of
from gradfit.report import storage
from gradfit.result import FitResult, predictor_for
from gradfit.starting import Starter, check_multistart, guessed, unstarted
from gradfit.statistics.record import GIVEN, Beginning
from gradfit.statistics.summary import Fitted, Setting, Short
from gradfit.typing import Missing, OnFailure

METHODS: Mapping[str, Callable[..., Method]] = {
    "lm": LevenbergMarquardt,
    "levenberg-marquardt": LevenbergMarquardt,
    "linear": LinearLeastSquares,
    "differential_evolution": DifferentialEvolution,
    "global": DifferentialEvolution,
}
ENGINES = ("auto", "native", "torch")


def fit(
    model: str | Callable[..., Any] | torch.nn.Module,
    *arrays: Any,
    data: Any = None,
    target: str | None = None,
    start: Mapping[str, Any] | Sequence[float] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    fixed: Mapping[str, Any] | Sequence[str] | None = None,
    tied: Mapping[str, str | Callable[..., Any]] | None = None,
    sigma: Any = None,
    sigma_x: Any = None,
    absolute_sigma: bool = False,
    weights: Any = None,
    loss: str | Callable[..., Any] = "squared",
    f_scale: float | None = None,
    method: str | type[torch.optim.Optimizer] | Method | None = None,
    multistart: int | None = None,
    validation: Any = None,
    folds: int | None = None,
    seed: int = 0,
    missing: Missing = "raise",
    dtype: str | torch.dtype | None = None,
    engine: str = "auto",
    encoding: str = "utf-8",
    every: int | None = None,
    out: TextIO | None = None,
    progress: bool | None = None,
    on_failure: OnFailure = "warn",
    **options: Any,
) -> FitResult:
    """Fit a model to data: minimise the mean loss over the rows, by exact gradients.

    Parameters
    ----------
    model
        A function of data and parameters, data first; a formula such as ``"t_c = w*t_u + b"``; or a torch module.
    *arrays
        The data arguments in the model's order, then the target: ``fit(model, x, y)``. Each (n,), or (n, k).
    data, target
        Instead of arrays: a dict of columns, a data frame, or the path of a CSV or Parquet file, and the name of the column
        to predict. Arguments of the model that are columns are data, the rest parameters.
    start
        Starting values by name, or in order; otherwise the defaults in the signature. What has neither is guessed from the shape of the
        curve (:mod:`gradfit.lineshapes`), or searched for: points that fill the space in units of the data, judged by their loss and the best
        of them by short fits, drawn by ``seed``. The report says where the fit began, and how that was found (``result.beginning``). A
        model linear in its parameters needs no start and begins at 1; so does a torch module where it stands.
    bounds, fixed, tied
        ``{"w": (0, None)}``, ``{"b": 0.0}`` or ``["b"]``, ``{"b": "2*w"}``.
    sigma, absolute_sigma
        Standard deviation of the target: a number, one per point, or a column's name; or the covariance matrix of the points,
        (n, n). Relative weights, unless ``absolute_sigma``: then errors in the target's units; as in scipy.
    sigma_x
        Standard deviation of the input where it is measured too: a number, one per point, or a column's name; of several inputs a dict,
        ``{"x": 0.1}``. The fit is then orthogonal distance regression: it minimises the squares of the errors in x and y, each in units
        of its sigma, and also finds those in x (``result.errors_in_x``). 0 where x is exact.
    weights
        How much each row's loss counts, one per point or a column's name: the weighted mean of the losses is minimised, and only the
        ratios of weights matter. For squared residuals as ``sigma = weights ** -0.5``. Not together with sigma.
    loss, f_scale
        "squared", "huber", "soft_l1", "cauchy", "arctan", "poisson", or a function of (prediction, target); ``f_scale``: the residual
        from which a robust loss bends.
    method
        "lm" (default for functions and formulas), "linear", "differential_evolution" or "global" (a search between bounds, then "lm"),
        an optimizer of torch.optim by name or class ("adam" is the default for modules, "lbfgs" for losses that give one number for
        all rows, or do not curve), or an object such as ``GradientDescent(...)``.
    multistart
        Fit from this many starts, with ``method="lm"``: the given one, half of the others around it, the rest anywhere, drawn by ``seed``;
        side by side where the model is compiled. The result is the lowest minimum, ``result.minima`` lists the distinct ones.
    validation
        A fraction of the rows (the last of a seeded permutation), row numbers, a mask, or a data set of its own:
        a table, or arrays like ``(x, y)``. Never used for the gradient.
    folds
        Cross-validate with this many folds: ``result.cross_validation``.
    seed
        For starts, the split, the folds, the mini-batches and what a module draws.
    missing
        "raise" or "drop" rows with NaN, empty or infinite values.
    dtype
        "float32" or "float64" for the computation. Default: gradient descent follows the data (float32 only if all arrays are),
        everything else computes in float64. Statistics are always in float64.
    engine
        "auto": compiled where the model can be compiled, else torch; ``result.engine`` and ``result.engine_reason`` tell. "native":
        an error where it cannot be. "torch": plain torch, the reference.
    encoding
        Of a CSV file.
    every, out
        Print a training line every this many steps, to ``out`` (default stdout).
    progress
        Show a progress bar on stderr; default: on long work, if it is a terminal.
    on_failure
        What to do when the fit did not succeed: "warn" (FitWarning), "raise" (FitError), "ignore".
    **options
        Of the method: learning_rate, epochs, batch_size, scheduler, averaging, early_stopping, scale and the optimizer's own
        for gradient descent; max_steps, radius for "lm"; max_generations, population, rtol, strategy for "differential_evolution".

    Returns
    -------
    FitResult

    Raises
    ------
    DataError, ModelError, ParameterError, OptionError
        The input cannot be fitted; each says what came, what was expected and what to do.
    FitError
        The fit failed and ``on_failure="raise"``.
    """
    check_choices(engine, on_failure, seed, every, out, progress)
    check_multistart(multistart)
    if not isinstance(absolute_sigma, bool) or isinstance(sigma, bool) or isinstance(weights, bool):
        raise OptionError(f"sigma is {sigma!r} and absolute_sigma {absolute_sigma!r}; expected numbers, and True or False.")
    shown = (every, out, progress)
    planned = None
    if data is None and validation is None and folds is None and missing == "raise" and weights is None and not _is_matrix(sigma):
        known_start = start is None or is_plain(start)
        parts = (
            len(arrays), target, names_of(start) if known_start else start, bounds, fixed, tied, sigma is None, inexact_names(sigma_x), absolute_sigma, loss,
            f_scale, dtype, engine, tuple(options.items()),
        )  # fmt: skip
        planned, plan = MEMORY.find(model, parts, method)
        if plan is not None:
            begin = start if known_start else None
            deviations = sigma, sigma_x, absolute_sigma
            short = known_start and every is None
            found = _planned(plan, arrays, begin, deviations, multistart, seed, dtype, short=short)
            if isinstance(found, FitResult):
                return found
            if found is not None:
                return _fitted(
                    plan.model, plan.method, found[0], found[1], None, absolute_sigma, 0, (), seed, on_failure, shown, found[2]
                )
    table, described = _described(model, arrays, data, target, encoding, names_given(start, bounds, fixed, tied))
    check_has_parameters(described)
    assert described.target is not None
    rows = dataset(table, described.data_names, described.target, sigma=sigma, weights=weights, sigma_x=sigma_x, missing=missing)
    train, held_out = _split(rows, validation, seed, described, missing, encoding)
    known = parameters(described.defaults, start=start, bounds=bounds, fixed=fixed, tied=tied, packed=described.kind != "module")
    _check_enough(train, known, described)
    measure = losses.resolve(loss, train, f_scale=f_scale)
    chosen = method_of(default_method(described, measure, train) if method is None else method, options)
    precision = precision_of(dtype, rows, chosen, described)
    if rows.sigma_x is not None:
        _check_errors_in_x(described, measure, chosen, precision)
    given = multistart is None and not unstarted(known)
    guesses = [] if given else guessed(described, known, train, chosen)
    first = guesses[0] if guesses else known
    kernel = calling.build(described, first, train, measure, dtype=precision, engine=engine, begun=given)
    parted = () if folds is None else _folds(train, folds, seed, held_out, known, described)
    if absolute_sigma and sigma is None:
        other = "weights were" if weights is not None else "no sigma was"
        raise OptionError(f"absolute_sigma says that sigma are measured errors, and {other} given; pass sigma=.")
    beginning = GIVEN
    if not given:
        kernel, beginning = _begun(kernel, train, chosen, guesses, multistart, seed)
    # With sigma_x all 0 nobody has asked yet whether the rest goes with errors in x.
    if isinstance(kernel, NativeKernel) and measure.kind == "least_squares" and (sigma_x is None or rows.sigma_x is not None):
        own = beginning if unstarted(known) else GIVEN
        MEMORY.remember(planned, Plan(described, known, chosen, kernel.base, plain_code(kernel), own))
    return _fitted(
        described, chosen, kernel, train, held_out, absolute_sigma, rows.dropped, parted, seed, on_failure, shown, beginning
    )


def _planned(
    plan: Plan,
    arrays: tuple[Any, ...],
    start: Any,
    deviations: tuple[Any, Any, bool],
    multistart: int | None,
    seed: int,
    dtype: Any,
    *,
    short: bool,
) -> FitResult | tuple[AnyKernel, Dataset, Beginning] | None:
    """Go as far with other data as was gone before: to the result the short way, else to where the fit begins.

    None where the data are of another kind.

    Parameters
    ----------
    deviations
        sigma, sigma_x and absolute_sigma.
    short
        Whether the short way may be gone.
    """
    sigma, sigma_x, absolute = deviations
    begun = plan.begins and multistart is None
    if begun and short:
        ended = plan.short(arrays, start, sigma, sigma_x, absolute=absolute)
        if ended is not None:
            return FitResult(Short(plan.parameters.names, ended, lambda: _long_way(plan, ended, start, seed)))
    train = _arrays_again(plan, arrays, sigma, sigma_x)
    alike = all(column.ndim == 1 for column in train.columns.values())
    if not alike or precision_of(dtype, train, plan.method, plan.model) != plan.base.dtype:
        return None
    known = plan.started(start)
    kernel: AnyKernel = plan.kernel(train, known)
    beginning = plan.beginning
    if not begun:
        kernel, beginning = _begun(kernel, train, plan.method, guessed(plan.model, known, train, plan.method), multistart, seed)
    return kernel, train, beginning


def _begun(
    kernel: AnyKernel, train: Dataset, method: Method, guesses: Sequence[Parameters], multistart: int | None, seed: int
) -> tuple[AnyKernel, Beginning]:
    """Find where to begin; gives the kernel that begins there."""
    starter = Starter(kernel, train, method, guesses, seed)
    parameters, beginning = starter.find() if multistart is None else starter.many(multistart)
    begun = calling.begun_at(kernel, parameters)
    if beginning.kind != "shape":  # a ready model has no idle parameter, though some data may leave it one
        _check_depending(begun, kernel)
    return begun, beginning


def _check_depending(begun: AnyKernel, first: AnyKernel) -> None:
    """Refuse a model without effect of a parameter, where the fit begins and at the start that was there first.

    At one of them alone it may be idle by chance: then the fit ends with a status that says so.
    """
    inner, before = (kernel.inner if isinstance(kernel, CorrelatedKernel) else kernel for kernel in (begun, first))
    try:
        depending(inner)
    except ModelError:
        depending(before)


def _fitted(
    model: Model,
    method: Method,
    kernel: AnyKernel,
    train: Dataset,
    held_out: Dataset | None,
    absolute_sigma: bool,
    dropped: int,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    seed: int,
    on_failure: OnFailure,
    shown: tuple[int | None, TextIO | None, bool | None],
    beginning: Beginning,
) -> FitResult:
    """Run the method on what was put together."""
    known = kernel.parameters
    spread = 1.0 if absolute_sigma or kernel.loss_kind == "likelihood" else None
    with monitored(known.free_elements, method.max_steps, method.unit, *shown) as monitor:
        outcome = fit_one(method, kernel, known, validation=held_out, seed=seed, spread=spread, observe=monitor)
    if outcome.without_effect and beginning.kind in ("given", "assumed"):
        depending(kernel)
    fold_losses = cross_validate(method, kernel, known, train, folds, seed=seed) if folds else np.empty(0)
    fitted = Fitted(
        outcome, kernel, Setting(model, known, train, held_out, method, absolute_sigma, dropped, beginning), fold_losses
    )
    result = FitResult(fitted)
    _report_failure(result, on_failure)
    if shortcoming := fitted.shortcoming:
        python_warnings.warn(shortcoming, errors.UndeterminedWarning, stacklevel=3)
    return result


def _long_way(plan: Plan, ended: Ended, start: Any, seed: int) -> Fitted:
    """Make again, with all that a long way finds out, a fit that went the short one."""
    train = _arrays_again(plan, tuple(ended.arrays), ended.sigma, ended.sigma_x)
    kernel = plan.kernel(train, plan.started(start))
    spread = 1.0 if ended.absolute else None
    outcome = fit_one(plan.method, kernel, kernel.parameters, validation=None, seed=seed, spread=spread, observe=None)
    setting = Setting(plan.model, kernel.parameters, train, None, plan.method, ended.absolute, 0, plan.beginning)
    return Fitted(outcome, kernel, setting, np.empty(0))


def _arrays_again(plan: Plan, arrays: tuple[Any, ...], sigma: Any, sigma_x: Any) -> Dataset:
    """Check the arrays of a call whose plan is known."""
    if (
        sigma is None
        and sigma_x is None
        and (found := plain_rows(plan.model.data_names, str(plan.model.target), arrays)) is not None
    ):
        if found.n < len(plan.parameters.free_elements):
            _check_enough(found, plan.parameters, plan.model)
        return found
    names = (*plan.model.data_names, str(plan.model.target))
    columns = dict(zip(names, arrays, strict=True))
    rows = dataset(Table(names, columns.__getitem__, "the arrays given"), names[:-1], names[-1], sigma=sigma, sigma_x=sigma_x)
    _check_enough(rows, plan.parameters, plan.model)
    return rows


def load(path: str | os.PathLike[str]) -> FitResult:
    """Read a result that :meth:`FitResult.save` wrote, by this version or an older one.

    It predicts wherever the model could be stored (a formula, or a function that is a graph of elementwise operators);
    otherwise ``predict`` says what it needs.

    Raises
    ------
    StorageError
        The file is missing, no saved fit, damaged, or of a newer schema.
    """
    record = storage.from_json(storage.read_whole(path))
    stored = record.model
    if stored.kind == "formula" and stored.text is not None:
        model = formula_model(stored.text, columns=(*stored.data_names, stored.target), target=stored.target, parameters=())
    elif stored.graph is not None:
        graph = from_dict(stored.graph)
        if set(graph.inputs) != {*stored.data_names, *stored.shapes}:
            raise StorageError("the stored model does not take the stored columns and parameters; the file is damaged.")
        defaults = {name: Parameter() for name in stored.shapes}
        model = Model(
            "formula",
            lambda **v: graph.evaluate(v),
            stored.data_names,
            defaults,
            stored.target,
            stored.text,
            stored.label,
        )
    else:
        return FitResult(record, None)
    kernel = eager.EagerKernel(
        model, parameters(model.defaults), losses.Loss("squared", losses.squared_error, "least_squares"), model.function,
        columns={}, target=torch.empty(0, dtype=torch.float64), sigma=None,
    )  # fmt: skip
    return FitResult(record, predictor_for(record, kernel))


def check_choices(engine: str, on_failure: str, seed: object, every: object, out: object, progress: object) -> None:
    if engine not in ENGINES:
        raise OptionError(unknown("engine", engine, ENGINES))
    if on_failure not in ("warn", "raise", "ignore"):
        raise OptionError(unknown("value of on_failure", on_failure, ("warn", "raise", "ignore")))
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise OptionError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1.")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise OptionError(f"every is {every!r}; expected a whole number of steps, 1 or more.")
    check_progress(progress)
    if out is not None and not hasattr(out, "write"):
        raise OptionError(f"out is {out!r}; expected an open text file, such as sys.stderr.")


def default_method(model: Model, measure: losses.Loss, train: Dataset) -> str:
    """Levenberg-Marquardt wherever it can be: not for networks, and not for losses without rows that curve upwards."""
    if model.kind == "module":
        return "adam"
    return "lm" if losses.is_curved(measure, train) else "lbfgs"


def method_of(method: Any, options: dict[str, Any]) -> Method:
    """Find the method by name, class or object; check its options."""
    if isinstance(method, str) and method.lower() in METHODS:
        factory = METHODS[method.lower()]
        known = [name for name in inspect.signature(factory).parameters if name not in ("early_stopping",)]
        if factory is LinearLeastSquares:
            known = []
        for name in options:
            if name not in known:
                raise OptionError(_unknown_option(name, method, known))
        return factory(**options)
    if isinstance(method, str) and method.lower() not in OPTIMIZERS:
        raise OptionError(unknown("method", method, [*METHODS, *(name for name in OPTIMIZERS if name != "sparseadam")]))
    if isinstance(method, str) or (isinstance(method, type) and issubclass(method, torch.optim.Optimizer)):
        return GradientDescent(method, **options)
    if isinstance(method, (GradientDescent, LevenbergMarquardt, LinearLeastSquares, DifferentialEvolution)):
        if options:
            raise OptionError(f"the method is an object and carries its own options; set {', '.join(options)} there.")
        return method
    raise OptionError(
        f"method is {method!r}; expected a name, a torch.optim class, or a method object such as GradientDescent('adam')."
    )


def _unknown_option(name: str, method: str, known: list[str]) -> str:
    """Say what the option may have meant: one of the method's, one of fit's, or one of gradient descent."""
    if name in inspect.signature(GradientDescent).parameters:
        return f"{name} belongs to gradient descent; name an optimizer too, such as method='adam'."
    own = [other for other, argument in inspect.signature(fit).parameters.items() if argument.kind is argument.KEYWORD_ONLY]
    if name in own:
        return f"{name} is an option of fit, for one data set; fit_many takes none. Fit them one by one, or leave it out."
    near = get_close_matches(name, own, n=1, cutoff=0.6)
    return unknown(f"option of method {method!r},", name, known, f"Did you mean {near[0]!r}?" if near else "")


def _is_matrix(sigma: Any) -> bool:
    """Whether sigma is a covariance matrix rather than standard deviations."""
    return type(sigma) is not float and sigma is not None and not isinstance(sigma, str) and np.ndim(sigma) == 2


def names_given(*given: Any) -> set[str]:
    """Names the call speaks of as parameters."""
    return {
        str(name) for part in given if isinstance(part, (Mapping, list, tuple, set)) for name in part if isinstance(name, str)
    }


def _described(
    model: Any, arrays: tuple[Any, ...], data: Any, target: str | None, encoding: str, named: set[str]
) -> tuple[Table, Model]:
    """Bring model and data together: which arguments are data, which column is the target."""
    if data is not None and arrays:
        raise DataError("both arrays and data= were given; pass one of them.")
    if data is None and len(arrays) < 2:
        raise DataError("no data to fit: write fit(model, x, y), or fit(model, data=table, target='y').")
    if not (isinstance(model, str) or callable(model)):
        raise ModelError(f"model is {model!r}; expected a function, a formula, or a torch module.")
    if data is not None:
        return described_table(model, read(data, encoding=encoding), target, named)
    return _described_arrays(model, arrays, target)


def described_table(model: Any, table: Table, target: str | None, named: set[str]) -> tuple[Table, Model]:
    """Bring model and table together, of which the names are asked for and no column is read."""
    if isinstance(model, str):
        described = formula_model(model, columns=table.names, parameters=named, target=target)
    elif target is None:
        raise DataError(f"which column is the target? Pass target=, one of {', '.join(table.names)}.")
    elif isinstance(model, torch.nn.Module):
        described = module_model(model, [name for name in table.names if name != target], target)
    else:
        described = function_model(model, columns=table.names, parameters=named, target=target)
    if described.target not in table.names:
        raise DataError(unknown("target column", described.target, table.names, f"They are the columns of {table.origin}."))
    return table, described


def _described_arrays(model: Any, arrays: tuple[Any, ...], target: str | None) -> tuple[Table, Model]:
    if isinstance(model, str):
        raise DataError("a formula names its columns; pass them by name: data={'x': x, 'y': y}.")
    if target is not None and not isinstance(target, str):
        raise DataError(f"target is {target!r}; expected a name for what is predicted, so give a text, or leave it out.")
    *inputs, last = arrays
    aim = target or str(getattr(last, "name", None) or "y")
    if isinstance(model, torch.nn.Module):
        names: tuple[str, ...] = ("x",) if len(inputs) == 1 else tuple(f"x{place}" for place in range(len(inputs)))
        described = module_model(model, names, aim)
    else:
        described = function_model(model, count=len(inputs), target=aim)
    if aim in (*described.data_names, *described.defaults):
        aim = "target"
    columns = dict(zip(described.data_names, inputs, strict=True)) | {aim: last}
    return Table(tuple(columns), columns.__getitem__, "the arrays given"), dataclasses.replace(described, target=aim)


def _split(
    rows: Dataset, validation: Any, seed: int, model: Model, missing: Missing, encoding: str
) -> tuple[Dataset, Dataset | None]:
    """Set validation rows apart, or take a data set of the caller's own."""
    if validation is None:
        return rows, None
    assert model.target is not None
    if isinstance(validation, tuple):
        expected = (*model.data_names, model.target)
        if len(validation) != len(expected):
            raise DataError(f"validation has {len(validation)} arrays; expected {len(expected)}: {', '.join(expected)}.")
        validation = dict(zip(expected, validation, strict=True))
    if isinstance(validation, (Mapping, str, os.PathLike)) or hasattr(validation, "columns"):
        own = dataset(read(validation, encoding=encoding), model.data_names, model.target, missing=missing)
        if rows.sigma is not None or rows.sigma_x is not None:
            given = "weights" if rows.weighted else "sigma" if rows.sigma is not None else "sigma_x"
            raise DataError(
                f"a validation set of its own has no {given}; with {given} pass validation as a fraction or row numbers."
            )
        return rows, own
    source_rows = rows.n + rows.dropped + rows.weightless
    train, held_out = split(rows.n, validation, seed=seed, row_numbers=rows.row_numbers, source_rows=source_rows)
    return rows.rows(train), rows.rows(held_out)


def _folds(
    train: Dataset, folds: int, seed: int, held_out: Dataset | None, known: Parameters, model: Model
) -> list[tuple[np.ndarray, np.ndarray]]:
    if held_out is not None:
        raise OptionError("both validation and folds were given; folds validate on every row in turn, so choose one.")
    parts = k_folds(train.n, folds, seed=seed)
    smallest = min(len(rows) for rows, _ in parts)
    if model.kind != "module" and smallest < len(known.free_elements):
        raise DataError(
            f"folds={folds} leaves {smallest} rows for {len(known.free_elements)} parameters; use more folds or more data."
        )
    return parts


def _check_enough(train: Dataset, known: Parameters, model: Model) -> None:
    p = len(known.free_elements)
    if model.kind != "module" and train.n < p:
        raise DataError(
            f"{train.n} rows cannot determine {p} parameters ({', '.join(known.free_elements)}); add data, or fix some."
        )


def _check_errors_in_x(model: Model, measure: losses.Loss, method: Method, precision: torch.dtype) -> None:
    """Refuse what does not go with errors in x."""
    if measure.name != "squared":
        raise OptionError(
            f"sigma_x makes the fit one of squared distances, and the loss is {measure.name}; use loss='squared', or leave sigma_x out."
        )
    if not isinstance(method, LevenbergMarquardt) or model.kind == "module":
        named = "a torch module" if model.kind == "module" else f"method {method.name}"
        raise OptionError(
            f"sigma_x was given with {named}; errors in x are fitted by method='lm', to a function or a formula. "
            "Use that, or leave sigma_x out."
        )
    if precision != torch.float64:
        raise OptionError("sigma_x was given with dtype='float32'; errors in x are fitted in float64, so leave dtype out.")


def precision_of(dtype: str | torch.dtype | None, rows: Dataset, method: Method, model: Model) -> torch.dtype:
    """Choose the precision: as asked; else single only for descent on single data, or for a module of single precision."""
    names = {"float32": torch.float32, "float64": torch.float64}
    if dtype is not None:
        found = names.get(str(dtype).removeprefix("torch."))
        if found is None:
            raise OptionError(unknown("dtype", dtype, names))
        return found
    if model.module is not None:
        return next((p.dtype for p in model.module.parameters()), torch.float64)
    return torch.float32 if rows.single and isinstance(method, GradientDescent) else torch.float64


def _report_failure(result: FitResult, on_failure: OnFailure) -> None:
    if result.success or on_failure == "ignore":
        return
    if on_failure == "raise":
        raise FitError(result.message)
    python_warnings.warn(result.message, FitWarning, stacklevel=4)
