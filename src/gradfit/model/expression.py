"""A formula such as ``t_c = w*t_u + b``, parsed by a grammar and never evaluated as code.

The text is read by :func:`ast.parse`, which builds a tree and runs nothing. The tree is walked with an allow-list: what is
not named here is refused. Each node becomes a small function of the values, so a formula is differentiated like any other
torch computation.

::

    formula    = [name "="] sum
    sum        = numbers, names, pi (or π), + - * / ** %, ( ), functions, where(condition, sum, sum)
    condition  = comparisons of sums, joined by and, or, not        (only as the first argument of where)

Names may be in any script (``温度 = 斜率*读数 + 截距``); a column whose name is no word is put in backticks (```t (°C)` ``).
"""

from __future__ import annotations

import ast
import itertools
import keyword
import math
import operator
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from gradfit.errors import FormulaError, unknown

MAX_LENGTH = 2000  # characters
MAX_DEPTH = 60  # levels of nesting; far below Python's own recursion limit
MAX_LEVELS = 4 * MAX_DEPTH  # of the tree: a long sum nests to the left, one level a term
MAX_NODES = 1000

Values: TypeAlias = Mapping[str, Any]
Step: TypeAlias = Callable[[Values], Any]

# Functions of one argument, of two.
FUNCTIONS: tuple[Mapping[str, Callable[..., Any]], Mapping[str, Callable[..., Any]]] = (
    {
        "abs": torch.abs, "acos": torch.acos, "acosh": torch.acosh, "arccos": torch.acos, "arcsin": torch.asin,
        "arctan": torch.atan, "asin": torch.asin, "asinh": torch.asinh, "atan": torch.atan, "atanh": torch.atanh,
        "ceil": torch.ceil, "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf, "erfc": torch.erfc, "exp": torch.exp,
        "exp2": torch.exp2, "expm1": torch.expm1, "floor": torch.floor, "lgamma": torch.lgamma, "ln": torch.log,
        "log": torch.log, "log10": torch.log10, "log1p": torch.log1p, "log2": torch.log2, "round": torch.round,
        "sigmoid": torch.sigmoid, "sign": torch.sign, "sin": torch.sin, "sinc": torch.sinc, "sinh": torch.sinh,
        "softplus": torch.nn.functional.softplus, "sqrt": torch.sqrt, "tan": torch.tan, "tanh": torch.tanh,
    },
    {
        "atan2": torch.atan2, "hypot": torch.hypot, "logaddexp": torch.logaddexp, "maximum": torch.maximum,
        "minimum": torch.minimum,
    },
)  # fmt: skip

CONSTANTS = {"pi": math.pi, "π": math.pi}
BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.Mod: operator.mod,
}  # fmt: skip
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip

# Signs that a keyboard or a word processor puts where the grammar has its plain twin.
TYPOGRAPHY = str.maketrans("（）＋－＊／＝，＜＞％．０１２３４５６７８９×÷−·", "()+-*/=,<>%.0123456789*/-*")


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes
    ----------
    text
        As it was given.
    target
        The name left of ``=``, or None.
    names
        Variables right of it, in order of appearance; as Python spells them (NFKC), or as written in backticks.
    constants
        Which of the known constants it uses.
    evaluate
        ``evaluate(values)`` with one number or tensor per name.
    """

    text: str
    target: str | None
    names: tuple[str, ...]
    evaluate: Step = field(repr=False, compare=False)
    constants: tuple[str, ...] = ()


def parse(text: str) -> Formula:
    """Parse a formula.

    Raises
    ------
    FormulaError
        Not a formula of the grammar: too long, too deep, no arithmetic, unknown function, constant out of range.
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula is a text, not {type(text).__name__}.")
    if len(text) > MAX_LENGTH:
        raise FormulaError(
            f"the formula has {len(text)} characters; at most {MAX_LENGTH} are read. Write it as a Python function."
        )
    plain, quoted = _unquote(text)
    walker = _Walker(quoted)
    target, body = _sides(_tree(plain))
    _check_size(body)
    value = walker.number(body)
    evaluate = value if callable(value) else lambda values: value
    aim = None if target is None else walker.name(target)
    return Formula(text, aim, tuple(walker.names), evaluate, tuple(walker.constants))


def normal(name: str) -> str:
    """Give the form in which Python compares identifiers (NFKC), so that columns are found under it."""
    return unicodedata.normalize("NFKC", name)


