from __future__ import annotations

import json
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from e2e.cluster import api, embedded, probes
from e2e.cluster.control_plane import FAKE_NODE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster

pytestmark = pytest.mark.control_plane


@pytest.fixture
def fake_node(control_plane: Cluster) -> Iterator[str]:
    key, value = FAKE_NODE.split("=")
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "fake-cluster-test",
            "annotations": {key: value},
            "labels": {"t": "c"},
        },
    }
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "node/fake-cluster-test", "--timeout=60s"
    )
    yield "fake-cluster-test"
    control_plane.kubectl("delete", "node", "fake-cluster-test")


def test_the_server_has_the_version_that_was_built(control_plane: Cluster) -> None:
    """The API server reports the stamped version, without which clients refuse or warn."""
    version = json.loads(control_plane.kubectl("version", "-o", "json"))
    assert version["serverVersion"]["gitVersion"] == "v1.37.2"
    assert version["clientVersion"]["gitVersion"] == version["serverVersion"]["gitVersion"]


def test_a_job_on_a_fake_node_completes_with_its_recorded_message(
    control_plane: Cluster, fake_node: str
) -> None:
    """Scheduler, controllers and kwok together bring a Job's pod to its end and its message."""
    template = {
        "metadata": {"annotations": {"kwok.trimtab.dev/termination-message": '{"v":1}'}},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"t": "c"},
            "containers": [{"name": "main", "image": "none"}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "measured", "namespace": "default"},
        "spec": {"template": template},
    }
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(job))
    control_plane.kubectl("wait", "--for=condition=Complete", "job/measured", "--timeout=60s")
    pod = control_plane.get("pods", "-l", "job-name=measured")["items"][0]
    control_plane.kubectl("delete", "job", "measured")
    assert pod["spec"]["nodeName"] == fake_node
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["message"] == '{"v":1}'


def test_every_component_is_healthy_and_named_with_its_pid(control_plane: Cluster) -> None:
    """Status shows each component of the level as healthy."""
    if control_plane.provider != "embedded":
        pytest.skip("a given cluster has no components of ours")
    rows = {row["component"]: row for row in embedded.status(control_plane.name)}
    assert set(rows) == set(embedded.CONTROL_PLANE_ORDER)
    assert {row["health"] for row in rows.values()} == {"healthy"}
    assert all(isinstance(row["pid"], int) for row in rows.values())


def test_anonymous_callers_may_not_read_secrets(control_plane: Cluster) -> None:
    """Authorisation is on: without a token only public paths answer."""
    url = f"{control_plane.server}/api/v1/secrets"
    assert probes.get(url, verify=False) is None
    assert probes.get(f"{control_plane.server}/livez", verify=False) == b"ok"
    assert urllib.request.Request(url).host.startswith("127.0.0.1")


def test_a_killed_component_is_started_again_by_up(control_plane: Cluster) -> None:
    """A second `up` starts only what died and keeps the data."""
    if control_plane.provider != "embedded":
        pytest.skip("only embedded components can be killed")
    before = {row["component"]: row["pid"] for row in embedded.status(control_plane.name)}
    control_plane.kubectl("create", "configmap", "survivor", "-n", "default")
    embedded.stop(control_plane.name, ["kube-apiserver", "kube-scheduler"])
    embedded.up(name=control_plane.name, level=control_plane.level, owned=True)
    after = {row["component"]: row["pid"] for row in embedded.status(control_plane.name)}
    assert before["etcd"] == after["etcd"]
    assert before["kube-apiserver"] != after["kube-apiserver"]
    control_plane.kubectl("delete", "configmap", "survivor", "-n", "default")


def test_python_clients_reach_the_server_as_administrator(control_plane: Cluster) -> None:
    """The synchronous client lists nodes with the cluster's kubeconfig."""
    from kubernetes import client

    with control_plane.api_client() as connection:
        listed = client.CoreV1Api(connection).list_namespace(_request_timeout=10)
    assert "default" in {one.metadata.name for one in listed.items}


async def test_asynchronous_clients_reach_the_server(control_plane: Cluster) -> None:
    """The asynchronous client lists namespaces with the cluster's kubeconfig."""
    from kubernetes.aio import client

    async with await control_plane.aio_api_client() as connection:
        listed = await client.CoreV1Api(connection).list_namespace(_request_timeout=10)
    assert "default" in {one.metadata.name for one in listed.items}


def test_a_second_up_returns_the_running_cluster_in_seconds(control_plane: Cluster) -> None:
    """Nothing is started twice."""
    if control_plane.provider != "embedded":
        pytest.skip("only embedded clusters have components of ours")
    before = {row["component"]: row["pid"] for row in embedded.status(control_plane.name)}
    start = time.monotonic()
    again = api.up(name=control_plane.name, level=control_plane.level, owned=True)
    assert time.monotonic() - start < 20
    assert again.kubeconfig == control_plane.kubeconfig
    assert {row["component"]: row["pid"] for row in embedded.status(again.name)} == before
