"""The traced step of a torch optimizer follows the optimizer itself, with every option; what cannot be traced says why."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from row_harness import run_on_torch

from gradfit.compiler import cache
from gradfit.compiler import optimizer as tracing
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.optimizer import MAX_ELEMENTS, put, trace_update

STEPS = 200
DTYPES = {"double": torch.float64, "single": torch.float32}
RTOL = {"double": 1e-12, "single": 1e-5}
LR = {"lr": 0.013}

OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01, "maximize": True},
        {"momentum": 0.5, "dampening": 1.0},
        {"weight_decay": 0.1, "dampening": 0.5},
    ],
    "ASGD": [
        {},
        {"t0": 5, "alpha": 0.3, "weight_decay": 0.1},
        {"lambd": 0.1, "t0": 0.0, "maximize": True},
        {"t0": 100.5, "lambd": 0.0},
    ],
    "Adadelta": [{}, {"rho": 0.5, "eps": 1e-3, "weight_decay": 0.1}, {"rho": 0.0, "maximize": True}],
    "Adagrad": [
        {},
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3},
        {"lr_decay": 2, "maximize": True, "weight_decay": 0.5},
    ],
    "Adam": [
        {},
        {"betas": (0.5, 0.8), "weight_decay": 0.1},
        {"amsgrad": True, "maximize": True, "eps": 1e-3},
        {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"betas": (0.0, 0.99)},
        {"betas": (0.9, 0.0), "eps": 0.1},
        {"betas": (0.0, 0.0)},
    ],
    "AdamW": [{}, {"amsgrad": True, "weight_decay": 0.0}, {"betas": (0.5, 0.8), "weight_decay": 0.3, "maximize": True}],
    "Adamax": [{}, {"betas": (0.5, 0.8), "weight_decay": 0.1, "eps": 1e-3}, {"maximize": True}],
    "NAdam": [
        {},
        {"momentum_decay": 0.1, "weight_decay": 0.1, "betas": (0.5, 0.8)},
        {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True},
    ],
    "RAdam": [
        {},
        {"weight_decay": 0.1, "betas": (0.5, 0.8)},
        {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True, "eps": 1e-2},
        {"betas": (0.9, 0.5)},  # never rectified: rho_inf is 3
        {"betas": (0.8, 0.7)},
    ],
    "RMSprop": [
        {},
        {"centered": True, "momentum": 0.9},
        {"alpha": 0.5, "weight_decay": 0.1, "maximize": True},
        {"centered": True, "eps": 1e-2},
        {"alpha": 0.0, "momentum": 0.5},
    ],
    "Rprop": [{}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)}, {"maximize": True}],
    "Adafactor": [
        {},
        {"weight_decay": 0.1, "d": 1.5, "eps": (1e-8, 1e-2), "beta2_decay": -0.5},
        {"maximize": True, "eps": (None, 0.1), "beta2_decay": 0.0},
    ],
}
CASES = [(name, options) for name, several in OPTIMIZERS.items() for options in several]
CASES += [(name, {**several[-1], "foreach": True}) for name, several in OPTIMIZERS.items()]
SINGLE = [(name, options) for name, several in OPTIMIZERS.items() for options in several[:2]]


def described(value: Any) -> str:
    return ", ".join(f"{key}={each}" for key, each in value.items()) or "as it comes" if isinstance(value, dict) else str(value)


def builder(name: str, options: Mapping[str, Any]):
    return lambda leaves: getattr(torch.optim, name)(leaves, lr=LR["lr"], **options)


def traced(build, settings=LR, *, size=2, dtype="double", identity=None):
    return trace_update(build, settings, size=size, dtype=DTYPES[dtype], identity=identity)


def assert_followed(build, source, *, dtype="double", size=2, steps=STEPS, schedule=lambda step: LR, start=1.0):
    """Run the traced step beside the optimizer, each from its own results; now and then the gradient is 0 or large."""
    first, following = (run_on_torch(text, "step") for text in (source.first, source.following))
    generator = torch.Generator().manual_seed(3)
    leaf = (start * torch.randn(size, generator=generator, dtype=torch.float64)).to(DTYPES[dtype]).requires_grad_()
    optimizer, ours, state = build([leaf]), [*leaf.detach().clone()], []
    for step in range(steps):
        now = schedule(step)
        put(optimizer, now)
        slope = torch.randn(size, generator=generator, dtype=torch.float64)
        leaf.grad = (slope * (0 if step % 17 == 5 else 30 if step % 41 == 11 else 1)).to(leaf.dtype)
        optimizer.step()
        numbers = [torch.tensor(float(value), dtype=torch.float64) for value in now.values()]
        given = (following if step else first)(*ours, *leaf.grad, *numbers, *state)
        ours, state = list(given[:size]), list(given[size:])
        assert [value.dtype for value in state] == [DTYPES[kind] for kind in source.state]
    ours, theirs = torch.stack(ours), leaf.detach()
    assert torch.isfinite(theirs).all()
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=RTOL[dtype], atol=RTOL[dtype])


# --- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES, ids=described)
def test_the_traced_step_follows(name, options):
    build = builder(name, options)
    assert_followed(build, traced(build))


@pytest.mark.parametrize(("name", "options"), SINGLE, ids=described)
def test_the_traced_step_follows_in_single_precision(name, options):
    build = builder(name, options)
    assert_followed(build, traced(build, dtype="single"), dtype="single")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_combinations_of_options_are_followed(name, dtype):
    """Options of the table, each present or not, in combinations drawn by lot; those that torch refuses are left out."""
    several: dict[str, list[Any]] = {}
    for options in OPTIMIZERS[name]:
        for key, value in options.items():
            several.setdefault(key, [None]).append(value)
    combinations = list(itertools.product(*several.values()))
    for chosen in random.Random(name).sample(combinations, min(24, len(combinations))):
        options = {key: value for key, value in zip(several, chosen, strict=True) if value is not None}
        if options.get("centered") and options.get("alpha") == 0:
            continue  # divides by the difference of two equal numbers: rounding alone decides
        build = builder(name, options)
        try:
            build([torch.zeros(1, requires_grad=True)])
        except ValueError:
            continue
        assert_followed(build, traced(build, dtype=dtype, size=1), dtype=dtype, size=1, steps=60)


def test_every_dense_optimizer_of_torch_is_in_the_table():
    others = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}
    known = {
        name for name, value in vars(torch.optim).items() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    assert known - others == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("Adafactor", {}), ("Rprop", {})], ids=described
)
@pytest.mark.parametrize("size", [1, 5])
def test_any_number_of_parameters_is_followed(name, options, size):
    build = builder(name, options)
    assert_followed(build, traced(build, size=size), size=size, steps=30)


# --- settings that change ----------------------------------------------------------------------------------------------

SCHEDULED = {
    "SGD": ({"momentum": 0.9, "nesterov": True}, {"lr": 0.02, "momentum": 0.8}),
    "Adam": ({"weight_decay": 0.1}, {"lr": 0.02, "betas[0]": 0.85}),
    "Adam of both betas": ({"amsgrad": True}, {"lr": 0.02, "betas[0]": 0.85, "betas[1]": 0.95}),
    "AdamW": ({}, {"lr": 0.02, "weight_decay": 0.05}),
    "RMSprop": ({"momentum": 0.5, "centered": True}, {"lr": 0.02, "momentum": 0.6}),
    "NAdam": ({}, {"lr": 0.02, "betas[0]": 0.85}),
    "RAdam": ({}, {"lr": 0.02, "betas[0]": 0.85}),
    "ASGD": ({"t0": 30}, {"lr": 0.02}),
    "Adagrad": ({"lr_decay": 0.1}, {"lr": 0.02}),
    "Adadelta": ({}, {"lr": 0.5}),
    "Adamax": ({}, {"lr": 0.02, "betas[0]": 0.85}),
    "Adafactor": ({}, {"lr": 0.02}),
    "Rprop": ({}, {"lr": 0.02}),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_settings_that_change_every_step_are_followed(name):
    options, settings = SCHEDULED[name]
    build = builder(name.partition(" ")[0], options)

    def schedule(step):
        return {
            key: value * (1 - 0.15 * math.sin(0.7 * step + place) ** 2) for place, (key, value) in enumerate(settings.items())
        }

    source = traced(build, settings)
    assert source.settings == tuple(settings)
    assert_followed(build, source, schedule=schedule, steps=60)


@pytest.mark.parametrize("lr", [1e-6, 0.1, 0.25, 0.5, 1.0, 2.0, 1e-30, 1e3])
@pytest.mark.parametrize("name", ["SGD", "Adam", "RAdam"])
def test_a_learning_rate_may_be_any_number(name, lr):
    def build(leaves):
        return getattr(torch.optim, name)(leaves, lr=lr)

    assert_followed(build, traced(build, {"lr": lr}), steps=30, schedule=lambda step: {"lr": lr * 0.9**step})


def test_a_learning_rate_of_zero_moves_nothing():
    build = builder("Adam", {})
    assert_followed(build, traced(build), schedule=lambda step: {"lr": 0.0 if step % 2 else 0.01}, steps=20)


def test_settings_are_put_where_they_belong():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    put(optimizer, {"lr": 0.5, "betas[1]": 0.25})
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.25)


# --- what is refused, and what is not torch's own ----------------------------------------------------------------------


class Signs(torch.optim.Optimizer):
    """Moves by the sign of a mean gradient: a simple optimizer of a user's."""

    def __init__(self, leaves, lr=0.01, memory=0.9, bounded=False):
        super().__init__(leaves, {"lr": lr, "memory": memory, "bounded": bounded})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for leaf in group["params"]:
                state = self.state[leaf]
                if not state:
                    state["count"] = torch.zeros(())
                    state["mean"] = torch.zeros_like(leaf)
                state["count"] += 1
                state["mean"].mul_(group["memory"]).add_(leaf.grad, alpha=1 - group["memory"])
                share = group["lr"] / state["count"].item() ** 0.5
                update = state["mean"].sign() * share + 1e-3 * torch.where(leaf > 0, leaf, 0.0)
                leaf.sub_(update.clamp(-0.01, 0.01) if group["bounded"] else update)


