"""Measuring step times at two depths until the layer's time is known well enough (planner.md §4).

Two traps. Noise is multiplied by the depth of the full model, so both depths alternate A B B A in
one process, and the time goes to the points that are known worst. And a model of one layer fits into
a CPU's caches while the full one streams its weights from memory at every step: before each
measured step the caches are filled with other data, so that weights and KV are as cold as they are
in the full model.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trimtab.planning.fingerprint import Note, StepPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab_workers.fingerprint.grid import GridPoint

# planner.md §4: SE(T_L) ≈ 1.77·sd·(L - 1)/(d·√n) with sd = 1.48·MAD; target 3 % of T_L.
_SE_FACTOR = 1.77 * 1.4826
_GOOD_SE = 0.03
_POOR_SE = 0.10
_MOST_REPEATS = 400
_LEAST_REPEATS = 6
_WARM_UP_STEPS = 10
_WARM_UP_PER_POINT = 2
# The specification names no depth, as a family shares its fingerprint: noise is judged at this one.
REFERENCE_DEPTH = 32
DISTANCES = (1, 2, 4)


class Bench(Protocol):
    """Runs single steps of a random model of some depth."""

    def step_seconds(self, point: GridPoint, *, depth: int) -> float:
        """Run one step cold and return how long it took."""
        ...


@dataclass(slots=True)
class _Samples:
    point: GridPoint
    shallow: list[float] = field(default_factory=list)
    deep: list[float] = field(default_factory=list)

    def standard_error(self, *, distance: int) -> float:
        """Return the SE of the full-depth time relative to it, at the reference depth."""
        t1, t2 = statistics.median(self.shallow), statistics.median(self.deep)
        mad = math.hypot(_mad(self.shallow), _mad(self.deep)) / math.sqrt(2)
        layer = max(0.0, (t2 - t1) / distance)
        full = t1 + (REFERENCE_DEPTH - 1) * layer
        error = _SE_FACTOR * mad * (REFERENCE_DEPTH - 1) / (distance * math.sqrt(len(self.deep)))
        return error / full

    def to_point(self) -> StepPoint:
        """Return the medians in µs."""
        return StepPoint(
            batch=self.point.batch,
            context=self.point.context,
            chunk=self.point.chunk,
            cached=self.point.cached,
            t1_us=max(1, round(statistics.median(self.shallow) * 1e6)),
            mad1_us=round(_mad(self.shallow) * 1e6),
            t2_us=max(1, round(statistics.median(self.deep) * 1e6)),
            mad2_us=round(_mad(self.deep) * 1e6),
            repeats=len(self.deep),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Points at depths 1 and 1 + distance, and what lowers the confidence in them."""

    points: tuple[StepPoint, ...]
    distance: int
    notes: tuple[Note, ...]
    worst_error: float


def measure(
    bench: Bench,
    points: Sequence[GridPoint],
    *,
    seconds: float,
    clock: Callable[[], float],
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> Measured:
    """Measure every point; the noisiest ones longest, until all are good or the time is over.

    Args:
        bench: Where steps run.
        points: The grid.
        seconds: Time for all of it; every point gets its least repeats even beyond it.
        clock: Seconds, rising.
        progress: Called with points known well, points, and the worst relative SE.
    """
    end = clock() + seconds
    for _ in range(_WARM_UP_STEPS):
        bench.step_seconds(points[0], depth=1)
    distance = _distance(bench, points[0], until=clock() + seconds / 10, clock=clock)
    samples = [_Samples(point) for point in points]
    for index, sample in enumerate(samples):
        for _ in range(_WARM_UP_PER_POINT):
            bench.step_seconds(sample.point, depth=1 + distance)
        while len(sample.deep) < _LEAST_REPEATS:
            _alternate(bench, sample, distance)
        progress(index, len(samples), sample.standard_error(distance=distance))
    while clock() < end:
        open_ = [s for s in samples if len(s.deep) < _MOST_REPEATS]
        worst = max(open_, key=lambda s: s.standard_error(distance=distance), default=None)
        if worst is None or worst.standard_error(distance=distance) <= _GOOD_SE:
            break
        _alternate(bench, worst, distance)
    errors = [s.standard_error(distance=distance) for s in samples]
    progress(sum(e <= _GOOD_SE for e in errors), len(samples), max(errors))
    return Measured(
        points=tuple(s.to_point() for s in samples),
        distance=distance,
        notes=_notes(max(errors)),
        worst_error=max(errors),
    )


def _distance(bench: Bench, point: GridPoint, *, until: float, clock: Callable[[], float]) -> int:
    """Return the least difference in depth whose layer time stands out of the noise."""
    for distance in DISTANCES:
        sample = _Samples(point)
        bench.step_seconds(point, depth=1 + distance)
        while len(sample.deep) < 2 * _LEAST_REPEATS:
            _alternate(bench, sample, distance)
        # What 20 times as many repeats would reach.
        if sample.standard_error(distance=distance) / math.sqrt(20) <= _GOOD_SE:
            return distance
        if clock() > until:
            break
    return DISTANCES[-1]


def _alternate(bench: Bench, sample: _Samples, distance: int) -> None:
    """Add two repeats per depth in the order A B B A, so that drift cancels."""
    for depth in (1, 1 + distance, 1 + distance, 1):
        taken = bench.step_seconds(sample.point, depth=depth)
        (sample.shallow if depth == 1 else sample.deep).append(taken)


def _notes(worst: float) -> tuple[Note, ...]:
    if worst > _POOR_SE:
        return ("Unidentifiable",)
    return ("TimeLimit",) if worst > _GOOD_SE else ()


def _mad(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return statistics.median([abs(v - middle) for v in values])
