"""The cost model: every quantity is a base and a price for each institution or task.

The constants come from least squares over relative errors, at the sizes FITTED. The other sizes, and the
largest is one of them, say how far the model is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FITTED = (1, 9, 10, 100, 1000)
"""Sizes that decide the constants."""


@dataclass(frozen=True)
class Point:
    """One measured figure. over: what grows. quantity: its name ends in its unit. size: how many."""

    over: str
    quantity: str
    size: int
    value: float


@dataclass(frozen=True)
class Model:
    """quantity = base + each x size. errors: by held-out size, prediction over measurement, less one."""

    over: str
    quantity: str
    base: float
    each: float
    errors: dict[int, float]

    def at(self, size: int) -> float:
        """The prediction."""
        return self.base + self.each * size

    @property
    def worst(self) -> float:
        """The largest error at a held-out size, without its sign; 0 without such a size."""
        return max((abs(error) for error in self.errors.values()), default=0.0)


def models_of(points: Sequence[Point]) -> list[Model]:
    """A model for each quantity, in the order of the points."""
    kinds = dict.fromkeys((point.over, point.quantity) for point in points)
    return [model_of([p for p in points if (p.over, p.quantity) == kind]) for kind in kinds]


def model_of(points: Sequence[Point]) -> Model:
    """The model of one quantity's points; at least two have a size of FITTED."""
    fitted = [point for point in points if point.size in FITTED]
    values_P = np.array([point.value for point in fitted])
    terms_P2 = np.array([[1.0, point.size] for point in fitted])
    constants_2, *_ = np.linalg.lstsq(terms_P2 / values_P[:, None], np.ones(len(fitted)), rcond=None)
    base, each = (float(constant) for constant in constants_2)
    errors = {
        point.size: (base + each * point.size) / point.value - 1
        for point in points
        if point.size not in FITTED
    }
    return Model(points[0].over, points[0].quantity, base, each, errors)
