"""What the operator's own planner decides about a benchmark's models, loads and GPUs: `plan_fleet` itself.

It knows what a benchmark's other choosers know: thin-grid step times, mean loads, targets, prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.bench.gpu_setups import GIB, LONGEST, NODE_GPUS, PRODUCTS
from trimtab.bench.known_models import KNOWN
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.memory import weight_bytes
from trimtab.planning.prices import parse_price_book
from trimtab.planning.snapshot import (
    Constraints,
    EngineCapabilities,
    FleetSnapshot,
    GpuPool,
    IntentView,
    ModelView,
    Targets,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.gpu_setups import Setup
    from trimtab.planning.plan import Prediction
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.snapshot import Load, Objective

_PRECISION: Final = "bf16"
_NONE: Final = Targets()
# More than any pod asks for: a node's memory is not what these benchmarks are about.
_HOST_BYTES: Final = 1 << 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One intent: what it is called, the model by its name in `KNOWN`, what is wanted."""

    name: str
    model: str
    objective: Objective
    load: Load
    targets: Targets = _NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What an intent is to run, and what is predicted of it."""

    setup: Setup
    replicas: int
    predicted: Prediction


def planned(
    asked: Sequence[Asked], setups: Sequence[Setup], *, gpus: int, policy: PlannerPolicy
) -> dict[str, Planned]:
    """Return what each intent gets on nodes of eight GPUs; who finds no place is absent.

    Args:
        asked: The intents, the oldest first.
        setups: Of one product and all that there is to choose from: no other size is considered.
        gpus: How many there are.
        policy: Constants.
    """
    known = {(s.model, s.size): s for s in setups}
    product = PRODUCTS[setups[0].product]
    key = setups[0].document.key
    plan = plan_fleet(
        FleetSnapshot(
            intents=tuple(_intent(one, n, setups) for n, one in enumerate(asked)),
            pools=(),
            gpu_pools=tuple(
                GpuPool(
                    node=f"node-{n}",
                    product=product.name,
                    gpus=min(NODE_GPUS, gpus - n * NODE_GPUS),
                    gpu_memory_bytes=round(product.gib * GIB),
                    memory_bytes=_HOST_BYTES,
                )
                for n in range(-(-gpus // NODE_GPUS))
            ),
            capabilities=EngineCapabilities(
                engine=key.engine,
                version=key.engine_version,
                families=tuple(sorted({KNOWN[one.model].architecture.family for one in asked})),
                precisions=(_PRECISION,),
                tensor_parallel_sizes=tuple(sorted({s.size for s in setups})),
                flags=key.flags,
            ),
            fingerprints=tuple(s.document for s in setups),
            prices=parse_price_book({"gpuHour": {product.name: f"{product.usd_per_hour:.2f}"}}),
        ),
        policy,
    )
    models = {one.name: one.model for one in asked}
    return {
        one.name: Planned(
            setup=known[models[one.name], one.option.config.tensor_parallel_size],
            replicas=one.option.replicas,
            predicted=one.option.predicted,
        )
        for one in plan.intents
        if one.option is not None
    }


def _intent(one: Asked, number: int, setups: Sequence[Setup]) -> IntentView:
    known = KNOWN[one.model]
    return IntentView(
        uid=f"{number:04d}",
        namespace="bench",
        name=one.name,
        generation=1,
        created_seconds=number,
        model=ModelView(
            architecture=known.architecture,
            depth=known.depth,
            precision=_PRECISION,
            weight_bytes=weight_bytes(known.architecture, depth=known.depth, precision=_PRECISION),
            context_length=LONGEST,
        ),
        objective=one.objective,
        targets=one.targets,
        load=one.load,
        constraints=Constraints(
            tensor_parallel_sizes=tuple(sorted(s.size for s in setups if s.model == one.model))
        ),
    )
