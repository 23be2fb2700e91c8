"""One step of an intent: from what was observed to what is wanted, by lifecycle step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.conditions import Condition, ConditionType, with_ready
from trimtab.api.v1alpha1.names import (
    PAUSED_ANNOTATION,
    PLAN_DIGEST_ANNOTATION,
    REPLICAS_ANNOTATION,
)
from trimtab.api.v1alpha1.reasons import Reason
from trimtab.kube import names as object_names
from trimtab.kube.resources import CHILDREN, CONFIG_MAP, DISRUPTION_BUDGET, JOB
from trimtab.reconcile.group.decide import decide_group
from trimtab.reconcile.inferenceintent import children, jobs, status, verdicts
from trimtab.reconcile.inferenceintent.policies import Admission, Violation, first_violation
from trimtab.reconcile.inferenceintent.rollout import in_force, next_rollout
from trimtab.reconcile.inferenceintent.sources import mount
from trimtab.reconcile.inferenceintent.transitions import transitions
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.plan import Deletion, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
    from trimtab.kube.resources import Manifest, Resource
    from trimtab.observe.intents import ObservedIntent
    from trimtab.observe.records import Record
    from trimtab.reconcile.group.decide import GroupStep
    from trimtab.reconcile.inferenceintent.children import Built
    from trimtab.reconcile.inferenceintent.rollout import Rollout
    from trimtab.settings import Settings

KIND: Final = "InferenceIntent"
_BY_PLURAL: Final = {resource.plural: resource for resource in CHILDREN}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What one lifecycle step adds to the plan."""

    desired: tuple[Manifest, ...] = ()
    deletions: tuple[Deletion, ...] = ()


def decide(observed: ObservedIntent, *, settings: Settings) -> Plan:
    """Return the plan of one step; pure, so equal observations give equal plans."""
    intent = observed.intent
    if intent is None:
        return _unreadable(observed)
    violation = first_violation(
        Admission(intent=intent, settings=settings, name_taken_by=observed.name_taken_by)
    )
    paused = observed.record.annotations.get(PAUSED_ANNOTATION) == "true"
    read = _Wanted() if violation or paused else _read(observed, intent, settings=settings)
    # What is not allowed (any more) rolls nothing out; what serves stays as it is.
    built = None if violation else _built(observed, intent, settings=settings)
    serve = _Wanted() if paused or built is None else _serve(observed, built)
    if not paused and not violation:
        serve = _Wanted(desired=serve.desired, deletions=(*serve.deletions, *_left(observed)))
    # A group's objects are its members' together: one that is paused or refused holds up nobody.
    groups = {group.id: decide_group(group, settings=settings) for group in observed.charges}
    built = built or _group_built(observed, groups)
    conditions = with_ready(
        KIND,
        _conditions(observed, intent, violation=violation, built=built, paused=paused),
    )
    kept = _keeps_plan(observed)
    return Plan(
        desired=(*read.desired, *serve.desired, *(m for g in groups.values() for m in g.desired)),
        deletions=(
            *read.deletions,
            *serve.deletions,
            *(d for g in groups.values() for d in g.deletions),
        ),
        status=status.build(
            observed,
            endpoint=settings.endpoint,
            plan_digest=built.digest if built else "",
        )
        | kept,
        conditions=conditions,
        events=transitions(observed.record, conditions),
        blames=ConditionType.PLACED if built else ConditionType.PLANNED,
        requeue_after_seconds=_appointment(observed),
        fleet_revision=observed.fleet_revision,
    )


def _appointment(observed: ObservedIntent) -> float | None:
    """Return when time alone changes the decision."""
    times = [
        observed.inspection.retry_in_seconds if observed.inspection else None,
        observed.fingerprints.hold_ends_in_seconds,
        observed.unplaced.next_in_seconds,
        *(m.hold_ends_in_seconds for group in observed.charges for m in group.members),
    ]
    return min((t for t in times if t is not None), default=None)


