"""Simulation with arrivals: the production placement holds pods, starts them and lets requests wait.

Run times are drawn from recorded runs as in `simulate`; pods start in times that are handed in. In-place
resize is not simulated: nobody measured how long it takes.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from trimtab.rightsizing.pool import (
    Need,
    Pod,
    PodState,
    PoolStats,
    Reject,
    Start,
    Use,
    UseLarger,
    place,
)
from trimtab.rightsizing.simulate import Asked, drawn, usage_of
from trimtab.rightsizing.targets import Work
from trimtab.rightsizing.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trimtab.rightsizing.pool import Limits, Placement
    from trimtab.rightsizing.simulate import Draw, Function, Policy
    from trimtab.rightsizing.types import Size

_RATE_WINDOW: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An invocation on its way."""

    draw: Draw
    arrived_s: float
    size: Size
    need: Need


@dataclass(slots=True, kw_only=True)
class Held:
    """A pod, and what it held.

    Attributes:
        pod: As placement sees it.
        begun_s: When it was started.
        busy_s: Seconds for which it served.
        fresh: Whether it has served nobody yet.
    """

    pod: Pod
    begun_s: float
    busy_s: float = 0.0
    fresh: bool = True


@dataclass(slots=True)
class PoolRun:
    """What happened, sums over a run.

    Attributes:
        requests: Answered.
        late: Answered after the deadline, or not at all.
        cold: Waited for a pod's start.
        waited: Had no pod when they came, cold ones included.
        rejected: Got 503.
        larger: Served by a larger pod than was wanted.
        starts: Pods started.
        most_pods: At once.
        busy_vcpu_s: vCPU-seconds held by serving pods.
        idle_vcpu_s: vCPU-seconds held by the others.
        busy_mib_s: MiB-seconds held by serving pods.
        idle_mib_s: MiB-seconds held by the others.
        wait_s: Waits, in order of service.
    """

    requests: int = 0
    late: int = 0
    cold: int = 0
    waited: int = 0
    rejected: int = 0
    larger: int = 0
    starts: int = 0
    most_pods: int = 0
    busy_vcpu_s: float = 0.0
    idle_vcpu_s: float = 0.0
    busy_mib_s: float = 0.0
    idle_mib_s: float = 0.0
    wait_s: list[float] = field(default_factory=list)


