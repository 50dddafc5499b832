"""Hashes of functions: the same in every process, another for anything else that is computed."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from gradfit import Parameter
from gradfit.compiler.digest import digest_of

SCALE = 2.0
TEMPLATE = np.arange(5000.0)

SCRIPT = """
import numpy as np, torch, math
from gradfit import Parameter
from gradfit.compiler.digest import digest_of
table = np.arange(2000.0)

def inner(x):
    return x if x in {"one", "two", "three"} else None

def model(x, a=Parameter(1.0, lower=0.0), b=2.0):
    inner(x)
    return torch.exp(-a * x) + b * np.interp(x, table, table) + math.sin(b) + torch.nn.functional.relu(x)

print(digest_of(model), digest_of({"a": "2*b", "b": lambda a: a + 1}), digest_of(np.sin), digest_of(torch.sin))
"""


def scaled(factor):
    return lambda x, a: factor * a * x


def test_a_hash_is_the_same_in_every_process():
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split())) == 4
    assert "None" not in said[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(2.0), scaled(3.0)),
        (lambda x, a: a * x, lambda x, a: a + x),
        (lambda x, a: torch.sin(x), lambda x, a: torch.cos(x)),
        (lambda x, a=1.0: a * x, lambda x, a=2.0: a * x),
        (lambda x, a: a * np.interp(x, TEMPLATE, TEMPLATE), lambda x, a: a * np.interp(x, TEMPLATE, TEMPLATE[::-1])),
        (functools.partial(math.pow, 2.0), functools.partial(math.pow, 3.0)),
        ({"a": "2*b"}, {"a": "3*b"}),
        ((1, "1"), ("1", 1)),
        (("ab", "c"), ("a", "bc")),
        (0.0, -0.0),
        (True, 1),
    ],
)
def test_what_computes_something_else_has_another_hash(one, other):
    assert digest_of(one) == digest_of(one)
    assert digest_of(one) != digest_of(other)


def test_a_changed_global_or_a_large_array_it_reads_changes_the_hash(monkeypatch):
    def model(x, a):
        return SCALE * a * x + TEMPLATE

    before = digest_of(model)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    scale = digest_of(model)
    changed = TEMPLATE.copy()
    changed[4321] += 1e-9
    monkeypatch.setitem(globals(), "TEMPLATE", changed)
    assert len({before, scale, digest_of(model)}) == 3


def test_names_lines_and_places_of_a_function_do_not_count():
    texts = ["def one(x, a):\n    return a * x\nmodel = one", "\n\n\ndef two(x, a):\n    return a * x\nmodel = two"]
    found = []
    for place, text in enumerate(texts):
        names: dict[str, object] = {}
        exec(compile(text, f"<file {place}>", "exec"), names)  # noqa: S102
        found.append(digest_of(names["model"]))
    assert found[0] == found[1]


def test_what_may_change_unseen_has_no_hash():
    class Scaled:
        factor = 2.0

        def __call__(self, x, a):
            return self.factor * a * x

    assert digest_of(Scaled()) is None
    assert digest_of(lambda x, a: a * np.loadtxt("table.txt")) is None
    assert digest_of(torch.nn.Linear(1, 1)) is None
    assert digest_of(Parameter(1.0)) == digest_of(Parameter(1.0))
