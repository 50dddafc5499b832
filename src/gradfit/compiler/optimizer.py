"""A torch optimizer's step -> source: torch's own code, run once under the recorder.

An optimizer computes with tensors and with plain Python numbers: the learning rate, and what it takes out of its state
(``1 - beta1 ** step``). Such a number is given to it as a :class:`TracedNumber`, a float that remembers how it was computed.
Where the number enters a torch operator, torch passes on its value alone; the recorder knows it again by its bits, which is
why the numbers traced with are odd ones. Python's comparisons of such numbers choose a path (``if rho_t > 5``): the step is traced
with states from early and late in a fit, then again with each comparison made to come out the other way, and the paths found are
joined by ``where``.

That this is what torch computes is not believed but tried: the graph is compared with the optimizer itself over a number of
steps before anything is compiled from it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from gradfit.compiler import cache
from gradfit.compiler.descent_code import StepSource
from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.graph import Graph, Node, Untraceable, apply, cast, constant, to_single, variable, where
from gradfit.compiler.lower import lower
from gradfit.compiler.native import edition
from gradfit.compiler.ops import power
from gradfit.compiler.simplify import simplify
from gradfit.compiler.trace import DTYPES, Recorder, dtype_of

Build = Callable[[list[Tensor]], Optimizer]
# States to trace with: steps taken before; what is added to the count of steps, and to other single numbers. Paths differ early
# and late (RAdam's first five steps, ASGD's averaging from step t0 on); a count that is no whole number makes what is computed
# from it odd.
STATES = ((1, 0.2109375, 0.0), (2, 0.2109375, 0.0), (40, 0.2109375, 0.0), (2, 0.2109375, -0.21), (2, 3e6, 0.0), (2, 3e6, -0.21))
MAX_PATHS = 32  # ways through the step
TRIED_STEPS = 60
AGREEMENT = {"double": 1e-12, "single": 1e-5}
TRIVIAL = frozenset([0.0, 1.0, -1.0, 2.0, -2.0, 0.5])  # too common for a number to be known again by
MAX_ELEMENTS = 32  # the step is written out for each parameter


def trace_update(
    build: Build, settings: Mapping[str, float], *, size: int, dtype: torch.dtype, identity: str | None
) -> StepSource:
    """Trace one step of a torch optimizer.

    Parameters
    ----------
    build
        Makes the optimizer for a list of one tensor (size,).
    settings
        Entries of its ``param_groups[0]`` that a schedule changes, with a typical value: "lr", "momentum", "betas[0]".
    identity
        Names the optimizer and all its options where they are torch's own and plain, so that the source can be kept on disk.

    Raises
    ------
    Untraceable
        Its step is no graph of single numbers; the text says why.
    """
    identities = ("step", edition(), torch.__version__, str(identity), repr((*settings, size, str(dtype))))
    name = None if identity is None else f"{cache.key(*identities)}.step"
    kept = cache.read(name) if name is not None else None
    if kept is not None:
        known = json.loads(kept)
        return StepSource(known["first"], known["following"], tuple(known["settings"]), tuple(known["state"]))
    step = _trace(build, settings, size, dtype)
    if name is not None:
        cache.write(name, json.dumps(step.__dict__).encode())
    return step


def _trace(build: Build, settings: Mapping[str, float], size: int, dtype: torch.dtype) -> StepSource:
    if size > MAX_ELEMENTS:
        raise Untraceable(f"the step is compiled for up to {MAX_ELEMENTS} parameters, and there are {size}")
    first = simplify(_joined(_paths(build, settings, size, dtype, [(0, 0.0, 0.0)])))
    paths = _paths(build, settings, size, dtype, STATES)
    following = simplify(_joined(paths))
    layout = paths[0].layout
    _try_out(build, settings, size, dtype, first, following, layout)
    outputs = [*(f"new_p{k}" for k in range(size)), *(f"new_{name}" for name, _ in layout)]
    state = tuple(kind for _, kind in layout)
    initial, later = (lower(graph, outputs, name="step", title="One step of the optimizer.") for graph in (first, following))
    # Without state the first step is like any other.
    return StepSource(later if not layout else initial, later, tuple(settings), state)


# --- numbers that remember ---------------------------------------------------------------------------------------------


class TracedNumber(float):
    """A float with the node that computes it."""

    node: Node
    recorder: _StepRecorder

    def _with(self, operation: Callable[[Any, Any], Node], value: float, *operands: Any) -> TracedNumber:
        nodes = [operand.node if isinstance(operand, TracedNumber) else constant(float(operand)) for operand in operands]
        return self.recorder.number_of(value, operation(*nodes))

    def __add__(self, other: Any) -> Any:
        return self._with(lambda a, b: a + b, float(self) + float(other), self, other) if _is_number(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return self._with(lambda a, b: a + b, float(other) + float(self), other, self) if _is_number(other) else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return self._with(lambda a, b: a - b, float(self) - float(other), self, other) if _is_number(other) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return self._with(lambda a, b: a - b, float(other) - float(self), other, self) if _is_number(other) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return self._with(lambda a, b: a * b, float(self) * float(other), self, other) if _is_number(other) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return self._with(lambda a, b: a * b, float(other) * float(self), other, self) if _is_number(other) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return self._with(lambda a, b: a / b, float(self) / float(other), self, other) if _is_number(other) else NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(lambda a, b: a / b, float(other) / float(self), other, self) if _is_number(other) else NotImplemented

    def __pow__(self, other: Any, modulus: None = None) -> Any:
        return self._with(power, _power(float(self), float(other)), self, other) if _is_number(other) else NotImplemented

    def __rpow__(self, other: Any, modulus: None = None) -> Any:
        return self._with(power, _power(float(other), float(self)), other, self) if _is_number(other) else NotImplemented

    def __neg__(self) -> TracedNumber:
        return self.recorder.number_of(-float(self), -self.node)

    def __abs__(self) -> TracedNumber:
        return self.recorder.number_of(abs(float(self)), apply("abs", self.node))

    def _compared(self, relation: str, other: Any, outcome: bool) -> bool:
        node = other.node if isinstance(other, TracedNumber) else constant(float(other))
        return self.recorder.decide(apply(relation, self.node, node), outcome)

    def __bool__(self) -> bool:
        return self._compared("ne", 0.0, float(self) != 0.0)

    def __lt__(self, other: Any) -> bool:
        return self._compared("lt", other, float(self) < float(other))

    def __le__(self, other: Any) -> bool:
        return self._compared("le", other, float(self) <= float(other))

    def __gt__(self, other: Any) -> bool:
        return self._compared("gt", other, float(self) > float(other))

    def __ge__(self, other: Any) -> bool:
        return self._compared("ge", other, float(self) >= float(other))

    def __eq__(self, other: object) -> bool:
        return self._compared("eq", other, float(self) == float(other)) if isinstance(other, (int, float)) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self._compared("ne", other, float(self) != float(other)) if isinstance(other, (int, float)) else NotImplemented

    __hash__ = float.__hash__


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _power(base: float, exponent: float) -> float:
    try:
        result = float.__pow__(float(base), float(exponent))
    except (ZeroDivisionError, OverflowError):
        return math.nan
    return math.nan if isinstance(result, complex) else result


class _StepRecorder(Recorder):  # type: ignore[no-untyped-call]
    """A recorder that knows plain numbers again by their bits, and writes down which way comparisons went."""

    def __init__(self, forced: Sequence[bool] = ()) -> None:
        super().__init__()
        self.numbers: dict[bytes, Node] = {}
        self.path: list[tuple[Node, bool]] = []
        self.forced = forced

    def decide(self, condition: Node, outcome: bool) -> bool:
        """Write down how a comparison comes out: as it does, or as it is made to."""
        if len(self.path) < len(self.forced):
            outcome = self.forced[len(self.path)]
        self.path.append((condition, outcome))
        return outcome

    def number_of(self, value: float, node: Node) -> TracedNumber:
        """Make a number that remembers its node."""
        value = float(value)
        number = TracedNumber(value)
        number.node, number.recorder = node, self
        if value == value and value not in TRIVIAL:
            self._remember(value, node)
            if value > 0:  # what math.sqrt, which takes plain floats, would make of it
                self._remember(math.sqrt(value), apply("sqrt", node))
        return number

    def _remember(self, value: float, node: Node) -> None:
        self.numbers.setdefault(_bits(value), node)
        self.numbers.setdefault(_bits(to_single(value)), cast(cast(node, "single"), "double"))

    def argument(self, value: Any) -> Any:
        """Give the node of a number that was traced."""
        if isinstance(value, float):
            return self.numbers.get(_bits(value), value)
        return value

    def constant(self, value: float | bool, dtype: str) -> Node:
        """Give the node of a number in a tensor that torch made of a traced one."""
        found = self.numbers.get(_bits(value)) if isinstance(value, float) else None
        return super().constant(value, dtype) if found is None else cast(found, dtype)

    def number(self, func: Any, args: Any) -> Any:
        """Give the value of a watched tensor as a number, and remember it."""
        value = args[0].detach().reshape(-1)[0]
        with torch.utils._python_dispatch._disable_current_modes():
            plain = value.item()
        return self.number_of(float(plain), cast(self.read(args[0]).reshape(-1)[0], "double"))

    def concerned(self, args: Any, kwargs: Any) -> bool:
        """Whether a traced number goes into an operator on tensors that nobody watches."""
        return any(isinstance(v, float) and _bits(v) in self.numbers for v in (*args, *kwargs.values()))


class _Items(TorchFunctionMode):
    """Lets ``tensor.item()`` give a number that remembers."""

    def __init__(self, recorder: _StepRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept ``item``; leave the rest to torch."""
        if func is not Tensor.item:
            return func(*args, **(kwargs or {}))
        if self.recorder.knows(args[0]):
            return self.recorder.number(func, args)
        plain = func(*args)  # a tensor that torch made of a traced number
        found = self.recorder.argument(plain)
        return self.recorder.number_of(plain, found) if isinstance(found, Node) else plain


