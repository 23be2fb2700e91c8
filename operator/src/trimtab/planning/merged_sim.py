"""Several models on engines that they share, simulated over steps (planner.md §9, rule c).

The models of an engine alternate by step, as the serving engine's do; each has KV blocks of its own. While
only one of them has work it jumps as in `queue_sim`. A request goes to the engine of its model with the
fewest requests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.planning.queue_group import Request
from trimtab.planning.queue_replica import Progress, QueueReplica
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_model import StepModel
from trimtab.planning.step_tables import StepTables
from trimtab.planning.workload import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One model on an engine: what charges its steps, and its part of the KV cache."""

    model: StepModel
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One request that was served, times in µs."""

    ttft_us: float
    tpot_us: float
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedResult:
    """What became of one model's requests, in the order of their ends.

    Attributes:
        served: Finished ones.
        rejected: Longer than a cache, or of a model that no engine has.
    """

    served: tuple[Finished, ...]
    rejected: int

    def attainment(self, *, ttft_us: float, tpot_us: float) -> float:
        """Return the share of all requests that were served within both targets; 1 of none."""
        total = len(self.served) + self.rejected
        good = sum(
            s.ttft_us <= ttft_us and (s.output < 2 or s.tpot_us <= tpot_us) for s in self.served
        )
        return good / total if total else 1.0


class _Engine:
    """The models of one engine, of which one at a time takes a step."""

    def __init__(
        self,
        tenants: Mapping[str, Tenant],
        *,
        limits: SchedulerLimits,
        tables: dict[int, StepTables],
        progress: Progress,
    ) -> None:
        self.parts: dict[str, QueueReplica] = {}
        for name in sorted(tenants):
            tenant = tenants[name]
            key = id(tenant.model)
            if key not in tables:
                tables[key] = StepTables(tenant.model, limits)
            self.parts[name] = QueueReplica(
                tables[key],
                blocks=tenant.kv_tokens // limits.block_tokens,
                limits=limits,
                progress=progress,
            )
        self._now = 0.0

    @property
    def outstanding(self) -> int:
        """Requests that are not finished."""
        return sum(part.outstanding for part in self.parts.values())

    def advance(self, *, until: float) -> None:
        """Take turns that begin before a time."""
        while self._now < until:
            busy = [part for part in self.parts.values() if part.outstanding]
            if not busy:
                self._now = until if math.isfinite(until) else self._now
                return
            for part in busy:
                cut = until if len(busy) == 1 else None
                ended = part.turn(at_us=self._now, cut_us=cut)
                if ended is not None:
                    self._now = ended


def simulate_merged(
    engines: Sequence[Mapping[str, Tenant]],
    *,
    limits: SchedulerLimits,
    arrivals: Mapping[str, Sequence[Arrival]],
) -> dict[str, MergedResult]:
    """Follow every model's requests to their ends.

    Args:
        engines: The models of each, by name.
        limits: Of every engine's scheduler, per model.
        arrivals: Of each model, in order of time.
    """
    tables: dict[int, StepTables] = {}
    progress = Progress()
    running = [
        _Engine(tenants, limits=limits, tables=tables, progress=progress) for tenants in engines
    ]
    homes = {name: [e for e in running if name in e.parts] for name in arrivals}
    merged = sorted(
        (arrival.at_us, name, n)
        for name, mine in arrivals.items()
        for n, arrival in enumerate(mine)
    )
    for at, name, n in merged:
        if not homes[name]:
            continue
        for engine in homes[name]:
            engine.advance(until=at)
        chosen = min(homes[name], key=lambda engine: engine.outstanding)
        chosen.parts[name].submit(n, arrivals[name][n], at_us=at)
    for engine in running:
        engine.advance(until=math.inf)
    return {
        name: _result([e.parts[name] for e in homes[name]], arrivals=len(mine))
        for name, mine in arrivals.items()
    }


def _result(parts: Sequence[QueueReplica], *, arrivals: int) -> MergedResult:
    served = tuple(_finished(request) for part in parts for request in part.finished)
    return MergedResult(served=served, rejected=arrivals - len(served))


def _finished(request: Request) -> Finished:
    output = request.limit - request.prompt
    span = request.last_us - request.first_us
    return Finished(
        ttft_us=request.first_us - request.arrival_us,
        tpot_us=span / (output - 1) if output > 1 else 0.0,
        output=output,
    )
