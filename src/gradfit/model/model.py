"""Model: a function, its data arguments and its parameters.

Three kinds are one thing afterwards: a plain Python function, a formula, a :class:`torch.nn.Module`. Each becomes
``function(**data, **parameters) -> predictions``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradfit.errors import DataError, FormulaError, ModelError
from gradfit.model.expression import normal, parse
from gradfit.model.lineshape import Lineshape
from gradfit.model.parameters import Parameter
from gradfit.model.ready import NAMES as READY
from gradfit.model.ready import ready_formula


@dataclass(frozen=True)
class Model:
    """A model of ``target`` as a function of data and parameters.

    Attributes
    ----------
    kind
        What it was given as.
    function
        ``function(**data, **parameters)``, vectorised over rows.
    data_names, defaults
        Its data arguments, and its parameters with what the signature says of them.
    target
        Name of the predicted column, where the model or the call names one.
    text
        The formula, or the source text of the function: for reading, never run again.
    label
        One line for headings.
    module
        The module itself (our own copy), for ``kind="module"``.
    """

    kind: Literal["formula", "function", "module"]
    function: Callable[..., Any]
    data_names: tuple[str, ...]
    defaults: Mapping[str, Parameter]
    target: str | None
    text: str | None
    label: str
    module: torch.nn.Module | None = None

    def in_precision(self, dtype: torch.dtype) -> Model:
        """Give the model for data of another dtype: a module's buffers are converted, on a copy."""
        if self.module is None or all(p.dtype == dtype for p in self.module.parameters()):
            return self
        return module_model(copy.deepcopy(self.module).to(dtype), self.data_names, self.target)


def formula_model(text: str, *, columns: Collection[str], parameters: Collection[str] = (), target: str | None = None) -> Model:
    """Read a formula: names that are columns are data, the rest parameters. It may be made of ready models instead.

    Parameters
    ----------
    columns
        Names of the table's columns.
    parameters
        Names that the call speaks of as parameters (start, bounds, fixed, tied).
    target
        The target, where the formula does not name one.
    """
    if (ready := ready_formula(text)) is not None:
        return _ready_model(text, *ready, columns=columns, target=target)
    formula = parse(text)
    if formula.target is None and target is None:
        raise FormulaError(f"which column does {text!r} describe? Write 't_c = {text}', or pass target=.")
    if formula.target is not None and target is not None and normal(str(target)) != formula.target:
        raise FormulaError(f"the formula describes {formula.target!r} and target= says {target!r}; leave one out.")
    spelled = {name: _column(name, columns) for name in formula.names}  # the table's own spelling, by the formula's
    aim = target if target is not None else _column(formula.target or "", columns)
    _check_constants(formula.constants, columns, text)
    names = tuple(dict.fromkeys(spelled.values()))
    data = tuple(name for name in names if name in columns)
    door = next((f"{name} is a ready model: write {name}({{}})." for name in names if name in READY), "")
    _check_roles(data, names, dict.fromkeys(columns), parameters, aim, door=door)

    def function(**values: Any) -> Any:
        return formula.evaluate({name: values[column] for name, column in spelled.items()})

    plain = all(name == column for name, column in spelled.items())
    return Model(
        kind="formula",
        function=(lambda **values: formula.evaluate(values)) if plain else function,
        data_names=data,
        defaults={name: Parameter() for name in names if name not in columns},
        target=aim,
        text=text,
        label=text,
    )


def _ready_model(text: str, named: str | None, shape: Lineshape, *, columns: Collection[str], target: str | None) -> Model:
    """Give the model of a formula of ready models."""
    if named is None and target is None:
        raise FormulaError(f"which column does {text!r} describe? Write 'y = {text}', or pass target=.")
    if named is not None and target is not None and named != target:
        raise FormulaError(f"the formula describes {named!r} and target= says {target!r}; leave one out.")
    described = function_model(shape, columns=columns, target=named if target is None else target)
    return replace(described, kind="formula", text=text, label=text)


def _column(name: str, columns: Collection[str]) -> str:
    """Find the column a name of the formula means, however its letters are encoded; else the parameter's name."""
    if name in columns:
        return name
    alike = [column for column in columns if normal(column) == normal(name)]
    if len(alike) > 1:
        raise FormulaError(f"{name!r} may be each of the columns {', '.join(alike)}; put the one you mean in backticks.")
    return alike[0] if alike else normal(name)