def _bits(value: float) -> bytes:
    return struct.pack("d", value)


# --- tracing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Path:
    """One way through the step: under which conditions, and what it computes."""

    graph: Graph
    conditions: tuple[tuple[Node, bool], ...]
    layout: tuple[tuple[str, str], ...]

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """How its comparisons came out."""
        return tuple(outcome for _, outcome in self.conditions)


@dataclass
class _Trial:
    """An optimizer at work on random gradients."""

    leaf: Tensor
    optimizer: Optimizer
    generator: torch.Generator

    def step(self, scale: float = 1.0) -> None:
        """Take a step."""
        slope = torch.randn(self.leaf.shape, generator=self.generator, dtype=torch.float64) * scale
        self.leaf.grad = slope.to(self.leaf.dtype)
        try:
            self.optimizer.step()
        except Exception as error:
            raise _failed(error) from error

    @property
    def state(self) -> Mapping[str, Any]:
        """What the optimizer keeps of the parameters."""
        return self.optimizer.state[self.leaf]  # type: ignore[no-any-return]


def _failed(error: Exception) -> Untraceable:
    return Untraceable(f"its step cannot be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})")


def _trial(build: Build, settings: Mapping[str, float], size: int, dtype: torch.dtype, steps: int) -> _Trial:
    generator = torch.Generator().manual_seed(7)
    leaf = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    trial = _Trial(leaf, build([leaf]), generator)
    put(trial.optimizer, settings)
    for _ in range(steps):
        trial.step()
    return trial


