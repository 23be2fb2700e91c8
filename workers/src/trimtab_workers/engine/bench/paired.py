"""Statistics of sides that alternate within one run; pure.

A machine's speed drifts, so a single comparison proves nothing: every round runs every side once,
in turns forwards and backwards (ABBA), and a ratio is taken inside each round.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Side = TypeVar("Side")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the range that it was taken from."""

    median: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        """Return [low, high]."""
        return [self.low, self.high]


def spread(samples: Sequence[float]) -> Spread:
    """Return median and range.

    Raises:
        ValueError: There are no samples.
    """
    if not samples:
        raise ValueError("spread: samples is empty. Measure at least once.")
    return Spread(statistics.median(samples), min(samples), max(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation between the nearest ranks.

    Raises:
        ValueError: There are no samples, or percent is not 0 to 100.
    """
    if not samples or not 0 <= percent <= 100:
        raise ValueError(
            f"percentile: {len(samples)} samples at {percent} %. Give samples and 0 to 100."
        )
    ranked = sorted(samples)
    at = (len(ranked) - 1) * percent / 100
    below = int(at)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (at - below)


def rounds(sides: Sequence[Side], count: int) -> Iterator[tuple[Side, ...]]:
    """Yield the order of the sides in each round, forwards and backwards in turns."""
    for index in range(count):
        yield tuple(sides if index % 2 == 0 else reversed(sides))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of ours ÷ theirs, each taken inside one round.

    Raises:
        ValueError: The rounds differ in number, or one of theirs is 0.
    """
    if len(ours) != len(theirs) or 0 in theirs:
        raise ValueError(
            f"paired_ratio: {len(ours)} rounds against {len(theirs)}, or a round of 0. Give one "
            "sample per round and side, none of theirs 0."
        )
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