def _unquote(text: str) -> tuple[str, dict[str, str]]:
    """Replace names in backticks by plain words."""
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        word = next(word for number in itertools.count(len(quoted)) if (word := f"quoted_name_{number}_") not in text)
        quoted[word] = match.group(1)
        return f" {word} "

    plain = re.sub(r"`([^`]+)`", stand_in, text)
    if "`" in plain:
        raise FormulaError(f"a backtick is not closed in {_brief(text)}; a name in backticks has one on each side.")
    return plain.translate(TYPOGRAPHY).strip(), quoted


def _tree(text: str) -> ast.Module:
    if not text:
        raise FormulaError("the formula is empty; expected something like 't_c = w*t_u + b'.")
    if "#" in text:
        raise FormulaError(f"{_brief(text)} holds '#', where a comment would begin; leave it out, or put a name in backticks.")
    if _nesting(text) > MAX_DEPTH:
        raise FormulaError(f"the formula is nested more than {MAX_DEPTH} levels deep; write it as a Python function.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on Python style do not concern a formula
            return ast.parse(text)
    except SyntaxError as error:
        place = f" near character {error.offset}" if error.offset else ""
        raise FormulaError(
            f"not a formula: {_brief(text)}{place}; expected arithmetic such as 't_c = w*t_u + b'.{_reserved(text)}"
        ) from None
    except (RecursionError, MemoryError, ValueError, OverflowError):
        raise FormulaError(f"the formula cannot be parsed: {_brief(text)}; it is too deep or holds odd characters.") from None


def _reserved(text: str) -> str:
    """Say so where a name, such as lambda, is a word of Python's own."""
    words = [word for word in re.findall(r"\w+", text) if keyword.iskeyword(word) and word not in ("and", "or", "not")]
    return f" {words[0]!r} is a reserved word; as a name write it in backticks: `{words[0]}`." if words else ""


def _check_size(body: ast.expr) -> None:
    """Measure the tree without recursion, before anything walks it."""
    level: list[ast.AST] = [body]
    depth = count = 0
    while level:
        depth, count = depth + 1, count + len(level)
        if count > 3 * MAX_NODES:
            raise FormulaError(f"the formula has more than {MAX_NODES} terms; write it as a Python function.")
        if depth > MAX_LEVELS:
            raise FormulaError("the formula is too long a chain of operations; write it as a Python function.")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def _nesting(text: str) -> int:
    level = deepest = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest


def _sides(tree: ast.Module) -> tuple[ast.Name | None, ast.expr]:
    match tree.body:
        case [ast.Expr(value=body)]:
            return None, body
        case [ast.Assign(targets=[ast.Name() as target], value=body)]:
            return target, body
        case [ast.Assign()]:
            raise FormulaError("left of '=' stands one name, the target: 't_c = w*t_u + b'.")
    raise FormulaError("expected one formula, such as 't_c = w*t_u + b'; no other statement is read.")


class _Walker:
    """Turns a tree into a function of the values; refuses what the grammar does not name."""

    def __init__(self, quoted: Mapping[str, str]) -> None:
        self.quoted = quoted
        self.names: list[str] = []
        self.constants: list[str] = []

    def name(self, node: ast.Name) -> str:
        return self.quoted.get(node.id, node.id)

    def number(self, node: ast.expr) -> Step | float:
        """Give a function of the values, or a float where nothing varies."""
        match node:
            case ast.Constant(value=bool()) | ast.Constant(value=complex()):
                pass
            case ast.Constant(value=int() | float() as value):
                return _constant(lambda: float(value), node)
            case ast.Name():
                return self._variable(self.name(node), node)
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
                return _apply(UNARY[type(sign)], node, self.number(operand))
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
                return _apply(BINARY[type(sign)], node, self.number(left), self.number(right))
            case ast.Call(func=ast.Name(id="where"), args=[condition, yes, no], keywords=[]):
                return self._where(condition, yes, no)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments, node)
        raise FormulaError(_refusal(node))

    def _variable(self, name: str, node: ast.Name) -> Step | float:
        if name in CONSTANTS and node.id not in self.quoted:
            self.constants.append(name)
            return CONSTANTS[name]
        if name not in self.names:
            self.names.append(name)
        return lambda values: values[name]

    def _call(self, name: str, arguments: list[ast.expr], node: ast.expr) -> Step | float:
        if name == "where":
            raise FormulaError(f"where() takes 3 arguments, where(condition, value, otherwise), and was given {len(arguments)}.")
        count = next((count for count, functions in enumerate(FUNCTIONS, start=1) if name in functions), None)
        if count is None:
            raise FormulaError(unknown("function", name, [*FUNCTIONS[0], *FUNCTIONS[1], "where"]))
        function = FUNCTIONS[count - 1][name]
        if len(arguments) != count:
            raise FormulaError(f"{name}() takes {count} argument{'s' * (count > 1)} and was given {len(arguments)}.")
        steps = [self.number(argument) for argument in arguments]
        return _apply(lambda *numbers: function(*_tensors(numbers)), node, *steps)

    def _where(self, condition: ast.expr, yes: ast.expr, no: ast.expr) -> Step:
        test, then, otherwise = self._condition(condition), self.number(yes), self.number(no)

        def choose(values: Values) -> Any:
            rows = test(values)
            first, second = _value(then, _within(values, rows)), _value(otherwise, _within(values, ~rows))
            return torch.where(rows, *_tensors((first, second)))

        return choose

    def _condition(self, node: ast.expr) -> Step:
        match node:
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in COMPARE:
                compare = COMPARE[type(sign)]
                first, second = self.number(left), self.number(right)
                return lambda values: compare(*_tensors((_value(first, values), _value(second, values))))
            case ast.BoolOp(op=ast.And() | ast.Or() as sign, values=parts):
                join = torch.logical_and if isinstance(sign, ast.And) else torch.logical_or
                tests = [self._condition(part) for part in parts]
                return lambda values: _fold(join, [test(values) for test in tests])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._condition(operand)
                return lambda values: torch.logical_not(inner(values))
        raise FormulaError(f"the first argument of where() is a comparison such as x > x0, not {_brief(ast.unparse(node))}.")