def _check_constants(constants: Collection[str], columns: Collection[str], text: str) -> None:
    """Refuse a constant whose name is also a column: one of the two would be taken unseen."""
    both = [name for name in constants if name in columns]
    if both:
        raise FormulaError(
            f"{both[0]} in {text!r} is the constant 3.14159..., and the data have a column of that name; "
            f"for the column write `{both[0]}` in backticks, or rename it."
        )


def function_model(
    function: Callable[..., Any],
    *,
    columns: Collection[str] | None = None,
    count: int | None = None,
    parameters: Collection[str] = (),
    target: str | None = None,
) -> Model:
    """Read a function's signature: data arguments first, then parameters; a default is a starting value.

    Parameters
    ----------
    columns
        Arguments that are columns are data, the rest parameters.
    count
        Where arrays were given by position: the first ``count`` arguments are data.
    """
    arguments, options = _arguments(function)
    names = tuple(arguments)
    if count is not None:
        if len(names) < count:
            raise ModelError(
                f"{_label(function)} takes {len(names)} arguments and {count} arrays of data were given before the target."
            )
        data = names[:count]
    else:
        known = dict.fromkeys(columns or ())
        data = tuple(name for name in names if name in known)
        door = f"Say which column {names[0]} is, with .of({{!r}})." if isinstance(function, Lineshape) else ""
        _check_roles(data, names, known, parameters, target, skip=options, door=door)
        _check_spelling(names, known)
    defaults = {name: arguments[name] for name in names if name not in data and (name not in options or name in parameters)}
    return Model("function", _by_keyword(function), data, defaults, target, _source(function), _label(function))


def module_model(module: torch.nn.Module, data_names: Sequence[str], target: str | None) -> Model:
    """Wrap a module: its parameters are named as torch names them, and start where the module stands.

    The module itself is never changed: gradfit works on a copy. Its input is (n, k), one column per data argument, unless
    ``forward`` takes several arguments: then each gets one column, (n, 1).
    """
    _check_module(module)
    own = copy.deepcopy(module).eval()  # dropout and batch norm are switched on by the descent alone
    defaults = {name: Parameter(start=p.detach().cpu().numpy().astype(np.float64)) for name, p in own.named_parameters()}
    for name, p in own.named_parameters():
        if not p.requires_grad:
            defaults[name] = Parameter(start=defaults[name].start, fixed=True)
    names = tuple(data_names)
    separate = len(names) > 1 and _positional_count(own.forward) == len(names)

    def function(**values: Tensor) -> Any:
        columns = [values[name] for name in names]
        columns = [column.unsqueeze(1) if column.dim() == 1 else column for column in columns]
        inputs = tuple(columns) if separate else (torch.cat(columns, dim=1),)
        output = torch.func.functional_call(own, {name: values[name] for name in defaults}, inputs)
        return output.squeeze(1) if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] == 1 else output

    return Model("module", function, names, defaults, target, repr(module), f"torch.nn module {type(module).__name__}", own)


def _check_module(module: torch.nn.Module) -> None:
    """Refuse a module whose parameters are not there yet, or not numbers to fit."""
    kind = type(module).__name__
    for name, parameter in module.named_parameters():
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise ModelError(f"{kind} is lazy: {name} has no shape yet; call the module once on data before the fit.")
        if parameter.is_meta:
            raise ModelError(f"{kind} is on the meta device: {name} has no numbers; make it with module.to_empty(device='cpu').")
        if parameter.is_complex():
            raise ModelError(f"{kind} has complex parameters ({name}); expected real ones, such as real and imaginary part.")