def _keeps_plan(observed: ObservedIntent) -> Manifest:
    """While the planner has nothing for this generation, the last plan stays shown.

    It still describes what serves, and a status that empties and fills again would be two writes.
    """
    if observed.plan is not None:
        return {}
    old = observed.record.status
    return {field: old[field] for field in ("plan", "alternatives") if field in old}


def _unreadable(observed: ObservedIntent) -> Plan:
    message = (
        f"the stored object does not fit this release's schema ({observed.parse_error}). "
        "Update the CRDs to this release, or correct the object."
    )
    conditions = with_ready(
        KIND,
        [
            verdicts.condition(
                observed, ConditionType.PLANNED, "False", Reason.INVALID_OBJECT, message
            )
        ],
    )
    return Plan(
        status={"observedGeneration": observed.record.generation},
        conditions=conditions,
        events=transitions(observed.record, conditions),
    )


def _conditions(
    observed: ObservedIntent,
    intent: InferenceIntent,
    *,
    violation: Violation | None,
    built: Built | None,
    paused: bool,
) -> list[Condition]:
    placed = verdicts.placed(
        observed, wants_rollout=built is not None, plan_digest=built.digest if built else ""
    )
    outdated = observed.deployment is None or (
        built is not None and observed.deployment.plan_digest != built.digest
    )
    if paused and outdated:
        message = (
            f"annotation {PAUSED_ANNOTATION} is true, so its objects stay as they are. "
            "Remove the annotation to go on."
        )
        placed = verdicts.condition(observed, ConditionType.PLACED, "False", Reason.PAUSED, message)
    return [
        verdicts.fingerprinted(observed, violation=violation),
        verdicts.planned(observed, violation=violation),
        placed,
        verdicts.serving(observed, public_name=intent.public_name),
        verdicts.within_target(observed),
    ]


def owner_of(record: Record) -> Owner:
    """Return the intent as the owner of its objects."""
    return Owner(namespace=record.namespace, name=record.name, uid=record.uid)


def _read(observed: ObservedIntent, intent: InferenceIntent, *, settings: Settings) -> _Wanted:
    """Inspect the model, keep the verdict, clear away what served for that."""
    inspection = observed.inspection
    if inspection is None:
        return _Wanted()
    owner = owner_of(observed.record)
    mounted = mount(intent.spec.model.source, settings=settings, headers_only=True)
    desired: list[Manifest] = []
    keep_job = inspection.job_name
    if inspection.message:
        desired.append(
            jobs.facts_config_map(
                owner=owner,
                source=inspection.source_digest,
                message=inspection.message,
                node=inspection.node,
                settings=settings,
            )
        )
    elif inspection.state == "Absent" or inspection.retry_due:
        attempt = inspection.attempt + 1 if inspection.retry_due else inspection.attempt
        job = jobs.inspection_job(
            owner=owner,
            mounted=mounted,
            source=inspection.source_digest,
            attempt=attempt,
            generation=observed.record.generation,
            settings=settings,
        )
        keep_job = job["metadata"]["name"]
        desired += [jobs.reading_policy(owner=owner, mounted=mounted, component="inspection"), job]
    elif inspection.state == "Done":
        keep_job = ""
    facts = jobs.facts_name(owner, source=inspection.source_digest)
    old = [_deletion(JOB, job) for job in observed.jobs if job.name != keep_job]
    if inspection.facts is not None:
        # Facts of a former source go once the present one was read.
        old += [_deletion(CONFIG_MAP, cm) for cm in observed.facts if cm.name != facts]
    return _Wanted(desired=tuple(desired), deletions=tuple(old))