def _apply(function: Callable[..., Any], node: ast.expr, *arguments: Step | float) -> Step | float:
    """Compose; fold where every argument is a constant."""
    if not any(callable(argument) for argument in arguments):
        return _constant(lambda: float(function(*arguments)), node)
    if len(arguments) == 1:
        (only,) = arguments
        return lambda values: function(_value(only, values))
    if len(arguments) == 2:
        first, second = arguments
        return lambda values: function(_value(first, values), _value(second, values))
    return lambda values: function(*(_value(argument, values) for argument in arguments))


def _within(values: Values, rows: torch.Tensor) -> Values:
    """Give the rows a branch does not decide the data of one that it does.

    Autograd passes through both branches: where log(x) is not chosen because x < 0, its infinite derivative times zero would
    make the whole gradient NaN.
    """
    if rows.dim() != 1:
        return values
    chosen = rows.to(torch.uint8).argmax().reshape(1)

    def moved(value: Any) -> Any:
        alike = isinstance(value, torch.Tensor) and value.shape == rows.shape
        return torch.where(rows, value, value.index_select(0, chosen)) if alike else value

    return {name: moved(value) for name, value in values.items()}


def _value(step: Step | float, values: Values) -> Any:
    return step(values) if callable(step) else step


def _tensors(numbers: tuple[Any, ...]) -> list[torch.Tensor]:
    """Give tensors of one dtype: constants take the dtype of the tensors they meet."""
    dtype = next((number.dtype for number in numbers if isinstance(number, torch.Tensor)), torch.float64)
    return [number if isinstance(number, torch.Tensor) else torch.tensor(number, dtype=dtype) for number in numbers]


def _fold(join: Callable[[Any, Any], Any], tests: list[Any]) -> Any:
    result = tests[0]
    for test in tests[1:]:
        result = join(result, test)
    return result


def _constant(compute: Callable[[], float], node: ast.expr) -> float:
    try:
        value = compute()
    except (OverflowError, ZeroDivisionError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise FormulaError(
            f"the constant {_brief(ast.unparse(node))} is not a finite real number; expected one below 1.8e308 in size."
        )
    return value


def _refusal(node: ast.expr) -> str:
    shown = _brief(ast.unparse(node))
    match node:
        case ast.BinOp(op=ast.BitXor()):
            return f"{shown}: a power is written **, not ^."
        case ast.Compare() | ast.BoolOp() | ast.IfExp() | ast.UnaryOp(op=ast.Not()):
            return f"{shown}: a condition stands only inside where(condition, value, otherwise)."
        case ast.Attribute():
            return f"{shown}: names have no dot; write exp(x), not torch.exp(x)."
        case ast.Call():
            return f"{shown}: a function is called by its plain name with plain arguments, such as exp(x) or where(x > 0, a, b)."
    return f"{shown} is not arithmetic; expected numbers, names, + - * / ** and functions such as exp."


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
