"""How models' files come into a pod: always read-only, at `/models/m0`, a group's at `/models/v…`."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from trimtab.kube import names as object_names
from trimtab.reconcile.pods import container, resources

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trimtab.api.v1alpha1.inferenceintent import HuggingFaceSource, ModelSource
    from trimtab.kube.resources import Manifest
    from trimtab.settings import Settings

MODEL_ROOT: Final = "/models"
_FOLDER: Final = "m0"
_VOLUME: Final = "model"
_SHARED_HASH: Final = 8
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
    return _mount(source, _Place(), settings=settings, headers_only=headers_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a source comes in: one worker of a group has several."""

    folder: str = _FOLDER
    volume: str = _VOLUME


def shared_volume(source: ModelSource, *, settings: Settings) -> ModelSource:
    """Return what a group's worker mounts for a source: the whole claim, prefix, image or download.

    Sources that lie beside each other have equal volumes, so an intent that brings another model
    of a claim joins a running worker. Whoever may mount a folder below an allowed prefix may
    mount its neighbours too, so the prefix gives nobody more than they have.
    """
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim.model_copy(update={"path": None})
        return source.model_copy(update={"persistent_volume_claim": claim})
    if source.image is not None:
        return source.model_copy(update={"image": source.image.model_copy(update={"path": None})})
    if source.host_path is not None:
        prefix = _prefix(source.host_path.path, settings)
        path = source.host_path.model_copy(update={"path": prefix})
        return source.model_copy(update={"host_path": path})
    return source


def _prefix(path: str, settings: Settings) -> str:
    clean = posixpath.normpath(path)
    prefixes = [p.rstrip("/") for p in settings.sources.hostPath.allowedPrefixes]
    above = [p for p in prefixes if p and clean.startswith(f"{p}/")]
    return max(above, key=len, default=clean)


def mount_shared(volumes: Sequence[ModelSource], *, settings: Settings) -> Mounted:
    """Return how the volumes of a group's worker are mounted; `path` is empty."""
    parts = [
        _mount(volume, _shared_place(volume), settings=settings, headers_only=False)
        for volume in volumes
    ]
    return Mounted(
        path="",
        volumes=tuple(v for part in parts for v in part.volumes),
        mounts=tuple(m for part in parts for m in part.mounts),
        fetch=tuple(
            {**f, "name": f"fetch-{n}"} for n, part in enumerate(parts) for f in part.fetch
        ),
        egress=_distinct(rule for part in parts for rule in part.egress),
    )


def shared_path(source: ModelSource, *, settings: Settings) -> str:
    """Return a model's path below `/models` in a group's worker."""
    volume = shared_volume(source, settings=settings)
    whole = _mount(volume, _shared_place(volume), settings=settings, headers_only=False).path
    below = ""
    if source.persistent_volume_claim is not None:
        below = source.persistent_volume_claim.path or ""
    elif source.image is not None:
        below = source.image.path or ""
    elif source.host_path is not None and volume.host_path is not None:
        clean = posixpath.normpath(source.host_path.path)
        below = posixpath.relpath(clean, volume.host_path.path)
        # A file that is mounted alone has its name in the path already.
        below = "" if below == "." else below
    return posixpath.normpath(f"{whole}/{below}")


def shared_folder(volume: ModelSource) -> str:
    """Return the folder below `/models` where a group's worker has a volume."""
    return _shared_place(volume).folder


def _shared_place(volume: ModelSource) -> _Place:
    tag = object_names.digest(identity(volume), length=_SHARED_HASH)
    return _Place(folder=f"v{tag}", volume=f"{_VOLUME}-{tag}")


def _distinct(rules: Iterable[Manifest]) -> tuple[Manifest, ...]:
    found: list[Manifest] = []
    for rule in rules:
        if rule not in found:
            found.append(rule)
    return tuple(found)


def _mount(
    source: ModelSource, place: _Place, *, settings: Settings, headers_only: bool
) -> Mounted:
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim
        volume = {"persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        return _volume(volume, claim.path, place)
    if source.host_path is not None:
        return _host_path(source.host_path.path, place)
    if source.image is not None:
        image: dict[str, Any] = {"reference": source.image.reference}
        if source.image.pull_policy is not None:
            image["pullPolicy"] = source.image.pull_policy
        return _volume({"image": image}, source.image.path, place)
    if source.hugging_face is not None:
        return _download(source.hugging_face, place, settings=settings, headers_only=headers_only)
    raise ValueError(
        "spec.model.source names no source; the API server should have refused that. "
        "Update the CRDs to this release."
    )


def _volume(volume: Manifest, path: str | None, place: _Place) -> Mounted:
    below = posixpath.normpath(path) if path else "."
    folder = f"{MODEL_ROOT}/{place.folder}"
    return Mounted(
        path=place.folder if below == "." else f"{place.folder}/{below}",
        volumes=({"name": place.volume, **volume},),
        mounts=({"name": place.volume, "mountPath": folder, "readOnly": True},),
    )


def _host_path(path: str, place: _Place) -> Mounted:
    clean = posixpath.normpath(path)
    if not clean.endswith(".gguf"):
        return _volume({"hostPath": {"path": clean}}, None, place)
    # One file is mounted alone: its neighbours on the node are none of the tenant's business.
    name = posixpath.basename(clean)
    return Mounted(
        path=f"{place.folder}/{name}",
        volumes=({"name": place.volume, "hostPath": {"path": clean}},),
        mounts=(
            {
                "name": place.volume,
                "mountPath": f"{MODEL_ROOT}/{place.folder}/{name}",
                "readOnly": True,
            },
        ),
    )


def _download(
    source: HuggingFaceSource, place: _Place, *, settings: Settings, headers_only: bool
) -> Mounted:
    folder = f"{MODEL_ROOT}/{place.folder}"
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
    command += ["--directory", folder]
    if headers_only:
        command.append("--headers-only")
    return Mounted(
        path=place.folder,
        volumes=({"name": place.volume, "emptyDir": {}},),
        mounts=({"name": place.volume, "mountPath": folder, "readOnly": True},),
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
                mounts=({"name": place.volume, "mountPath": folder},),
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
