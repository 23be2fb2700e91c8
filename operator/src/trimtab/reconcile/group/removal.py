"""What goes of a group's objects: all of them at its end, and what no pod reads any more."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.names import PLAN_DIGEST_ANNOTATION
from trimtab.kube import names as object_names
from trimtab.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    SERVICE,
)
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.kube.resources import Resource
    from trimtab.observe.groups import ObservedGroup
    from trimtab.observe.records import Record
    from trimtab.reconcile.inferenceintent.children import Built

_KINDS: Final[Mapping[str, Resource]] = {
    r.kind: r for r in (SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET)
}


def ended(group: ObservedGroup) -> tuple[Deletion, ...]:
    """Return the removal of a worker that serves nobody any more.

    Whoever is not known to be served elsewhere keeps it: a plan that is being made anew, or that
    has no option, never removes what serves.
    """
    if group.plan is not None or not all(member.moved for member in group.members):
        return ()
    gone = [_unchanged(CONFIG_MAP, record) for record in group.model_sets]
    gone += [_unchanged(_KINDS[kind], record) for kind, record in sorted(group.others.items())]
    if group.deployment is not None:
        gone.insert(0, _unchanged(DEPLOYMENT, group.deployment))
    return tuple(gone)


def outdated(group: ObservedGroup, built: Built) -> tuple[Deletion, ...]:
    """Return sets that no pod reads any more, and a disruption budget that nothing needs."""
    used = {built.model_set_name}
    digests = {pod.annotations.get(PLAN_DIGEST_ANNOTATION) for pod in group.pods}
    deployment = group.deployment
    if deployment is not None:
        digests.add(deployment.plan_digest)
    used |= {object_names.model_set(built.deployment_name, d) for d in digests if d}
    rolling = deployment is not None and (
        deployment.observed_generation < deployment.generation
        or deployment.updated_replicas < deployment.replicas
        or deployment.available_replicas < deployment.replicas
    )
    old = [
        _deletion(CONFIG_MAP, record)
        for record in group.model_sets
        # While it rolls, an old pod that is evicted comes back as an old one and reads its set.
        if record.name not in used and not rolling
    ]
    budget = group.others.get(DISRUPTION_BUDGET.kind)
    if budget is not None and not any(m["kind"] == DISRUPTION_BUDGET.kind for m in built.manifests):
        old.append(_deletion(DISRUPTION_BUDGET, budget))
    return tuple(old)


def _deletion(resource: Resource, record: Record) -> Deletion:
    return Deletion(resource=resource, namespace=record.namespace, name=record.name, uid=record.uid)


def _unchanged(resource: Resource, record: Record) -> Deletion:
    """Return the deletion of an object that nobody, such as an intent that joins, has written since."""
    return dataclasses.replace(
        _deletion(resource, record), resource_version=str(record.resource_version or "")
    )
