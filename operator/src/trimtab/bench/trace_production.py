"""What the operator's planner picks in a cell of `planner-traces`, and what that comes to in truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.bench.gpu_setups import NODE_GPUS
from trimtab.bench.production import Asked, planned
from trimtab.bench.trace_cells import Candidate, Charged, Served, served
from trimtab.planning.snapshot import Load
from trimtab.planning.snapshot import Targets as Wanted

if TYPE_CHECKING:
    from trimtab.bench.trace_cells import Targets
    from trimtab.bench.trace_outcomes import Cell
    from trimtab.planning.plan import Prediction
    from trimtab.planning.policy import PlannerPolicy

_NAME = "trace"


def pick(cell: Cell, *, targets: Targets, policy: PlannerPolicy) -> Candidate:
    """Return what `plan_fleet` runs on an empty node of eight GPUs.

    It may take numbers of replicas that are no power of two, and under ``MinLatency`` fewer GPUs than
    there are, where one replica more gains less than 2 %.
    """
    setups = list({c.setup.size: c.setup for c in cell.candidates}.values())
    seen = cell.load.load
    aims = cell.objective == "TargetLatency"
    asked = Asked(
        name=_NAME,
        model=cell.model,
        objective=cell.objective,
        load=Load(
            requests_per_second=seen.rate,
            prompt_tokens=seen.prompt,
            output_tokens=seen.output,
            variation=seen.variation,
        ),
        targets=Wanted(
            ttft_us=round(1000 * targets.ttft_ms) if aims else None,
            tpot_us=round(1000 * targets.tpot_ms) if aims else None,
            percentile=95,
        ),
    )
    found = planned([asked], setups, gpus=NODE_GPUS, policy=policy)[_NAME]
    size = found.setup.size
    same = (c for c in cell.candidates if (c.setup.size, c.replicas) == (size, found.replicas))
    known = next(same, None)
    truth = (
        known.views["truth"]
        if known is not None
        else served(
            Charged.of(found.setup.truth, found.setup, cell.load),
            cell.load.arrivals,
            replicas=found.replicas,
        )
    )
    return Candidate(
        setup=found.setup,
        replicas=found.replicas,
        views={"plan": _told(found.predicted), "truth": truth},
    )


def _told(predicted: Prediction) -> Served:
    return Served(
        e2e_ms=predicted.e2e.mean_us / 1000,
        ttft_p95_ms=predicted.ttft.p95_us / 1000,
        tpot_p95_ms=predicted.tpot.p95_us / 1000,
        slowdown_p95=predicted.e2e.p95_us / max(1, predicted.unloaded_e2e_us),
        utilisation=predicted.utilisation_permille / 1000,
        rejected=0,
    )
