"""The pod that every worker and Job is built on: restricted, read-only, without a token."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.kube.resources import Manifest
    from trimtab.settings import PodDefaults

TMP: Final = "/tmp"  # noqa: S108 - a path inside the container, an emptyDir of its own
_MEBIBYTE: Final = 2**20
_LOGS_BYTES: Final = 64 * _MEBIBYTE
"""What a container writes beside its files; kubelets rotate logs at 5 x 10 MiB."""


def container_security() -> Manifest:
    """Return what Pod Security's `restricted` asks of a container, and a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def resources(
    *,
    threads: int,
    memory_bytes: int,
    memory_limit_bytes: int | None = None,
    disk_bytes: int = 0,
) -> Manifest:
    """Return requests and limits: a tenth of the threads is requested, so that a roll can overlap.

    Files in `/tmp` are requested too, or a node that runs out of disk would evict their pod first.
    They have no limit: downloads count as well, and whoever passes a limit is evicted.
    """
    disk = {"ephemeral-storage": mebibytes(disk_bytes + _LOGS_BYTES)} if disk_bytes else {}
    return {
        "requests": {"cpu": f"{100 * threads}m", "memory": mebibytes(memory_bytes), **disk},
        "limits": {
            "cpu": str(threads),
            "memory": mebibytes(memory_limit_bytes or memory_bytes),
        },
    }


def mebibytes(count: int) -> str:
    """Return bytes as a quantity in Mi, rounded up."""
    return f"{-(-count // _MEBIBYTE)}Mi"


def container(
    *,
    name: str,
    defaults: PodDefaults,
    image: str,
    command: Sequence[str],
    limits: Manifest,
    env: Sequence[Mapping[str, Any]] = (),
    mounts: Sequence[Mapping[str, Any]] = (),
) -> Manifest:
    """Return a container with podDefaults applied; its own settings come first."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": defaults.imagePullPolicy,
        "command": list(command),
        "env": [
            {"name": "HOME", "value": TMP},
            *map(dict, env),
            *copy.deepcopy(list(defaults.extraEnv)),
        ],
        "resources": limits,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": TMP},
            *map(dict, mounts),
            *copy.deepcopy(list(defaults.extraVolumeMounts)),
        ],
    }


def pod_spec(
    *,
    defaults: PodDefaults,
    containers: Sequence[Manifest],
    init_containers: Sequence[Manifest] = (),
    volumes: Sequence[Mapping[str, Any]] = (),
    restart_policy: str | None = None,
    grace_seconds: int | None = None,
) -> Manifest:
    """Return a pod's spec with podDefaults applied."""
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": list(containers),
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            *map(dict, volumes),
            *copy.deepcopy(list(defaults.extraVolumes)),
        ],
    }
    if init_containers:
        spec["initContainers"] = list(init_containers)
    if restart_policy is not None:
        spec["restartPolicy"] = restart_policy
    if grace_seconds is not None:
        spec["terminationGracePeriodSeconds"] = grace_seconds
    if defaults.imagePullSecrets:
        spec["imagePullSecrets"] = copy.deepcopy(list(defaults.imagePullSecrets))
    if defaults.nodeSelector:
        spec["nodeSelector"] = dict(defaults.nodeSelector)
    if defaults.tolerations:
        spec["tolerations"] = copy.deepcopy(list(defaults.tolerations))
    if defaults.priorityClassName:
        spec["priorityClassName"] = defaults.priorityClassName
    if defaults.runtimeClassName:
        spec["runtimeClassName"] = defaults.runtimeClassName
    return spec
