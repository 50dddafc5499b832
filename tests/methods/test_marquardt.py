"""The native Levenberg-Marquardt solver: certified problems (NIST StRD), bounds, honest ends; as Python and as machine code."""

from __future__ import annotations

import ctypes
import math
import re
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
import pytest
from scipy.optimize import lsq_linear

import nist_problems
from gradfit.compiler.solver import solver_ir
from gradfit.methods import marquardt as lm
from gradfit.methods.solving import SOLVE

ADDRESS = ctypes.c_void_p
# A model for the tests: its context holds the addresses of two functions of Python's.
BRIDGE = """
define double @gf_linearize(ptr %theta, ptr %context, ptr %residual, ptr %jacobian) {
  %function = load ptr, ptr %context
  %sum = call double %function(ptr %theta, ptr %residual, ptr %jacobian)
  ret double %sum
}
define double @gf_sum_of_squares(ptr %theta, ptr %context) {
  %place = getelementptr ptr, ptr %context, i64 1
  %function = load ptr, ptr %place
  %sum = call double %function(ptr %theta)
  ret double %sum
}
"""


def two_peaks(b, x):
    return b[0] * np.exp(-b[1] * x) + b[2] * np.exp(-(((x - b[3]) / b[4]) ** 2)) + b[5] * np.exp(-(((x - b[6]) / b[7]) ** 2))


def three_decays(b, x):
    return b[0] * np.exp(-b[1] * x) + b[2] * np.exp(-b[3] * x) + b[4] * np.exp(-b[5] * x)


def cubic_ratio(b, x):
    return (b[0] + x * (b[1] + x * (b[2] + x * b[3]))) / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def cycles(b, x):
    year, first, second = 2 * np.pi * x / 12, 2 * np.pi * x / b[3], 2 * np.pi * x / b[6]
    yearly = b[0] + b[1] * np.cos(year) + b[2] * np.sin(year)
    return yearly + b[4] * np.cos(first) + b[5] * np.sin(first) + b[7] * np.cos(second) + b[8] * np.sin(second)


MODELS = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - np.exp(-b[1] * x)),
    "Chwirut1": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: np.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": cycles,
    "Eckerle4": lambda b, x: b[0] / b[1] * np.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "Gauss3": two_peaks,
    "Hahn1": cubic_ratio,
    "Kirby2": lambda b, x: (b[0] + x * (b[1] + x * b[2])) / (1 + x * (b[3] + x * b[4])),
    "Lanczos1": three_decays,
    "Lanczos2": three_decays,
    "Lanczos3": three_decays,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * np.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * np.exp(-x * b[3]) + b[2] * np.exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - np.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2.0),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * np.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + np.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + np.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - np.arctan(b[2] / (x - b[3])) / np.pi,
    "Thurber": cubic_ratio,
}


@dataclass
class Problem:
    """A model on its data; derivatives by complex steps, exact to rounding."""

    model: object
    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    lower: object = -math.inf
    upper: object = math.inf

    def residual(self, theta):
        with np.errstate(all="ignore"):
            return np.broadcast_to(self.model(theta, self.x), self.y.shape) - self.y

    def jacobian(self, theta):
        rows = []
        for j in range(len(theta)):
            shifted = theta.astype(complex)
            shifted[j] += 1e-30j
            rows.append(np.imag(self.residual(shifted)) / 1e-30)
        return np.array(rows).reshape(len(theta), len(self.y))

    def total(self, residual):
        with np.errstate(all="ignore"):
            return float(residual @ residual)


