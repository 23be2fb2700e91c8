"""Jobs that read and measure a model, as pure builders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from trimtab.api.v1alpha1 import names
from trimtab.kube.names import child, short_hash
from trimtab.observe.digests import digest
from trimtab.observe.inspections import INSPECTION_KEY
from trimtab.reconcile.inferenceintent.sources import MODEL_ROOT, identity
from trimtab.reconcile.labels import Owner, labels, shared_labels
from trimtab.reconcile.pods import container, pod_spec, resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.api.v1alpha1.inferenceintent import ModelSource
    from trimtab.kube.resources import Manifest
    from trimtab.planning.plan import FingerprintNeed
    from trimtab.planning.snapshot import ModelView
    from trimtab.reconcile.inferenceintent.sources import Mounted
    from trimtab.settings import Settings

ATTEMPT_ANNOTATION: Final = f"{names.GROUP}/attempt"
GENERATION_ANNOTATION: Final = f"{names.GROUP}/generation"
CONTENDED_ANNOTATION: Final = f"{names.GROUP}/contended"
NODE_ANNOTATION: Final = f"{names.GROUP}/node"
SOURCE_ANNOTATION: Final = f"{names.GROUP}/source"

INSPECTION_SECONDS: Final = 600
DOWNLOAD_SECONDS: Final = 3600
FINGERPRINT_SECONDS: Final = 1200
ACCURACY_SECONDS: Final = 1800
# A small model's full grid uses all of its time even on a quiet core; the document then notes it.
_MEASURE_SECONDS: Final = {"cpu": 120, "quick": 25}
_INSPECT_MEMORY_BYTES: Final = 256 * 2**20
_INSPECT_LIMIT_BYTES: Final = 2 * 2**30
_ENGINE_BYTES: Final = 700 * 2**20


def source_digest(source: ModelSource) -> str:
    """Return what names a source in Jobs and ConfigMaps."""
    return digest(identity(source))


def inspection_name(owner: Owner, *, source: str, attempt: int) -> str:
    """Return the Job's name: one per source and attempt."""
    return child(owner.name, f"inspect-{short_hash(owner.uid, source, str(attempt))}")


def facts_name(owner: Owner, *, source: str) -> str:
    """Return the name of the ConfigMap that keeps what an inspection found."""
    return f"model-{short_hash(owner.uid, source, length=16)}"


def inspection_job(
    *,
    owner: Owner,
    mounted: Mounted,
    source: str,
    attempt: int,
    generation: int,
    settings: Settings,
) -> Manifest:
    """Return the Job that reads a model's configuration and headers (contracts §3)."""
    found = labels("inspection", owner=owner)
    inspect = container(
        name="inspect",
        defaults=settings.pod_defaults,
        image=settings.image,
        command=[
            "python",
            "-m",
            "trimtab_workers.fingerprint.inspect",
            "--path",
            f"{MODEL_ROOT}/{mounted.path}",
        ],
        limits=resources(
            threads=1,
            memory_bytes=_INSPECT_MEMORY_BYTES,
            memory_limit_bytes=_INSPECT_LIMIT_BYTES,
        ),
        mounts=mounted.mounts,
    )
    spec = pod_spec(
        defaults=settings.pod_defaults,
        containers=[inspect],
        init_containers=mounted.fetch,
        volumes=mounted.volumes,
        restart_policy="Never",
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": inspection_name(owner, source=source, attempt=attempt),
            "namespace": owner.namespace,
            "labels": found,
            "annotations": {
                ATTEMPT_ANNOTATION: str(attempt),
                GENERATION_ANNOTATION: str(generation),
                SOURCE_ANNOTATION: source,
            },
            "ownerReferences": [owner.reference()],
        },
        "spec": {
            # A verdict ends with status 0 whatever it is; what fails is the machinery around it.
            "backoffLimit": 1,
            "activeDeadlineSeconds": DOWNLOAD_SECONDS if mounted.fetch else INSPECTION_SECONDS,
            "template": {"metadata": {"labels": found}, "spec": spec},
        },
    }


def reading_policy(
    *, owner: Owner, mounted: Mounted, component: Literal["inspection", "accuracy"]
) -> Manifest:
    """Return the NetworkPolicy of Jobs that read a model: nothing comes in, only downloads go out."""
    found = labels(component, owner=owner)
    name = {"inspection": "inspect", "accuracy": "accuracy"}[component]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": child(owner.name, f"{name}-{short_hash(owner.uid)}"),
            "namespace": owner.namespace,
            "labels": found,
            "ownerReferences": [owner.reference()],
        },
        "spec": {
            "podSelector": {
                "matchLabels": {
                    names.COMPONENT_LABEL: component,
                    names.OWNER_UID_LABEL: owner.uid,
                }
            },
            "policyTypes": ["Ingress", "Egress"],
            **({"egress": [dict(rule) for rule in mounted.egress]} if mounted.egress else {}),
        },
    }