def _check_roles(
    data: Sequence[str],
    names: Sequence[str],
    columns: Mapping[str, Any],
    parameters: Collection[str],
    target: str | None,
    skip: Collection[str] = (),
    door: str = "",
) -> None:
    """Refuse what is probably a slip: no column used, a column named as parameter, a name one letter off a column.

    ``door`` says how this model is told its column, which stands at ``{}``.
    """
    if target is not None and target in data:
        raise ModelError(f"{target!r} is the target and also an input of the model; a model does not read what it predicts.")
    both = [name for name in data if name in parameters]
    if both:
        raise ModelError(f"{both[0]!r} is a column of the data and was also given as a parameter; rename one.")
    unused = [column for column in columns if column not in data and column != target]
    slips = {name: _nearest(name, unused) for name in names if name not in {*columns, *parameters, *skip}}
    if not data and names and not slips:
        raise ModelError(f"the model has no parameters: {', '.join(names)} are columns.")
    if not data:
        constant = f"For a constant write {names[0]} + 0*{unused[0]}." if len(names) == 1 and unused else ""
        constant = door.format(unused[0]) if door and unused else constant
        hint = next((f"Did you mean {column!r}, not {name!r}?" for name, column in slips.items() if column), "")
        raise ModelError(
            f"no argument of the model is a column of the data; its names: {', '.join(names) or 'none'}; "
            f"columns: {', '.join(columns)}. {hint or constant or 'Write the columns as the table does.'}"
        )
    for name, column in slips.items():
        if column:
            raise ModelError(
                f"{name!r} is no column; did you mean {column!r}? If it is a parameter, give it a start: start={{{name!r}: 1.0}}."
            )


def _nearest(name: str, columns: Sequence[str]) -> str | None:
    """Find the column that a name misspells: much alike, or one letter off."""
    by_lower = {column.lower(): column for column in columns}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    near += [column for column in by_lower if _one_letter_off(name.lower(), column)]
    return by_lower[near[0]] if near else None


def _one_letter_off(name: str, column: str) -> bool:
    if len(name) != len(column) or len(name) < 3:
        return False
    pairs = [(mine, theirs) for mine, theirs in zip(name, column, strict=True) if mine != theirs]
    return len(pairs) == 1 and all(letter.isalpha() for letter in pairs[0])  # x_1 and x_2 are no slip


def _check_spelling(names: Collection[str], columns: Collection[str]) -> None:
    """Refuse a column that Python would spell otherwise: the micro sign in a function's argument becomes the letter mu."""
    for column in columns:
        if column not in names and normal(column) in names:
            raise ModelError(
                f"the column {column!r} looks like the argument {normal(column)!r} and is encoded otherwise; rename the column."
            )


def _arguments(function: Callable[..., Any]) -> tuple[dict[str, Parameter], set[str]]:
    """Give the arguments by name, and those whose default is no number: options of the function, left as they are."""
    if isinstance(function, type):
        raise ModelError(
            f"the model is the class {function.__name__}; expected a function or an object, so pass {function.__name__}(...)."
        )
    if inspect.iscoroutinefunction(function):
        raise ModelError(
            f"{_label(function)} is async, so that a call gives a coroutine; expected numbers, so write def without async."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ModelError(f"the arguments of {_label(function)} cannot be read; wrap it: def model(x, a, b): ...") from None
    arguments: dict[str, Parameter] = {}
    options: set[str] = set(function.keywords) if isinstance(function, functools.partial) else set()  # bound by the caller
    for name, argument in signature.parameters.items():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ModelError(
                f"{_label(function)} takes *{name}; name each parameter, or take one vector parameter and give its start."
            )
        default = argument.default
        if isinstance(default, Parameter):
            arguments[name] = default
        elif default is argument.empty:
            arguments[name] = Parameter()
        elif isinstance(default, (numbers.Real, np.ndarray, Tensor)) and not isinstance(default, bool):
            arguments[name] = Parameter(start=default)
        else:
            arguments[name] = Parameter()
            options.add(name)
    if len(arguments) == 0:
        raise ModelError(f"{_label(function)} takes no arguments; expected data first, then parameters.")
    return arguments, options


def _by_keyword(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let positional-only arguments be passed by name too."""
    signature = inspect.signature(function)
    fixed = [name for name, argument in signature.parameters.items() if argument.kind is argument.POSITIONAL_ONLY]
    if not fixed:
        return function

    @functools.wraps(function)
    def call(**values: Any) -> Any:
        first = [values.pop(name) for name in fixed]
        return function(*first, **values)

    return call


def _positional_count(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for argument in inspect.signature(function).parameters.values() if argument.kind in kinds)


def _source(function: Callable[..., Any]) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        return None


def _label(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "the model" if name == "<lambda>" else name


def check_has_parameters(model: Model) -> None:
    """Refuse a model that has nothing to fit."""
    if not model.defaults:
        raise ModelError(f"{model.label} has no parameters; besides data columns it needs a name to fit, such as w in 'w*t_u'.")
    if model.kind == "module" and not model.data_names:
        raise DataError("a torch module needs at least one column of data besides the target.")
