"""Every option of one intent, predicted and judged; nothing here depends on who else is planned.

It is nearly all of a plan's time, and between two plans most intents do not change. So a planner may
keep the surveys of its last plan: they are found again if the intent, its load and everything else
that predictions are made from are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimtab.planning.estimate import find_source, key_for
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.options import walk
from trimtab.planning.plan import FingerprintNeed, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import price_for
from trimtab.planning.snapshot import Config, CpuPool, FleetSnapshot, IntentView, ModelView
from trimtab.planning.workload import PlannedLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found out about one intent.

    Attributes:
        every: All options, in no order.
        unloaded: One replica of each configuration as one request alone sees it.
        needs: What is not measured, with the unloaded option that it would change.
    """

    every: tuple[Judged, ...]
    unloaded: tuple[Judged, ...]
    needs: tuple[tuple[Judged, FingerprintNeed], ...]


_Key = tuple[IntentView, tuple[Config, ...], PlannedLoad]


class Surveys:
    """Surveys of this plan and of the one before."""

    def __init__(self) -> None:
        self._world: tuple[FleetSnapshot, PlannerPolicy] | None = None
        self._before: dict[_Key, Survey] = {}
        self._now: dict[_Key, Survey] = {}

    def begin(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> None:
        """Begin a plan; what was found out under other prices, fingerprints or machines is forgotten."""
        world = (_world(snapshot), policy)
        self._before = self._now if world == self._world else {}
        self._now = {}
        self._world = world

    def of(
        self,
        intent: IntentView,
        model: ModelView,
        configs: tuple[Config, ...],
        *,
        load: PlannedLoad,
    ) -> Survey:
        """Return an intent's survey, from the last plan if it was made there.

        Raises:
            RuntimeError: No plan has begun.
        """
        if self._world is None:
            raise RuntimeError(
                "A survey was asked for before a plan began. This is a bug; please report it."
            )
        # What only names the intent, and what only says where or how it is to change, does not
        # change what its options are; the busy load moves all the time.
        plain = replace(
            intent,
            uid="",
            namespace="",
            name="",
            generation=0,
            created_seconds=0,
            priority=0,
            group_id="",
            volume_nodes=None,
            busy_load=None,
        )
        key = (plain, configs, load)
        found = self._now.get(key) or self._before.get(key)
        if found is None:
            world, policy = self._world
            found = _survey(plain, model, configs, load, snapshot=world, policy=policy)
        self._now[key] = found
        return found


def judged_option(
    intent: IntentView,
    option: Option,
    load: PlannedLoad,
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Judged:
    """Return an option under an intent's objective, in money where all machines have a price."""
    # One unpriced CPU model makes money incomparable, unless money is what the objective is about.
    prices = snapshot.prices
    models = {pool.cpu_model for pool in snapshot.pools}
    priced = prices.memory_gib_hour_micro_usd is not None and all(
        price_for(prices.cpu_hour, m) is not None for m in models
    )
    return judge(intent, option, load=load, priced=priced, policy=policy)


def _world(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Return all that predictions are made from, and of the machines only which kinds there are."""
    kinds = sorted({(pool.product, pool.cpu_model) for pool in snapshot.pools})
    return replace(
        snapshot,
        intents=(),
        assignments=(),
        pools=tuple(
            CpuPool(node="", product=product, cpu_model=model, millicores=0, memory_bytes=0)
            for product, model in kinds
        ),
    )


def _survey(
    intent: IntentView,
    model: ModelView,
    configs: Sequence[Config],
    load: PlannedLoad,
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Survey:
    alone = PlannedLoad(rate=0.0, prompt=load.prompt, output=load.output, assumed=load.assumed)
    every: list[Judged] = []
    unloaded: list[Judged] = []
    needs: list[tuple[Judged, FingerprintNeed]] = []

    def judged(option: Option, at: PlannedLoad) -> Judged:
        return judged_option(intent, option, at, snapshot=snapshot, policy=policy)

    for config in configs:
        source = find_source(
            model,
            config,
            snapshot=snapshot,
            policy=policy,
        )
        first = next(
            walk(
                intent,
                model,
                config,
                load=alone,
                source=source,
                snapshot=snapshot,
                satisfied=lambda _: True,
                policy=policy,
            )
        )
        unloaded.append(judged(first, alone))
        key = key_for(model, config, capabilities=snapshot.capabilities)
        if source.fingerprint.key != key or source.fingerprint.source == "Roofline":
            needs.append((unloaded[-1], _need(model, unloaded[-1].option, key.digest())))
        walked = walk(
            intent,
            model,
            config,
            load=load,
            source=source,
            snapshot=snapshot,
            satisfied=lambda option: judged(option, load).meets,
            policy=policy,
        )
        every.extend(judged(option, load) for option in walked)
    return Survey(every=tuple(every), unloaded=tuple(unloaded), needs=tuple(needs))


def _need(model: ModelView, option: Option, key: str) -> FingerprintNeed:
    config = option.config
    return FingerprintNeed(
        key=key,
        architecture=model.architecture,
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        priority=0,
    )
