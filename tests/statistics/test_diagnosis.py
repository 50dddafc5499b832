"""Learning curves of known truth against their diagnosis."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_equal

from gradfit.errors import DataError, GradfitError
from gradfit.statistics import diagnosis
from gradfit.statistics.diagnosis import Diagnosis, diagnose

VERDICTS = tuple(diagnosis.ADVICE)
T_C = np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
T_U = np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
MANY = {"n_train": 400, "n_validation": 100}


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "diagnosis_simulation.py"
    spec = importlib.util.spec_from_file_location("diagnosis_simulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def falling(epochs=500, rate=20.0):
    return 1 + 30 * np.exp(-rate * np.linspace(0, 1, epochs))


def rising(epochs=500, height=3.0, rate=20.0):
    """Falls, and rises again from a fifth of the epochs on."""
    return falling(epochs, rate) + height * np.clip(np.linspace(-0.25, 1, epochs), 0, None)


def noise(epochs=500, size=0.05, seed=0):
    return size * np.random.default_rng(seed).standard_normal(epochs)


def thermometer(epochs, learning_rate, unit=0.1, train=slice(None), validation=None):
    """The notebook's loop: w = 1, b = 0, full-batch gradient descent."""
    x, y = unit * T_U, T_C
    w, b, curves = 1.0, 0.0, []
    for _ in range(epochs):
        with np.errstate(over="ignore", invalid="ignore"):
            residual = w * x + b - y
            held_out = np.nan if validation is None else (residual[validation] ** 2).mean()
            residual = residual[train]
            curves.append(((residual**2).mean(), held_out))
            w -= learning_rate * 2 * (residual * x[train]).mean()
            b -= learning_rate * 2 * residual.mean()
    return np.array(curves).T


# Each verdict, plainly ----------------------------------------------------------------------------