def put(optimizer: Optimizer, settings: Mapping[str, Any]) -> None:
    """Set entries of a parameter group: ``lr``, or ``betas[0]`` of a tuple."""
    group = optimizer.param_groups[0]
    for name, value in settings.items():
        key, _, place = name.partition("[")
        if place:
            parts = list(group[key])
            parts[int(place[:-1])] = value
            group[key] = tuple(parts)
        else:
            group[key] = value


def _paths(
    build: Build, settings: Mapping[str, float], size: int, dtype: torch.dtype, states: Sequence[tuple[int, float, float]]
) -> list[_Path]:
    """Find the ways through the step: those taken from the states, then those that turn off them at a comparison."""
    found: dict[tuple[bool, ...], _Path] = {}
    waiting = []
    for state in states:
        path = _path(build, settings, size, dtype, state)
        found.setdefault(path.outcomes, path)
        waiting.append((state, path.outcomes))
    tried: set[tuple[bool, ...]] = set()
    for state, outcomes in waiting:  # grows meanwhile
        for place, outcome in enumerate(outcomes):
            turned = (*outcomes[:place], not outcome)
            known = turned in tried or any(other[: len(turned)] == turned for other in found)
            if known or len(tried) == MAX_PATHS:
                continue
            tried.add(turned)
            try:
                path = _path(build, settings, size, dtype, state, forced=turned)
            except Untraceable:
                continue  # what is computed there is NaN, and not a guess
            if path.layout == next(iter(found.values())).layout:
                found[path.outcomes] = path
                waiting.append((state, path.outcomes))
    return list(found.values())


