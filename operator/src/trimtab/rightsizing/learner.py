"""Cost-sensitive one-against-all: one linear regressor of the cost per class, by Adagrad (rightsizer.md §6.3).

The learner of Shabari (arXiv 2401.08859) is Vowpal Wabbit's; this one answers with all costs, not the
class alone, in microseconds and kilobytes per function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ETA: Final = 0.5
_FIRST_SQUARE: Final = 1e-8
_HINGES: Final = (-0.7, 0.0, 0.7, 1.4)
_CLIP: Final = 3.0
_MOST_HINGED: Final = 2
_WIDE: Final = 16
LEVELS: Final = 8


class CostSensitive:
    """Predicts the cost of each of K classes from D inputs.

    Attributes:
        weights: float64 (K, D).
        squares: Sums of squared gradients, float64 (K, D).
    """

    __slots__ = ("eta", "squares", "weights")

    def __init__(self, count: int, width: int, *, eta: float = ETA) -> None:
        self.weights = np.zeros((count, width))
        self.squares = np.full((count, width), _FIRST_SQUARE)
        self.eta = eta

    def costs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the predicted costs, shape (K,)."""
        return self.weights @ x

    def learn(
        self, x: NDArray[np.float64], cost: NDArray[np.float64], *, weight: float = 1.0
    ) -> bool:
        """Move towards the costs; return whether it could.

        An update that would leave a number that is not finite is not made at all.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = (weight * (self.weights @ x - cost))[:, None] * x
            squares = self.squares + gradient * gradient
            weights = self.weights - self.eta * gradient / np.sqrt(squares)
            sound = bool(np.isfinite(weights.sum()) and np.isfinite(squares.sum()))
        if sound:
            self.weights, self.squares = weights, squares
        return sound


class Scaler:
    """Mean and spread of log(1 + v) of each number so far (Welford).

    Attributes:
        count: Inputs seen.
        mean: float64 (N,).
        square: Sum of squared distances from the mean, float64 (N,).
    """

    __slots__ = ("count", "mean", "square")

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.square = np.zeros(width)

    def add(self, numbers: Sequence[float]) -> None:
        """Take one input into account."""
        z = np.log1p(np.asarray(numbers, dtype=np.float64))
        self.count += 1
        distance = z - self.mean
        self.mean = self.mean + distance / self.count
        self.square = self.square + distance * (z - self.mean)

    def standard(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """Return the numbers in standard deviations from the mean, at most 3 away."""
        if self.count < 2:
            return np.zeros(len(self.mean))
        z = np.log1p(np.asarray(numbers, dtype=np.float64)) - self.mean
        spread = np.sqrt(self.square / (self.count - 1))
        spread[spread < 1e-9] = 1.0
        return np.minimum(np.maximum(z / spread, -_CLIP), _CLIP)


class Basis:
    """Turns features into the learner's inputs: bias, number, hinges, categories.

    The plain numbers are not enough: cost has a corner at each input's need.

    Attributes:
        levels: Categories in the order of their first appearance; the ninth and later share a place.
        width: D.
    """

    __slots__ = ("_hinged", "_numbers", "levels", "width")

    def __init__(self, *, numbers: int, categories: bool, hinges: bool = True) -> None:
        self._numbers = numbers
        every = 1 + numbers * (1 + len(_HINGES)) + LEVELS * categories
        hinged = numbers if every <= _WIDE else min(numbers, _MOST_HINGED)
        self._hinged = hinged if hinges else 0
        self.levels: list[str] = []
        self.width = 1 + numbers + self._hinged * len(_HINGES) + LEVELS * categories

    def admit(self, categories: Sequence[str]) -> None:
        """Give new categories a place while there are any."""
        for name in categories:
            if name not in self.levels and len(self.levels) < LEVELS - 1:
                self.levels.append(name)

    def inputs(self, z: NDArray[np.float64], categories: Sequence[str]) -> NDArray[np.float64]:
        """Return x, shape (D,), of standardised numbers and categories."""
        x = np.zeros(self.width)
        x[0] = 1.0
        numbers, hinged = self._numbers, self._hinged
        x[1 : 1 + numbers] = z
        at = 1 + numbers
        if hinged:
            folded = np.maximum(z[:hinged, None] - _HINGE_ARRAY, 0.0)
            x[at : at + folded.size] = folded.ravel()
            at += folded.size
        for name in categories if at < self.width else ():
            place = self.levels.index(name) if name in self.levels else LEVELS - 1
            x[at + place] = 1.0
        return x


_HINGE_ARRAY: Final = np.asarray(_HINGES)