class Fit:
    """The state of a solve, and the two ways to go on with it."""

    def __init__(self, problem, *, radius=1.0):
        n, p = len(problem.y), len(problem.start)
        self.problem, self.n, self.p = problem, n, p
        self.system, self.offset = np.zeros((p + 1, n)), np.ascontiguousarray(problem.y, dtype=float)
        self.matrices, self.vectors = np.zeros((lm.MATRICES, p + 1, p + 2)), np.zeros((lm.VECTORS, p))
        self.numbers, self.counters = np.zeros(lm.NUMBERS), np.zeros(lm.COUNTERS, dtype=np.int64)
        self.vectors[lm.THETA], self.vectors[lm.LOWER], self.vectors[lm.UPPER] = problem.start, problem.lower, problem.upper
        self.numbers[lm.RADIUS], self.numbers[lm.RANK_TOLERANCE] = radius, max(n, p) * np.finfo(float).eps
        self.history = np.zeros((0, 2 + 2 * p))

    @property
    def theta(self):
        return self.vectors[lm.THETA]

    @property
    def inverse(self):
        return self.matrices[lm.INVERSE, : self.p, : self.p]

    @property
    def stderr(self):
        return np.sqrt(np.diag(self.inverse) * self.numbers[lm.SUM] / (self.n - self.p))

    def arrays(self):
        return self.system, self.offset, self.matrices, self.vectors, self.numbers, self.counters

    def plain(self, rows=1000):
        """Go on in Python."""

        def linearize(theta, context, system):
            system[-1], system[:-1] = self.problem.residual(theta), self.problem.jacobian(theta)
            return self.problem.total(system[-1])

        def sum_of_squares(theta, context):
            return self.problem.total(self.problem.residual(theta))

        history = np.zeros((rows, 2 + 2 * self.p))
        taken = self.counters[lm.STEPS]
        with np.errstate(all="ignore"):
            code = lm.solve(linearize, sum_of_squares, None, *self.arrays(), history)
        self.keep(history, taken)
        return code

    def native(self, solve, rows=1000):
        """Go on in machine code."""
        p, n = self.p, self.n

        def read(address, *shape):
            return np.ctypeslib.as_array((ctypes.c_double * math.prod(shape)).from_address(address)).reshape(shape)

        def linearize(theta, residual, jacobian):
            point = read(theta, p).copy()
            read(residual, n)[:] = found = self.problem.residual(point)
            read(jacobian, p, n)[:] = self.problem.jacobian(point)
            return self.problem.total(found)

        def sum_of_squares(theta):
            return self.problem.total(self.problem.residual(read(theta, p).copy()))

        functions = (
            ctypes.CFUNCTYPE(ctypes.c_double, ADDRESS, ADDRESS, ADDRESS)(linearize),
            ctypes.CFUNCTYPE(ctypes.c_double, ADDRESS)(sum_of_squares),
        )
        context = np.array([ctypes.cast(function, ADDRESS).value for function in functions], dtype=np.int64)
        history = np.zeros((rows, 2 + 2 * p))
        taken = self.counters[lm.STEPS]
        addresses = [array.ctypes.data for array in (context, *self.arrays(), history)]
        job = np.array([n, p, rows, *addresses], dtype=np.int64)
        code = solve(job.ctypes.data)
        self.keep(history, taken)
        return code

    def keep(self, history, taken):
        self.history = np.vstack([self.history, history[: self.counters[lm.STEPS] - taken]])


@pytest.fixture(scope="module")
def text():
    return solver_ir([lm], [SOLVE])


@pytest.fixture(scope="module")
def solve(text):
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(opt=2, jit=True)
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.add_module(llvm.parse_assembly(BRIDGE))
    engine.finalize_object()
    yield ctypes.CFUNCTYPE(ctypes.c_int64, ADDRESS)(engine.get_function_address("gf_solve"))
    engine.close()


def certified(name, start):
    """Read a file of NIST's: (problem, values, standard deviations)."""
    known = nist_problems.certified(name)
    return Problem(MODELS[name], known.x, known.y, known.starts[start]), known.values, known.deviations


def peak(b, x):
    return b[0] * np.exp(-0.5 * ((x - b[1]) / b[2]) ** 2) + b[3]


def spectrum(start=(5.0, 0.0, 2.0, 0.0), **bounds):
    x = np.linspace(-5, 5, 100)
    noise = np.random.default_rng(7).normal(0, 0.1, 100)
    return Problem(peak, x, peak((7, 0.3, 1.1, 0.5), x) + noise, np.array(start), **bounds)


def decay(start=(1.0, 1.0), **bounds):
    x = np.linspace(0, 4, 20)
    noise = np.random.default_rng(7).normal(0, 0.05, 20)
    return Problem(lambda b, x: b[0] * np.exp(-b[1] * x), x, 3 * np.exp(-0.7 * x) + noise, np.array(start), **bounds)


@pytest.mark.parametrize("radius", [1.0, 100.0])
@pytest.mark.parametrize("start", [0, 1], ids=["far", "near"])
@pytest.mark.parametrize("name", MODELS)
def test_certified_values_are_found_to_eight_digits(name, start, radius, solve):
    problem, values, deviations = certified(name, start)
    fit = Fit(problem, radius=radius)
    assert fit.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(fit.theta, values, rtol=1e-8)
    if name != "Lanczos1":  # whose residuals are below rounding
        np.testing.assert_allclose(fit.stderr, deviations, rtol=1e-7)


