"""Functions have one fingerprint where they compute the same, and never where they could differ."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import types

import numpy as np
import pytest
import torch

from gradfit.compiler.fingerprint import LARGEST, Watch, fingerprint, outside, side_effect

FACTOR = 2.0
TABLE = [1.0, 2.0]
COUNTED = 0


def scaled(factor):
    return lambda x, a: a * x * factor


def helper(x):
    return x * FACTOR


def calling_a_helper(x, a):
    return a * helper(x)


def recursive(x, n=3):
    return x if n == 0 else recursive(x * FACTOR, n - 1)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def with_a_default(default):
    def model(x, a, power=default):
        return a * x**power

    return model


def with_a_keyword(default):
    def model(x, a, *, power=default):
        return a * x**power

    return model


def nested(number):
    def model(x, a):
        def inner(u):
            return u * number

        return a * inner(x)

    return model


def holding(thing):
    return lambda x, a: a * x * thing


def module_of(**values):
    module = types.ModuleType("a_users_module")
    vars(module).update(values)
    return module


def reading(source, **known):
    """Compile a model in a namespace of its own."""
    names = {"__name__": "a_users_script", "torch": torch, **known}
    exec(source, names)  # noqa: S102 - written here
    return names


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: float
    b: object = None


@dataclasses.dataclass
class Thawed:
    a: float


Named, Turned = collections.namedtuple("Named", "a b"), collections.namedtuple("Named", "b a")


class Plain:
    def __init__(self, a):
        self.a = a

    def model(self, x):
        return self.a * x


# --- what differs, and what does not -----------------------------------------------------------------------------------

PAIRS = {
    "numbers": (2.0, 3.0),
    "neighbouring numbers": (0.1, math.nextafter(0.1, 1)),
    "0.0 and -0.0": (0.0, -0.0),
    "1 and 1.0": (1, 1.0),
    "True and 1": (True, 1),
    "False and 0.0": (False, 0.0),
    "None and 0": (None, 0),
    "texts": ("a", "b"),
    "text and bytes": ("a", b"a"),
    "complex zeros": (complex(0.0, 0.0), complex(0.0, -0.0)),
    "list and tuple": ([1.0], (1.0,)),
    "lengths": ([1.0], [1.0, 1.0]),
    "nesting": ([[1.0], 2.0], [[1.0, 2.0]]),
    "signs of zeros in lists": ([0.0], [-0.0]),
    "values in a dict": ({"a": 1.0}, {"a": 2.0}),
    "keys of a dict": ({"a": 1.0}, {"b": 1.0}),
    "sets": ({1.0, 2.0}, {1.0, 3.0}),
    "types of named tuples": (Named(1.0, 2.0), Turned(1.0, 2.0)),
    "frozen records": (Frozen(1.0), Frozen(2.0)),
    "records in records": (Frozen(1.0, Frozen(2.0)), Frozen(1.0, Frozen(3.0))),
    "arrays": (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    "shapes of arrays": (np.ones((1, 2)), np.ones((2, 1))),
    "types of arrays": (np.zeros(2, np.float64), np.zeros(2, np.int64)),
    "signs of zeros in arrays": (np.array([0.0]), np.array([-0.0])),
    "numpy scalars": (np.float64(0.1), np.float32(0.1)),
    "numpy and Python": (np.float64(0.5), 0.5),
    "tensors": (torch.tensor([1.0]), torch.tensor([2.0])),
    "signs of zeros in tensors": (torch.tensor([0.0]), torch.tensor([-0.0])),
    "types of tensors": (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
    "dtypes": (torch.float32, torch.float64),
    "functions of libraries": (torch.exp, torch.log),
    "functions of math": (math.exp, math.log),
    "functions of numpy": (np.sum, np.mean),
    "ufuncs": (np.exp, np.log),
    "methods of tensors": (torch.Tensor.exp, torch.Tensor.log),
    "own functions": (helper, recursive),
    "partials": (functools.partial(helper, x=1.0), functools.partial(helper, x=2.0)),
    "functions of partials": (functools.partial(helper, 1.0), functools.partial(recursive, 1.0)),
    "several partials": (
        (functools.partial(helper, x=1.0), functools.partial(helper, x=2.0)),
        (functools.partial(helper, x=1.0), functools.partial(helper, x=1.0)),
    ),
    "twice the same object and an equal one": ([TABLE, TABLE], [TABLE, [1.0, 3.0]]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_closures_differ_by(name):
    first, second = PAIRS[name]
    assert fingerprint(holding(first)) is not None
    assert fingerprint(holding(first)) != fingerprint(holding(second))
    assert fingerprint(with_a_default(first)) != fingerprint(with_a_default(second))
    assert fingerprint(with_a_keyword(first)) != fingerprint(with_a_keyword(second))
    assert fingerprint(nested(first)) != fingerprint(nested(second))


@pytest.mark.parametrize("name", PAIRS)
def test_globals_differ_by(name):
    source = "def model(x, a):\n    return a * x * number\n"
    names = reading(source, number=PAIRS[name][0])
    before = fingerprint(names["model"])
    names["number"] = PAIRS[name][1]
    assert fingerprint(names["model"]) != before
    names["number"] = PAIRS[name][0]
    assert fingerprint(names["model"]) == before


EQUAL = {
    "a number": lambda: 2.5,
    "NaN": lambda: math.nan,
    "a list": lambda: [1.0, [2.0, "a"]],
    "a dict": lambda: {"a": 1.0, 2: (3,)},
    "a set": lambda: {3.0, 1.0, 2.0},
    "an array": lambda: np.linspace(0, 1, 5),
    "a tensor": lambda: torch.linspace(0, 1, 5),
    "a record": lambda: Frozen(1.0, (2.0,)),
    "a partial": lambda: functools.partial(helper, x=2.0),
    "a closure": lambda: scaled(2.0),
    "a library": lambda: torch,
    "a function of numpy": lambda: np.sum,
    "a module of the user's": lambda: module_of(thing=1.0),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_closures_are_one_that_hold(name):
    first, second = fingerprint(holding(EQUAL[name]())), fingerprint(holding(EQUAL[name]()))
    assert first is not None
    assert first == second
    assert hash(first) == hash(second)


def test_different_code_is_a_different_function():
    prints = [
        fingerprint(reading(f"def model(x, a):\n    return {text}\n")["model"])
        for text in ("a * x", "a + x", "a * x * 1.0", "a * x * 1")
    ]
    prints += [
        fingerprint(reading(f"def model(x, a):\n    return a * x + {text}\n")["model"]) for text in ("0.0", "-0.0", "0", "False")
    ]
    assert len(set(prints)) == 8


def test_a_helper_counts_with_all_it_reads(monkeypatch):
    before = fingerprint(calling_a_helper)
    assert before == fingerprint(calling_a_helper)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert fingerprint(calling_a_helper) != before
    monkeypatch.undo()
    assert fingerprint(calling_a_helper) == before
    monkeypatch.setitem(globals(), "helper", lambda x: x)
    assert fingerprint(calling_a_helper) != before


def test_functions_that_call_themselves_have_a_fingerprint(monkeypatch):
    before = fingerprint(recursive), fingerprint(even)
    assert None not in before
    assert before == (fingerprint(recursive), fingerprint(even))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert fingerprint(recursive) != before[0]
    assert fingerprint(even) == before[1]


def test_a_list_that_holds_itself_has_a_fingerprint():
    knot: list = [1.0]
    knot.append(knot)
    assert fingerprint(holding(knot)) is not None


def test_arrays_changed_in_place_are_noticed():
    for array in (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        model = holding(array)
        before = fingerprint(model)
        array[1] = 5.0
        assert fingerprint(model) != before
        array[1] = 2.0
        assert fingerprint(model) == before


def test_an_attribute_of_a_function_is_noticed():
    names = reading("def model(x, a):\n    return a * x * model.factor\n")
    names["model"].factor = 2.0
    before = fingerprint(names["model"])
    names["model"].factor = 3.0
    assert fingerprint(names["model"]) != before


def test_a_new_default_is_noticed():
    model = with_a_default(2.0)
    before = fingerprint(model)
    model.__defaults__ = (3.0,)
    assert fingerprint(model) != before


def test_a_wrapped_function_counts():
    def doubled(function):
        @functools.wraps(function)
        def wrapper(*args):
            return 2 * function(*args)

        return wrapper

    assert fingerprint(doubled(scaled(2.0))) == fingerprint(doubled(scaled(2.0)))
    assert fingerprint(doubled(scaled(2.0))) != fingerprint(doubled(scaled(3.0)))
    assert fingerprint(functools.lru_cache(scaled(2.0))) != fingerprint(functools.lru_cache(scaled(3.0)))


def test_a_function_that_pretends_to_be_a_librarys_is_looked_at():
    def pretending(number):
        model = functools.wraps(np.median)(lambda x, a: a * x * number)
        assert model.__module__.startswith("numpy")
        return model

    assert fingerprint(holding(pretending(2.0))) != fingerprint(holding(pretending(3.0)))


def test_a_librarys_wrapper_around_a_users_function_is_not_taken_for_the_library():
    first, second = (torch.func.vmap(scaled(factor)) for factor in (2.0, 3.0))
    assert fingerprint(first) is None or fingerprint(first) != fingerprint(second)


# --- modules -----------------------------------------------------------------------------------------------------------

OF_A_MODULE = "def model(x, a):\n    return a * x * constants.K\n"
OF_A_SUBMODULE = "def model(x, a):\n    return a * x * package.constants.K\n"


def test_attributes_of_a_users_module_are_noticed():
    constants = module_of(K=2.0, unused=object())
    model = reading(OF_A_MODULE, constants=constants)["model"]
    before = fingerprint(model)
    assert before is not None
    constants.K = 3.0
    assert fingerprint(model) != before


def test_attributes_of_a_module_in_a_module_are_noticed():
    constants = module_of(K=2.0)
    model = reading(OF_A_SUBMODULE, package=module_of(constants=constants))["model"]
    before = fingerprint(model)
    assert before is not None
    constants.K = 3.0
    assert fingerprint(model) != before


def test_attributes_of_a_captured_module_are_noticed():
    constants = module_of(K=2.0)

    def make(constants):
        return lambda x, a: a * x * constants.K

    before = fingerprint(make(constants))
    constants.K = 3.0
    assert fingerprint(make(constants)) != before


def test_modules_that_hold_each_other_have_a_fingerprint():
    constants = module_of(K=2.0)
    constants.constants = constants
    assert fingerprint(reading(OF_A_SUBMODULE, package=constants)["model"]) is not None


def test_functions_of_a_users_module_count():
    tools = module_of(**reading("def helper(x):\n    return x * factor\n", factor=2.0))
    source = "def model(x, a):\n    return a * tools.helper(x)\n"
    model = reading(source, tools=tools)["model"]
    before = fingerprint(model)
    tools.helper.__globals__["factor"] = 3.0
    assert fingerprint(model) != before


def test_an_import_inside_a_model_is_not_vouched_for():
    own, library = (f"def model(x, a):\n    import {name}\n    return a * x\n" for name in ("a_users_module", "torch"))
    assert fingerprint(reading(own)["model"]) is None
    assert fingerprint(reading(library)["model"]) is not None


# --- what cannot be vouched for ----------------------------------------------------------------------------------------


class Shouting(list):
    """A list with something more."""


UNKNOWN = {
    "an object": lambda: Plain(2.0),
    "a method of an object": lambda: Plain(2.0).model,
    "a class": lambda: Plain,
    "a record that may change": lambda: Thawed(2.0),
    "a record of an object": lambda: Frozen(1.0, Plain(2.0)),
    "a list of objects": lambda: [Plain(2.0)],
    "an array of objects": lambda: np.array([None, 1.0]),
    "a masked array": lambda: np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "a large array": lambda: np.zeros(LARGEST + 1),
    "a large tensor": lambda: torch.zeros(LARGEST + 1),
    "a module of torch": lambda: torch.nn.Linear(1, 1),
    "a polynomial of numpy": lambda: np.poly1d([1.0, 2.0]),
    "a method of a list": lambda: [1.0].index,
    "an iterator": lambda: iter([1.0]),
    "a default dict": lambda: collections.defaultdict(float),
    "a subclass of float": lambda: type("Metres", (float,), {})(2.0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_there_is_no_fingerprint_with(name):
    assert fingerprint(holding(UNKNOWN[name]())) is None
    assert fingerprint(with_a_default(UNKNOWN[name]())) is None
    assert fingerprint(reading("def model(x, a):\n    return a * x * thing\n", thing=UNKNOWN[name]())["model"]) is None


def test_an_interpolator_of_scipy_is_not_taken_for_a_function():
    interpolate = pytest.importorskip("scipy.interpolate")
    assert fingerprint(holding(interpolate.CubicSpline([0.0, 1.0, 2.0], [0.0, 1.0, 4.0]))) is None


def test_an_object_is_no_function():
    assert fingerprint(Plain(2.0)) is None
    assert fingerprint(Plain(2.0).model) is None


# --- what a call leaves behind -----------------------------------------------------------------------------------------


def test_outside_notices_a_list_that_grew():
    log: list[float] = []

    def model(x, a):
        log.append(1.0)
        return a * x

    before = outside(model)
    assert outside(model) == before
    model(1.0, 2.0)
    assert outside(model) != before


@pytest.mark.parametrize("kept", [{}, [0.0], {1.0}, np.zeros(2), torch.zeros(2)], ids=lambda value: type(value).__name__)
def test_outside_notices_a_change_in(kept):
    model = holding(kept)
    before = outside(model)
    if isinstance(kept, set):
        kept.add(2.0)
    else:
        kept[0] = 5.0
    assert outside(model) != before


def test_outside_knows_objects_by_identity():
    thing = Plain(2.0)
    names = reading("def model(x, a):\n    return a * x * thing.a\n", thing=thing)
    before = outside(names["model"])
    assert before == outside(names["model"])
    names["thing"] = Plain(2.0)
    assert outside(names["model"]) != before


def assigning_a_global(x, a):
    global COUNTED
    COUNTED += 1
    return a * x


def deleting_a_global(x, a):
    global COUNTED
    del COUNTED
    return a * x


def assigning_an_attribute(x, a):
    x.seen = True
    return a * x


def assigning_around(count=0):
    def model(x, a):
        nonlocal count
        count += 1
        return a * x

    return model


def printing(x, a):
    print(x)
    return a * x


def opening(x, a):
    with open("log") as file:
        return a * float(file.read())


def printing_inside(x, a):
    def inner(u):
        print(u)
        return u

    return a * inner(x)


def printing_in_a_helper(x, a):
    return a * printing(x, a)


def printing_behind_its_own_variable(x, a):
    total = 0.0

    def inner(u):
        nonlocal total
        total += u
        print(total)

    inner(x)
    return a * total


EFFECTS = {
    assigning_a_global: "it assigns the global COUNTED",
    deleting_a_global: "it assigns the global COUNTED",
    assigning_an_attribute: "it assigns the attribute seen",
    assigning_around(): "it assigns count of the function around it",
    printing: "it calls print",
    opening: "it calls open",
    printing_inside: "it calls print",
    printing_in_a_helper: "it calls print",
    printing_behind_its_own_variable: "it calls print",
    functools.partial(printing, a=1.0): "it calls print",
    functools.lru_cache(printing): "it calls print",
    holding(functools.partial(printing, a=1.0)): "it calls print",
}


@pytest.mark.parametrize("function", EFFECTS, ids=lambda function: getattr(function, "__name__", "partial"))
def test_an_effect_is_named_of(function):
    assert side_effect(function) == EFFECTS[function]


def summing_inside(x, a):
    total = 0.0

    def inner(u):
        def innermost():
            nonlocal total
            total += u

        innermost()

    inner(x)
    return a * total


def with_its_own_print(x, a):
    return a * print_(x)


def print_(x):
    return x


@pytest.mark.parametrize(
    "function", [summing_inside, with_its_own_print, calling_a_helper, recursive, math.exp, torch.exp, Plain(1.0)]
)
def test_no_effect_is_seen_of(function):
    assert side_effect(function) == ""


def test_a_print_of_the_users_own_is_no_effect():
    assert side_effect(reading("def print(x):\n    return x\ndef model(x, a):\n    return a * print(x)\n")["model"]) == ""


def test_an_effect_of_an_object_that_is_called_is_named():
    class Model:
        def __call__(self, x, a):
            self.seen = x
            return a * x

    assert side_effect(Model()) == "it assigns the attribute seen"


# --- watching ----------------------------------------------------------------------------------------------------------


def test_a_watch_notices_what_is_put_in_another_place():
    names = reading(
        "def model(x, a):\n    return a * helper(x) * factor\ndef helper(x):\n    return x * inner\n", factor=2.0, inner=1.0
    )
    watch = Watch(names["model"])
    assert watch.whole
    assert watch.same()
    for name, value in (("factor", 3.0), ("inner", 2.0), ("helper", math.exp), ("torch", np)):
        kept = names[name]
        names[name] = value
        assert watch.same() == (name == "torch")  # the model does not read it
        names[name] = kept
    assert watch.same()
    names["helper"].__defaults__ = (1.0,)
    assert not watch.same()


def test_a_watch_notices_another_captured_number():
    def make():
        number = 1.0

        def change(new):
            nonlocal number
            number = new

        return (lambda x, a: a * x * number), change

    model, change = make()
    watch = Watch(model)
    assert watch.same()
    change(2.0)
    assert not watch.same()


@pytest.mark.parametrize(
    "thing",
    [[1.0], {"a": 1.0}, np.ones(1), torch.ones(1), Plain(1.0), np.poly1d([1.0]), [1.0].index],
    ids=lambda thing: type(thing).__name__,
)
def test_a_watch_is_not_whole_over(thing):
    assert not Watch(holding(thing)).whole


def test_a_watch_is_not_whole_over_attributes_of_a_function():
    names = reading("def model(x, a):\n    return a * x * model.factor\n")
    names["model"].factor = 2.0
    assert not Watch(names["model"]).whole
