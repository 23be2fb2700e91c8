"""Baselines that profile before the first request and then keep one size; their runs are charged.

None of them sees a request's input: that is what the right-sizer adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.rightsizing.policies import Constant
from trimtab.rightsizing.simulate import drawn
from trimtab.rightsizing.types import Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trimtab.rightsizing.simulate import Function

_REPEATS: Final = 5
_FIRST: Final = 5
_EVALUATIONS: Final = 30
_KILLED: Final = 10.0
_FAILED: Final = 1.01
"""Deadlines that a run takes at least where none succeeded: late, however long they are."""
_NOISE: Final = 0.05


@dataclass(slots=True)
class Lab:
    """Where profiling runs are made, and counted.

    Attributes:
        function: Is run.
        random: Draws each run's time.
        runs: Made so far.
        vcpu_seconds: Allocated to them.
    """

    function: Function
    random: np.random.Generator
    runs: int = 0
    vcpu_seconds: float = 0.0

    def run(self, index: int, size: Size) -> float | None:
        """Return the time of one run divided by its deadline; None if it was killed for its memory."""
        recorded = self.function.inputs[index]
        seconds = drawn(recorded, size.cpu_m, float(self.random.random()))
        self.runs += 1
        self.vcpu_seconds += seconds * size.cpu_m / 1000
        if size.mem_mib < recorded.floor_mib:
            return None
        share = seconds / self.function.deadlines[index]
        return share if recorded.ran(size.cpu_m) else max(share, _FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """A constant size, and what finding it took."""

    policy: Constant
    runs: int
    vcpu_seconds: float
    tried: int = field(default=0)


def parrotfish_like(function: Function, *, random: np.random.Generator) -> Profiled:
    """Parrotfish (SoCC'23): profile representative payloads offline, keep the cheapest size.

    The median and the largest payload by the first feature, five runs at each CPU class and the least
    memory that runs both; the cheapest class by the payloads' vCPU-seconds whose slowest run meets the
    deadline, else the fastest. Differs: every class is tried instead of a parametric curve over a few;
    its two-dimensional mode divides cost by CPU + memory to get time, here real time is constrained.
    """
    lab = Lab(function=function, random=random)
    every = range(len(function.inputs))
    known = [i for i in every if function.inputs[i].features.missing is None]
    order = sorted(known or every, key=lambda i: function.inputs[i].features.numbers)
    payloads = (order[len(order) // 2], order[-1])
    mem = _least_memory(lab, payloads)
    found: list[tuple[bool, float, int]] = []
    for cpu in function.ladder.cpu_m:
        runs = [
            (lab.run(index, Size(cpu, mem)) or _KILLED, function.deadlines[index])
            for index in payloads
            for _ in range(_REPEATS)
        ]
        worst = max(share for share, _ in runs)
        cost = sum(share * deadline for share, deadline in runs) * cpu
        found.append((worst > 1, worst if worst > 1 else cost, cpu))
    cpu = min(found)[2]
    return Profiled(
        policy=Constant(Size(cpu, mem)),
        runs=lab.runs,
        vcpu_seconds=lab.vcpu_seconds,
        tried=len(found),
    )


def _least_memory(lab: Lab, payloads: tuple[int, ...]) -> int:
    """Return the least memory that runs all payloads, by bisection at the largest CPU class."""
    ladder = lab.function.ladder
    low, high = 0, len(ladder.mem_mib) - 1
    while low < high:
        middle = (low + high) // 2
        size = Size(ladder.cpu_m[-1], ladder.mem_mib[middle])
        if all(lab.run(index, size) is not None for index in payloads):
            high = middle
        else:
            low = middle + 1
    return ladder.mem_mib[low]


def aquatope_like(function: Function, *, random: np.random.Generator) -> Profiled:
    """Aquatope (ASPLOS'23): Bayesian optimisation of one configuration under a latency constraint.

    Two noisy Gaussian processes (logarithm of cost, and of the slowest run over its deadline) on CPU and
    memory class; 30 evaluations of five runs with inputs as they come: the corners and the centre, then
    the largest expected improvement of cost times the probability of meeting the deadline; then the cheapest
    that met it. Differs: no batches of candidates, no LSTM that pre-warms pods: without arrivals there
    is nothing to warm, and with them every policy here would be given the same pool.
    """
    lab = Lab(function=function, random=random)
    ladder = function.ladder
    grid = [Size(cpu, mem) for cpu in ladder.cpu_m for mem in ladder.mem_mib]
    points = np.asarray(
        [
            (i / max(1, len(ladder.cpu_m) - 1), j / max(1, len(ladder.mem_mib) - 1))
            for i in range(len(ladder.cpu_m))
            for j in range(len(ladder.mem_mib))
        ]
    )
    tried = _first(points)
    results = [_evaluated(lab, grid[at]) for at in tried]
    while len(tried) < min(_EVALUATIONS, len(grid)):
        at = _next(points, tried, np.asarray(results))
        tried.append(at)
        results.append(_evaluated(lab, grid[at]))
    sound = [(cost, grid[at]) for at, (cost, late) in zip(tried, results, strict=True) if late <= 0]
    size = min(sound)[1] if sound else ladder.largest
    return Profiled(
        policy=Constant(size), runs=lab.runs, vcpu_seconds=lab.vcpu_seconds, tried=len(tried)
    )


def _first(points: NDArray[np.float64]) -> list[int]:
    """Return the corners and the centre, each once."""
    wanted = np.asarray([(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)])
    nearest = [int(((points - at) ** 2).sum(axis=1).argmin()) for at in wanted]
    return list(dict.fromkeys(nearest))[:_FIRST]


def _evaluated(lab: Lab, size: Size) -> tuple[float, float]:
    """Return log cost and log of the slowest run over its deadline; a kill counts as ten deadlines."""
    largest = lab.function.ladder.largest
    indices = lab.random.integers(len(lab.function.inputs), size=_REPEATS)
    shares = [lab.run(int(index), size) or _KILLED for index in indices]
    price = size.cpu_m / largest.cpu_m + size.mem_mib / largest.mem_mib
    return float(np.log(price * np.mean(shares))), float(np.log(max(shares)))


def _next(points: NDArray[np.float64], tried: list[int], results: NDArray[np.float64]) -> int:
    """Return the untried point with the largest constrained expected improvement."""
    cost, cost_spread = _posterior(points[tried], results[:, 0], points)
    late, late_spread = _posterior(points[tried], results[:, 1], points)
    sound = results[results[:, 1] <= 0, 0]
    chance = _normal(-late / late_spread)
    if sound.size:
        gap = sound.min() - cost
        z = gap / cost_spread
        density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        chance = chance * (gap * _normal(z) + cost_spread * density)
    chance[tried] = -1.0
    return int(chance.argmax())


def _posterior(
    known: NDArray[np.float64], values: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of a Gaussian process at the points."""
    centre, scale = values.mean(), values.std() or 1.0
    covariance = _kernel(known, known) + _NOISE * np.eye(len(known))
    across = _kernel(points, known)
    solved = np.linalg.solve(covariance, across.T)
    mean = across @ np.linalg.solve(covariance, (values - centre) / scale)
    variance = np.maximum(1.0 - np.einsum("ij,ji->i", across, solved), 1e-9)
    return centre + scale * mean, scale * np.sqrt(variance)


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Matérn 5/2 with a length of 0.4 of the ladder."""
    distance = np.sqrt(5 * ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)) / 0.4
    found: NDArray[np.float64] = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return found


def _normal(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard normal distribution function (Abramowitz and Stegun 7.1.26)."""
    x = np.abs(z) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    upper = 0.5 * poly * np.exp(-x * x)
    found: NDArray[np.float64] = np.where(z > 0, 1 - upper, upper)
    return found