class PoolSimulation:
    """One function's pods under one policy.

    Args:
        function: Its inputs, sizes and deadlines.
        policy: Decides the size of each arrival, and sees what it used when it ends.
        limits: Of its pods.
        starts_s: Seconds that each started pod takes until it can serve; as many as are needed.
    """

    def __init__(
        self, function: Function, policy: Policy, *, limits: Limits, starts_s: Iterator[float]
    ) -> None:
        self.run = PoolRun()
        self._function = function
        self._policy = policy
        self._limits = limits
        self._starts_s = starts_s
        self._pods: dict[str, Held] = {}
        self._queue: list[Waiting] = []
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._lately: list[tuple[float, Size]] = []

    def serve(self, arrivals: Sequence[tuple[float, Draw]]) -> PoolRun:
        """Answer arrivals (seconds, request) in order of time, and let the pods go idle afterwards."""
        for at, draw in arrivals:
            self._later(at, partial(self._arrive, draw))
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return self.run

    def _later(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))

    def _arrive(self, draw: Draw, now: float) -> None:
        recorded = self._function.inputs[draw.index]
        budget = self._function.deadlines[draw.index]
        asked = Asked(features=recorded.features, budget_s=budget, index=draw.index)
        size, _ = self._policy.decide(asked)
        self._lately = [*self._lately[-_RATE_WINDOW + 1 :], (now, size)]
        work = Work(cpu_s=recorded.cpu_s, idle_s=0.0, width=self._function.ladder.cpu_m[-1] / 1000)
        waiting = Waiting(
            draw=draw,
            arrived_s=now,
            size=size,
            need=Need(size=size, work=work, deadline_s=now + budget),
        )
        if not self._placed(now, waiting, queued=len(self._queue)):
            self.run.waited += 1
            self._queue.append(waiting)
            self._queue.sort(key=lambda one: one.need.deadline_s)

    def _placed(self, now: float, waiting: Waiting, *, queued: int) -> bool:
        """Act on the placement; return whether the invocation has a pod or an answer."""
        found: Placement = place(
            waiting.need,
            pods=[held.pod for held in self._pods.values()],
            queued=queued,
            stats=self._stats(now),
            limits=self._limits,
            now_s=now,
        )
        if isinstance(found, Use | UseLarger):
            if isinstance(found, UseLarger):
                self.run.larger += 1
                if found.start:
                    self._start(now, waiting.size)
            self._dispatch(now, waiting, self._pods[found.pod])
            return True
        if isinstance(found, Start):
            if found.evict is not None:
                self._remove(now, found.evict)
            self._start(now, waiting.size)
        if isinstance(found, Reject):
            self.run.requests += 1
            self.run.rejected += 1
            self.run.late += 1
            return True
        return False

    def _stats(self, now: float) -> PoolStats:
        """Return rates by size over the last 256 arrivals."""
        if len(self._lately) < 2:
            return PoolStats()
        span = max(now - self._lately[0][0], 1e-9)
        rates: dict[Size, float] = {}
        for _, size in self._lately:
            rates[size] = rates.get(size, 0.0) + 1 / span
        return PoolStats(rates=rates)

    def _start(self, now: float, size: Size) -> None:
        ready = now + next(self._starts_s)
        name = f"pod-{self.run.starts}"
        self.run.starts += 1
        pod = Pod(name=name, size=size, state=PodState.STARTING, since_s=now, free_s=ready)
        self._pods[name] = Held(pod=pod, begun_s=now)
        self.run.most_pods = max(self.run.most_pods, len(self._pods))
        self._later(ready, partial(self._free, name))

    def _dispatch(self, now: float, waiting: Waiting, held: Held) -> None:
        recorded = self._function.inputs[waiting.draw.index]
        size = held.pod.size
        spent = 0.0
        killed = size.mem_mib < recorded.floor_mib
        if killed:
            spent = drawn(recorded, size.cpu_m, waiting.draw.quantile)
            size = self._function.ladder.largest
        seconds = drawn(recorded, size.cpu_m, waiting.draw.quantile)
        end = now + spent + seconds
        run = self.run
        run.requests += 1
        run.late += end > waiting.need.deadline_s or not recorded.ran(size.cpu_m)
        run.cold += held.fresh and waiting.arrived_s < held.pod.since_s
        run.wait_s.append(now - waiting.arrived_s)
        held.fresh = False
        held.busy_s += spent + seconds
        held.pod = replace(held.pod, state=PodState.BUSY, since_s=now, free_s=end)
        usage = usage_of(size, seconds=seconds, cpu_s=recorded.cpu_s, peak_mib=recorded.floor_mib)
        asked = Asked(
            features=recorded.features,
            budget_s=self._function.deadlines[waiting.draw.index],
            index=waiting.draw.index,
        )
        outcome = Outcome(retried=killed)

        def ended(now: float) -> None:
            self._policy.observe(asked, usage, outcome)
            self._free(held.pod.name, now)

        self._later(end, ended)

    def _free(self, name: str, now: float) -> None:
        """A pod has started or ended a run: whoever waits is placed again, in order of deadlines."""
        held = self._pods[name]
        held.pod = replace(held.pod, state=PodState.IDLE, since_s=now, free_s=0.0)
        self._later(now + self._limits.idle_s, partial(self._expire, name, now))
        waiting, self._queue = self._queue, []
        for one in waiting:
            if not self._placed(now, one, queued=len(self._queue)):
                self._queue.append(one)

    def _expire(self, name: str, since_s: float, now: float) -> None:
        held = self._pods.get(name)
        if held is not None and held.pod.state is PodState.IDLE and held.pod.since_s == since_s:
            self._remove(now, name)

    def _remove(self, now: float, name: str) -> None:
        held = self._pods.pop(name)
        alive = now - held.begun_s
        run, size = self.run, held.pod.size
        run.busy_vcpu_s += held.busy_s * size.cpu_m / 1000
        run.idle_vcpu_s += (alive - held.busy_s) * size.cpu_m / 1000
        run.busy_mib_s += held.busy_s * size.mem_mib
        run.idle_mib_s += (alive - held.busy_s) * size.mem_mib
