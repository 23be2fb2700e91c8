"""Simulation on recorded runs: the production sizer and its baselines answer the same requests.

A run's time is drawn from what was measured for its input at its CPU class; whatever was never measured
there counts as failed after 600 s, and as late (rightsizer.md §11). There are no arrivals: no queue, no cold start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from trimtab.rightsizing.types import Outcome, PeakKind, Size, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.rightsizing.types import Features, Ladder

FAILED_S: Final = 600.0
_THROTTLED_SHARE: Final = 0.9
_ORACLE_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An input and its measured runs.

    Attributes:
        name: As the file calls it.
        features: What a policy may know.
        seconds: Sorted times of successful runs by CPU class in thousandths of a vCPU; a class that was
            tried in vain is there without times.
        floor_mib: Least memory with which it ran, taken as its peak.
    """

    name: str
    features: Features
    seconds: Mapping[int, tuple[float, ...]]
    floor_mib: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds: the smallest class that it ran with, times the median there."""
        smallest = min(size for size, times in self.seconds.items() if times)
        return smallest / 1000 * median(self.seconds[smallest])

    def ran(self, cpu_m: int) -> bool:
        """Return whether it ever succeeded at a class."""
        return bool(self.seconds.get(cpu_m))

    def typical_s(self, cpu_m: int) -> float:
        """Return the median of a class; 600 s if it never succeeded there."""
        times = self.seconds.get(cpu_m, ())
        return median(times) if times else FAILED_S

    def late_share(self, cpu_m: int, *, deadline_s: float) -> float:
        """Return the share of runs of a class that miss a deadline."""
        times = self.seconds.get(cpu_m, ())
        if not times:
            return 1.0
        return sum(time > deadline_s for time in times) / len(times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function's recorded inputs, its sizes, and each input's deadline in seconds."""

    name: str
    inputs: tuple[Recorded, ...]
    ladder: Ladder
    deadlines: tuple[float, ...]

    def oracle(self, index: int) -> int:
        """Return the smallest class with 95 % of an input's runs in time, else the one with most."""
        late = [
            self.inputs[index].late_share(cpu, deadline_s=self.deadlines[index])
            for cpu in self.ladder.cpu_m
        ]
        for cpu, share in zip(self.ladder.cpu_m, late, strict=True):
            if share <= 1 - _ORACLE_SHARE:
                return cpu
        return self.ladder.cpu_m[int(np.argmin(late))]

    def infeasible(self, index: int) -> bool:
        """Return whether an input misses its deadline with every class in most runs."""
        recorded, deadline = self.inputs[index], self.deadlines[index]
        return all(
            recorded.typical_s(cpu) > deadline or not recorded.ran(cpu) for cpu in self.ladder.cpu_m
        )

    def fitting_mib(self, index: int) -> int:
        """Return the smallest memory class that an input runs with."""
        floor = self.inputs[index].floor_mib
        return next((m for m in self.ladder.mem_mib if m >= floor), self.ladder.mem_mib[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, as a policy sees it; only the oracle may look at `index`."""

    features: Features
    budget_s: float
    index: int


class Policy(Protocol):
    """What decides a size per request."""

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the size, and who said so."""

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Take note of what the request used."""


class Cause(StrEnum):
    """Why a deadline was missed."""

    UNDERSIZE = "undersize"
    """A larger class meets it in 95 % of runs."""
    VARIATION = "variation"
    """The class meets it in 95 % of runs; this run was slow."""
    INFEASIBLE = "infeasible"
    """No class meets it in half of the runs."""
    OOM = "out_of_memory"
    """It was killed for its memory, and run again."""


@dataclass(slots=True)
class Replay:
    """What happened, one entry per request."""

    number: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    cpu_m: list[int] = field(default_factory=list)
    mem_mib: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    cause: list[Cause | None] = field(default_factory=list)
    oom: list[bool] = field(default_factory=list)
    source: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A request of a seed: its place in the seed's order, its input, and where in a cell it falls."""

    number: int
    index: int
    quantile: float


def draws(counts: Sequence[int], *, requests: int, random: np.random.Generator) -> list[list[Draw]]:
    """Return each function's requests, uniform over all functions' inputs together.

    Every policy answers the same ones, so differences are theirs.
    """
    found: list[list[Draw]] = [[] for _ in counts]
    owners = [(f, i) for f, count in enumerate(counts) for i in range(count)]
    places = random.integers(len(owners), size=requests)
    quantiles = random.random(requests)
    for number, (place, quantile) in enumerate(zip(places, quantiles, strict=True)):
        function, index = owners[place]
        found[function].append(Draw(number=number, index=index, quantile=float(quantile)))
    return found


def replay(function: Function, policy: Policy, asked: Sequence[Draw]) -> Replay:
    """Answer a function's requests in order."""
    found = Replay()
    works = [recorded.cpu_s for recorded in function.inputs]
    oracle = [function.oracle(index) for index in range(len(function.inputs))]
    hopeless = [function.infeasible(index) for index in range(len(function.inputs))]
    for draw in asked:
        recorded, deadline = function.inputs[draw.index], function.deadlines[draw.index]
        request = Asked(features=recorded.features, budget_s=deadline, index=draw.index)
        size, source = policy.decide(request)
        killed = size.mem_mib < recorded.floor_mib
        spent = 0.0
        if killed:
            # The worst case: it dies at its end. Then the gateway runs it once at the largest size.
            spent = drawn(recorded, size.cpu_m, draw.quantile)
            size = function.ladder.largest
        seconds = drawn(recorded, size.cpu_m, draw.quantile)
        usage = usage_of(
            size, seconds=seconds, cpu_s=works[draw.index], peak_mib=recorded.floor_mib
        )
        late = spent + seconds > deadline or not recorded.ran(size.cpu_m)
        found.number.append(draw.number)
        found.index.append(draw.index)
        found.cpu_m.append(size.cpu_m)
        found.mem_mib.append(size.mem_mib)
        found.seconds.append(spent + seconds)
        found.used.append(min(size.cpu_m / 1000, works[draw.index] / seconds))
        found.oom.append(killed)
        found.source.append(source)
        found.cause.append(
            _cause(
                killed=killed,
                hopeless=hopeless[draw.index],
                enough=size.cpu_m >= oracle[draw.index],
            )
            if late
            else None
        )
        policy.observe(request, usage, Outcome(retried=killed))
    return found


def drawn(recorded: Recorded, cpu_m: int, quantile: float) -> float:
    """Return the measured time at a place of 0 ≤ q < 1 among a class's sorted successes."""
    times = recorded.seconds.get(cpu_m, ())
    return times[int(quantile * len(times))] if times else FAILED_S


def usage_of(size: Size, *, seconds: float, cpu_s: float, peak_mib: float) -> Usage:
    """Return what the runner would report: throttled where the work fills nine tenths of the quota."""
    given = size.cpu_m / 1000
    held = cpu_s / given >= _THROTTLED_SHARE * seconds
    return Usage(
        cpu_s=min(cpu_s, given * seconds),
        wall_s=seconds,
        throttled_s=seconds if held else 0.0,
        periods_throttled=int(held),
        peak_anon_mib=peak_mib,
        peak_kind=PeakKind.RESET,
        oom=False,
        alloc=size,
    )


def _cause(*, killed: bool, hopeless: bool, enough: bool) -> Cause:
    if hopeless:
        return Cause.INFEASIBLE
    if killed:
        return Cause.OOM
    return Cause.VARIATION if enough else Cause.UNDERSIZE


def expected_late(function: Function, cpu_m: int) -> float:
    """Return the exact share of a function's requests, uniform over inputs, that a class makes late."""
    shares = [
        recorded.late_share(cpu_m, deadline_s=deadline)
        for recorded, deadline in zip(function.inputs, function.deadlines, strict=True)
    ]
    return sum(shares) / len(shares)


def best_constant(function: Function) -> Size:
    """Return the constant size with the fewest late requests, then the smallest, in hindsight."""
    cpu = min(function.ladder.cpu_m, key=lambda size: (expected_late(function, size), size))
    mem = max(function.fitting_mib(index) for index in range(len(function.inputs)))
    return Size(cpu, mem)
