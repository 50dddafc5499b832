"""A torch computation -> Graph: what torch does to each single number, recorded while torch does it.

The recorder stands below autograd, where torch hands every operator to its CPU kernels (a ``TorchDispatchMode``): derivatives
are recorded like anything else. Beside torch's memory it keeps one of its own: for each storage, an array of nodes, one per
number. A view needs nothing done, because it is another way to look at the same storage; an operator that changes its
argument writes nodes into it; an operator that only moves numbers (stack, index, flip) is run on their positions.

What cannot be recorded raises :class:`~gradfit.compiler.graph.Untraceable` with the reason: an operator without a row in
:mod:`gradfit.compiler.ops`, a branch on a value, a random number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradfit.compiler.graph import Graph, Node, Untraceable, apply, cast, constant, variable
from gradfit.compiler.ops import OPS, compute

DTYPES = {torch.float64: "double", torch.float32: "single", torch.bool: "bool"}
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # held as doubles: exact to 2**53
# What only looks at shapes, or makes room that is not yet written.
IGNORED = frozenset(
    [
        "detach_", "set_", "resize_", "_record_function_enter_new", "_record_function_exit", "empty_like", "new_empty",
        "new_empty_strided",
    ]
)  # fmt: skip
BRANCHES = frozenset(["_local_scalar_dense", "is_nonzero", "equal", "nonzero"])
# Operators that only move numbers; new places are filled with 0.
MOVES = frozenset(
    [
        "_unsafe_view", "_reshape_copy", "alias_copy", "cat", "clone", "contiguous", "diag_embed", "expand_copy", "flip", "gather",
        "diagonal_backward", "index", "index_select", "lift_fresh", "lift_fresh_copy", "permute_copy", "repeat", "roll",
        "select_backward", "select_copy", "slice_backward", "slice_copy", "squeeze_copy", "stack", "t_copy", "tril", "triu",
        "unbind_copy", "unfold_copy", "unsqueeze_copy", "view_copy",
    ]
)  # fmt: skip
INDICES = {"index": 1, "index_select": 2, "gather": 2}  # which argument says where to look
# Ways out of torch that do not pass the dispatcher.
HANDED_OUT = frozenset([Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr])
FILLED: Mapping[str, float] = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zero": 0.0}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what torch does to the tensors given to :meth:`watch`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory: dict[int, tuple[torch.UntypedStorage, np.ndarray]] = {}
        self.detached: list[Node] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave out a wrapper of torch's that would import its compiler, which takes seconds."""
        return False

    # --- the nodes of a tensor ----------------------------------------------------------------------------------------

    def watch(self, tensor: Tensor, nodes: Sequence[Node]) -> Tensor:
        """Let nodes stand for the numbers of a tensor."""
        self.write(tensor, np.array(nodes, dtype=object).reshape(tensor.shape))
        return tensor

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on what is watched."""
        return tensor.untyped_storage()._cdata in self.memory

    def read(self, tensor: Tensor) -> np.ndarray:
        """Nodes of a tensor, an object array of its shape; those of an unknown tensor are constants."""
        if not self.knows(tensor):
            return self._constants(tensor)
        cells = self.memory[tensor.untyped_storage()._cdata][1]
        found = cells[_places(tensor)]
        return found if isinstance(found, np.ndarray) else _held(found)

    def write(self, tensor: Tensor, nodes: np.ndarray) -> None:
        """Put nodes where a tensor keeps its numbers."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.memory:
            whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
            self.memory[storage._cdata] = (storage, self._constants(whole))
        self.memory[storage._cdata][1][_places(tensor).reshape(-1)] = nodes.reshape(-1)

    def _constants(self, tensor: Tensor) -> np.ndarray:
        if tensor.dtype not in DTYPES and tensor.dtype not in WHOLE:
            raise Untraceable(f"it uses numbers of type {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.numel() > MAX_CONSTANTS:
            raise Untraceable(f"it holds a constant array of {tensor.numel()} numbers")
        values = [0.0] * tensor.numel() if tensor._is_zerotensor() else tensor.detach().reshape(-1).tolist()
        nodes = np.empty(len(values), dtype=object)
        nodes[:] = [self.constant(value, dtype_of(tensor)) for value in values]
        return nodes.reshape(tuple(tensor.shape))

    def constant(self, value: float | bool, dtype: str) -> Node:
        """Give the node of a number that torch holds and nobody watches."""
        return constant(value, dtype)

    def argument(self, value: Any) -> Any:
        """Give what a plain number handed to an operator stands for: itself."""
        return value

    # --- recording ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch compute, and write down what it does to the nodes."""
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if any(tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)  # torch asks itself what a result will look like
        if name.startswith("_foreach_"):
            return self.one_by_one(name.removeprefix("_foreach_"), args, kwargs)
        given = [tensor for tensor in _tensors((*args, *kwargs.values())) if self.knows(tensor)]
        if name in BRANCHES and given:
            return self.number(func, args)
        _refuse(func, name)
        unknown = name in IGNORED or not (given or self.concerned(args, kwargs))
        changed = None if unknown else _changed(func, args, kwargs)
        with torch.utils._python_dispatch._disable_current_modes():
            if changed is not None:
                self.write(changed, self.read(changed))  # before torch changes it
            result = func(*args, **kwargs)
        if unknown or (changed is None and (_is_view(result, args) or _is_nothing(result))):
            return result
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            self._record(func, name.removesuffix("_"), args, kwargs, result, changed)
        return result

    def one_by_one(self, name: str, args: Any, kwargs: Any) -> list[Tensor] | None:
        """Do to each of a list of tensors what torch, on a CPU, does to one after the other."""
        plain, results = name.removesuffix("_"), []
        with self:
            for place, tensor in enumerate(args[0]):
                own = [value[place] if isinstance(value, (list, tuple)) else value for value in args]
                scaled = {"value": own.pop()} if plain in ("addcmul", "addcdiv") and len(own) == 4 else {}
                result = getattr(torch.ops.aten, plain)(*own, **kwargs, **scaled)
                results.append(result if plain == name else tensor.copy_(result))
        return results if plain == name else None

    def number(self, func: Any, args: Any) -> Any:
        """Refuse to give a number out of a watched tensor: Python would branch on it, or compute with it unseen."""
        raise Untraceable("it branches on values, or turns them into plain numbers")

    def concerned(self, args: Any, kwargs: Any) -> bool:
        """Whether an operator on unknown tensors gives something to write down."""
        return False

    def _record(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, changed: Tensor | None) -> None:
        target = result if changed is None else changed
        if name == "log_sigmoid_forward":
            target = result[0]  # the other result is what torch keeps for the derivative
        if name in ("_to_copy", "to", "copy", "fill", "full_like", "new_full", *FILLED):
            nodes = self._filled(name, args)
        elif name in OPS:
            nodes = self._elementwise(func, name, args, kwargs, target)
        elif name in STRUCTURED:
            nodes = STRUCTURED[name](self, *args, **kwargs)
        elif name in MOVES:
            self._moved(func, INDICES.get(name), args, kwargs, result)
            return
        else:
            raise Untraceable(f"it uses the torch operator {name}, which the compiled engine does not have")
        if nodes.size == 1 == target.numel():
            nodes = nodes.reshape(target.shape)  # a loss of one row, reduced over its rows
        self.write(target, _cast(np.broadcast_to(nodes, target.shape), dtype_of(target), whole=target.dtype in WHOLE))

    def _filled(self, name: str, args: Any) -> np.ndarray:
        if name in FILLED:
            return np.array(constant(FILLED[name]), dtype=object)
        value = args[{"full_like": 1, "fill": 1, "copy": 1, "new_full": 2}.get(name, 0)]
        return self.read(value) if isinstance(value, Tensor) else np.array(self._node(value), dtype=object)

    def _node(self, value: Any) -> Node:
        found = self.argument(value)
        return found if isinstance(found, Node) else constant(found)

    def _elementwise(self, func: Any, name: str, args: Any, kwargs: Any, target: Tensor) -> np.ndarray:
        dtype = _computing_dtype(target, args)
        options = {
            key: self.read(v).item() if isinstance(v, Tensor) else self.argument(v)
            for key, v in kwargs.items()
            if key not in ("out", "dtype") and v is not None
        }
        parts = [self.read(v) if isinstance(v, Tensor) else _held(self.argument(v)) for v in args]
        shape = np.broadcast_shapes(*(part.shape for part in parts))
        spread = [np.broadcast_to(part, shape) for part in parts]
        nodes = np.empty(shape, dtype=object)
        for place in np.ndindex(shape):
            nodes[place] = compute(name, tuple(part[place] for part in spread), options, dtype)
        return nodes

    def _moved(self, func: Any, indices: int | None, args: Any, kwargs: Any, result: Any) -> None:
        """Run the operator on the positions of numbers, to see where it puts them."""
        known: list[Node] = [constant(0.0)]
        if indices is not None and any(self.knows(tensor) for tensor in _tensors(args[indices])):
            raise Untraceable("it chooses places of a tensor by values")

        def positions(tensor: Tensor) -> Tensor:
            nodes = self.read(tensor)
            first = len(known)
            known.extend(nodes.reshape(-1))
            return torch.arange(first, len(known), dtype=torch.int64).reshape(nodes.shape)

        places = [value if place == indices else _mapped(positions, value) for place, value in enumerate(args)]
        moved = func(*places, **_mapped(positions, kwargs))
        nodes = np.array(known, dtype=object)
        for target, chosen in zip(_tensors([result]), _tensors([moved]), strict=True):
            found = nodes[chosen.numpy()]
            self.write(target, _cast(found if chosen.dim() else _held(found), dtype_of(target)))


class _Closed(TorchFunctionMode):
    """Refuses to hand the numbers of a watched tensor to Python or numpy past torch's dispatcher."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Watch the ways out; leave the rest to torch."""
        if func in HANDED_OUT and self.recorder.knows(args[0]):
            return self.recorder.number(func, args)
        return func(*args, **(kwargs or {}))


MAX_CONSTANTS = 10_000
MAX_NODES = 5_000  # a graph beyond would take minutes to compile


def record(
    call: Callable[..., Tensor | Sequence[Tensor]], example: Mapping[str, Tensor], *, recorder: Recorder | None = None
) -> Graph:
    """Record ``call(**tensors)``.

    Parameters
    ----------
    call
        A torch computation that gives one tensor or several.
    example
        A tensor per argument. The number 1 of a row's data has shape (1,).

    Returns
    -------
    A graph whose inputs are the numbers of the arguments, ``name`` or ``name[k]``, and whose outputs those of the results.

    Raises
    ------
    Untraceable
        It is no graph of single numbers.
    """
    recorder = recorder or Recorder()
    inputs: list[Node] = []
    watched = {}
    for name, tensor in example.items():
        nodes = [variable(element, dtype_of(tensor)) for element in elements(name, tensor)]
        inputs += nodes
        watched[name] = recorder.watch(tensor.clone(), nodes)
    try:
        with recorder, _Closed(recorder):
            given = call(**watched)
    except Untraceable:
        raise
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise Untraceable(f"it cannot be traced for one row ({type(error).__name__}: {first})") from error
    outputs = []
    for tensor in (given,) if isinstance(given, Tensor) else given:
        if not isinstance(tensor, Tensor):
            raise Untraceable(f"it gives {type(tensor).__name__}, not a tensor")
        outputs += list(recorder.read(tensor).reshape(-1))
    graph = Graph(tuple(inputs), tuple(outputs))
    if len(graph.nodes()) > MAX_NODES:
        raise Untraceable(f"it has more than {MAX_NODES} operations")
    return graph


def elements(name: str, tensor: Tensor) -> list[str]:
    """Name the numbers of an argument: a single one by its name."""
    if tensor.numel() == 1 and tensor.dim() < 2:
        return [name]
    return [f"{name}[{place}]" for place in range(tensor.numel())]


def dtype_of(tensor: Tensor) -> str:
    """Precision in which a tensor's numbers are held."""
    if tensor.dtype not in DTYPES and tensor.dtype not in WHOLE:
        raise Untraceable(f"it uses numbers of type {str(tensor.dtype).removeprefix('torch.')}")
    return DTYPES.get(tensor.dtype, "double")


def _places(tensor: Tensor) -> np.ndarray:
    """Where in its storage each number of a tensor lies, an array of the tensor's shape."""
    places = np.array(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + stride * np.arange(size)
    return places


def _cast(nodes: np.ndarray, dtype: str, *, whole: bool = False) -> np.ndarray:
    result = np.empty(nodes.shape, dtype=object)
    for place in np.ndindex(nodes.shape):
        given: Any = nodes[place]
        node = cast(given, dtype)
        exact = not whole or given.dtype == "bool" or node.operation == "constant"
        result[place] = node if exact else apply("trunc", node)
    return result


def _held(value: Any) -> np.ndarray:
    """Hold one value in an array without shape."""
    held = np.empty((), dtype=object)
    held[()] = value
    return held


def _computing_dtype(target: Tensor, args: Any) -> str:
    """Precision of an operator: its result's, or where that is a condition the one its arguments are promoted to."""
    if target.dtype != torch.bool:
        return dtype_of(target)
    tensors = [value for value in args if isinstance(value, Tensor)]
    promoted = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if len(tensors) == 1 and len(args) > 1:
        promoted = torch.result_type(*args[:2])
    return DTYPES.get(promoted, "double") if promoted != torch.bool else "double"


def _refuse(func: Any, name: str) -> None:
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise Untraceable(f"it draws random numbers ({name})")


def _changed(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Find the argument that an operator writes to."""
    if not func._schema.is_mutable:
        return None
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = args[place] if place < len(args) else kwargs.get(argument.name)
            if isinstance(found, Tensor):
                return found
    name = func._schema.name.partition("::")[2]
    raise Untraceable(f"it uses the torch operator {name}, which changes several tensors")


def _is_view(result: Any, args: Any) -> bool:
    """Whether an operator only looks at its argument's numbers in another way."""
    outputs = _tensors([result])
    storages = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
    return bool(outputs) and all(tensor.untyped_storage()._cdata in storages for tensor in outputs)


def _is_nothing(result: Any) -> bool:
    """Whether it is a derivative that torch knows to be 0, whatever it is multiplied by, or a tensor that has only a shape."""
    return isinstance(result, Tensor) and (result._is_zerotensor() or result.is_meta)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _mapped(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, (list, tuple)):
        return type(values)(_mapped(change, value) for value in values)
    if isinstance(values, Mapping):
        return {key: _mapped(change, value) for key, value in values.items()}
    return values


# --- operators on several numbers at once ------------------------------------------------------------------------------


def _reduced(combine: Callable[[Node, Node], Node]) -> Callable[..., np.ndarray]:
    def reduce(recorder: Recorder, tensor: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> np.ndarray:
        nodes = recorder.read(tensor)
        axes = tuple(range(nodes.ndim)) if dim is None or dim == [] else tuple(np.atleast_1d(dim))
        axes = tuple(axis % max(nodes.ndim, 1) for axis in axes) if nodes.ndim else ()
        moved = np.moveaxis(nodes, axes, range(len(axes))) if axes else nodes
        kept = moved.shape[len(axes) :]
        stacked = moved.reshape(-1, *kept)
        result = np.empty(kept, dtype=object)
        for place in np.ndindex(kept):
            column = [cast(node, "double") if node.dtype == "bool" else node for node in stacked[(slice(None), *place)]]
            result[place] = functools.reduce(combine, column) if column else constant(0.0)
        return np.expand_dims(result, axes) if keepdim else result

    return reduce


def _mean(recorder: Recorder, tensor: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> np.ndarray:
    total = _sum(recorder, tensor, dim, keepdim)
    count = tensor.numel() / max(total.size, 1)
    return np.array([node / count for node in total.reshape(-1)], dtype=object).reshape(total.shape)


def _norm(
    recorder: Recorder, tensor: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> np.ndarray:
    if order != 2:
        raise Untraceable(f"it uses a vector norm of order {order}, which the compiled engine does not have")
    total = _reduced(lambda a, b: a + b)
    nodes = recorder.read(tensor)
    squares = np.array([node * node for node in nodes.reshape(-1)], dtype=object).reshape(nodes.shape)
    with_squares = _Nodes(squares)
    summed = total(with_squares, tensor, dim, keepdim)
    return np.array([apply("sqrt", node) for node in summed.reshape(-1)], dtype=object).reshape(summed.shape)


class _Nodes:
    """Nodes that stand for themselves, where a reduction wants a recorder to read from."""

    def __init__(self, nodes: np.ndarray) -> None:
        self.nodes = nodes

    def read(self, tensor: Tensor) -> np.ndarray:
        """Give them."""
        return self.nodes


def _dot(recorder: Recorder, first: Tensor, second: Tensor) -> np.ndarray:
    return np.asarray(recorder.read(first) @ recorder.read(second), dtype=object)


def _addmm(recorder: Recorder, added: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> np.ndarray:
    if beta != 1 or alpha != 1:
        raise Untraceable("it uses a scaled matrix product, which the compiled engine does not have")
    return np.asarray(recorder.read(first) @ recorder.read(second) + recorder.read(added), dtype=object)


def _index_put(
    recorder: Recorder, tensor: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, *rest: Any
) -> np.ndarray:
    """``tensor[mask] = number``: a choice for each number; ``tensor[[2, 0]] = values``, where the places are constant."""
    old, new = recorder.read(tensor).copy(), recorder.read(values)
    if not any(recorder.knows(index) for index in _tensors(indices)):
        chosen = tuple(slice(None) if index is None else index for index in indices)
        places = torch.arange(old.size).reshape(old.shape)[chosen].numpy()
        numbers, flat = np.broadcast_to(new, places.shape), old.reshape(-1)
        for place, number in zip(places.reshape(-1), numbers.reshape(-1), strict=True):
            flat[place] = flat[place] + number if accumulate else number
        return flat.reshape(old.shape)
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or new.size != 1 or accumulate:
        raise Untraceable("it chooses places of a tensor by values")
    value = new.reshape(-1)[0]
    return _elements(lambda old, chosen: compute("where", (chosen, value, old), {}, old.dtype), old, recorder.read(mask))


def _elements(formula: Callable[..., Node], *arrays: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    result = np.empty(shape, dtype=object)
    spread = [np.broadcast_to(array, shape) for array in arrays]
    for place in np.ndindex(shape):
        result[place] = formula(*(array[place] for array in spread))
    return result


def _cumulated(combine: np.ufunc) -> Callable[..., np.ndarray]:
    def cumulate(recorder: Recorder, tensor: Tensor, dim: int, *, dtype: Any = None) -> np.ndarray:
        nodes = recorder.read(tensor)
        return np.asarray(combine.accumulate(nodes, axis=dim)) if nodes.ndim else nodes

    return cumulate


_sum = _reduced(lambda a, b: a + b)
STRUCTURED: Mapping[str, Callable[..., np.ndarray]] = {
    "sum": _sum,
    "mean": _mean,
    "prod": _reduced(lambda a, b: a * b),
    "amax": _reduced(lambda a, b: apply("maximum", a, b)),
    "amin": _reduced(lambda a, b: apply("minimum", a, b)),
    "linalg_vector_norm": _norm,
    "dot": _dot,
    "mv": _dot,
    "mm": _dot,
    "addmm": _addmm,
    "cumsum": _cumulated(np.add),
    "cumprod": _cumulated(np.multiply),
    "index_put": _index_put,
    "_index_put_impl": _index_put,
}
