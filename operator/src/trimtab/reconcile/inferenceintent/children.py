"""The objects of a placed intent, as pure builders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1 import names
from trimtab.kube import names as object_names
from trimtab.observe.digests import digest
from trimtab.reconcile import gpus
from trimtab.reconcile.inferenceintent.sources import MODEL_ROOT
from trimtab.reconcile.labels import Owner, labels
from trimtab.reconcile.pods import container, pod_spec, resources
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION

if TYPE_CHECKING:
    from trimtab.kube.resources import Manifest
    from trimtab.planning.snapshot import Config
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
class Home:
    """Whose a worker's objects are: names, labels and owners.

    Attributes:
        name: Of Deployment, Service, NetworkPolicy and disruption budget.
        labels: Of every object and of the pods.
        selector: Labels that tell its pods from all others.
        owners: The ownerReferences of every object.
    """

    namespace: str
    name: str
    labels: dict[str, str]
    selector: dict[str, str]
    owners: tuple[Manifest, ...]

    def metadata(self, name: str, *, annotations: dict[str, str] | None = None) -> Manifest:
        """Return the metadata of one of its objects."""
        found: Manifest = {
            "name": name,
            "namespace": self.namespace,
            "labels": dict(self.labels),
            "ownerReferences": [dict(owner) for owner in self.owners],
        }
        return found | ({"annotations": annotations} if annotations else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a worker's objects are built from, whether it serves one intent or a group.

    Attributes:
        home: Whose they are.
        config: How it runs.
        memory_bytes: Of the pod.
        drain_seconds: How long running requests may take to end.
        nodes: That are preferred.
        mounted: The models' files.
        replicas: None leaves the field to another manager.
        several: Whether there is more than one replica, so that a disruption can be bounded.
        rollout: Text of the annotation that the roll-out is read back from.
        host_bytes: Files below `/tmp` that its engine keeps; 0 where it keeps none.
        surge: Whether new pods start beside old ones.
    """

    home: Home
    config: Config
    memory_bytes: int
    drain_seconds: int
    nodes: tuple[str, ...]
    mounted: Mounted
    replicas: int | None
    several: bool
    rollout: str
    settings: Settings
    host_bytes: int = 0
    surge: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What an intent's own worker is built from."""

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
    """Return the objects of an intent's own worker."""
    owner, rollout = placement.owner, placement.rollout
    worker = Worker(
        home=Home(
            namespace=owner.namespace,
            name=object_names.deployment(owner.name, owner.uid),
            labels=labels("worker", owner=owner),
            selector=selector(owner),
            owners=(owner.reference(),),
        ),
        config=rollout.config,
        memory_bytes=rollout.memory_bytes,
        drain_seconds=rollout.drain_seconds,
        nodes=rollout.nodes,
        mounted=placement.mounted,
        replicas=placement.replicas,
        several=placement.several,
        rollout=rollout.to_json(),
        settings=placement.settings,
        surge=rollout.surge,
    )
    model_set = _model_set(placement)
    template = pod_template(worker)
    plan_digest = digest([template, model_set])
    return assemble(worker, template, plan_digest=plan_digest, model_set=model_set)


def assemble(
    worker: Worker,
    template: Manifest,
    *,
    plan_digest: str,
    model_set: Manifest,
    set_last: bool = False,
) -> Built:
    """Return NetworkPolicy, model set, Service, Deployment and, if useful, disruption budget.

    Args:
        worker: What they are of.
        template: Of its pods; the name of the model set and the digest are filled in.
        plan_digest: Names the model set, and rolls the pods where it changes.
        model_set: Content of the ConfigMap.
        set_last: The set is for pods that run: whoever is added to it owns everything else first.
    """
    name = worker.home.name
    config_name = object_names.model_set(name, plan_digest)
    for volume in template["spec"]["volumes"]:
        if volume["name"] == "model-set":
            volume["configMap"]["name"] = config_name
    template["metadata"]["annotations"] = {names.PLAN_DIGEST_ANNOTATION: plan_digest}
    content = model_set_map(worker.home, config_name, model_set, rollout=worker.rollout)
    manifests = [
        _network_policy(worker),
        *(() if set_last else (content,)),
        _service(worker.home),
        _deployment(worker, template),
        *((_disruption_budget(worker.home),) if worker.several else ()),
        *((content,) if set_last else ()),
    ]
    return Built(
        digest=plan_digest,
        manifests=tuple(manifests),
        deployment_name=name,
        model_set_name=config_name,
    )


def selector(owner: Owner) -> dict[str, str]:
    """Return what tells an intent's worker pods from all others."""
    return {names.COMPONENT_LABEL: "worker", names.OWNER_UID_LABEL: owner.uid}


