"""A cluster with the definitions, and two fresh namespaces per test."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.control_plane.operator.lab import Lab
from trimtab.kube.client import MERGE, KubeClient
from trimtab.kube.resources import INTENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2e.cluster.api import Cluster

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def cluster(control_plane: Cluster) -> Cluster:
    """The definitions are installed."""
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        control_plane.kubectl("apply", "--server-side", "-f", str(file))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return control_plane


@pytest.fixture
def kubeconfig(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return cluster.kubeconfig


@pytest.fixture
async def lab(kubeconfig: Path) -> AsyncIterator[Lab]:
    """A fresh namespace with the strictest Pod Security, and a system namespace of its own."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    async with await KubeClient.connect(manager="test") as client:
        found = Lab(client, namespace)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name in (namespace, found.system):
            await client.request(
                "POST",
                "/api/v1/namespaces",
                body={
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name, "labels": labels},
                },
            )
        yield found
        for intent in await found.list(INTENT, namespace):
            await client.request(
                "PATCH",
                INTENT.path(namespace=namespace, name=intent["metadata"]["name"]),
                body={"metadata": {"finalizers": None}},
                content_type=MERGE,
            )
            # The next test's operator sees the whole cluster: its namespace goes too late for that.
            await found.delete(INTENT, namespace, intent["metadata"]["name"])
        for name in (namespace, found.system):
            await client.request("DELETE", f"/api/v1/namespaces/{name}")
