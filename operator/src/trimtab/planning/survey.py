"""Every option of one intent, predicted and judged; nothing here depends on who else is planned.

It is nearly all of a plan's time, and between two plans most intents do not change. So a planner may
keep the surveys of its last plan: they are found again if the intent, its load and everything else
that predictions are made from are equal.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Final

from trimtab.planning.estimate import Ask, Candidate, Estimator, Subject
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.plan import FingerprintNeed, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import price_for
from trimtab.planning.simulations import Simulations
from trimtab.planning.snapshot import CpuPool, FleetSnapshot, GpuPool
from trimtab.planning.walk import Walk, least_replicas
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


# Subjects that are surveyed side by side: enough that arrays are long, few enough that they stay small.
_TOGETHER: Final = 24


class Surveys:
    """Surveys and simulations of this plan and of the one before."""

    def __init__(self) -> None:
        self.simulations = Simulations()
        self._world: tuple[FleetSnapshot, PlannerPolicy] | None = None
        self._before: dict[Subject, Survey] = {}
        self._now: dict[Subject, Survey] = {}

    def begin(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> None:
        """Begin a plan; what was found out under other prices, fingerprints or machines is forgotten."""
        world = (_world(snapshot), policy)
        self._before = self._now if world == self._world else {}
        self._now = {}
        self._world = world
        self.simulations.begin(policy)

    def ahead(self, subjects: Iterable[Subject]) -> None:
        """Make the surveys that will be asked for, some at a time; that is faster than one by one.

        What fails is left out: it fails again, for its own intent alone, when it is asked for.
        """
        plain = dict.fromkeys(map(_plain, subjects))
        wanted = [subject for subject in plain if self._found(subject) is None]
        for start in range(0, len(wanted), _TOGETHER):
            some = wanted[start : start + _TOGETHER]
            with suppress(Exception):
                self._now.update(zip(some, self._made(some), strict=True))

    def of(self, subject: Subject) -> Survey:
        """Return an intent's survey, from the last plan if it was made there.

        Raises:
            RuntimeError: No plan has begun.
        """
        plain = _plain(subject)
        found = self._found(plain) or self._made([plain])[0]
        self._now[plain] = found
        return found

    def _found(self, plain: Subject) -> Survey | None:
        return self._now.get(plain) or self._before.get(plain)

    def _made(self, subjects: Sequence[Subject]) -> list[Survey]:
        if self._world is None:
            raise RuntimeError(
                "A survey was asked for before a plan began. This is a bug; please report it."
            )
        world, policy = self._world
        return _surveyed(subjects, snapshot=world, policy=policy)


def _plain(subject: Subject) -> Subject:
    """Return a subject without what only names the intent, or says where or how it is to change.

    That changes nothing about what its options are; the busy load moves all the time.
    """
    # What precisions lose decides which configurations are asked about, and nothing of them.
    model = replace(subject.model, losses=(), identity="")
    return replace(
        subject,
        model=model,
        intent=replace(
            subject.intent,
            uid="",
            namespace="",
            name="",
            generation=0,
            created_seconds=0,
            priority=0,
            group_id="",
            volume_nodes=None,
            busy_load=None,
            model=model,
        ),
    )


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


def _surveyed(
    subjects: Sequence[Subject], *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> list[Survey]:
    """Return the surveys of several intents, whose walks go on side by side."""
    estimator = Estimator(subjects, snapshot=snapshot, policy=policy)
    candidates, priced = estimator.candidates, is_priced(snapshot)

    def judged(subject: Subject, option: Option, load: PlannedLoad) -> Judged:
        return judge(subject.intent, option, load=load, priced=priced, policy=policy)

    singles = estimator.options(
        [
            Ask(number=n, replicas=least_replicas(one.subject.intent), rate=0.0)
            for n, one in enumerate(candidates)
        ]
    )
    unloaded = [
        judged(one.subject, option(), replace(one.subject.load, rate=0.0))
        for one, option in zip(candidates, singles, strict=True)
    ]
    walks = [
        Walk(
            one.subject.intent,
            load=one.subject.load,
            judged=partial(judged, one.subject, load=one.subject.load),
            policy=policy,
        )
        for one in candidates
    ]
    while asks := [
        Ask(number=n, replicas=count, rate=candidates[n].subject.load.rate)
        for n, walk in enumerate(walks)
        for count in walk.wanted
    ]:
        answers = iter(estimator.options(asks))
        for walk in walks:
            walk.take(list(islice(answers, len(walk.wanted))))
    needs = [_need(*pair) for pair in zip(candidates, unloaded, strict=True)]
    found, end = [], 0
    for subject in subjects:
        mine = slice(end, end := end + len(subject.configs))
        found.append(
            Survey(
                every=tuple(one for walk in walks[mine] for one in walk.found),
                unloaded=tuple(unloaded[mine]),
                needs=tuple(need for need in needs[mine] if need is not None),
            )
        )
    return found


def _need(candidate: Candidate, alone: Judged) -> tuple[Judged, FingerprintNeed] | None:
    """Return the fingerprint that would serve a candidate better than what there is; None if none."""
    taken, config = candidate.source.fingerprint, candidate.config
    anchoring = alone.option.anchoring
    again = anchoring is not None and anchoring.suspect
    # Jobs measure on cpu; fingerprints of GPUs are imported or derived.
    known = taken.key == candidate.key and taken.source != "Roofline" and not again
    if known or config.product != "cpu":
        return None
    need = FingerprintNeed(
        key=candidate.key.digest(),
        architecture=candidate.subject.model.architecture,
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads // config.pipeline_parallel_size,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        priority=0,
        again=again,
    )
    return alone, need
