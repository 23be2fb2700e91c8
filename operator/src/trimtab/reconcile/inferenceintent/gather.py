"""Gathers everything that one step of an intent decides from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP_LABEL
from trimtab.observe.intents import ObservedIntent, Unplaced
from trimtab.reconcile.group.gather import charges
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.inferenceintent.inspecting import inspection, inspection_pods
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.naming import model_name
from trimtab.reconcile.snapshot import declared_load, parse_intent, several_nodes
from trimtab.reconcile.untouched import untouched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
    from trimtab.observe.intents import LoadSource
    from trimtab.observe.records import DeploymentRecord, IntentRecord, PodRecord, Record
    from trimtab.observe.workers import EngineView
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import Load
    from trimtab.reconcile.world import World

_WORKER_KINDS: Final = (
    "deployments",
    "services",
    "networkpolicies",
    "poddisruptionbudgets",
    "configmaps",
)
_UNPLACED_SECONDS: Final = 60.0
"""So long a pod may wait for the scheduler before its roll counts as stuck. Decision."""


def gather(record: IntentRecord, *, world: World) -> ObservedIntent:
    """Return the frozen observation of one intent."""
    try:
        intent = parse_intent(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return ObservedIntent(record=record, intent=None, parse_error=f"{where}: {first['msg']}")
    caches, settings = world.caches, world.settings
    owner = Owner(namespace=record.namespace, name=record.name, uid=record.uid)
    source = jobs.source_digest(intent.spec.model.source)
    # By label anybody can claim an owner, so only the intent's own namespace counts.
    here = record.namespace
    pods = tuple(p for p in caches.pods.owned_by(record.uid) if p.namespace == here)
    own_jobs = tuple(j for j in caches.jobs.owned_by(record.uid) if j.namespace == here)
    maps = caches.configmaps.owned_by(record.uid)
    reading = inspection(
        source=source,
        generation=record.generation,
        kept=caches.configmaps.get(
            settings.system_namespace, jobs.facts_name(owner, source=source)
        ),
        found=own_jobs,
        pods=inspection_pods(pods),
        now=world.utcnow(),
        seconds=settings.policy_seconds,
    )
    plan = world.fleet.of(record.uid, generation=record.generation) if reading.facts else None
    if plan is not None and plan.fixed and not untouched(record, world):
        # Made while it was paused, of what ran: an edit since then is planned first.
        plan = None
    homes = _homes(record, plan, world)
    home = homes[0] if homes else _Home(deployment=None, pods=())
    workers = home.pods
    former = tuple(pod for other in homes[1:] for pod in other.pods)
    deployments = tuple(h.deployment for h in homes if h.deployment is not None)
    load, load_source = _load(record, intent, world)
    current = world.fleet.current
    return ObservedIntent(
        record=record,
        intent=intent,
        name_taken_by=_older_namesake(record, world),
        inspection=reading,
        plan=plan,
        planner_problem=current.problem if plan is None else "",
        price_problem=world.price_problem,
        load=load,
        load_source=load_source,
        fingerprints=world.fingerprints.progress(record.uid, plan, first_rollout=not deployments),
        accuracy=world.accuracy.progress(record.uid, plan),
        deployment=home.deployment,
        pods=workers,
        former_pods=former,
        workers={
            p.uid: world.worker_states[p.uid]
            for p in (*workers, *former)
            if p.uid in world.worker_states
        },
        unplaced=unplaced(workers, now=world.utcnow(), seconds=settings.policy_seconds),
        model_sets=tuple(m for m in maps if m.namespace == record.namespace and _own_worker(m)),
        jobs=tuple(j for j in own_jobs if j.labels.get(COMPONENT_LABEL) == "inspection"),
        facts=tuple(m for m in maps if m.namespace == settings.system_namespace),
        budget=next(
            (
                b
                for b in caches.poddisruptionbudgets.owned_by(record.uid)
                if b.namespace == here and _own_worker(b)
            ),
            None,
        ),
        several_nodes=several_nodes(caches.nodes, settings=settings),
        gateway_answers=world.gateway_answers,
        shown=world.shown_of(record.uid),
        fleet_revision=current.revision,
        own=tuple(
            (plural, child)
            for plural in _WORKER_KINDS
            for child in caches.by_plural()[plural].owned_by(record.uid)
            if child.namespace == here and _own_worker(child)
        ),
        routed=world.routed(here, model_name(record)),
        charges=charges(world, record),
        engine=_engine(workers, world),
        step=world.steps.of(record, plan) if world.steps is not None else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    """A worker that serves an intent, or is to."""

    deployment: DeploymentRecord | None
    pods: tuple[PodRecord, ...]


def _own_worker(record: Record) -> bool:
    """Whether an object of an intent is part of a worker of its own."""
    return record.labels.get(COMPONENT_LABEL) == "worker" and GROUP_LABEL not in record.labels


def _homes(record: IntentRecord, plan: IntentPlan | None, world: World) -> tuple[_Home, ...]:
    """Return the intent's workers: the one that its plan wants first, then those it leaves.

    Without a plan the one that requests go to comes first.
    """
    caches, here = world.caches, record.namespace
    wanted = plan.group.id if plan is not None and plan.group is not None else ""
    found: dict[str, _Home] = {}
    own = [d for d in caches.deployments.owned_by(record.uid) if d.namespace == here]
    for deployment in own:
        group = deployment.labels.get(GROUP_LABEL, "")
        pods = tuple(
            p
            for p in caches.pods.owned_by(group or record.uid)
            if p.namespace == here
            and p.labels.get(COMPONENT_LABEL) == "worker"
            and p.labels.get(GROUP_LABEL, "") == group
        )
        found[group] = _Home(deployment=deployment, pods=pods)
    if plan is None or plan.option is None:
        routed = world.routed(here, model_name(record))
        wanted = next(
            (g for g, h in sorted(found.items()) if h.deployment and h.deployment.name == routed),
            min(found, default=""),
        )
    first = found.pop(wanted, _Home(deployment=None, pods=()))
    return (first, *(found[group] for group in sorted(found)))


def _engine(pods: Sequence[PodRecord], world: World) -> EngineView | None:
    """Return what the oldest worker that answers says, as statuses show it."""
    for pod in sorted(pods, key=lambda p: (p.created, p.uid)):
        view = world.engines.get(pod.uid)
        if view is not None:
            return view
    return None


def unplaced(
    pods: Sequence[PodRecord], *, now: datetime, seconds: Callable[[float], float]
) -> Unplaced:
    """Return which worker pods wait too long; none while an old one drains and will make room."""
    if any(pod.deleting for pod in pods):
        return Unplaced()
    rest = seconds(_UNPLACED_SECONDS)
    left = {
        # A clock that jumped must not hide a stuck pod for longer than its rest.
        pod.uid: min(rest, rest - (now - _time(pod.unschedulable_since, now)).total_seconds())
        for pod in pods
        if pod.unschedulable
    }
    return Unplaced(
        long=frozenset(uid for uid, remaining in left.items() if remaining <= 0),
        next_in_seconds=min((r + 0.5 for r in left.values() if r > 0), default=None),
    )


def _time(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return otherwise


def _load(
    record: IntentRecord, intent: InferenceIntent, world: World
) -> tuple[Load | None, LoadSource]:
    observed = world.loads.of(record.uid)
    if observed is not None:
        return observed, "Observed"
    declared = world.loads.planned(record.uid, declared=declared_load(intent))
    return declared, "Declared" if declared is not None else "Assumed"


def _older_namesake(record: IntentRecord, world: World) -> str:
    """Return the older intent of the namespace that serves the same model name, if any."""
    oldest = world.oldest_namesake(record.namespace, model_name(record))
    if oldest is None or oldest.uid == record.uid:
        return ""
    return f"{oldest.namespace}/{oldest.name}"
