"""Draw the pictures of the docs with gradfit itself: ``python docs/pictures.py`` writes docs/images/.

The four learning curves are those of docs/tutorial.md, the many fits those of docs/many_results.md, from the same data and the same fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gradfit

HERE = Path(__file__).parent


def celsius(t_u: Any, w: Any, b: Any) -> Any:
    """Give the temperature for a reading."""
    return w * t_u + b


def polynomial(x: Any, c: Any) -> Any:
    """Give c[0] + c[1] x + c[2] x² + ..."""
    return sum(c[k] * x**k for k in range(len(c)))


def decay(t: Any, a: Any, tau: Any, c: Any = 0.0) -> Any:
    """Give an exponential decay to c."""
    return a * np.exp(-t / tau) + c


def draw_many(folder: Path) -> None:
    """Write the pictures of many fits: an image with a decay in each pixel."""
    rng = np.random.default_rng(1)
    t = np.linspace(0, 10, 25)
    row, column = np.mgrid[:30, :40]
    tau = (2 + 1.5 * np.exp(-(((row - 14) / 7) ** 2) - ((column - 22) / 10) ** 2)).ravel()
    image = 5 * np.exp(-t / tau[:, None]) + 0.3 + rng.normal(0, 0.05, (1200, 25))
    image[130], image[655, 3] = np.nan, np.inf
    image[808, 6] += 4
    fits = gradfit.fit_many(decay, t, image)
    fits.plot_map("tau", (30, 40), folder / "many-map.png")
    fits.plot("tau", folder / "many-histogram.png")
    fits.plot_fits("worst", count=3, path=folder / "many-worst.png")


def readings(rng: np.random.Generator, n: int, noise: float = 1.7) -> tuple[np.ndarray, np.ndarray]:
    """Draw readings of a thermometer like ours."""
    t_u = rng.uniform(20, 85, n)
    return t_u, 0.537 * t_u - 17.3 + rng.normal(0, noise, n)


def wave(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy points of a sine."""
    x = np.sort(rng.uniform(-1, 1, n))
    return x, np.sin(3 * x) + rng.normal(0, 0.3, n)


def draw(folder: Path) -> None:
    """Write every picture into a folder."""
    fit = gradfit.fit("t_c = w*t_u + b", data=HERE.parent / "examples" / "thermometer.csv")
    fit.plot(folder / "thermometer.png")

    rng = np.random.default_rng(0)
    train, check, rough = readings(rng, 60), readings(rng, 30), readings(rng, 30, noise=4)
    a = gradfit.fit(
        celsius, *train, validation=check, method="sgd", learning_rate=1e-9, epochs=200, scale=False, on_failure="ignore"
    )
    c = gradfit.fit(celsius, *train, validation=check, method="adam", learning_rate=0.05, epochs=600)
    d = gradfit.fit(celsius, *train, validation=rough, method="adam", learning_rate=0.05, epochs=600)

    rng = np.random.default_rng(3)
    few, many = wave(rng, 12), wave(rng, 40)
    b = gradfit.fit(
        polynomial, *few, validation=many, start={"c": np.full(9, 0.1)}, method="adam", epochs=1000, on_failure="ignore"
    )
    for letter, result in (("a", a), ("b", b), ("c", c), ("d", d)):
        assert str(result.diagnosis.letter).lower() == letter, result.diagnosis
        result.plot_history(folder / f"curves-{letter}.png")

    draw_many(folder)


if __name__ == "__main__":
    images = HERE / "images"
    images.mkdir(exist_ok=True)
    draw(images)
    for picture in sorted(images.iterdir()):
        print(f"{picture.name}  {picture.stat().st_size / 1000:.0f} kB")
