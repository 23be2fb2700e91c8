"""Every option of one intent, predicted and judged; nothing here depends on who else is planned.

It is nearly all of a plan's time, and between two plans most intents do not change. So a planner may
keep the surveys of its last plan: they are found again if the intent, its load and everything else
that predictions are made from are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from trimtab.planning.estimate import Ask, Estimator, key_for
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.options import Walk, least_replicas
from trimtab.planning.plan import FingerprintNeed, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import price_for
from trimtab.planning.simulations import Simulations
from trimtab.planning.snapshot import (
    Config,
    CpuPool,
    FleetSnapshot,
    GpuPool,
    IntentView,
    ModelView,
)
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
    """Surveys and simulations of this plan and of the one before."""

    def __init__(self) -> None:
        self.simulations = Simulations()
        self._world: tuple[FleetSnapshot, PlannerPolicy] | None = None
        self._before: dict[_Key, Survey] = {}
        self._now: dict[_Key, Survey] = {}

    def begin(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> None:
        """Begin a plan; what was found out under other prices, fingerprints or machines is forgotten."""
        world = (_world(snapshot), policy)
        self._before = self._now if world == self._world else {}
        self._now = {}
        self._world = world
        self.simulations.begin(policy)

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
            # What precisions lose decides which configurations are asked about, and nothing of them.
            model=replace(model, losses=(), identity=""),
        )
        key = (plain, configs, load)
        found = self._now.get(key) or self._before.get(key)
        if found is None:
            world, policy = self._world
            found = _survey(plain, model, configs, load, snapshot=world, policy=policy)
        self._now[key] = found
        return found


def is_priced(snapshot: FleetSnapshot) -> bool:
    """Tell whether all machines have a price.

    One unpriced machine makes money incomparable, unless money is what the objective is about.
    """
    prices = snapshot.prices
    models = {pool.cpu_model for pool in snapshot.pools}
    products = {pool.product for pool in snapshot.gpu_pools}
    return (not models or prices.memory_gib_hour_micro_usd is not None) and all(
        price_for(book, name) is not None
        for book, names in ((prices.cpu_hour, models), (prices.gpu_hour, products))
        for name in names
    )


def _world(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Return all that predictions are made from, and of the machines only which kinds there are."""
    kinds = sorted({(pool.product, pool.cpu_model) for pool in snapshot.pools})
    gpus = sorted({(pool.product, pool.gpu_memory_bytes) for pool in snapshot.gpu_pools})
    return replace(
        snapshot,
        intents=(),
        assignments=(),
        left_out=(),
        gpu_pools=tuple(
            GpuPool(node="", product=product, gpus=0, gpu_memory_bytes=size, memory_bytes=0)
            for product, size in gpus
        ),
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
    alone = replace(load, rate=0.0)
    estimator = Estimator(intent, model, configs, load=load, snapshot=snapshot, policy=policy)
    numbers, priced = range(len(configs)), is_priced(snapshot)

    def judged(option: Option, at: PlannedLoad) -> Judged:
        return judge(intent, option, load=at, priced=priced, policy=policy)

    def satisfied(option: Option) -> bool:
        return judged(option, load).meets

    least = least_replicas(intent)
    singles = estimator.options([Ask(number=n, replicas=least, rate=0.0) for n in numbers])
    unloaded = [judged(option(), alone) for option in singles]
    walks = [Walk(intent, load=load, satisfied=satisfied, policy=policy) for _ in numbers]
    while asks := [
        Ask(number=n, replicas=count, rate=load.rate) for n in numbers for count in walks[n].wanted
    ]:
        answers = iter(estimator.options(asks))
        for walk in walks:
            walk.take(list(islice(answers, len(walk.wanted))))
    needs = [
        (one, _need(model, one.option, key.digest(), again=_suspect(one.option)))
        for one, source in zip(unloaded, estimator.sources, strict=True)
        # Jobs measure on cpu; fingerprints of GPUs are imported or derived.
        if one.option.config.product == "cpu"
        and (
            (key := key_for(model, one.option.config, capabilities=snapshot.capabilities))
            != source.fingerprint.key
            or source.fingerprint.source == "Roofline"
            or _suspect(one.option)
        )
    ]
    return Survey(
        every=tuple(judged(option, load) for walk in walks for option in walk.found),
        unloaded=tuple(unloaded),
        needs=tuple(needs),
    )


def _suspect(option: Option) -> bool:
    return option.anchoring is not None and option.anchoring.suspect


def _need(model: ModelView, option: Option, key: str, *, again: bool) -> FingerprintNeed:
    config = option.config
    return FingerprintNeed(
        key=key,
        architecture=model.architecture,
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads // config.pipeline_parallel_size,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        priority=0,
        again=again,
    )
