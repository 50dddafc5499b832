"""Where a fit begins: where the caller says; by the shape of the curve or by search where nobody says; or from many starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.units import Role, roles
from gradfit.data.dataset import Dataset
from gradfit.errors import OptionError
from gradfit.methods.differential_evolution import DifferentialEvolution
from gradfit.methods.drawing import around, cube
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.method import Method
from gradfit.methods.multistart import MOST_JUDGED, Followed, Ground, thinned
from gradfit.methods.probing import probed
from gradfit.model.lineshape import Lineshape
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.statistics.record import GIVEN, Beginning, Minimum
from gradfit.typing import Floats

GUESSES = 8  # of a lineshape, from which a short fit is made
MOST_SEARCHED = 50  # free numbers: in more dimensions no number of points fills the space
MOST_KNOWN = 128  # models whose roles are kept
POLISHED = 8  # ends that are followed as far as the method goes
MOST_FOLLOWED = 1 << 14  # rows by which starts are followed
MANY_DRAWN, FEW_ROWS = 2, 64  # candidates for each start that is followed, and the rows that judge them
MOST_STARTS = 100_000
KNOWN_ROLES: dict[tuple[str, tuple[str, ...]], dict[str, Role]] = {}


def unstarted(known: Parameters) -> tuple[str, ...]:
    """Free parameters that nobody gave a start."""
    return tuple(name for name in known.free_names if name in known.assumed)


def check_multistart(multistart: object) -> None:
    """Refuse what is no number of starts."""
    if multistart is None:
        return
    if isinstance(multistart, bool) or not isinstance(multistart, (int, np.integer)) or not 1 <= multistart <= MOST_STARTS:
        raise OptionError(
            f"multistart is {multistart!r}; expected how many starts to try, a whole number from 1 to {MOST_STARTS}."
        )


def guessed(model: Model, known: Parameters, data: Dataset, method: Method, *, refined: bool = False) -> list[Parameters]:
    """Give parameters that begin where a lineshape guesses, the best guess first; none where the model is no lineshape.

    What is not refined does for Levenberg-Marquardt, which makes short fits from each; any other method begins at the best one.

    Raises
    ------
    DataError
        The data cannot be described by the shape, such as x below 0 for a power.
    """
    shape, waiting = model.function, unstarted(known)
    if not isinstance(shape, Lineshape) or not waiting:
        return []
    told = {
        name: float(known.specs[name].start)
        for name in shape.parameters
        if name not in waiting and known.specs[name].tied is None
    }
    bounds = {name: (known.specs[name].lower, known.specs[name].upper) for name in waiting}
    sigma = data.sigma if data.sigma is not None and (data.sigma > 0).all() else None
    x, careful = data.columns[shape.variable], refined or not isinstance(method, LevenbergMarquardt)
    starts = shape.starts(x, data.target, sigma, known=told, count=GUESSES, bounds=bounds, refined=careful)
    return [known.started({name: start[name] for name in waiting}) for start in starts]


@dataclass(frozen=True)
class Starter:
    """Finds where a fit begins.

    Attributes
    ----------
    guesses
        Parameters that begin where the model itself guesses.
    """

    kernel: AnyKernel
    data: Dataset
    method: Method
    guesses: Sequence[Parameters]
    seed: int

    # --- nobody said --------------------------------------------------------------------------------------------------

    def find(self) -> tuple[Parameters, Beginning]:
        """Find a start for what has none."""
        known = self.kernel.parameters
        waiting = unstarted(known)
        if not waiting or self.kernel.model.kind == "module":
            return known, GIVEN
        names = ", ".join(waiting)
        if isinstance(self.method, DifferentialEvolution):  # the start is one of its candidates
            text = f"No start was given for {names}: searched for between the bounds (seed {self.seed})."
            return self.guesses[0] if self.guesses else known, Beginning("search", text)
        if self.guesses and isinstance(self.method, GradientDescent):
            return self.guesses[0], Beginning("shape", f"No start was given for {names}: guessed from the shape of the curve.")
        ground = self._ground(MOST_JUDGED, by_value=True)
        if ground.linear.sum() == len(waiting) == len(known.free_elements):
            return known, Beginning("assumed", "")
        if len(known.free_elements) > MOST_SEARCHED:
            return known, unsearched(names, len(known.free_elements))
        if isinstance(self.method, LevenbergMarquardt):
            return self._searched(ground, names)
        theta, total = ground.candidates(cube(len(known.start), 0, ground.first_round, self.seed))
        if not np.isfinite(total).any():
            return self._lost(names, len(total))
        text = f"No start was given for {names}: the best of {len(total)} points that fill the space (seed {self.seed})."
        return known.at(theta[int(total.argmin())]), Beginning("search", text)

    def _searched(self, ground: Ground, names: str) -> tuple[Parameters, Beginning]:
        """Take the lowest minimum that short fits find from guesses, or from points that fill the space."""
        assert isinstance(self.method, LevenbergMarquardt)
        known = self.kernel.parameters
        first = _rows(self.guesses, known)
        if self.guesses:
            found = ground.follow(first) if ground.side_by_side else None
            if found is None or not found.arrived:
                refined = guessed(self.kernel.model, known, self.data, self.method, refined=True)
                first = _rows(refined, known)
                found = ground.follow(first)
            if found.best is not None and found.arrived:
                text = f"No start was given for {names}: guessed from the shape of the curve ({_count(len(found.sum), 'guess', 'guesses')})."
                return known.at(found.theta[found.best]), Beginning("shape", text)
        found = ground.search(first, self.seed)
        if not found.converged.all() and not ground.enough(found):
            found = self._polished(ground, found)
        best = found.best
        if best is None:
            return self._lost(names, len(found.sum))
        minima = self._minima(ground, found)
        text = (
            f"No start was given for {names}: searched by {_count(len(found.sum), 'short fit')} from points that fill the space "
            f"(seed {self.seed}); {minima[0].starts if minima else 1} of them led here."
        )
        return known.at(found.theta[best]), Beginning("search", text, minima)

    def _lost(self, names: str, tried: int) -> tuple[Parameters, Beginning]:
        text = (
            f"No start was given for {names}, and none was found: at {tried} points the model gives no finite loss; "
            "pass start= where it has values."
        )
        return self.kernel.parameters, Beginning("none", text)

    # --- many starts --------------------------------------------------------------------------------------------------

    def many(self, count: int) -> tuple[Parameters, Beginning]:
        """Fit from many starts; begin where the lowest minimum is."""
        if not isinstance(self.method, LevenbergMarquardt):
            raise OptionError(
                f"multistart fits many times by method='lm', and the method is {self.method.name}; leave one of them out."
            )
        known, ground = self.kernel.parameters, self._ground(MOST_FOLLOWED)
        found = self._polished(ground, ground.follow(self._drawn(ground, count), radius=self.method.radius))
        followed = f"{count} starts (seed {self.seed})"
        if found.best is None:
            return known, Beginning(
                "none", f"None of {followed} could be followed: the model gives no finite loss at any; pass start=."
            )
        minima = self._minima(ground, found)
        ended = sum(minimum.starts for minimum in minima)
        text = f"{followed}: {ended} ended at {_count(len(minima), 'minimum', 'minima')}"
        text += f", {minima[0].starts} of them at the lowest." if minima else "; none was followed to its end."
        return known.at(found.theta[found.best]), Beginning("multistart", text, minima)

    def _drawn(self, ground: Ground, count: int) -> Floats:
        """Give so many starts: the given one first, half of the others around it, the rest anywhere."""
        known = self.kernel.parameters
        waiting, p = unstarted(known), len(known.start)
        begun = _rows(self.guesses[:count] if waiting else [known], known)
        left = count - len(begun)
        near = 0 if waiting else left if ground.known is None else left // 2
        close = around(known.start, near, known.lower, known.upper, self.seed)
        points = cube(p, 0, max(MANY_DRAWN * (left - near), 1), self.seed)
        theta, total = ground.thinned(FEW_ROWS).candidates(points)
        return np.vstack([begun, close, theta[np.argsort(total, kind="stable")[: left - near]]])

    def _polished(self, ground: Ground, found: Followed) -> Followed:
        """Follow the lowest ends that have not arrived as far as the method goes."""
        assert isinstance(self.method, LevenbergMarquardt)
        best = found.best
        if best is None or found.converged[best]:
            return found
        order = np.argsort(found.sum, kind="stable")
        going = order[~found.converged[order] & np.isfinite(found.sum[order])][:POLISHED]
        return found.replaced(going, ground.follow(found.theta[going], most=self.method.max_steps))

    def _minima(self, ground: Ground, found: Followed) -> tuple[Minimum, ...]:
        """List the distinct minima, the lowest first; those of some of the rows are followed to where they are with all of them."""
        ends = found.distinct()
        if ground.data.n < self.data.n and ends:
            most = self.method.max_steps
            whole = self._ground(self.data.n).follow(np.array([theta for theta, _, _ in ends[:POLISHED]]), most=most)
            ends = [
                (theta, total, starts)
                for theta, total, (_, _, starts) in zip(whole.theta, whole.sum.tolist(), ends, strict=False)
                if np.isfinite(total)
            ]
        names = self.kernel.parameters.free_elements
        return tuple(
            Minimum(dict(zip(names, theta.tolist(), strict=True)), total / self.data.n, starts)
            for theta, total, starts in sorted(ends, key=lambda end: end[1])
        )

    def _ground(self, most: int, *, by_value: bool = False) -> Ground:
        """Put the model on at most so many of the rows, with what is known of its numbers.

        Parameters
        ----------
        by_value
            Whether to judge by the squares in the target alone where x has errors, which is quicker and does to choose a start.
        """
        kernel, data = self.kernel, self.data
        if by_value and data.sigma_x is not None and not _is_implicit(data):
            data = data.independent()
        rows = thinned(data, most, self.seed)
        kernel = kernel if rows is self.data else kernel.on(rows)
        waiting = unstarted(kernel.parameters)
        held = np.array([bool(waiting) and name not in waiting for name in kernel.parameters.owners], dtype=bool)
        return Ground(kernel, rows, None if _is_implicit(data) else roles_of(kernel, rows), held)


def unsearched(names: str, count: int) -> Beginning:
    """Say that there are too many parameters to search for a start."""
    return Beginning(
        "assumed", f"No start was given for {names}: begun at 1, for a space of {count} parameters cannot be searched."
    )


def _is_implicit(data: Dataset) -> bool:
    """Whether some target is exact: least squares in the target alone may then be least where the model vanishes."""
    return data.sigma_x is not None and data.sigma is not None and not data.sigma.all()


def roles_of(kernel: AnyKernel, data: Dataset | None = None) -> dict[str, Role] | None:
    """Read the roles of a model's numbers, once for a compiled model; of one that is no graph by calls on data; None where they are not told."""
    key = (kernel.code.prediction.text, kernel.parameters.free_elements) if isinstance(kernel, NativeKernel) else None
    if key is not None and key in KNOWN_ROLES:
        return KNOWN_ROLES[key]
    try:
        found = roles(kernel.eager)
    except Untraceable:
        return None if data is None or kernel.model.kind == "module" else probed(kernel.eager, data)
    if key is not None:
        while len(KNOWN_ROLES) >= MOST_KNOWN:
            KNOWN_ROLES.pop(next(iter(KNOWN_ROLES)))
        KNOWN_ROLES[key] = found
    return found


def _rows(starts: Sequence[Parameters], known: Parameters) -> Floats:
    """Give the free numbers of some starts, (count, p)."""
    return np.array([each.start for each in starts]).reshape(len(starts), len(known.start))


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