def _built(
    observed: ObservedIntent, intent: InferenceIntent, *, settings: Settings
) -> Built | None:
    """Return the worker's objects, None while there is nothing to place.

    A plan without an option creates nothing new and removes nothing that serves.
    """
    plan = observed.plan
    if plan is None or plan.option is None or plan.group is not None:
        return None
    deployment = observed.deployment
    if deployment is None and observed.fingerprints.hold:
        return None
    before = in_force(deployment, observed.model_sets) if deployment else None
    step = observed.step
    rollout = next_rollout(plan, before=before, several_nodes=observed.several_nodes)
    if step is not None and before is not None and step.config == before.config:
        # A move that is held: what runs stays as it is. A count that is held changes no size.
        rollout = before if step.config != plan.option.config else rollout
    if rollout is None:
        return None
    rollout = replace(rollout, surge=_surges(observed, before, rollout))
    replicas = step.replicas if step is not None else plan.option.replicas
    return children.build(
        children.Placement(
            owner=owner_of(observed.record),
            public_name=intent.public_name,
            rollout=rollout,
            replicas=_replicas(observed, replicas),
            several=_count(observed, replicas) > 1,
            mounted=mount(intent.spec.model.source, settings=settings, headers_only=False),
            settings=settings,
        )
    )


def _surges(observed: ObservedIntent, before: Rollout | None, rollout: Rollout) -> bool:
    """Tell whether new replicas start beside old ones; a move that began without room goes on so.

    On ``cpu`` they always do: a pod requests a tenth of its threads.
    """
    step = observed.step
    if rollout.config.product == "cpu":
        return True
    if step is not None and step.kind == "Move":
        return step.mode == "MakeBeforeBreak"
    return before is None or before.surge or not _rolling(observed)


def _group_built(observed: ObservedIntent, groups: Mapping[str, GroupStep]) -> Built | None:
    """Return what this step builds for the group that the intent is planned in."""
    group = observed.plan.group if observed.plan else None
    return groups[group.id].built if group is not None and group.id in groups else None


def _left(observed: ObservedIntent) -> tuple[Deletion, ...]:
    """Return the worker of its own that an intent has left: gateways send requests to its group."""
    group = observed.plan.group if observed.plan else None
    if group is None or observed.routed != object_names.group_worker(group.id):
        return ()
    return tuple(_deletion(_BY_PLURAL[plural], record) for plural, record in observed.own)


def _replicas(observed: ObservedIntent, planned: int) -> int | None:
    """Leave replicas to whoever else set them, until the annotation takes them back."""
    deployment = observed.deployment
    taken = deployment is not None and bool(deployment.foreign_replicas_manager)
    back = observed.record.annotations.get(REPLICAS_ANNOTATION) == "Trimtab"
    return None if taken and not back else planned


def _count(observed: ObservedIntent, planned: int) -> int:
    """Return how many replicas there will be, whoever sets them."""
    left_alone = _replicas(observed, planned) is None
    return observed.deployment.replicas if observed.deployment and left_alone else planned


def _serve(observed: ObservedIntent, built: Built) -> _Wanted:
    in_use = {pod.annotations.get(PLAN_DIGEST_ANNOTATION) for pod in observed.pods}
    used_names = {
        object_names.model_set(built.deployment_name, digest) for digest in in_use if digest
    } | {built.model_set_name}
    if observed.deployment is not None and observed.deployment.plan_digest:
        # Until the new template is applied, the old one may still start pods.
        used_names.add(
            object_names.model_set(built.deployment_name, observed.deployment.plan_digest)
        )
    old = [
        _deletion(CONFIG_MAP, cm)
        for cm in observed.model_sets
        # While it rolls, an old pod that is evicted comes back as an old one and reads its set.
        if cm.name not in used_names and not _rolling(observed)
    ]
    wants_budget = any(m["kind"] == "PodDisruptionBudget" for m in built.manifests)
    if observed.budget is not None and not wants_budget:
        old.append(_deletion(DISRUPTION_BUDGET, observed.budget))
    return _Wanted(desired=built.manifests, deletions=tuple(old))


def _rolling(observed: ObservedIntent) -> bool:
    """Whether replica sets of former templates may still start pods."""
    deployment = observed.deployment
    return deployment is not None and (
        deployment.observed_generation < deployment.generation
        or deployment.updated_replicas < deployment.replicas
        or deployment.available_replicas < deployment.replicas
    )


def _deletion(resource: Resource, record: Record) -> Deletion:
    return Deletion(resource=resource, namespace=record.namespace, name=record.name, uid=record.uid)