def _path(
    build: Build,
    settings: Mapping[str, float],
    size: int,
    dtype: torch.dtype,
    begin: tuple[int, float, float],
    forced: Sequence[bool] = (),
) -> _Path:
    """Trace one step from one of the :data:`STATES`."""
    before, later, changed = begin
    # Smaller than typical, never larger: a beta stays below 1.
    odd = {name: value * (1 - 0.0141421356 * (place + 1)) for place, (name, value) in enumerate(settings.items())}
    trial = _trial(build, odd, size, dtype, before)
    recorder = _StepRecorder(forced)
    kind = DTYPES[dtype]
    inputs = [variable(f"p{k}", kind) for k in range(size)]
    recorder.watch(trial.leaf.detach(), inputs)
    trial.leaf.grad = torch.randn(size, generator=trial.generator, dtype=torch.float64).to(dtype)
    slopes = [variable(f"g{k}", kind) for k in range(size)]
    recorder.watch(trial.leaf.grad, slopes)
    numbers = {name: variable(name, "double") for name in settings}
    put(trial.optimizer, {name: recorder.number_of(odd[name], node) for name, node in numbers.items()})
    held: list[Node] = []
    for name, tensor in _state_tensors(trial.state) if before else ():  # what it begins with is constant
        if tensor.dim() == 0:
            tensor += later if name == "step" else changed
        nodes = [variable(element, dtype_of(tensor)) for element in _elements(name, tensor)]
        recorder.watch(tensor, nodes)
        held += nodes
    try:
        with recorder, _Items(recorder):
            trial.optimizer.step()
    except Untraceable:
        raise
    except Exception as error:
        raise _failed(error) from error
    outputs = list(recorder.read(trial.leaf.detach()))
    layout: list[tuple[str, str]] = []
    for name, tensor in _state_tensors(trial.state):
        outputs += list(recorder.read(tensor).reshape(-1))
        layout += [(element, dtype_of(tensor)) for element in _elements(name, tensor)]
    if before and len(layout) != len(held):
        raise Untraceable("its state grows from step to step")
    return _Path(Graph((*inputs, *slopes, *numbers.values(), *held), tuple(outputs)), tuple(recorder.path), tuple(layout))


def _state_tensors(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Give the tensors of a state by name, always in one order."""
    found = []
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            found.append((name, value))
        elif value is not None:
            raise Untraceable(f"its state holds {name} = {value!r}, which is no tensor")
    return found


def _elements(name: str, tensor: Tensor) -> list[str]:
    return [f"{name}_{k}" for k in range(tensor.numel())] if tensor.dim() else [name]


def _joined(paths: Sequence[_Path]) -> Graph:
    """Join paths by the comparisons at which they part; where nobody went, the result is NaN and not a guess."""
    home = paths[0]
    if any(path.layout != home.layout for path in paths):
        raise Untraceable("its state changes its form from step to step")

    def join(together: Sequence[_Path], place: int) -> list[Node]:
        if not together:
            return [constant(math.nan, output.dtype) for output in home.graph.outputs]
        some = together[0]
        if len(some.conditions) == place:
            return [_renamed(node, some.graph, home.graph) for node in some.graph.outputs]
        condition = _renamed(some.conditions[place][0], some.graph, home.graph)
        yes, no = (join([path for path in together if path.conditions[place][1] is side], place + 1) for side in (True, False))
        return [where(condition, own, other) for own, other in zip(yes, no, strict=True)]

    return Graph(home.graph.inputs, tuple(join(paths, 0)))


def _renamed(node: Node, own: Graph, other: Graph) -> Node:
    """Give a node of one graph on the inputs of another with the same names."""
    if own is other:
        return node
    places: dict[Node, Node] = dict(zip(own.inputs, other.inputs, strict=True))
    for part in Graph((), (node,)).nodes():
        if part not in places:
            places[part] = Node(part.operation, tuple(places[a] for a in part.arguments), part.dtype, part.value)
    return places[node]


def _try_out(
    build: Build,
    settings: Mapping[str, float],
    size: int,
    dtype: torch.dtype,
    first: Graph,
    following: Graph,
    layout: Sequence[tuple[str, str]],
) -> None:
    """Compare the graphs with the optimizer itself, step by step, with settings that change."""
    trial = _trial(build, settings, size, dtype, 0)
    rtol = AGREEMENT[DTYPES[dtype]]
    for step in range(TRIED_STEPS):
        now = {name: value * (1 - 0.3 * math.sin(step) ** 2) for name, value in settings.items()}
        put(trial.optimizer, now)
        values = {f"p{k}": number for k, number in enumerate(trial.leaf.detach().clone())}
        names = [name for name, _ in layout]
        if step:  # the first step takes its state from the optimizer's own beginning
            numbers = [number for _, tensor in _state_tensors(trial.state) for number in tensor.clone().reshape(-1)]
            values |= dict(zip(names, numbers, strict=True))
        values |= {name: torch.tensor(value, dtype=torch.float64) for name, value in now.items()}
        trial.step(scale=(1.0, 0.0, 1e-3, 30.0)[step % 4])
        assert trial.leaf.grad is not None
        values |= {f"g{k}": number for k, number in enumerate(trial.leaf.grad)}
        ours = torch.stack([part.double().reshape(()) for part in evaluate(first if step == 0 else following, values)])
        theirs = torch.cat([t.detach().double().reshape(-1) for t in (trial.leaf, *(t for _, t in _state_tensors(trial.state)))])
        if not torch.allclose(ours, theirs, rtol=rtol, atol=rtol * 0.05, equal_nan=True):
            raise Untraceable("its traced step does not compute what the optimizer does")