class Branching(Signs):
    """Looks at a number of the gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        leaf.sub_(leaf.grad * 0.1 if leaf.grad[0] > 0 else leaf.grad * 0.2)


class Counting(Signs):
    """Keeps a plain number in its state."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        self.state[leaf]["count"] = self.state[leaf].get("count", 0) + 1
        leaf.sub_(leaf.grad / self.state[leaf]["count"])


class Remembering(Signs):
    """Keeps a number outside its state."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        self.taken = getattr(self, "taken", 0) + 1
        leaf.sub_(leaf.grad / self.taken)


class Random(Signs):
    """Adds noise."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        leaf.sub_(leaf.grad * 0.1 + torch.randn_like(leaf))


class Growing(Signs):
    """Keeps every gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        state = self.state[leaf]
        state["all"] = torch.cat([state.get("all", leaf.new_zeros(0)), leaf.grad])
        leaf.sub_(state["all"].mean())


class Late(Signs):
    """Keeps something new after a number of steps."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        state = self.state[leaf]
        if not state:
            state["count"] = torch.zeros(())
        state["count"] += 1
        if state["count"].item() > 15:
            state["mean"] = state.get("mean", leaf) * 0.9
        leaf.sub_(leaf.grad * 0.1)


class Stepwise(Signs):
    """Goes ways that no state to trace with is near."""

    @torch.no_grad()
    def step(self, closure=None):
        leaf = self.param_groups[0]["params"][0]
        state = self.state[leaf]
        if not state:
            state["count"] = torch.zeros(())
        state["count"] += 1
        count = state["count"].item()
        share = 0.1 if count < 15 else 0.2 if count < 25 else 0.3
        leaf.sub_(leaf.grad * max(share, leaf.norm().item() * 0.01))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"memory": 0.5, "bounded": True}], ids=described)
