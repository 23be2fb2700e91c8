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


@dataclass(frozen=True, slots=True)
class Surface:
    """A piecewise-bilinear function over rising ``xs`` and ``ys``; ``rows`` holds one row per x.

    Before the first x and the first y it is constant; beyond the last ones it keeps the last slope.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]

    def at(self, x: float, y: float) -> float:
        """Return the value at (x, y)."""
        low, high, part = _between(self.xs, x)
        left, right, share = _between(self.ys, y)
        below = self.rows[low][left] + (self.rows[low][right] - self.rows[low][left]) * share
        above = self.rows[high][left] + (self.rows[high][right] - self.rows[high][left]) * share
        return below + (above - below) * part


def _between(knots: tuple[float, ...], x: float) -> tuple[int, int, float]:
    """Return the two knots around ``x`` and how far it is from the first to the second."""
    if x <= knots[0] or len(knots) == 1:
        return 0, 0, 0.0
    i = min(bisect.bisect_left(knots, x), len(knots) - 1)
    return i - 1, i, (x - knots[i - 1]) / (knots[i] - knots[i - 1])


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


def rising_surface(points: Sequence[tuple[float, float, float]]) -> Surface:
    """Return a surface through (x, y, value) that rises in x and in y.

    Points at the same place are averaged. Rows may lack some of the ys; they are filled in linearly.
    """
    grouped: dict[float, dict[float, list[float]]] = {}
    for x, y, value in points:
        grouped.setdefault(x, {}).setdefault(y, []).append(value)
    xs, ys = sorted(grouped), sorted({y for row in grouped.values() for y in row})
    rows = []
    for x in xs:
        known = sorted(grouped[x])
        row = Curve(tuple(known), tuple(sum(grouped[x][y]) / len(grouped[x][y]) for y in known))
        rows.append(isotonic([row.at(y) for y in ys]))
    # Isotonic regression keeps the order of its inputs, so the rows still rise after this.
    columns = [isotonic(column) for column in zip(*rows, strict=True)]
    if len(ys) > 1:
        # One more knot each way, so that what is beyond the grid rises in the other direction too.
        columns.append(_continued(ys, columns[-2], columns[-1]))
        ys.append(ys[-1] + 1)
    rows = [list(row) for row in zip(*columns, strict=True)]
    if len(xs) > 1:
        rows.append(_continued(xs, rows[-2], rows[-1]))
        xs.append(xs[-1] + 1)
    return Surface(tuple(xs), tuple(ys), tuple(tuple(row) for row in rows))


def _continued(
    knots: Sequence[float], before: Sequence[float], last: Sequence[float]
) -> list[float]:
    """Return the line one unit past the last knot, with slopes that rise along it."""
    width = knots[-1] - knots[-2]
    slopes = isotonic([(z - y) / width for y, z in zip(before, last, strict=True)])
    return [z + s for z, s in zip(last, slopes, strict=True)]


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the least-squares slope through ``points``; None if all share one x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread <= 0:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
