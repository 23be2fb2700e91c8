"""What is kept of each watched object: projections, not whole bodies (operator.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NewType

from trimtab.api.v1alpha1.names import (
    ANCHORS,
    GROUP,
    GROUP_LABEL,
    MANAGED_BY_LABEL,
    OPERATOR,
    OWNER_UID_LABEL,
)
from trimtab.observe.digests import digest
from trimtab.observe.gpus import NodeGpus, of_node
from trimtab.observe.quantities import QuantityError, byte_count, millicores

Uid = NewType("Uid", str)
Body = Mapping[str, Any]
"""An object of the API server; its fields are untyped there too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every object has.

    `fingerprint` changes when anything changes that Trimtab may own: `metadata.generation` where
    the kind has one, else the content, and our labels and annotations in either case.
    """

    namespace: str
    name: str
    uid: Uid
    resource_version: int
    generation: int
    created: str
    deleting: bool
    owner_uids: tuple[Uid, ...]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    fingerprint: str

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def ours(self) -> bool:
        """Whether the operator manages this object."""
        return self.labels.get(MANAGED_BY_LABEL) == OPERATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentRecord(Record):
    """An InferenceIntent as stored; `spec` and `status` are raw."""

    spec: Body
    status: Body
    finalizers: tuple[str, ...]
    deleting_since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord(Record):
    """A worker Deployment."""

    replicas: int
    ready_replicas: int
    updated_replicas: int
    available_replicas: int
    observed_generation: int
    plan_digest: str
    foreign_replicas_manager: str
    """Who else owns `spec.replicas`; empty where nobody does."""
    problem: str
    """Message of a failed condition (ReplicaFailure, Progressing=False); empty where none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord(Record):
    """An inspection or fingerprint Job."""

    complete: bool
    failed: bool
    problem: str
    finished_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended last."""

    reason: str
    exit_code: int
    message: str
    finished_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord(Record):
    """A pod of ours, with the first container's state."""

    node: str
    address: str
    ready: bool
    waiting_reason: str
    waiting_message: str
    ended: Ended | None
    """The container's last or present end."""
    running: bool
    restarts: int
    unschedulable: str
    """What the scheduler says of a pod that it cannot place; empty otherwise."""
    unschedulable_since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapRecord(Record):
    """A ConfigMap of ours, with its data."""

    data: Mapping[str, str]
    foreign_keys: frozenset[str] = frozenset()
    """Keys of ``data`` that somebody else than the operator wrote or adopted, or that nobody owns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord(Record):
    """A node's capacity."""

    ready: bool
    cordoned: bool
    taints: tuple[tuple[str, str, str], ...]
    """Key, value and effect of those that keep pods away."""
    allocatable_millicores: int
    allocatable_bytes: int
    cpu_model: str
    gpus: NodeGpus | None = None
    """None where it has none."""


LAST_USED_ANNOTATION: Final = f"{GROUP}/last-used"
"""When a plan could last be made from a measurement, to the day."""
_OPERATORS: Final = frozenset({OPERATOR, ANCHORS})
_LAST_APPLIED: Final = "f:kubectl.kubernetes.io/last-applied-configuration"
CPU_MODEL_LABELS: Final = (f"{GROUP}/cpu-model", "feature.node.kubernetes.io/cpu-model.name")


def _common(body: Body) -> dict[str, Any]:
    meta = body.get("metadata") or {}
    labels = dict(meta.get("labels") or {})
    annotations = {
        k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(f"{GROUP}/")
    }
    owners = [Uid(o["uid"]) for o in meta.get("ownerReferences") or () if o.get("uid")]
    if labelled := labels.get(OWNER_UID_LABEL):
        owners.append(Uid(labelled))
    if shared := labels.get(GROUP_LABEL):
        # A group's pods are found by its id: their only owner is a ReplicaSet.
        owners.append(Uid(shared))
    generation = int(meta.get("generation") or 0)
    content: Any = generation or [body.get("data"), body.get("spec"), body.get("immutable")]
    ours = {k: v for k, v in labels.items() if k.startswith((GROUP, "app.kubernetes.io/"))}
    return {
        "namespace": meta.get("namespace") or "",
        "name": meta.get("name") or "",
        "uid": Uid(meta.get("uid") or ""),
        "resource_version": _version(meta.get("resourceVersion")),
        "generation": generation,
        "created": meta.get("creationTimestamp") or "",
        "deleting": bool(meta.get("deletionTimestamp")),
        "owner_uids": tuple(dict.fromkeys(owners)),
        "labels": labels,
        "annotations": annotations,
        "fingerprint": digest([content, ours, annotations]),
    }


def _version(text: Any) -> int:
    """Order of resourceVersions: integers that grow, by promise of the API since 1.35."""
    return int(text) if str(text or "").isdigit() else 0


def generic(body: Body) -> Record:
    """Project any object."""
    return Record(**_common(body))


def intent(body: Body) -> IntentRecord:
    """Project an InferenceIntent."""
    meta = body.get("metadata") or {}
    return IntentRecord(
        **_common(body),
        spec=body.get("spec") or {},
        status=body.get("status") or {},
        finalizers=tuple(meta.get("finalizers") or ()),
        deleting_since=meta.get("deletionTimestamp") or "",
    )