def test_an_optimizer_of_the_users_is_followed(options, dtype):
    def build(leaves):
        return Signs(leaves, lr=LR["lr"], **options)

    assert_followed(build, traced(build, dtype=dtype), dtype=dtype)


def test_comparisons_that_come_out_otherwise_later_are_followed():
    assert_followed(Stepwise, traced(Stepwise), size=2, steps=60)


@pytest.mark.parametrize("start", [0.0, 1e-9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_may_start_anywhere(name, start):
    build = builder(name, {})
    assert_followed(build, traced(build), steps=20, start=start)


def test_a_subclass_of_torch_with_its_own_step_is_followed():
    class Shrinking(torch.optim.Adam):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for leaf in self.param_groups[0]["params"]:
                leaf.mul_(0.99)

    assert_followed(lambda leaves: Shrinking(leaves, lr=0.01), traced(lambda leaves: Shrinking(leaves, lr=0.01)))


REFUSED = {
    "a branch on a gradient": (Branching, "branches on values|does not compute what the optimizer does"),
    "a plain number in its state": (Counting, "state holds count = 1, which is no tensor"),
    "a number outside its state": (Remembering, "does not compute what the optimizer does"),
    "random numbers": (Random, "draws random numbers"),
    "a state that grows": (Growing, "its state grows|changes its form"),
    "a state that comes late": (Late, "changes its form|does not compute what the optimizer does"),
    "LBFGS": (lambda leaves: torch.optim.LBFGS(leaves), "closure"),
    "SparseAdam": (lambda leaves: torch.optim.SparseAdam(leaves), "does not support dense gradients"),
    "fused": (lambda leaves: torch.optim.Adam(leaves, fused=True), "several tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason_is(name):
    build, reason = REFUSED[name]
    with pytest.raises(Untraceable, match=reason):
        traced(build)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_only_matrices():
    with pytest.raises((Untraceable, ValueError), match="2D"):
        traced(lambda leaves: torch.optim.Muon(leaves))


def test_too_many_parameters_are_refused():
    with pytest.raises(Untraceable, match=f"up to {MAX_ELEMENTS} parameters, and there are {MAX_ELEMENTS + 1}"):
        traced(builder("SGD", {}), size=MAX_ELEMENTS + 1)


# --- on disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADFIT_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def untraceable(*_):
    raise AssertionError("it was traced again")


def test_a_source_on_disk_is_found_again(folder, monkeypatch):
    first = traced(builder("Adam", {}), identity="Adam")
    monkeypatch.setattr(tracing, "_trace", untraceable)
    assert traced(builder("Adam", {}), identity="Adam") == first
    assert len(list(folder.iterdir())) == 1


def test_another_optimizer_or_size_or_precision_is_another_source(folder):
    traced(builder("SGD", {}), identity="SGD")
    traced(builder("SGD", {"momentum": 0.9}), identity="SGD with momentum")
    traced(builder("SGD", {}), identity="SGD", size=3)
    traced(builder("SGD", {}), identity="SGD", dtype="single")
    traced(builder("SGD", {"momentum": 0.9}), {"lr": 0.1, "momentum": 0.9}, identity="SGD with momentum")
    assert len(list(folder.iterdir())) == 5


def test_what_has_no_identity_is_not_kept(folder):
    traced(builder("SGD", {}))
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("damage", [b"", b"nonsense", "one bit", "half"])
def test_a_damaged_file_is_ignored_and_written_anew(folder, damage):
    source = traced(builder("SGD", {"momentum": 0.9}), identity="SGD")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    spoilt = {"one bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "half": whole[: len(whole) // 2]}
    file.write_bytes(spoilt.get(damage, damage))
    assert traced(builder("SGD", {"momentum": 0.9}), identity="SGD") == source
    assert file.read_bytes() == whole


def test_without_a_folder_everything_works(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("GRADFIT_CACHE_DIR", str(blocked / "inside"))
    assert traced(builder("SGD", {}), identity="SGD").settings == ("lr",)
    assert cache.read("anything") is None