def _model_set(placement: Placement) -> Manifest:
    rollout = placement.rollout
    config = rollout.config
    ranks = config.tensor_parallel_size * config.pipeline_parallel_size
    cpu = config.product == "cpu"
    # Of each rank; norms are on every one, and so may be most of a slab of waste. Plans for GPUs are
    # of ranks to begin with, and leave no 2 % of a GPU.
    slack = 102 if cpu and ranks > 1 else 100
    return {
        "v": 1,
        "revision": 1,
        "device": "cpu" if cpu else "cuda",
        "threads": max(1, gpus.threads(config) // ranks),
        **_parallel(rollout),
        "memory_bytes": -(-slack * rollout.arena_bytes // (100 * ranks)),
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


def _parallel(rollout: Rollout) -> dict[str, int]:
    """Return the sizes above 1: a model set without them is what older workers read too."""
    sizes = {
        "tensor_parallel_size": rollout.config.tensor_parallel_size,
        "pipeline_parallel_size": rollout.config.pipeline_parallel_size,
    }
    return {name: size for name, size in sizes.items() if size > 1}


def model_set_map(home: Home, name: str, model_set: Manifest, *, rollout: str) -> Manifest:
    """Return a model set's ConfigMap; the roll-out is kept here as well, should it be edited there."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": home.metadata(name, annotations={ROLLOUT_ANNOTATION: rollout}),
        "data": {MODELS_KEY: json.dumps(model_set, sort_keys=True)},
    }


def _service(home: Home) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": home.metadata(home.name),
        "spec": {
            "type": "ClusterIP",
            "selector": dict(home.selector),
            "ports": [
                {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }


def pod_template(worker: Worker) -> Manifest:
    """Return the template of a worker's pods, without digest and without the model set's name."""
    settings, home = worker.settings, worker.home
    threads = gpus.threads(worker.config)
    command = ["python", "-m", "trimtab_workers.server"]
    command += ["--config", f"{CONFIG_FOLDER}/{MODELS_KEY}", "--model-root", MODEL_ROOT]
    command += ["--shutdown-timeout", str(worker.drain_seconds)]
    main = container(
        name="worker",
        defaults=settings.pod_defaults,
        image=gpus.image(worker.config, settings),
        command=command,
        limits=resources(
            threads=threads, memory_bytes=worker.memory_bytes, disk_bytes=worker.host_bytes
        ),
        env=(
            _field("TRIMTAB_POD_NAME", "metadata.name"),
            _field("TRIMTAB_POD_UID", "metadata.uid"),
            {"name": "OMP_NUM_THREADS", "value": str(threads)},
        ),
        mounts=(
            {"name": "model-set", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *worker.mounted.mounts,
        ),
    )
    main |= _serving()
    spec = pod_spec(
        defaults=settings.pod_defaults,
        containers=[main],
        init_containers=worker.mounted.fetch,
        volumes=(
            # The name is filled in once the digest of template and model set is known.
            {"name": "model-set", "configMap": {"name": ""}},
            *worker.mounted.volumes,
        ),
        grace_seconds=worker.drain_seconds + _PRE_STOP_SECONDS + _GRACE_EXTRA_SECONDS,
    )
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(home.selector)},
        }
    ]
    if worker.nodes:
        spec["affinity"] = _prefer(worker.nodes)
    return gpus.on_gpus({"metadata": {"labels": dict(home.labels)}, "spec": spec}, worker.config)


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


def _deployment(worker: Worker, template: Manifest) -> Manifest:
    spec: Manifest = {
        "selector": {"matchLabels": dict(worker.home.selector)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {
                "maxUnavailable": 0 if worker.surge else 1,
                "maxSurge": 1 if worker.surge else 0,
            },
        },
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": _STARTUP_SECONDS,
        "template": template,
    }
    if worker.replicas is not None:
        spec["replicas"] = worker.replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": worker.home.metadata(
            worker.home.name, annotations={ROLLOUT_ANNOTATION: worker.rollout}
        ),
        "spec": spec,
    }


def _disruption_budget(home: Home) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": home.metadata(home.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(home.selector)}},
    }


def _network_policy(worker: Worker) -> Manifest:
    """Return exactly the flows of joints.md section 1 that end or begin at a worker."""
    system = worker.settings.system_namespace
    egress = [dict(rule) for rule in worker.mounted.egress]
    peers = [dict(peer) for peer in worker.settings.metrics_peers]
    metrics = {"from": peers, "ports": [{"port": METRICS_PORT, "protocol": "TCP"}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": worker.home.metadata(worker.home.name),
        "spec": {
            "podSelector": {"matchLabels": dict(worker.home.selector)},
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
