"""Every option of one intent, predicted and judged; nothing here depends on who else is planned.

It is nearly all of a plan's time, and between two plans most intents do not change. So a planner may
keep the surveys of its last plan: they are found again if the intent, its load and everything else
that predictions are made from are equal. Fingerprints and anchors are those of the model's own family:
live replicas give anchors every minute, and that is no reason to forget what others' options are.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Final

from trimtab.planning.architecture import architecture_hash
from trimtab.planning.estimate import Ask, Candidate, Estimator, Subject
from trimtab.planning.fingerprint import Fingerprint
from trimtab.planning.machines import Machines
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.plan import FingerprintNeed, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import price_for
from trimtab.planning.simulations import Simulations
from trimtab.planning.snapshot import Anchor, CpuPool, FleetSnapshot, GpuPool
from trimtab.planning.sources import Sources
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


_Family = tuple[tuple[Fingerprint, ...], tuple[Anchor, ...], tuple[Anchor, ...]]
"""Fingerprints of one architecture, their anchors, and the anchors of estimates."""
_Families = dict[str, _Family]

# Subjects that are surveyed side by side: enough that arrays are long, few enough that they stay small.
_TOGETHER: Final = 24
# Replica counts that one walk asks about at once: every round costs the same beside many walks or few,
# and every count beyond a walk's end its own prediction.
_MANY: Final = 4
_FEW: Final = 4
_ONE_MORE: Final = 2


class Surveys:
    """Surveys and simulations of this plan and of the one before."""

    def __init__(self) -> None:
        self.simulations = Simulations()
        self._world: tuple[FleetSnapshot, PlannerPolicy] | None = None
        self._sources: Sources | None = None
        self._machines: Machines | None = None
        self._families: _Families = {"": ((), (), ())}
        self._before: dict[Subject, Survey] = {}
        self._now: dict[Subject, Survey] = {}

    def begin(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> None:
        """Begin a plan; what was found out under other prices, fingerprints or machines is forgotten."""
        world, families = (_world(snapshot), policy), _families(snapshot)
        known: Container[str] = ()
        if self._world is not None and _alike(world, self._world):
            known = _unchanged(families, self._families)
        self._before = {
            subject: found
            for subject, found in self._now.items()
            if _family(subject, families) in known
        }
        self._now = {}
        self._world, self._families = world, families
        self._sources = Sources(world[0], policy=policy)
        self._machines = Machines(snapshot, policy=policy, sources=self._sources)
        self.simulations.begin(policy)

    @property
    def sources(self) -> Sources:
        """The plan's sources.

        Raises:
            RuntimeError: No plan has begun.
        """
        if self._sources is None:
            raise _unbegun()
        return self._sources

    @property
    def machines(self) -> Machines:
        """The plan's machines.

        Raises:
            RuntimeError: No plan has begun.
        """
        if self._machines is None:
            raise _unbegun()
        return self._machines

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
            raise _unbegun()
        world, policy = self._world
        return _surveyed(subjects, snapshot=world, policy=policy, sources=self.sources)


def _unbegun() -> RuntimeError:
    return RuntimeError(
        "A survey was asked for before a plan began. This is a bug; please report it."
    )


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


def _families(snapshot: FleetSnapshot) -> _Families:
    """Return what is measured of each family by the hash of its architecture, under "" of the others."""
    digests = {one.key.digest(): one.key.architecture for one in snapshot.fingerprints}
    fingerprints: dict[str, list[Fingerprint]] = {}
    anchors: dict[str, list[Anchor]] = {}
    for one in snapshot.fingerprints:
        fingerprints.setdefault(one.key.architecture, []).append(one)
    for anchor in snapshot.anchors:
        # NB: an estimate is no fingerprint of the snapshot, and may have anchors even so.
        anchors.setdefault(digests.get(anchor.key, ""), []).append(anchor)
    estimated = tuple(anchors.get("", ()))
    return {
        family: (tuple(found), tuple(anchors.get(family, ())), estimated)
        for family, found in {"": [], **fingerprints}.items()
    }


def _family(subject: Subject, families: _Families) -> str:
    """Return under which name a subject's family is known, "" where nothing is measured of it."""
    name = architecture_hash(subject.model.architecture)
    return name if name in families else ""


def _unchanged(families: _Families, before: _Families) -> set[str]:
    """Return the families of which nothing new is known; "" only if no family was forgotten."""
    same = {name for name, found in families.items() if before.get(name, before[""]) == found}
    return same - {""} if before.keys() - families.keys() else same


def _alike(
    one: tuple[FleetSnapshot, PlannerPolicy], other: tuple[FleetSnapshot, PlannerPolicy]
) -> bool:
    """Tell whether predictions are made from the same world, but for what families are told apart by."""
    here, there = (replace(world, fingerprints=(), anchors=()) for world, _ in (one, other))
    return here == there and one[1] == other[1]


def _surveyed(
    subjects: Sequence[Subject],
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    sources: Sources,
) -> list[Survey]:
    """Return the surveys of several intents, whose walks go on side by side."""
    estimator = Estimator(subjects, snapshot=snapshot, policy=policy, sources=sources)
    candidates, priced = estimator.candidates, is_priced(snapshot)

    def judged(subject: Subject, option: Option, load: PlannedLoad) -> Judged:
        return judge(subject.intent, option, load=load, priced=priced, policy=policy)

    alone = [
        Ask(number=n, replicas=least_replicas(one.subject.intent), rate=0.0)
        for n, one in enumerate(candidates)
    ]
    walks = [
        Walk(
            one.subject.intent,
            load=one.subject.load,
            judged=partial(judged, one.subject, load=one.subject.load),
            policy=policy,
            at_once=_FEW if len(subjects) < _MANY else _ONE_MORE,
        )
        for one in candidates
    ]
    asks = [*alone, *_wanted(walks, candidates)]
    answers = iter(estimator.options(asks))
    unloaded = [
        judged(one.subject, option(), replace(one.subject.load, rate=0.0))
        for one, option in zip(candidates, islice(answers, len(candidates)), strict=True)
    ]
    while True:
        for walk in walks:
            walk.take(list(islice(answers, len(walk.wanted))))
        if not (asks := list(_wanted(walks, candidates))):
            break
        answers = iter(estimator.options(asks))
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


def _wanted(walks: Sequence[Walk], candidates: Sequence[Candidate]) -> Iterator[Ask]:
    """Yield what the walks ask next."""
    for n, walk in enumerate(walks):
        for count in walk.wanted:
            yield Ask(number=n, replicas=count, rate=candidates[n].subject.load.rate)


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
