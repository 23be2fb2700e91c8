"""Gathers a sharing group, and says which intents of it write its objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from trimtab.api.v1alpha1.names import (
    COMPONENT_LABEL,
    GROUP_LABEL,
    PAUSED_ANNOTATION,
    REPLICAS_ANNOTATION,
)
from trimtab.kube import names as object_names
from trimtab.observe.groups import ObservedGroup, ObservedMember
from trimtab.reconcile.inferenceintent.policies import Admission, first_violation
from trimtab.reconcile.naming import model_name
from trimtab.reconcile.snapshot import parse_intent, usable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.observe.records import DeploymentRecord, IntentRecord, Record
    from trimtab.planning.plan import GroupPlan
    from trimtab.reconcile.world import World


_R = TypeVar("_R", bound="Record")


def group_deployment(world: World, *, namespace: str, group_id: str) -> DeploymentRecord | None:
    """Return a group's Deployment; by label anybody can claim one, so its name decides."""
    found = world.caches.deployments.get(namespace, object_names.group_worker(group_id))
    return found if found is not None and found.labels.get(GROUP_LABEL) == group_id else None


def owned_groups(world: World, record: IntentRecord) -> tuple[str, ...]:
    """Return the ids of the groups whose Deployment an intent owns."""
    found = (
        deployment.labels.get(GROUP_LABEL, "")
        for deployment in world.caches.deployments.owned_by(record.uid)
        if deployment.namespace == record.namespace
    )
    return tuple(sorted({id_ for id_ in found if id_}))


def mates(world: World, uid: str) -> frozenset[str]:
    """Return the uids of all who share a group with an intent, planned or running, itself included.

    Args:
        world: What is known.
        uid: Of an intent, or the id of a group.
    """
    found = {uid}
    for deployment in world.caches.deployments.owned_by(uid):
        if deployment.labels.get(GROUP_LABEL):
            found.update(deployment.owner_uids)
    for one in tuple(found):
        plan = world.fleet.current.by_uid.get(one)
        if plan is not None and plan.group is not None:
            found.update(plan.group.members)
    return frozenset(found)


def planned(world: World, *, namespace: str, group_id: str) -> GroupPlan | None:
    """Return the fleet's decision about a group, None where nobody is planned in it."""
    plans = world.fleet.current.by_uid
    deployment = group_deployment(world, namespace=namespace, group_id=group_id)
    owners = deployment.owner_uids if deployment else ()
    # Nearly always an owner is planned in it; only for a group that ends all plans are looked at.
    for uid in (*sorted(owners), *sorted(plans)):
        plan = plans.get(uid)
        if plan is None or plan.namespace != namespace or plan.group is None:
            continue
        if plan.group.id == group_id and _alive(world, uid) is not None:
            return plan.group
    return None


def charges(world: World, record: IntentRecord) -> tuple[ObservedGroup, ...]:
    """Return the groups whose objects this intent's step writes.

    One intent writes for all: of those that are planned in the group the one with the smallest
    uid, and where nobody is, the smallest uid of its owners.
    """
    plan = world.fleet.current.by_uid.get(record.uid)
    ids = set(owned_groups(world, record))
    if plan is not None and plan.group is not None:
        ids.add(plan.group.id)
    found = []
    for id_ in sorted(ids):
        decision = planned(world, namespace=record.namespace, group_id=id_)
        deployment = group_deployment(world, namespace=record.namespace, group_id=id_)
        owners = deployment.owner_uids if deployment else ()
        writers = [
            uid
            for uid in (decision.members if decision else owners)
            if (alive := _alive(world, uid)) is not None and alive.namespace == record.namespace
        ]
        if writers and min(writers) == record.uid:
            found.append(_gather(world, record.namespace, id_, decision))
    return tuple(found)


def _alive(world: World, uid: str) -> IntentRecord | None:
    record = world.caches.inferenceintents.by_uid(uid)
    return record if record is not None and not record.deleting else None


def _gather(
    world: World, namespace: str, group_id: str, decision: GroupPlan | None
) -> ObservedGroup:
    caches = world.caches
    deployment = group_deployment(world, namespace=namespace, group_id=group_id)
    uids = {*(decision.members if decision else ()), *(deployment.owner_uids if deployment else ())}
    records = [r for uid in uids if (r := _alive(world, uid)) and r.namespace == namespace]
    pods = tuple(
        p
        for p in _here(caches.pods.owned_by(group_id), namespace, group_id)
        if p.labels.get(COMPONENT_LABEL) == "worker"
    )
    others = {
        kind: record
        for kind, cache in (
            ("Service", caches.services),
            ("NetworkPolicy", caches.networkpolicies),
            ("PodDisruptionBudget", caches.poddisruptionbudgets),
        )
        for record in _here(cache.owned_by(group_id), namespace, group_id)
    }
    return ObservedGroup(
        id=group_id,
        namespace=namespace,
        plan=decision,
        members=tuple(
            _member(world, record, group_id)
            for record in sorted(records, key=lambda r: (r.created, r.uid))
        ),
        deployment=deployment,
        pods=pods,
        workers={p.uid: world.worker_states[p.uid] for p in pods if p.uid in world.worker_states},
        model_sets=tuple(_here(caches.configmaps.owned_by(group_id), namespace, group_id)),
        others=others,
        several_nodes=sum(usable(n, settings=world.settings) for n in caches.nodes) > 1,
    )


def _here(records: Iterable[_R], namespace: str, group_id: str) -> list[_R]:
    return [
        r for r in records if r.namespace == namespace and r.labels.get(GROUP_LABEL) == group_id
    ]


def _member(world: World, record: IntentRecord, group_id: str) -> ObservedMember:
    try:
        intent = parse_intent(record)
    except ValidationError:
        intent = None
    plan = world.fleet.of(record.uid, generation=record.generation)
    here = plan is not None and plan.group is not None and plan.group.id == group_id
    owned = bool(world.caches.deployments.owned_by(record.uid))
    progress = world.fingerprints.progress(record.uid, plan, first_rollout=not owned)
    violation = intent is None or first_violation(
        Admission(
            intent=intent,
            settings=world.settings,
            name_taken_by=_taken_by(world, record),
        )
    )
    service = world.routed(record.namespace, model_name(record))
    return ObservedMember(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        intent=intent,
        plan=plan,
        joins=here and not progress.hold and not violation,
        moved=service not in ("", object_names.group_worker(group_id)),
        paused=record.annotations.get(PAUSED_ANNOTATION) == "true",
        hold_ends_in_seconds=progress.hold_ends_in_seconds,
        takes_replicas=record.annotations.get(REPLICAS_ANNOTATION) == "Trimtab",
    )


def _taken_by(world: World, record: IntentRecord) -> str:
    oldest = world.oldest_namesake(record.namespace, model_name(record))
    return "" if oldest is None or oldest.uid == record.uid else oldest.name