def deployment(body: Body) -> DeploymentRecord:
    """Project a Deployment."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    template = ((spec.get("template") or {}).get("metadata") or {}).get("annotations") or {}
    return DeploymentRecord(
        **_common(body),
        replicas=int(spec.get("replicas", 1)),
        ready_replicas=int(status.get("readyReplicas") or 0),
        updated_replicas=int(status.get("updatedReplicas") or 0),
        available_replicas=int(status.get("availableReplicas") or 0),
        observed_generation=int(status.get("observedGeneration") or 0),
        plan_digest=template.get(f"{GROUP}/plan-digest", ""),
        foreign_replicas_manager=_replicas_manager(body),
        problem=_deployment_problem(status),
    )


def _replicas_manager(body: Body) -> str:
    for entry in (body.get("metadata") or {}).get("managedFields") or ():
        fields = entry.get("fieldsV1") or {}
        if "f:replicas" in (fields.get("f:spec") or {}) and entry.get("manager") != OPERATOR:
            return str(entry.get("manager") or "unknown")
    return ""


def _deployment_problem(status: Body) -> str:
    for condition in status.get("conditions") or ():
        failed = (condition.get("type"), condition.get("status"))
        if failed in (("ReplicaFailure", "True"), ("Progressing", "False")):
            return str(condition.get("message") or "")
    return ""


def job(body: Body) -> JobRecord:
    """Project a Job."""
    status = body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    failed = _true(conditions.get("Failed")) or _true(conditions.get("FailureTarget"))
    verdict = conditions.get("Failed") or conditions.get("FailureTarget") or {}
    done = conditions.get("Complete") or verdict
    return JobRecord(
        **_common(body),
        complete=_true(conditions.get("Complete")),
        failed=failed,
        problem=f"{verdict.get('reason', '')}: {verdict.get('message', '')}" if failed else "",
        finished_at=str(done.get("lastTransitionTime") or ""),
    )


def _true(condition: Body | None) -> bool:
    return bool(condition) and (condition or {}).get("status") == "True"


def pod(body: Body) -> PodRecord:
    """Project a pod; an init container that waits or failed stands in for the first container."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    main: Body = (status.get("containerStatuses") or [{}])[0]
    for init in status.get("initContainerStatuses") or ():
        state = init.get("state") or {}
        if "waiting" in state or (state.get("terminated") or {}).get("exitCode", 0) != 0:
            main = init
            break
    state, last = main.get("state") or {}, main.get("lastState") or {}
    waiting = state.get("waiting") or {}
    scheduled = conditions.get("PodScheduled") or {}
    common = _common(body)
    unplaced = scheduled.get("status") == "False" and status.get("phase") == "Pending"
    return PodRecord(
        **common,
        node=spec.get("nodeName") or "",
        address=status.get("podIP") or "",
        ready=_true(conditions.get("Ready")),
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        ended=_ended(state.get("terminated") or last.get("terminated")),
        running="running" in state,
        restarts=int(main.get("restartCount") or 0),
        unschedulable=(
            str(scheduled.get("message") or scheduled.get("reason") or "") if unplaced else ""
        ),
        unschedulable_since=(
            str(scheduled.get("lastTransitionTime") or common["created"]) if unplaced else ""
        ),
    )


def _ended(terminated: Body | None) -> Ended | None:
    if not terminated:
        return None
    return Ended(
        reason=terminated.get("reason") or "",
        exit_code=int(terminated.get("exitCode") or 0),
        message=terminated.get("message") or "",
        finished_at=terminated.get("finishedAt") or "",
    )


def config_map(body: Body) -> ConfigMapRecord:
    """Project a ConfigMap of ours."""
    return ConfigMapRecord(
        **_common(body), data=dict(body.get("data") or {}), foreign_keys=_foreign_keys(body)
    )


def _foreign_keys(body: Body) -> frozenset[str]:
    keys = frozenset(body.get("data") or {})
    ours: set[str] = set()
    others: set[str] = set()
    for entry in (body.get("metadata") or {}).get("managedFields") or ():
        fields = entry.get("fieldsV1") or {}
        written = {key.removeprefix("f:") for key in fields.get("f:data") or ()}
        if entry.get("manager") in _OPERATORS:
            ours |= written
            continue
        others |= written
        # Who applies what is there already, as `kubectl apply` does, owns nothing but this.
        if _LAST_APPLIED in ((fields.get("f:metadata") or {}).get("f:annotations") or {}):
            others |= keys
    return frozenset(others | (keys - ours))


def node(body: Body) -> NodeRecord:
    """Project a node; capacity that cannot be read counts as none."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    allocatable = status.get("allocatable") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    labels = (body.get("metadata") or {}).get("labels") or {}
    try:
        cpu = millicores(allocatable.get("cpu", "0"))
        memory = byte_count(allocatable.get("memory", "0"))
    except QuantityError:
        cpu = memory = 0
    taints = tuple(
        (t.get("key") or "", t.get("value") or "", t["effect"])
        for t in spec.get("taints") or ()
        if t.get("effect") in ("NoSchedule", "NoExecute")
    )
    ready, cordoned = _true(conditions.get("Ready")), bool(spec.get("unschedulable"))
    common = _common(body)
    gpus = of_node(labels, allocatable)
    return NodeRecord(
        # A node's status changes every few minutes; only what planning reads is a change.
        **(
            common
            | {"fingerprint": digest([cpu, memory, taints, labels, ready, cordoned, repr(gpus)])}
        ),
        ready=ready,
        cordoned=cordoned,
        taints=taints,
        allocatable_millicores=cpu,
        allocatable_bytes=memory,
        cpu_model=next((labels[key] for key in CPU_MODEL_LABELS if labels.get(key)), ""),
        gpus=gpus,
    )
