"""A replica's queue simulated over engine steps, by the engine's own rules (planner.md §6).

The closed form of `steady` knows means; bursts, long prompts, full caches and preemptions are only seen by
following requests. Time is charged by the same `StepModel`; runs of equal decode steps are taken in one jump.
Whether the rules are the engine's is a contract test (C1): its scheduler on a virtual clock makes the same steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trimtab.planning.queue_replica import Event, Progress, QueueReplica
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_model import StepModel
from trimtab.planning.step_tables import StepTables
from trimtab.planning.workload import Arrival

__all__ = [
    "METRICS",
    "Event",
    "Metric",
    "Served",
    "SimResult",
    "quantile",
    "simulate",
]

Metric = Literal["TTFT", "TPOT", "E2E"]
METRICS: Final[tuple[Metric, ...]] = ("TTFT", "TPOT", "E2E")

MOST_SIMULATED: Final = 4
"""Replicas that are followed; more of them behave like these at an equal load each."""

WARM_UP: Final = 5
"""One in so many requests is left out of figures: the first ones found an empty replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One finished request, times in µs on the simulation's clock.

    ``index`` is its place among the arrivals.
    """

    index: int
    arrival_us: float
    first_us: float
    last_us: float
    output: int
    preemptions: int

    @property
    def ttft_us(self) -> float:
        """Time from its arrival to its first token."""
        return self.first_us - self.arrival_us

    @property
    def tpot_us(self) -> float:
        """(E2E - TTFT)/(output - 1); 0 for an output of one token."""
        return (self.last_us - self.first_us) / (self.output - 1) if self.output > 1 else 0.0

    @property
    def e2e_us(self) -> float:
        """Time from its arrival to its last token."""
        return self.last_us - self.arrival_us


@dataclass(frozen=True, slots=True, kw_only=True)
class SimResult:
    """What became of the arrivals.

    Attributes:
        served: Finished requests in order of arrival.
        rejected: Requests longer than the cache or the context, or beyond the queue's limit.
        unfinished: Requests that were under way when ``max_events`` was reached; 0 if it was not.
        preemptions: Sequences that lost their blocks, counted each time.
        recomputed_tokens: Tokens whose keys and values were thrown away with them.
        peak_kv_tokens: Most tokens that held blocks had room for, on the fullest replica.
        events: Steps and jumps that were simulated.
        steps: Engine steps that they stand for.
    """

    served: tuple[Served, ...]
    rejected: int
    unfinished: int
    preemptions: int
    recomputed_tokens: int
    peak_kv_tokens: int
    events: int
    steps: int

    def values(self, metric: Metric, *, warm_up: bool = True) -> list[float]:
        """Return a metric of every request in rising order, µs.

        Args:
            metric: ``TPOT`` leaves out requests of one output token.
            warm_up: Leave out the first fifth, which found an empty replica.
        """
        kept = self.served[len(self.served) // WARM_UP :] if warm_up else self.served
        if metric == "TTFT":
            return sorted(s.ttft_us for s in kept)
        if metric == "E2E":
            return sorted(s.e2e_us for s in kept)
        return sorted(s.tpot_us for s in kept if s.output > 1)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of rising values, linear between neighbours; NaN of none."""
    if not values:
        return math.nan
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def simulate(
    model: StepModel,
    *,
    kv_tokens: int,
    limits: SchedulerLimits,
    arrivals: Sequence[Arrival],
    replicas: int = 1,
    max_events: int | None = None,
    single_steps: bool = False,
    observe: Callable[[int, Event], None] | None = None,
) -> SimResult:
    """Follow ``arrivals``, in order of time, to their ends.

    Each goes to the replica with the fewest requests, the first of equals. Beyond 4 replicas 4 are followed,
    at an equal load each: gaps between arrivals grow by replicas/4.

    Args:
        model: What charges a step.
        kv_tokens: KV cache of one replica.
        limits: Its scheduler's.
        arrivals: The load of all replicas together.
        replicas: Copies behind one router.
        max_events: Stop after so many steps and jumps; what is under way then is ``unfinished``.
        single_steps: Take no jumps; slower, to hold jumps against.
        observe: Called with the replica's number and every event.

    Raises:
        ValueError: ``kv_tokens`` is less than one block, or arrivals go back in time.
    """
    followed = min(replicas, MOST_SIMULATED)
    stretch = replicas / followed
    tables = StepTables(model, limits)
    progress = Progress(max_events=max_events, single_steps=single_steps)
    parts = [
        QueueReplica(
            tables,
            blocks=kv_tokens // limits.block_tokens,
            limits=limits,
            progress=progress,
            observe=None if observe is None else _Numbered(observe, number),
        )
        for number in range(followed)
    ]
    before = -math.inf
    for index, arrival in enumerate(arrivals):
        at = arrival.at_us * stretch
        if at < before:
            raise ValueError(
                f"Arrival {index} is at {at} µs, before its predecessor at {before} µs. "
                "Sort the arrivals by time."
            )
        before = at
        for part in parts:
            part.advance(until=at)
        chosen = min(parts, key=lambda part: part.outstanding) if followed > 1 else parts[0]
        chosen.submit(index, arrival, at_us=at)
    for part in parts:
        part.advance(until=math.inf)
    return _result(parts, progress, arrivals=len(arrivals), limits=limits)


@dataclass(frozen=True, slots=True)
class _Numbered:
    observe: Callable[[int, Event], None]
    number: int

    def __call__(self, event: Event) -> None:
        self.observe(self.number, event)


def _result(
    parts: Sequence[QueueReplica], progress: Progress, *, arrivals: int, limits: SchedulerLimits
) -> SimResult:
    served = sorted(
        (
            Served(
                index=r.index,
                arrival_us=r.arrival_us,
                first_us=r.first_us,
                last_us=r.last_us,
                output=r.limit - r.prompt,
                preemptions=r.preemptions,
            )
            for part in parts
            for r in part.finished
        ),
        key=lambda s: s.index,
    )
    rejected = sum(part.rejected for part in parts)
    return SimResult(
        served=tuple(served),
        rejected=rejected,
        unfinished=arrivals - rejected - len(served),
        preemptions=sum(part.preemptions for part in parts),
        recomputed_tokens=sum(part.recomputed_tokens for part in parts),
        peak_kv_tokens=max(part.peak_blocks for part in parts) * limits.block_tokens,
        events=progress.events,
        steps=progress.steps,
    )
