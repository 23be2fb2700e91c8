"""What a node of 8 GPUs does with a load, as predicted and in truth, and the choices that follow.

A candidate is a tensor-parallel size and a number of replicas. Predictions simulate a load drawn from
observed means with the thin-grid step model; truth simulates the requests that really came, with the full
grid's. Objectives are planner.md §8's.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from trimtab.bench.gpu_setups import LONGEST, NODE_GPUS, TOKEN_BUDGET
from trimtab.planning.queue_sim import quantile, simulate
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.simulations import plan_trace
from trimtab.planning.steady import ReplicaKind, Replicas
from trimtab.planning.variation import POISSON
from trimtab.planning.workload import trace_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.gpu_setups import Setup
    from trimtab.bench.trace_loads import TraceLoad
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.step_model import StepModel
    from trimtab.planning.workload import Arrival

Objective = Literal["MinLatency", "MinCost", "TargetLatency"]
OBJECTIVES: Final[tuple[Objective, ...]] = ("MinLatency", "MinCost", "TargetLatency")
MAX_RUNNING: Final = 256
PREDICTED_REQUESTS: Final = 256
"""Planner.md §6: simulated for a plan."""

View = Literal["plan", "planner", "poisson", "counts", "roofline", "truth"]
"""Who looks: the operator's plan; every candidate simulated as a plan would, with gaps and lengths as uneven as observed (planner.md §6), as it assumes them to
be before that (Poisson arrivals), with the observed counts of 10 s in their order; data sheets; and what
happens."""

LIMITS: Final = SchedulerLimits(
    token_budget=TOKEN_BUDGET,
    max_running=MAX_RUNNING,
    max_model_len=LONGEST,
    queue_limit=None,
    prefix_caching=False,
)
_FULL: Final = 0.95
_PERCENTILE: Final = 0.95
_NEVER: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a candidate delivers.

    Attributes:
        e2e_ms: Mean.
        ttft_p95_ms: Of time to first token.
        tpot_p95_ms: Of time per output token.
        slowdown_p95: Of E2E over what the same request takes alone.
        utilisation: Rate over the steady state's capacity; 0 in truth, which asks for no capacity.
        rejected: Requests that found no room.
    """

    e2e_ms: float
    ttft_p95_ms: float
    tpot_p95_ms: float
    slowdown_p95: float
    utilisation: float
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A size and a number of replicas; ``views`` are what is predicted of it, and ``truth``."""

    setup: Setup
    replicas: int
    views: Mapping[View, Served]

    @property
    def gpus(self) -> int:
        """GPUs that it reserves."""
        return self.setup.size * self.replicas

    @property
    def name(self) -> str:
        """Such as 2 x TP4."""
        return f"{self.replicas} x TP{self.setup.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """At the 95th percentile, ms."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A step model with what it says about one replica under a load's mean lengths.

    Attributes:
        model: What charges steps.
        kv_tokens: Of the replica's cache.
        capacity: Largest rate in the steady state, requests per second.
        prefill_us: Of one prompt token of a request alone.
        decode_us: Of one output token after the first.
    """

    model: StepModel
    kv_tokens: int
    capacity: float
    prefill_us: float
    decode_us: float

    @classmethod
    def of(cls, model: StepModel, setup: Setup, load: TraceLoad) -> Charged:
        """Ask the steady state."""
        kind = ReplicaKind(
            model=model,
            prompt=load.load.prompt,
            output=load.load.output,
            token_budget=TOKEN_BUDGET,
            max_sequences=MAX_RUNNING,
        )
        replicas = Replicas([kind])
        which = np.array([0])
        slots = replicas.slots(
            which, kv_tokens=np.array([setup.kv_tokens]), sequences=np.array([MAX_RUNNING])
        )
        return cls(
            model=model,
            kv_tokens=setup.kv_tokens,
            capacity=float(replicas.capacity(which, slots)[0]),
            prefill_us=float(replicas.service_us[0, 0]) / load.load.prompt,
            decode_us=float(replicas.decode_us[0, 1]),
        )


def candidates(setups: Sequence[Setup], load: TraceLoad) -> list[Candidate]:
    """Return every size with 1, 2, 4, … replicas that a node holds."""
    uneven, calm = (
        plan_trace(one, count=PREDICTED_REQUESTS, longest=LONGEST)
        for one in (load.load, replace(load.load, variation=POISSON))
    )
    draws = random.Random(trace_seed(load.name, load.load))  # noqa: S311 - a fixed seed
    counted = load.from_counts(draws, longest=LONGEST)
    found = []
    for setup in setups:
        seen, sheet, real = (
            Charged.of(model, setup, load) for model in (setup.seen, setup.roofline, setup.truth)
        )
        replicas = 1
        while replicas * setup.size <= NODE_GPUS:
            views: dict[View, Served] = {
                "planner": predicted(seen, uneven, load, replicas=replicas),
                "poisson": predicted(seen, calm, load, replicas=replicas),
                "counts": predicted(seen, counted, load, replicas=replicas),
                "roofline": predicted(sheet, uneven, load, replicas=replicas),
                "truth": served(real, load.arrivals, replicas=replicas),
            }
            found.append(Candidate(setup=setup, replicas=replicas, views=views))
            replicas *= 2
    return found


def predicted(
    charged: Charged, arrivals: Sequence[Arrival], load: TraceLoad, *, replicas: int
) -> Served:
    """Return what a planner expects; beyond 95 % of the steady state's capacity it never ends (§6).

    The few requests that are simulated do not show how long a queue gets that only grows.
    """
    utilisation = load.load.rate / (replicas * charged.capacity)
    late = _NEVER * utilisation if utilisation > _FULL else 1.0
    return served(charged, arrivals, replicas=replicas, late=late, utilisation=utilisation)


def served(
    charged: Charged,
    arrivals: Sequence[Arrival],
    *,
    replicas: int,
    late: float = 1.0,
    utilisation: float = 0.0,
) -> Served:
    """Return what replicas make of arrivals, times multiplied by ``late``."""
    result = simulate(
        charged.model,
        kv_tokens=charged.kv_tokens,
        limits=LIMITS,
        arrivals=arrivals,
        replicas=replicas,
    )
    slowdowns = sorted(
        s.e2e_us
        / (charged.prefill_us * arrivals[s.index].prompt + charged.decode_us * (s.output - 1))
        for s in result.served
    )
    return Served(
        e2e_ms=late * statistics.fmean(result.values("E2E")) / 1000,
        ttft_p95_ms=late * quantile(result.values("TTFT"), _PERCENTILE) / 1000,
        tpot_p95_ms=late * quantile(result.values("TPOT"), _PERCENTILE) / 1000,
        slowdown_p95=late * quantile(slowdowns, _PERCENTILE),
        utilisation=utilisation,
        rejected=result.rejected,
    )


def choose(
    objective: Objective,
    open_: Sequence[Candidate],
    view: View,
    *,
    targets: Targets,
    policy: PlannerPolicy,
) -> Candidate:
    """Return what an objective takes; the nearest where nothing meets it (``ServeNearest``).

    ``MinLatency`` is asked about the whole node, the others take as few GPUs as they can.
    """
    if objective == "MinLatency":
        return min(open_, key=lambda c: (c.views[view].e2e_ms, c.gpus))
    worst = {c.name: shortfall(objective, c, view, targets=targets, policy=policy) for c in open_}
    meeting = [c for c in open_ if worst[c.name] <= 1]
    if meeting:
        return min(meeting, key=lambda c: (c.gpus, c.views[view].e2e_ms))
    return min(open_, key=lambda c: (worst[c.name], c.gpus))


def shortfall(
    objective: Objective,
    candidate: Candidate,
    view: View,
    *,
    targets: Targets,
    policy: PlannerPolicy,
) -> float:
    """Return the largest value/allowed of an objective; 1 or less meets it.

    Predictions carry their margins, truth has none. ``MinLatency`` asks for nothing.
    """
    if objective == "MinLatency":
        return 0.0
    found = candidate.views[view]
    if found.rejected:
        return _NEVER
    if objective == "MinCost":
        return max(
            found.slowdown_p95 * 1000 / policy.usable_slowdown_permille,
            found.utilisation * policy.headroom_permille / 1000,
        )
    judged = view == "truth"
    ttft = 0 if judged else policy.margin_ttft_unanchored_permille
    tpot = 0 if judged else candidate.setup.margin_permille
    return max(
        found.ttft_p95_ms * (1 + ttft / 1000) / targets.ttft_ms,
        found.tpot_p95_ms * (1 + tpot / 1000) / targets.tpot_ms,
    )