@pytest.mark.parametrize("name", ["BoxBOD", "Eckerle4", "Misra1a", "Rat43", "MGH09"])
@pytest.mark.parametrize("radius", [0.1, 1.0, 100.0])
def test_machine_code_does_what_python_does(name, radius, solve):
    problem, _, _ = certified(name, 0)
    plain, native = Fit(problem, radius=radius), Fit(problem, radius=radius)
    assert plain.plain() == native.native(solve) == lm.CONVERGED
    assert abs(len(plain.history) - len(native.history)) <= 2  # the order of sums differs, and decides a last step
    np.testing.assert_allclose(native.history[:3], plain.history[:3], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(native.theta, plain.theta, rtol=1e-9)
    np.testing.assert_allclose(native.inverse, plain.inverse, rtol=1e-7)


def test_an_easy_peak_takes_few_evaluations(solve):
    fit = Fit(spectrum(start=(6.5, 0.1, 1.3, 0.3)))
    assert fit.native(solve) == lm.CONVERGED
    assert fit.counters[lm.LINEARIZATIONS] + fit.counters[lm.EVALUATIONS] <= 8


def test_the_answer_does_not_depend_on_units(solve):
    here = spectrum()
    for kx, ky in (1e8, 1e-8), (1e-6, 1e7):
        units = np.array([ky, kx, kx, ky])
        there = Problem(peak, here.x * kx, here.y * ky, here.start * units)
        first, second = Fit(here), Fit(there)
        assert first.native(solve) == second.native(solve) == lm.CONVERGED
        np.testing.assert_allclose(second.theta, first.theta * units, rtol=1e-10)
        np.testing.assert_allclose(second.inverse, first.inverse * np.outer(units, units) / ky**2, rtol=1e-8)


def test_rows_of_history_hold_loss_and_gradient_before_a_step_and_parameters_after_it(solve):
    problem = spectrum()
    fit = Fit(problem)
    fit.native(solve)
    theta = problem.start
    for row in fit.history:
        residual, jacobian = problem.residual(theta), problem.jacobian(theta)
        assert row[0] == pytest.approx(residual @ residual / 100, rel=1e-12)
        np.testing.assert_allclose(row[6:], 2 * jacobian @ residual / 100, rtol=1e-6, atol=1e-12 * np.abs(jacobian).sum())
        theta = row[2:6]
    np.testing.assert_array_equal(theta, fit.theta)
    assert (np.diff(fit.history[:, 0]) < 0).all()


@pytest.mark.parametrize("name", ["Misra1a", "MGH09", "BoxBOD"])
def test_going_on_step_by_step_gives_the_same_bits(name, solve):
    whole, parts = Fit(certified(name, 0)[0]), Fit(certified(name, 0)[0])
    ended = whole.native(solve)
    code = lm.RUNNING
    while code == lm.RUNNING:
        code = parts.native(solve, rows=1)
    assert code == ended
    np.testing.assert_array_equal(parts.history, whole.history)
    for one, other in zip(parts.arrays()[2:], whole.arrays()[2:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ["plain", "native"])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [((0, -99), (0.4, 99)), ((-9, -15), (9, 99)), ((1, -10), (2, 0)), ((-9, -99), (-1, 99)), ((0, 0), (0.1, 0.2))],
)
def test_a_line_within_bounds_is_the_best_line_within_them(lower, upper, way, solve):
    x = np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
    y = np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
    start = np.clip([1.0, 0.0], lower, upper)
    fit = Fit(Problem(lambda b, x: b[0] * x + b[1], x, y, start, np.array(lower, float), np.array(upper, float)))
    assert (fit.plain() if way == "plain" else fit.native(solve)) == lm.CONVERGED
    best = lsq_linear(np.column_stack([x, np.ones(11)]), y, (lower, upper), tol=1e-14, method="bvls")
    np.testing.assert_allclose(fit.theta, best.x, rtol=1e-9)
    on = (fit.theta == lower) | (fit.theta == upper)
    assert on.any()
    assert (np.isnan(np.diag(fit.inverse)) == on).all()
    assert (np.isnan(fit.vectors[lm.UNDETERMINED]) == on).all()


def test_a_bound_that_excludes_the_minimum_is_reached_and_the_others_are_at_their_best(solve):
    bounded = Fit(
        spectrum(start=(5, 0, 0.9, 0), lower=np.array([-np.inf, -np.inf, 0.1, -np.inf]), upper=np.array([99, 99, 1.0, 99]))
    )
    assert bounded.native(solve) == lm.CONVERGED
    assert bounded.theta[2] == 1.0
    problem = spectrum()
    free = Fit(Problem(lambda b, x: peak((b[0], b[1], 1.0, b[2]), x), problem.x, problem.y, np.array([5.0, 0, 0])))
    assert free.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(bounded.theta[[0, 1, 3]], free.theta, rtol=1e-9)
    np.testing.assert_allclose(bounded.inverse[np.ix_([0, 1, 3], [0, 1, 3])], free.inverse, rtol=1e-8)


def test_a_parameter_held_at_a_bound_is_released_where_the_loss_falls_inside(solve):
    fit = Fit(decay(start=(1.0, 2.0), upper=np.array([np.inf, 2.0])))
    free = Fit(decay())
    assert fit.native(solve) == free.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(fit.theta, free.theta, rtol=1e-9)


def test_a_bound_that_does_not_bind_changes_nothing(solve):
    free, bounded = Fit(decay()), Fit(decay(lower=np.array([0.0, 0.0]), upper=np.array([50.0, 50.0])))
    assert free.native(solve) == bounded.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(bounded.theta, free.theta, rtol=1e-10)


@pytest.mark.parametrize("way", ["plain", "native"])
def test_a_plateau_is_said_to_be_one_and_names_its_parameters(way, solve):
    # The start is where the rate matters, so little that every step that lowers the loss loses it.
    x = np.linspace(1, 5, 20)
    fit = Fit(Problem(lambda b, x: b[0] + np.exp(-b[1] * x), x, np.full(20, 3.0), np.array([3.0, 5.0])))
    assert (fit.plain() if way == "plain" else fit.native(solve)) == lm.PLATEAU
    assert fit.vectors[lm.STILL].tolist() == [0, 1]


def test_a_start_on_a_plateau_is_no_minimum(solve):
    fit = Fit(decay(start=(1.0, 1e4)))
    assert fit.native(solve) not in (lm.CONVERGED, lm.RUNNING)
    assert fit.numbers[lm.DISTANCE] > lm.ARRIVED


def test_a_wrong_derivative_is_no_minimum(solve):
    problem = decay()
    right = problem.jacobian
    problem.jacobian = lambda theta: -right(theta)
    fit = Fit(problem)
    assert fit.native(solve) == lm.ROUGH
    assert fit.numbers[lm.DISTANCE] > 1
    np.testing.assert_array_equal(fit.theta, problem.start)


@pytest.mark.parametrize("way", ["plain", "native"])
def test_a_start_that_is_not_finite_is_told(way, solve):
    x = np.linspace(1, 5, 20)
    fit = Fit(Problem(lambda b, x: np.log(b[0]) * x + b[1], x, x, np.array([-1.0, 0.0])))
    assert (fit.plain(rows=1) if way == "plain" else fit.native(solve, rows=1)) == lm.NOT_FINITE
    assert fit.theta.tolist() == [-1, 0]


def test_a_region_of_nan_is_stepped_around(solve):
    x = np.linspace(1, 5, 30)
    fit = Fit(Problem(lambda b, x: b[0] * np.log(b[1] * x), x, 2 * np.log(3 * x), np.array([10, 0.2])))
    assert fit.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(fit.theta, [2, 3], rtol=1e-9)


def test_exact_data_are_fitted_exactly_and_from_zero(solve):
    x = np.linspace(0, 4, 20)
    for start in (1.0, 1.0), (0.0, 0.0), (3.0, 0.7):
        fit = Fit(Problem(lambda b, x: b[0] * np.exp(-b[1] * x), x, 3 * np.exp(-0.7 * x), np.array(start)))
        assert fit.native(solve) == lm.CONVERGED
        np.testing.assert_allclose(fit.theta, [3, 0.7], rtol=1e-12)


def test_what_the_data_do_not_determine_is_told(solve):
    x = np.linspace(0, 1, 20)
    y = 2 * x + 1 + np.random.default_rng(7).normal(0, 0.1, 20)
    fit = Fit(Problem(lambda b, x: (b[0] + b[1]) * x + b[2], x, y, np.array([1.0, 5.0, 0.0])))
    assert fit.native(solve) == lm.CONVERGED
    np.testing.assert_allclose(fit.vectors[lm.UNDETERMINED], [math.sqrt(0.5), math.sqrt(0.5), 0], atol=1e-6)
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.theta[0] + fit.theta[1] == pytest.approx(slope, rel=1e-9)
    assert fit.theta[2] == pytest.approx(intercept, rel=1e-9)
    assert fit.inverse[2, 2] == pytest.approx(1 / np.sum((x - x.mean()) ** 2) * np.mean(x**2), rel=1e-9)


def test_a_parameter_that_moves_nothing_is_named(solve):
    x = np.linspace(0, 1, 20)
    fit = Fit(Problem(lambda b, x: b[0] * x + 0 * b[1], x, 2 * x + np.sin(9 * x), np.array([1.0, 5.0])))
    assert fit.native(solve) == lm.PLATEAU
    assert fit.vectors[lm.STILL].tolist() == [0, 1]
    np.testing.assert_allclose(fit.vectors[lm.UNDETERMINED], [0, 1], atol=1e-6)


def two_decays(b, x):
    return b[0] * np.exp(-b[1] * x) + b[2] * np.exp(-b[3] * x)


@pytest.mark.parametrize("way", ["plain", "native"])
def test_terms_that_start_alike_are_parted(way, solve):
    x = np.linspace(0, 5, 40)
    y = two_decays((3, 0.5, 2, 3), x) + np.random.default_rng(0).normal(0, 0.02, 40)
    alike, apart = Fit(Problem(two_decays, x, y, np.ones(4))), Fit(Problem(two_decays, x, y, np.array([2, 0.4, 1, 4.0])))
    assert (alike.plain() if way == "plain" else alike.native(solve)) == apart.native(solve) == lm.CONVERGED
    assert alike.numbers[lm.SUM] == pytest.approx(apart.numbers[lm.SUM], rel=1e-12)
    np.testing.assert_allclose(sorted(alike.theta), sorted(apart.theta), rtol=1e-7)


@pytest.mark.parametrize("way", ["plain", "native"])
def test_a_minimum_where_the_derivative_is_singular_is_one(way, solve):
    # Freudenstein and Roth: two functions of two parameters, and a minimum where they are not 0. The derivative is singular there.
    def functions(b, x):
        return np.array([-13 + b[0] + ((5 - b[1]) * b[1] - 2) * b[1], -29 + b[0] + ((b[1] + 1) * b[1] - 14) * b[1]])

    fit = Fit(Problem(functions, np.zeros(2), np.zeros(2), np.array([0.5, -2.0])))
    assert (fit.plain() if way == "plain" else fit.native(solve)) == lm.CONVERGED
    assert fit.numbers[lm.SUM] == pytest.approx(48.98425368, rel=1e-8)
    assert fit.counters[lm.CURVED] == 1
    assert fit.numbers[lm.DISTANCE] < lm.ARRIVED


def test_functions_that_vanish_with_their_derivative_are_solved(solve):
    def functions(b, x):  # Powell's singular function
        return np.array(
            [b[0] + 10 * b[1], math.sqrt(5) * (b[2] - b[3]), (b[1] - 2 * b[2]) ** 2, math.sqrt(10) * (b[0] - b[3]) ** 2]
        )

    fit = Fit(Problem(functions, np.zeros(4), np.zeros(4), np.array([3.0, -1, 0, 1])))
    assert fit.native(solve) == lm.CONVERGED
    assert fit.numbers[lm.SUM] < 1e-25


def test_a_small_rest_of_an_absurd_start_is_no_minimum(solve):
    # What is left after the first step is 1e-32 of what there was, and still 1e38 times the data.
    x = np.linspace(0.1, 5, 40)
    y = 1.5 * np.sqrt(x) + np.random.default_rng(3).normal(0, 0.05, 40)
    fit = Fit(Problem(lambda b, x: b[0] * x ** b[1], x, y, np.array([2.0, 50.0])))
    if fit.native(solve) == lm.CONVERGED:
        assert fit.numbers[lm.SUM] < 0.2
    else:
        assert fit.numbers[lm.DISTANCE] > lm.ARRIVED


def test_a_parameter_beside_far_larger_ones_is_not_on_a_plateau(solve):
    # Box: from far off the third parameter alone makes residuals of a hundred, beside which the second hardly counts.
    t = np.arange(1, 11) / 10
    fit = Fit(
        Problem(
            lambda b, t: np.exp(-t * b[0]) - np.exp(-t * b[1]) - b[2] * (np.exp(-t) - np.exp(-10 * t)),
            t, np.zeros(10), np.array([0.0, 100, 200]),
        )
    )  # fmt: skip
    assert fit.native(solve) == lm.CONVERGED
    assert fit.numbers[lm.SUM] < 1e-25


def test_a_parameter_that_cannot_move_is_left_alone(solve):
    x = np.linspace(0, 1, 20)
    y = 2 * x + np.sin(9 * x)
    lower, upper = np.array([-np.inf, 5.0]), np.array([np.inf, 5.0])
    fit = Fit(Problem(lambda b, x: b[0] * x + 0 * b[1], x, y, np.array([1.0, 5.0]), lower, upper))
    assert fit.native(solve) == lm.CONVERGED
    assert fit.theta[0] == pytest.approx(x @ y / (x @ x), rel=1e-12)
    assert fit.theta[1] == 5


def test_more_rows_than_are_worked_on_at_a_time(solve):
    n = 2 * lm.CHUNK + 100
    x = np.linspace(-5, 5, n)
    y = peak((7, 0.3, 1.1, 0.5), x) + np.random.default_rng(7).normal(0, 0.1, n)
    fit = Fit(Problem(peak, x, y, np.array([5.0, 0, 2, 0])))
    assert fit.native(solve) == lm.CONVERGED
    jacobian, residual = fit.problem.jacobian(fit.theta).T, fit.problem.residual(fit.theta)
    np.testing.assert_allclose(jacobian.T @ residual, 0, atol=1e-9 * np.linalg.norm(jacobian) * np.linalg.norm(residual))
    np.testing.assert_allclose(fit.inverse, np.linalg.inv(jacobian.T @ jacobian), rtol=1e-9)
    assert fit.numbers[lm.REST] == pytest.approx(residual @ residual, rel=1e-12)


def test_fewer_rows_than_parameters_are_no_crash(solve):
    fit = Fit(Problem(peak, np.array([0.0, 1.0]), np.array([3.0, 2.0]), np.array([2.0, 0.5, 1.0, 0.1])))
    plain = Fit(fit.problem)
    assert fit.native(solve) == plain.plain()
    assert fit.numbers[lm.SUM] < 1e-20
    assert (fit.vectors[lm.UNDETERMINED] > 1e-6).any()


@pytest.mark.parametrize("way", ["plain", "native"])
def test_nothing_to_fit_is_fitted(way, solve):
    fit = Fit(Problem(lambda b, x: x, np.arange(3.0), np.ones(3), np.empty(0)))
    assert (fit.plain() if way == "plain" else fit.native(solve)) == lm.CONVERGED
    assert len(fit.history) == 1


def test_a_conclusion_without_a_fit_is_that_of_the_fit(solve):
    fitted = Fit(spectrum())
    fitted.native(solve)
    fresh = Fit(spectrum(start=fitted.theta))
    assert fresh.native(solve, rows=0) == lm.CONVERGED
    jacobian, residual = fresh.problem.jacobian(fresh.theta).T, fresh.problem.residual(fresh.theta)
    np.testing.assert_allclose(fresh.inverse, np.linalg.inv(jacobian.T @ jacobian), rtol=1e-9)
    np.testing.assert_allclose(fresh.inverse, fitted.inverse, rtol=1e-12)
    assert fresh.numbers[lm.SUM] == pytest.approx(residual @ residual, rel=1e-13)
    assert fresh.numbers[lm.SIGNAL] == pytest.approx(np.linalg.norm(residual + fresh.offset), rel=1e-13)
    away = Fit(spectrum(start=fitted.theta + 0.5 * fitted.stderr[0] * np.eye(4)[0]))
    away.native(solve, rows=0)
    step = -np.linalg.lstsq(away.problem.jacobian(away.theta).T, away.problem.residual(away.theta), rcond=None)[0]
    s2 = residual @ residual / 96
    expected = math.sqrt(step @ np.linalg.solve(away.inverse, step) / s2)
    assert away.numbers[lm.DISTANCE] == pytest.approx(expected, rel=1e-2)


def test_the_text_needs_no_runtime(text):
    declared = set(re.findall(r"^declare [^@]*@([\w.]+)", text, re.MULTILINE))
    model = {"gf_linearize", "gf_sum_of_squares"}
    assert {name for name in declared if not name.startswith("llvm.")} == model
    assert re.findall(r"^define (?!internal)[^@]*@(\w+)", text, re.MULTILINE) == ["gf_solve"]
