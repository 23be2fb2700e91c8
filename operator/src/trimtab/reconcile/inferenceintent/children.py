"""The objects of a placed intent, as pure builders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1 import names
from trimtab.kube import names as object_names
from trimtab.observe.digests import digest
from trimtab.reconcile.inferenceintent.rollout import ANNOTATION
from trimtab.reconcile.inferenceintent.sources import MODEL_ROOT
from trimtab.reconcile.labels import Owner, labels
from trimtab.reconcile.pods import container, pod_spec, resources

if TYPE_CHECKING:
    from trimtab.kube.resources import Manifest
    from trimtab.reconcile.inferenceintent.rollout import Rollout
    from trimtab.reconcile.inferenceintent.sources import Mounted
    from trimtab.settings import Settings

CONFIG_FOLDER: Final = "/etc/trimtab/model-set"
MODELS_KEY: Final = "models.json"
HTTP_PORT, ADMIN_PORT, METRICS_PORT = 8000, 8001, 8002
_STARTUP_SECONDS: Final = 900
_GRACE_EXTRA_SECONDS: Final = 15
_PRE_STOP_SECONDS: Final = 5
"""Until every gateway has seen the endpoint go, the pod still answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What the worker's objects are built from."""

    owner: Owner
    public_name: str
    rollout: Rollout
    replicas: int | None
    """None leaves the field to another manager."""
    several: bool
    """Whether there is more than one replica, so that a disruption can be bounded."""
    mounted: Mounted
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The objects in the order in which they are applied, and the digest they carry."""

    digest: str
    manifests: tuple[Manifest, ...]
    deployment_name: str
    model_set_name: str


def build(placement: Placement) -> Built:
    """Return NetworkPolicy, model set, Service, Deployment and, if useful, disruption budget."""
    owner = placement.owner
    name = object_names.deployment(owner.name, owner.uid)
    model_set = _model_set(placement)
    template = _template(placement)
    plan_digest = digest([template, model_set])
    config_name = object_names.model_set(name, plan_digest)
    for volume in template["spec"]["volumes"]:
        if volume["name"] == "model-set":
            volume["configMap"]["name"] = config_name
    template["metadata"]["annotations"] = {names.PLAN_DIGEST_ANNOTATION: plan_digest}
    manifests = [
        _network_policy(placement, name),
        _config_map(placement, config_name, model_set),
        _service(placement, name),
        _deployment(placement, name, template),
    ]
    if placement.several:
        manifests.append(_disruption_budget(placement, name))
    return Built(
        digest=plan_digest,
        manifests=tuple(manifests),
        deployment_name=name,
        model_set_name=config_name,
    )


def metadata(name: str, *, owner: Owner, extra: dict[str, Any] | None = None) -> Manifest:
    """Return the metadata of a worker's object."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels("worker", owner=owner),
        "ownerReferences": [owner.reference()],
        **(extra or {}),
    }


def selector(owner: Owner) -> dict[str, str]:
    """Return what tells an intent's worker pods from all others."""
    return {names.COMPONENT_LABEL: "worker", names.OWNER_UID_LABEL: owner.uid}


def _model_set(placement: Placement) -> Manifest:
    rollout = placement.rollout
    return {
        "v": 1,
        "revision": 1,
        "device": "cpu",
        "threads": rollout.config.threads,
        "memory_bytes": rollout.arena_bytes,
        "max_model_len": rollout.max_model_len,
        "max_batch_tokens": rollout.max_batch_tokens,
        "max_seqs": rollout.max_seqs,
        "pressure": "recompute",
        "limits": {"min_resident_units": 2, "active_cap": 0.25},
        "advice": None,
        "models": [
            {
                "name": placement.public_name,
                "path": placement.mounted.path,
                "dtype": rollout.config.precision,
                "chat_template": None,
            }
        ],
    }


def _config_map(placement: Placement, name: str, model_set: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(name, owner=placement.owner),
        "data": {MODELS_KEY: json.dumps(model_set, sort_keys=True)},
    }