def facts_config_map(
    *, owner: Owner, source: str, message: str, node: str, settings: Settings
) -> Manifest:
    """Return the ConfigMap that keeps an inspection; outside the namespace, so labelled."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": facts_name(owner, source=source),
            "namespace": settings.system_namespace,
            "labels": labels("inspection", owner=owner, outside=True),
            "annotations": {NODE_ANNOTATION: node, SOURCE_ANNOTATION: source},
        },
        "data": {INSPECTION_KEY: message},
    }


def fingerprint_job(
    *,
    need: FingerprintNeed,
    attempt: int,
    contended: bool,
    settings: Settings,
    nodes: Sequence[str] = (),
) -> Manifest:
    """Return the Job that measures one- and two-layer models in the engine (contracts §4).

    Weights are random, so there is no volume; it runs in the system namespace and belongs to no
    intent: a family shares its fingerprints.

    Args:
        need: What to measure.
        attempt: How often it failed.
        contended: Whether it starts although no threads are idle.
        settings: Of the installation.
        nodes: Where alone the answer can be found; empty where any node will do.
    """
    found = shared_labels("fingerprint", instance=f"fp-{need.key}")
    grid = settings.fingerprint_grid
    seconds = settings.policy_seconds(_MEASURE_SECONDS[grid])
    spec_json = need.spec(grid=grid, max_seconds=max(5, int(seconds)))
    threads = max(1, need.threads)
    parameters = need.architecture.fixed_parameters() + 2 * need.architecture.layer_parameters()
    # Random weights are drawn in fp32 and kept in the precision asked for.
    memory = need.tensor_parallel_size * _ENGINE_BYTES + (4 + 2) * parameters
    measure = container(
        name="fingerprint",
        defaults=settings.pod_defaults,
        image=settings.image,
        command=["python", "-m", "trimtab_workers.fingerprint"],
        limits=resources(threads=threads, memory_bytes=memory, memory_limit_bytes=2 * memory),
        env=(
            {
                "name": "TRIMTAB_FINGERPRINT_SPEC",
                "value": json.dumps(spec_json, sort_keys=True, separators=(",", ":")),
            },
            {"name": "OMP_NUM_THREADS", "value": str(threads)},
        ),
    )
    spec = pod_spec(defaults=settings.pod_defaults, containers=[measure], restart_policy="Never")
    spec["affinity"] = _apart(found, nodes)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"fp-{need.key}",
            "namespace": settings.system_namespace,
            "labels": found,
            "annotations": {
                ATTEMPT_ANNOTATION: str(attempt),
                CONTENDED_ANNOTATION: str(contended).lower(),
            },
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": FINGERPRINT_SECONDS,
            "template": {"metadata": {"labels": found}, "spec": spec},
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyNeed:
    """What a Job is to find out: what a model loses at some precisions.

    Attributes:
        key: The model's identity: namespace, source, files, own precision, engine version, text.
        intent_uid: An intent of the model, to which the Job belongs.
        model: Its sizes.
        precisions: At least one, sorted.
        threads: To compute with.
    """

    key: str
    intent_uid: str
    model: ModelView
    precisions: tuple[str, ...]
    threads: int


def accuracy_name(identity: str) -> str:
    """Return the name of the Job that measures what a model loses."""
    return f"acc-{identity}"


def accuracy_job(
    *,
    need: AccuracyNeed,
    owner: Owner,
    mounted: Mounted,
    attempt: int,
    settings: Settings,
) -> Manifest:
    """Return the Job that foretells a text with the whole model at several precisions.

    It reads the real weights, so it runs where the model can be mounted: in the intent's namespace.
    """
    found = labels("accuracy", owner=owner)
    command = ["python", "-m", "trimtab_workers.fingerprint.accuracy"]
    command += ["--path", f"{MODEL_ROOT}/{mounted.path}", "--threads", str(need.threads)]
    command += [word for precision in need.precisions for word in ("--precision", precision)]
    # One precision is loaded at a time; one wider than the checkpoint's own is not measured.
    memory = _ENGINE_BYTES + need.model.weight_bytes
    measure = container(
        name="accuracy",
        defaults=settings.pod_defaults,
        image=settings.image,
        command=command,
        limits=resources(
            threads=need.threads,
            memory_bytes=memory,
            # What is read of the files counts until it is dropped, and import widens a tensor.
            memory_limit_bytes=memory + need.model.weight_bytes + _ENGINE_BYTES,
        ),
        mounts=mounted.mounts,
        env=({"name": "OMP_NUM_THREADS", "value": str(need.threads)},),
    )
    spec = pod_spec(
        defaults=settings.pod_defaults,
        containers=[measure],
        init_containers=mounted.fetch,
        volumes=mounted.volumes,
        restart_policy="Never",
    )
    spec["affinity"] = _apart(
        shared_labels("fingerprint", instance=""), (), namespaces=(settings.system_namespace,)
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": accuracy_name(need.key),
            "namespace": owner.namespace,
            "labels": found,
            "annotations": {ATTEMPT_ANNOTATION: str(attempt)},
            "ownerReferences": [owner.reference()],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": ACCURACY_SECONDS + (DOWNLOAD_SECONDS if mounted.fetch else 0),
            "template": {"metadata": {"labels": found}, "spec": spec},
        },
    }


def _apart(
    found: dict[str, str], nodes: Sequence[str], *, namespaces: Sequence[str] = ()
) -> Manifest:
    """Return the affinity of a measurement: on one of its nodes, and never two on one node."""
    alike = {names.COMPONENT_LABEL: found[names.COMPONENT_LABEL]}
    alike[names.PART_OF_LABEL] = found[names.PART_OF_LABEL]
    term: Manifest = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": alike},
    }
    if namespaces:
        term["namespaces"] = list(namespaces)
    affinity: Manifest = {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    }
    if nodes:
        # A field takes one value per term, and terms are alternatives.
        terms = [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
            for node in nodes
        ]
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    return affinity
