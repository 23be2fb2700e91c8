"""Piecewise-linear functions and the least change that makes a sequence rise."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """A piecewise-linear function through knots with rising ``xs``.

    Left of the first knot it is constant; right of the last it keeps the last slope, so that a
    rising curve goes on rising.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse knots that make no function."""
        if not self.xs or len(self.xs) != len(self.ys) or sorted(set(self.xs)) != list(self.xs):
            raise ValueError(
                f"Curve knots {self.xs} and values {self.ys} must be equally many, at least one, "
                "with strictly rising knots."
            )

    def at(self, x: float) -> float:
        """Return the value at ``x``."""
        if x <= self.xs[0] or len(self.xs) == 1:
            return self.ys[0]
        i = min(bisect.bisect_left(self.xs, x), len(self.xs) - 1)
        x0, x1, y0, y1 = self.xs[i - 1], self.xs[i], self.ys[i - 1], self.ys[i]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def isotonic(values: Sequence[float]) -> list[float]:
    """Return the non-decreasing sequence nearest to ``values`` in least squares.

    Pool adjacent violators: neighbours that fall are replaced by their mean.
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean = (before * size + mean * count) / (size + count)
            count += size
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def rising_curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Return the rising curve nearest to ``points``; points at the same x are averaged first."""
    grouped: dict[float, list[float]] = {}
    for x, y in points:
        grouped.setdefault(x, []).append(y)
    xs = sorted(grouped)
    return Curve(tuple(xs), tuple(isotonic([sum(grouped[x]) / len(grouped[x]) for x in xs])))


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the least-squares slope through ``points``; None if all share one x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread <= 0:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