FLAT = np.full(500, 7.0)
PLAIN = {
    "nothing learned": (FLAT, FLAT, {}),
    "overfitting": (falling(), rising(), {}),
    "falling together": (falling(), falling() * 1.02, {}),
    "offset": (falling(), falling() + 2, {}),
    "too few points": (falling(), rising(), {"n_validation": 2}),
    "not converged": (falling(rate=1), falling(rate=1), {}),
    "diverged": (np.exp(np.linspace(0, 50, 500)), np.exp(np.linspace(0, 50, 500)), {}),
    "no validation": (falling(), None, {}),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_each_verdict_has_a_plain_example(verdict):
    train, validation, options = PLAIN[verdict]
    assert diagnose(train, validation, **MANY | options).verdict == verdict


@pytest.mark.parametrize("verdict", VERDICTS)
def test_mini_batch_noise_does_not_change_a_plain_verdict(verdict):
    train, validation, options = PLAIN[verdict]
    validation = None if validation is None else validation * (1 + noise(seed=1))
    assert diagnose(train * (1 + noise()), validation, **MANY | options).verdict == verdict


@pytest.mark.parametrize(
    ("verdict", "letter"), [("nothing learned", "A"), ("overfitting", "B"), ("falling together", "C"), ("offset", "D")]
)
def test_the_four_pictures_have_their_letters(verdict, letter):
    train, validation, options = PLAIN[verdict]
    assert diagnose(train, validation, **MANY | options).letter == letter


@pytest.mark.parametrize("verdict", ["too few points", "not converged", "diverged", "no validation"])
def test_curves_that_are_no_picture_have_no_letter(verdict):
    train, validation, options = PLAIN[verdict]
    assert diagnose(train, validation, **MANY | options).letter is None


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_diagnosis_reads_as_sentences_with_numbers_and_advice(verdict):
    train, validation, options = PLAIN[verdict]
    found = diagnose(train, validation, **MANY | options)
    assert found.advice in str(found)
    assert str(found).startswith(f"{found.letter}: {verdict}." if found.letter else f"{verdict.capitalize()}.")
    assert any(character.isdigit() for character in "".join(found.reasons))
    assert all(reason[0].isupper() and reason.endswith(".") for reason in found.reasons)


def test_a_diagnosis_cannot_be_changed():
    with pytest.raises(AttributeError):
        Diagnosis("offset", "D", (), "").verdict = "overfitting"  # type: ignore[misc]


# The thermometer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("epochs", [1000, 3000, 5000])
def test_two_validation_points_of_the_thermometer_carry_no_verdict(epochs, seed):
    order = np.random.default_rng(seed).permutation(11)
    train, validation = thermometer(epochs, 1e-2, train=order[:9], validation=order[9:])
    found = diagnose(train, validation, n_train=9, n_validation=2)
    assert (found.verdict, found.letter) == ("too few points", None)
    assert "2 points" in str(found)


def test_the_thermometer_in_its_own_units_diverges_at_the_first_learning_rate():
    train, _ = thermometer(100, 1e-2, unit=1.0)
    found = diagnose(train, n_train=11)
    assert found.verdict == "diverged"
    assert "lower the learning rate" in found.advice.lower()


def test_the_thermometer_in_its_own_units_creeps_and_is_not_taken_for_settled():
    train, _ = thermometer(100, 1e-4, unit=1.0)
    assert 29.0 < train[-1] < 29.1  # the notebook prints 29.02; the minimum is 2.93
    assert diagnose(train, n_train=11).verdict == "not converged"


@pytest.mark.parametrize(
    ("epochs", "verdict"),
    [(500, "not converged"), (1500, "not converged"), (3000, "no validation"), (5000, "no validation")],
)
def test_the_scaled_thermometer_settles_after_some_thousand_epochs(epochs, verdict):
    assert diagnose(thermometer(epochs, 1e-2)[0], n_train=11).verdict == verdict


# Priorities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_validation", range(1, diagnosis.MIN_VALIDATION))
@pytest.mark.parametrize("picture", ["overfitting", "falling together", "offset"])
@pytest.mark.parametrize("converged", [None, True, False])
def test_a_small_validation_set_never_carries_b_c_or_d(picture, n_validation, converged):
    train, validation, _ = PLAIN[picture]
    found = diagnose(train, validation, n_train=400, n_validation=n_validation, converged=converged)
    assert found.verdict == "too few points"


def test_overfitting_is_seen_while_training_still_falls():
    assert diagnose(falling(rate=6), rising(height=10, rate=20), **MANY).verdict == "overfitting"
    assert diagnose(falling(), rising(), **MANY, converged=False).verdict == "overfitting"


def test_overfitting_from_the_first_epoch_is_seen():
    assert diagnose(falling(), np.linspace(40, 90, 500), **MANY).verdict == "overfitting"


def test_a_rise_after_a_million_fold_fall_is_seen():
    steep = 1e6 * np.exp(-400 * np.linspace(0, 1, 500))
    assert diagnose(steep + 1, steep + rising(rate=400), **MANY).verdict == "overfitting"


def test_a_rise_within_the_sampling_error_of_the_validation_set_is_no_overfitting():
    train, validation = falling(), rising(height=0.3)
    assert diagnose(train, validation, n_train=400, n_validation=20).verdict == "falling together"
    assert diagnose(train, validation, n_train=400, n_validation=2000).verdict == "overfitting"


def test_both_losses_rising_is_no_overfitting():
    assert diagnose(rising(), rising(), **MANY).verdict in ("diverged", "not converged")


def test_the_solver_knows_better_than_the_slope():
    assert diagnose(falling(rate=1), falling(rate=1), **MANY, converged=True).verdict == "falling together"
    assert diagnose(falling(), falling(), **MANY, converged=False).verdict == "not converged"
    assert diagnose(falling(), diverged=True).verdict == "diverged"


def test_starting_at_the_minimum_is_not_nothing_learned():
    found = diagnose(FLAT, FLAT, **MANY, converged=True)
    assert found.verdict == "falling together"
    assert "started at the minimum" in str(found)
    assert diagnose([7.0, 7.0], converged=True).verdict == "no validation"
    assert diagnose([0.0, 0.0], [0.0, 0.0], **MANY).verdict == "falling together"


@pytest.mark.parametrize("converged", [None, False])
@pytest.mark.parametrize("fall", [0.0, 1e-12, 1e-3])
def test_a_learning_rate_far_too_small_has_learned_nothing(fall, converged):
    train = 7 * (1 - fall * np.linspace(0, 1, 100))
    assert diagnose(train, train, **MANY, converged=converged).verdict == "nothing learned"
    assert diagnose(train, converged=converged).verdict == "nothing learned"


def test_a_training_loss_that_is_lost_is_diverged():
    for lost in (np.nan, np.inf):
        found = diagnose([5.0, 80.0, lost, np.nan], [5.0, 70.0, 1.0, lost], **MANY)
        assert found.verdict == "diverged"
        assert "epoch 3" in str(found)
    assert diagnose([np.nan, np.nan]).verdict == "diverged"


def test_a_loss_that_falls_and_then_climbs_is_diverged():
    t = np.linspace(0, 1, 300)
    assert diagnose(100 * np.exp(-30 * t) + 1 + np.exp(20 * (t - 0.9))).verdict == "diverged"


def test_validation_below_training_is_an_offset_with_its_own_advice():
    found = diagnose(falling() + 2, falling(), **MANY)
    assert found.letter == "D"
    assert "easier" in found.advice


# Short curves of Levenberg-Marquardt --------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "verdict"),
    [
        ([110.0, 3.3, 3.1, 3.1], "falling together"),
        ([110.0, 15.0, 12.0, 12.0], "offset"),
        ([110.0, 3.3, 8.0, 15.0], "overfitting"),
        (None, "no validation"),
    ],
)
def test_a_few_steps_of_levenberg_marquardt_are_enough(validation, verdict):
    found = diagnose([100.0, 3.0, 2.9, 2.9], validation, n_train=40, n_validation=20, converged=True)
    assert found.verdict == verdict


