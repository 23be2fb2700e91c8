"""What the operator may do, as data: the chart's roles are compared with this table by a test.

No wildcards and no Secrets at all (tokens reach pods by secretKeyRef, which needs no right).
RBAC cannot limit list and watch by label: ConfigMaps are only ever listed and watched with the
selector `app.kubernetes.io/part-of=trimtab`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Scope = Literal["cluster", "system"]
"""`cluster`: ClusterRole and ClusterRoleBinding; `system`: Role in Trimtab's own namespace."""

Subject = Literal["operator", "release"]
"""`release`: the post-delete hook that runs `trimtab finalizers release`."""

_READ: Final = ("get", "list", "watch")
_OWN: Final = ("get", "list", "watch", "create", "patch", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: who may use which verbs on which resource, where, and why."""

    subject: Subject
    api_group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    why: str
    resource_names: tuple[str, ...] = field(default=())


LEASE_NAME_PLACEHOLDER: Final = "$TRIMTAB_LEASE_NAME"
"""Stands for the value of TRIMTAB_LEASE_NAME in `Rule.resource_names`."""


def _operator(
    api_group: str,
    resource: str,
    verbs: tuple[str, ...],
    why: str,
    *,
    scope: Scope = "cluster",
    resource_names: tuple[str, ...] = (),
) -> Rule:
    return Rule(
        subject="operator",
        api_group=api_group,
        resource=resource,
        verbs=verbs,
        scope=scope,
        why=why,
        resource_names=resource_names,
    )


def _release(resource: str) -> Rule:
    return Rule(
        subject="release",
        api_group="trimtab.dev",
        resource=resource,
        verbs=("get", "list", "patch"),
        scope="cluster",
        why="takes Trimtab's finalizer off objects that outlive the operator",
    )


RULES: Final[tuple[Rule, ...]] = (
    _operator(
        "trimtab.dev",
        "inferenceintents",
        (*_READ, "patch"),
        "watched; patch adds and removes the finalizer",
    ),
    _operator(
        "trimtab.dev",
        "inferenceintents/status",
        ("get", "patch"),
        "status is written by server-side apply",
    ),
    _operator(
        "trimtab.dev",
        "inferenceintents/finalizers",
        ("update",),
        "ownerReferences with blockOwnerDeletion",
    ),
    _operator("apps", "deployments", _OWN, "workers of a placed intent"),
    _operator("", "services", _OWN, "address of an intent's workers"),
    _operator(
        "",
        "configmaps",
        _OWN,
        "model sets beside the workers; inspections, fingerprints and routes in the system "
        "namespace; the price book is read",
    ),
    _operator(
        "batch", "jobs", _OWN, "Jobs that inspect, measure steps, and measure what precisions lose"
    ),
    _operator("networking.k8s.io", "networkpolicies", _OWN, "only the gateway reaches workers"),
    _operator("policy", "poddisruptionbudgets", _OWN, "workers with more than one replica"),
    _operator(
        "",
        "pods",
        (*_READ, "patch"),
        "worker and Job states, requests of foreign pods on nodes; patch annotates pods of sharing "
        "groups with the model set's revision, so that kubelets bring it at once",
    ),
    _operator("", "nodes", _READ, "capacity that can be planned on"),
    _operator(
        "",
        "persistentvolumeclaims",
        ("get",),
        "the claims that Shared intents name: which volume each is bound to",
    ),
    _operator(
        "",
        "persistentvolumes",
        ("get",),
        "on which nodes those volumes can be mounted: one worker cannot have two that lie apart",
    ),
    _operator(
        "events.k8s.io", "events", ("create", "patch"), "transitions, shown by kubectl describe"
    ),
    _operator("", "namespaces", ("list", "watch"), "kopf follows namespaces that come and go"),
    _operator(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        ("list", "watch"),
        "kopf starts watching when Trimtab's definitions appear",
    ),
    _operator(
        "coordination.k8s.io",
        "leases",
        ("create",),
        "the first leader creates the Lease; create cannot be limited by name",
        scope="system",
    ),
    _operator(
        "coordination.k8s.io",
        "leases",
        ("get", "update"),
        "leader election",
        scope="system",
        resource_names=(LEASE_NAME_PLACEHOLDER,),
    ),
    _release("inferenceintents"),
    _release("serverlessfunctions"),
    _release("gpuprofiles"),
)
