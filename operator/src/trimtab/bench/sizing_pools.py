"""Sizes with arrivals: cold starts, queues and what idle pods hold, under the production placement.

SIMULATION: Poisson arrivals, run times drawn from recorded runs, starts drawn from a log-normal with a
median of 1.35 s (mean 0.297 and deviation 1.326 of the logarithm: Huawei, EuroSys'25).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.bench.report import percent
from trimtab.rightsizing.pool import Limits
from trimtab.rightsizing.pool_sim import PoolSimulation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trimtab.bench.report import JSON
    from trimtab.rightsizing.pool_sim import PoolRun
    from trimtab.rightsizing.simulate import Draw, Function, Policy

_START_MEAN: Final = 0.297
_START_SPREAD: Final = 1.326
_REFERENCE_M: Final = 1000
_MIB_PER_GIB: Final = 1024
_PODS: Final = 8
_IDLE_S: Final = 600.0


def serve(
    function: Function,
    policy: Policy,
    *,
    asked: Sequence[Draw],
    load: float,
    seed: Sequence[int],
) -> PoolRun:
    """Serve a function's requests as they come, with 8 pods that wait 600 s, the spec's defaults.

    Args:
        function: Its inputs and sizes.
        policy: Decides sizes.
        asked: Requests in order.
        load: Mean number of busy pods if every request ran at 1 vCPU.
        seed: Of arrivals and starts: every policy meets the same.
    """
    random = np.random.default_rng(list(seed))
    reference = min(function.ladder.cpu_m, key=lambda cpu: abs(cpu - _REFERENCE_M))
    mean_s = float(np.mean([one.typical_s(reference) for one in function.inputs]))
    arrivals = np.cumsum(random.exponential(mean_s / load, size=len(asked)))
    simulation = PoolSimulation(
        function,
        policy,
        limits=Limits(max_pods=_PODS, idle_s=_IDLE_S),
        starts_s=_starts(np.random.default_rng([*seed, 1])),
    )
    return simulation.serve(list(zip(arrivals.tolist(), asked, strict=True)))


def _starts(random: np.random.Generator) -> Iterator[float]:
    while True:
        yield float(random.lognormal(_START_MEAN, _START_SPREAD))


def figures(runs: Sequence[PoolRun]) -> JSON:
    """Return a policy's figures over seeds, without leaving out a warm-up: cold pools are the point."""
    requests = sum(run.requests for run in runs)
    waits = np.concatenate([np.asarray(run.wait_s) for run in runs])

    def per_request(total: float) -> float:
        return round(total / max(1, requests), 3)

    return {
        "requests": requests,
        "late": sum(run.late for run in runs),
        "violations_percent": percent(sum(run.late for run in runs) / max(1, requests)),
        "cold_percent": percent(sum(run.cold for run in runs) / max(1, requests)),
        "waited_percent": percent(sum(run.waited for run in runs) / max(1, requests)),
        "larger_percent": percent(sum(run.larger for run in runs) / max(1, requests)),
        "rejected": sum(run.rejected for run in runs),
        "starts": sum(run.starts for run in runs),
        "most_pods": max(run.most_pods for run in runs),
        "wait_p50_seconds": round(float(np.quantile(waits, 0.5)), 3) if waits.size else None,
        "wait_p99_seconds": round(float(np.quantile(waits, 0.99)), 3) if waits.size else None,
        "busy_vcpu_seconds": per_request(sum(run.busy_vcpu_s for run in runs)),
        "idle_vcpu_seconds": per_request(sum(run.idle_vcpu_s for run in runs)),
        "busy_gib_seconds": per_request(sum(run.busy_mib_s for run in runs) / _MIB_PER_GIB),
        "idle_gib_seconds": per_request(sum(run.idle_mib_s for run in runs) / _MIB_PER_GIB),
    }