def _service(placement: Placement, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, owner=placement.owner),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(placement.owner),
            "ports": [
                {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }


def _template(placement: Placement) -> Manifest:
    rollout, settings = placement.rollout, placement.settings
    threads = rollout.config.threads
    command = ["python", "-m", "trimtab_workers.server"]
    command += ["--config", f"{CONFIG_FOLDER}/{MODELS_KEY}", "--model-root", MODEL_ROOT]
    command += ["--shutdown-timeout", str(rollout.drain_seconds)]
    worker = container(
        name="worker",
        defaults=settings.pod_defaults,
        image=settings.image,
        command=command,
        limits=resources(threads=threads, memory_bytes=rollout.memory_bytes),
        env=(
            _field("TRIMTAB_POD_NAME", "metadata.name"),
            _field("TRIMTAB_POD_UID", "metadata.uid"),
            {"name": "OMP_NUM_THREADS", "value": str(threads)},
        ),
        mounts=(
            {"name": "model-set", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *placement.mounted.mounts,
        ),
    )
    worker |= _serving()
    spec = pod_spec(
        defaults=settings.pod_defaults,
        containers=[worker],
        init_containers=placement.mounted.fetch,
        volumes=(
            # The name is filled in once the digest of template and model set is known.
            {"name": "model-set", "configMap": {"name": ""}},
            *placement.mounted.volumes,
        ),
        grace_seconds=rollout.drain_seconds + _PRE_STOP_SECONDS + _GRACE_EXTRA_SECONDS,
    )
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(placement.owner)},
        }
    ]
    if rollout.nodes:
        spec["affinity"] = _prefer(rollout.nodes)
    return {"metadata": {"labels": labels("worker", owner=placement.owner)}, "spec": spec}


def _serving() -> Manifest:
    return {
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": _STARTUP_SECONDS // 2,
        },
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": _PRE_STOP_SECONDS}}},
    }


def _field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _prefer(nodes: tuple[str, ...]) -> Manifest:
    """Prefer the planned nodes; the scheduler may differ, so that a lost node needs no operator."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    term = {"weight": 100, "preference": {"matchExpressions": [expression]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}


def _deployment(placement: Placement, name: str, template: Manifest) -> Manifest:
    spec: Manifest = {
        "selector": {"matchLabels": selector(placement.owner)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": _STARTUP_SECONDS,
        "template": template,
    }
    if placement.replicas is not None:
        spec["replicas"] = placement.replicas
    annotations = {ANNOTATION: placement.rollout.to_json()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(name, owner=placement.owner, extra={"annotations": annotations}),
        "spec": spec,
    }


def _disruption_budget(placement: Placement, name: str) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(name, owner=placement.owner),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(placement.owner)}},
    }


def _network_policy(placement: Placement, name: str) -> Manifest:
    """Return exactly the flows of joints.md section 1 that end or begin at a worker."""
    system = placement.settings.system_namespace
    egress = [dict(rule) for rule in placement.mounted.egress]
    peers = [dict(peer) for peer in placement.settings.metrics_peers]
    metrics = {"from": peers, "ports": [{"port": METRICS_PORT, "protocol": "TCP"}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(name, owner=placement.owner),
        "spec": {
            "podSelector": {"matchLabels": selector(placement.owner)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                _from_system("gateway", system, HTTP_PORT),
                _from_system("operator", system, ADMIN_PORT),
                # An empty `from` would let everybody in.
                *([metrics] if peers else []),
            ],
            # Written only where it holds rules: an empty list is stored as none, and every
            # re-apply of it would be a change.
            **({"egress": egress} if egress else {}),
        },
    }


def _from_system(component: str, namespace: str, port: int) -> Manifest:
    return {
        "from": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "podSelector": {
                    "matchLabels": {
                        names.NAME_LABEL: "trimtab",
                        names.COMPONENT_LABEL: component,
                    }
                },
            }
        ],
        "ports": [{"port": port, "protocol": "TCP"}],
    }
