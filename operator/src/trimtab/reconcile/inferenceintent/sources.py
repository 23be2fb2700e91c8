"""How a model's files come into a pod: always read-only, at `/models/m0`."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from trimtab.reconcile.pods import container, resources

if TYPE_CHECKING:
    from trimtab.api.v1alpha1.inferenceintent import HuggingFaceSource, ModelSource
    from trimtab.kube.resources import Manifest
    from trimtab.settings import Settings

MODEL_ROOT: Final = "/models"
_FOLDER: Final = "m0"
_VOLUME: Final = "model"
_FETCH_MEMORY_BYTES: Final = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """What a pod needs to read a model.

    Attributes:
        path: Folder or .gguf file, relative to `/models`.
        volumes: For the pod.
        mounts: For the container that reads.
        fetch: Init containers that download first.
        egress: NetworkPolicy egress rules that the download needs.
    """

    path: str
    volumes: tuple[Manifest, ...]
    mounts: tuple[Manifest, ...]
    fetch: tuple[Manifest, ...] = ()
    egress: tuple[Manifest, ...] = ()


def identity(source: ModelSource) -> dict[str, Any]:
    """Return what tells sources apart, for digests."""
    return source.model_dump(mode="json", by_alias=True, exclude_none=True)


def mount(source: ModelSource, *, settings: Settings, headers_only: bool) -> Mounted:
    """Return how a source is mounted.

    Args:
        source: Exactly one of its members is set (the CRD's rule).
        settings: Of the installation.
        headers_only: Whether a download may leave the weights out, as inspection does.
    """
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim
        volume = {"persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        return _volume(volume, claim.path)
    if source.host_path is not None:
        return _host_path(source.host_path.path)
    if source.image is not None:
        image: dict[str, Any] = {"reference": source.image.reference}
        if source.image.pull_policy is not None:
            image["pullPolicy"] = source.image.pull_policy
        return _volume({"image": image}, source.image.path)
    if source.hugging_face is not None:
        return _download(source.hugging_face, settings=settings, headers_only=headers_only)
    raise ValueError(
        "spec.model.source names no source; the API server should have refused that. "
        "Update the CRDs to this release."
    )


def _volume(volume: Manifest, path: str | None) -> Mounted:
    below = posixpath.normpath(path) if path else "."
    return Mounted(
        path=_FOLDER if below == "." else f"{_FOLDER}/{below}",
        volumes=({"name": _VOLUME, **volume},),
        mounts=({"name": _VOLUME, "mountPath": f"{MODEL_ROOT}/{_FOLDER}", "readOnly": True},),
    )


def _host_path(path: str) -> Mounted:
    clean = posixpath.normpath(path)
    if not clean.endswith(".gguf"):
        return _volume({"hostPath": {"path": clean}}, None)
    # One file is mounted alone: its neighbours on the node are none of the tenant's business.
    name = posixpath.basename(clean)
    return Mounted(
        path=f"{_FOLDER}/{name}",
        volumes=({"name": _VOLUME, "hostPath": {"path": clean}},),
        mounts=(
            {"name": _VOLUME, "mountPath": f"{MODEL_ROOT}/{_FOLDER}/{name}", "readOnly": True},
        ),
    )


def _download(source: HuggingFaceSource, *, settings: Settings, headers_only: bool) -> Mounted:
    endpoint = settings.sources.huggingFace.endpoint
    env: list[dict[str, Any]] = [{"name": "HF_ENDPOINT", "value": endpoint}]
    if source.token_secret_ref is not None:
        ref = source.token_secret_ref
        env.append(
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}},
            }
        )
    command = ["python", "-m", "trimtab_workers.fetch"]
    command += ["--repository", source.repository, "--revision", source.revision]
    command += ["--directory", f"{MODEL_ROOT}/{_FOLDER}"]
    if headers_only:
        command.append("--headers-only")
    return Mounted(
        path=_FOLDER,
        volumes=({"name": _VOLUME, "emptyDir": {}},),
        mounts=({"name": _VOLUME, "mountPath": f"{MODEL_ROOT}/{_FOLDER}", "readOnly": True},),
        fetch=(
            container(
                name="fetch",
                defaults=settings.pod_defaults,
                image=settings.image,
                command=command,
                limits=resources(
                    threads=1,
                    memory_bytes=_FETCH_MEMORY_BYTES // 4,
                    memory_limit_bytes=_FETCH_MEMORY_BYTES,
                ),
                env=env,
                mounts=({"name": _VOLUME, "mountPath": f"{MODEL_ROOT}/{_FOLDER}"},),
            ),
        ),
        egress=_egress(endpoint),
    )


def _egress(endpoint: str) -> tuple[Manifest, ...]:
    """Name look-ups, and the hub's port anywhere: a policy cannot name hosts."""
    parts = urlsplit(endpoint)
    ports = {parts.port or (80 if parts.scheme == "http" else 443), 443}
    return (
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
        {"ports": [{"port": port, "protocol": "TCP"} for port in sorted(ports)]},
    )