@pytest.mark.parametrize("epochs", range(1, 12))
def test_curves_of_any_short_length_have_a_verdict(epochs):
    curve = 1 + 100 * 0.01 ** np.arange(epochs)
    assert diagnose(curve, curve, **MANY, converged=True).verdict == "falling together"
    assert diagnose(curve, curve, **MANY).verdict in ("not converged", "falling together")
    assert diagnose(curve[:1]).verdict == "not converged"


# Units, noise, speed ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    verdict=st.sampled_from(VERDICTS),
    power=st.integers(-12, 12),
    epochs=st.integers(100, 2000),
    relative=st.sampled_from([0.0, 0.05]),
)
def test_the_verdict_does_not_depend_on_the_unit_of_the_loss(simulation, verdict, power, epochs, relative):
    curves = simulation.drawn(np.random.default_rng(epochs), verdict)
    scaled = {name: np.asarray(value) * 10.0**power if name.endswith("loss") else value for name, value in curves.items()}
    with np.errstate(over="ignore"):
        assert diagnose(**curves).verdict == diagnose(**scaled).verdict


def test_a_power_of_two_changes_no_bit_of_the_decision():
    train, validation, _ = PLAIN["overfitting"]
    one, other = diagnose(train, validation, **MANY), diagnose(train * 2.0**-40, validation * 2.0**-40, **MANY)
    assert_equal(one.reasons[-1].split(",")[-1], other.reasons[-1].split(",")[-1])


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e300, 5e306])
def test_losses_at_the_ends_of_the_number_range_are_read(scale):
    assert diagnose(falling() * scale, converged=True).verdict == "no validation"


@pytest.mark.parametrize("shift", [-1e3, -40.0, -10.0])
@pytest.mark.parametrize("picture", ["overfitting", "falling together", "offset", "not converged"])
def test_a_negative_log_likelihood_below_zero_is_read_by_its_fall(picture, shift):
    train, validation, _ = PLAIN[picture]
    offset = 5.0 if picture != "falling together" else 0.0
    grown = train + (validation - train) * (1 + offset)
    assert diagnose(train + shift, grown + shift, **MANY).verdict == picture


def test_noise_alone_seldom_raises_an_alarm():
    verdicts = Counter()
    for seed in range(200):
        size = (0.01, 0.1)[seed % 2]
        train, validation = (falling() * (1 + noise(size=size, seed=k)) for k in (2 * seed, 2 * seed + 1))
        verdicts[diagnose(train, validation, **MANY).verdict] += 1
    assert verdicts["falling together"] >= 190
    assert verdicts["overfitting"] <= 4


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_five_thousand_epochs_are_read_in_milliseconds(size):
    train, validation = (falling(5000) + noise(5000, size, seed) for seed in (0, 1))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        diagnose(train, validation, **MANY)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.02


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "options", "words"),
    [
        ([], None, {}, "at least one"),
        ([[1.0, 2.0]], None, {}, "shape"),
        (3.0, None, {}, "shape"),
        ([2.0, 1.0], [1.0], {}, "1 values for 2"),
        ([2.0, np.nan, 1.0], None, {}, "epoch 2"),
        ([2.0, 1.0], [np.inf, 1.0], {}, "epoch 1"),
        (["much", "little"], None, {}, "not numeric"),
        ([2.0, 1.0], [2.0, 1.0], {"n_validation": 0}, "n_validation is 0"),
        ([2.0, 1.0], None, {"n_train": -3}, "n_train is -3"),
    ],
)
def test_bad_curves_are_refused_with_what_came_and_what_to_do(train, validation, options, words):
    with pytest.raises(DataError, match=words) as caught:
        diagnose(train, validation, **options)
    assert isinstance(caught.value, GradfitError)
    assert "expected" in str(caught.value)


# Truth and verdict --------------------------------------------------------------------------------


def test_drawn_curves_of_plain_truth_are_told_apart(simulation):
    pairs = simulation.drawn_pairs(400, seed=1)
    assert {truth for truth, _ in pairs} == set(VERDICTS)
    for verdict in VERDICTS:
        rows = [found for truth, found in pairs if truth == verdict]
        assert rows.count(verdict) >= 0.9 * len(rows), Counter(rows)
    assert sum(truth == found for truth, found in pairs) >= 0.97 * len(pairs)
    assert sum(truth != "overfitting" and found == "overfitting" for truth, found in pairs) <= 2


def test_real_fits_are_told_apart_by_their_hidden_truth(simulation):
    pairs, innocent = simulation.fit_pairs(60, seed=1)
    plain = [(truth, found) for truth, found in pairs if truth != "grey"]
    assert sum(truth == found for truth, found in plain) >= 0.9 * len(plain)
    assert innocent.count("overfitting") <= 0.05 * len(innocent)
