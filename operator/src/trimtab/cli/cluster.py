"""Reaching the cluster as kubectl would: same configuration, same namespace, clear refusals."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import yaml

from trimtab.cli.output import CommandError
from trimtab.kube.client import KubeClient
from trimtab.kube.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MANAGER: Final = "trimtab-cli"


class ClusterError(CommandError):
    """The cluster cannot be reached or refuses; the message says which and what to do."""


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[KubeClient]:
    """Give a client for the length of the block.

    Raises:
        ClusterError: There is no configuration, no answer, or a refusal.
    """
    _choose_configuration()
    try:
        async with await KubeClient.connect(manager=MANAGER) as client:
            yield client
    except ApiError as error:
        raise ClusterError(
            f"The API server refused: {error}. Check the object's name and your rights."
        ) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClusterError(
            f"The API server does not answer ({type(error).__name__}: {error}): check KUBECONFIG "
            "and the network."
        ) from error


def namespace() -> str:
    """Return the namespace of kubectl's current context, or of the pod, or `default`."""
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    for path in _kubeconfigs():
        config = _read(path)
        current = config.get("current-context")
        for context in config.get("contexts") or ():
            if context.get("name") == current:
                return str((context.get("context") or {}).get("namespace") or "default")
    return account.read_text().strip() if account.is_file() else "default"


def _choose_configuration() -> None:
    """Let `trimtab.kube` see what kubectl would use: it knows KUBECONFIG and the pod's account only."""
    found = _kubeconfigs()
    if found:
        os.environ.setdefault("KUBECONFIG", str(found[0]))
    elif os.environ.get("KUBECONFIG"):
        raise ClusterError(f"KUBECONFIG names {os.environ['KUBECONFIG']}, which does not exist.")
    elif not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise ClusterError(
            "There is no ~/.kube/config: set KUBECONFIG to a cluster's configuration."
        )


def _kubeconfigs() -> list[Path]:
    given = os.environ.get("KUBECONFIG")
    if given:
        return [path for path in map(Path, given.split(os.pathsep)) if path.is_file()]
    usual = Path.home() / ".kube" / "config"
    return [usual] if usual.is_file() and not os.environ.get("KUBERNETES_SERVICE_HOST") else []


def _read(path: Path) -> dict[str, Any]:  # any: YAML
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ClusterError(f"{path} is no valid kubeconfig: {error}.") from error
    return document if isinstance(document, dict) else {}
