"""The embedded node itself: real pods, and nothing left after them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.cluster import api, embedded, images, namespaces, snapshot, state
from e2e.cluster.images import Entry
from e2e.cluster.processes import Processes
from e2e.stack import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster

pytestmark = pytest.mark.node
NAMESPACE = "embedded-node"
SERVER = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)"
RESTRICTED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def cluster(node_cluster: Cluster) -> Iterator[Cluster]:
    if node_cluster.provider != "embedded":
        pytest.skip("these tests look into the embedded node")
    node_cluster.kubectl("create", "namespace", NAMESPACE)
    yield node_cluster
    node_cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def a_pod(cluster: Cluster, name: str, command: list[str], **spec: Any) -> dict[str, Any]:
    """A pod that runs a command of this machine's Python, as the chart's pods do."""
    defaults = cluster.helm_values()["podDefaults"]
    container = {
        "name": "main",
        "image": f"trimtab-worker:{os.environ.get('TRIMTAB_TEST_TAG', '0.1.0')}",
        "imagePullPolicy": "Never",
        "command": command,
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "volumeMounts": [
            *defaults["extraVolumeMounts"],
            {"name": "tmp", "mountPath": "/tmp"},
            *spec.pop("mounts", []),
        ],
    } | spec.pop("container", {})
    volumes = [*defaults["extraVolumes"], {"name": "tmp", "emptyDir": {}}, *spec.pop("volumes", [])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "containers": [container],
            "volumes": volumes,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            **spec,
        },
    }


def apply(cluster: Cluster, *objects: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(listed))


def wait(cluster: Cluster, condition: str, what: str) -> None:
    cluster.kubectl("wait", f"--for={condition}", what, "-n", NAMESPACE, "--timeout=90s")


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> str:
    """A web server behind a Service, both named `web`."""
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    pod = a_pod(cluster, "web", ["python", "-c", SERVER], container={"readinessProbe": probe})
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    apply(cluster, pod, service)
    wait(cluster, "condition=Ready", "pod/web")
    return "web"


def test_this_machine_reaches_a_service_by_its_cluster_address(cluster: Cluster, web: str) -> None:
    """The URL of a Service answers from outside the cluster, through kube-proxy."""
    url = cluster.service_url(NAMESPACE, web, 80)

    def answered() -> int | None:
        try:
            return int(urllib.request.urlopen(url, timeout=2).status)
        except OSError:
            return None

    assert wait_for(url, answered, seconds=15) == 200


def test_a_pod_reaches_services_by_name_and_the_api_server_with_its_token(
    cluster: Cluster, web: str
) -> None:
    """Cluster DNS, kube-proxy, the projected token and the root certificate work from inside a pod."""
    script = f"""
import ssl, urllib.request
folder = '/var/run/secrets/kubernetes.io/serviceaccount/'
assert urllib.request.urlopen('http://{web}', timeout=5).status == 200
request = urllib.request.Request('https://kubernetes.default.svc/version')
request.add_header('Authorization', 'Bearer ' + open(folder + 'token').read())
context = ssl.create_default_context(cafile=folder + 'ca.crt')
print('gitVersion' in urllib.request.urlopen(request, timeout=5, context=context).read().decode())
"""
    apply(cluster, a_pod(cluster, "caller", ["python", "-c", script]))
    wait(cluster, "jsonpath={.status.phase}=Succeeded", "pod/caller")
    assert cluster.kubectl("logs", "caller", "-n", NAMESPACE) == "True\n"


def test_our_image_runs_as_an_ordinary_user_with_the_project_importable(cluster: Cluster) -> None:
    """A pod of the host-mount image imports the workspace's packages as user 65532 on a read-only root."""
    script = "import os, numpy, trimtab, trimtab_workers; print(os.getuid())"
    apply(cluster, a_pod(cluster, "imports", ["python", "-c", script]))
    wait(cluster, "jsonpath={.status.phase}=Succeeded", "pod/imports")
    assert cluster.kubectl("logs", "imports", "-n", NAMESPACE) == "65532\n"


def _quota(cluster: Cluster, pod: dict[str, Any]) -> int:
    """Return the pod's CPU quota in microseconds per 100 ms, as the kernel has it."""
    own, tree = f"/pod{pod['metadata']['uid']}", f"/trimtab-{cluster.name}/"
    # Not a glob: that fails when another pod's folder goes while it looks.
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if tree in folder and folder.endswith(own):
            if "cpu.cfs_quota_us" in files:
                return int(Path(folder, "cpu.cfs_quota_us").read_text())
            if "cpu.max" in files:
                return int(Path(folder, "cpu.max").read_text().split()[0])
    return 0


def test_a_pod_is_resized_in_place_in_the_kernel(cluster: Cluster, web: str) -> None:
    """A patch of the resize subresource changes the cgroup's quota without a restart."""
    before = cluster.get("pod", web, "-n", NAMESPACE)
    assert _quota(cluster, before) == 50_000
    patch = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "1"}}}]}}
    cluster.kubectl(
        "patch", "pod", web, "-n", NAMESPACE, "--subresource=resize", "-p", json.dumps(patch)
    )
    wait_for("the quota", lambda: _quota(cluster, before) == 100_000, seconds=15)
    after = cluster.get("pod", web, "-n", NAMESPACE)
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_container_over_its_memory_limit_is_killed(cluster: Cluster) -> None:
    """Memory limits are real: the kernel kills, and the reason says so."""
    command = ["python", "-c", "x = bytearray(300 << 20); print(len(x))"]
    apply(cluster, a_pod(cluster, "greedy", command))
    wait(cluster, "jsonpath={.status.phase}=Failed", "pod/greedy")
    status = cluster.get("pod", "greedy", "-n", NAMESPACE)["status"]["containerStatuses"][0]
    assert status["state"]["terminated"]["reason"] == "OOMKilled"


def test_an_image_loaded_from_a_file_can_be_a_volume(cluster: Cluster, tmp_path: Path) -> None:
    """`load-image` and the image volume source give a pod the files of a local archive."""
    archive = tmp_path / "model.tar"
    images.write(
        archive,
        tags=["model-as-image:1"],
        entries={"model": Entry(), "model/weights": Entry(content=b"42", mode=0o644)},
        config={},
    )
    cluster.load_image(archive)
    source = {"reference": "model-as-image:1", "pullPolicy": "Never"}
    pod = a_pod(
        cluster,
        "image-volume",
        ["python", "-c", "print(open('/m/model/weights').read())"],
        volumes=[{"name": "model", "image": source}],
        mounts=[{"name": "model", "mountPath": "/m", "readOnly": True}],
    )
    apply(cluster, pod)
    wait(cluster, "jsonpath={.status.phase}=Succeeded", "pod/image-volume")
    assert cluster.kubectl("logs", "image-volume", "-n", NAMESPACE) == "42\n"


def test_a_claim_bound_to_a_host_folder_is_mounted(cluster: Cluster, tmp_path: Path) -> None:
    """A PersistentVolume of this machine's folder needs no StorageClass."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "file").write_text("from the host")
    size = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "embedded-node"},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "hostPath": {"path": str(tmp_path)},
            "claimRef": {"namespace": NAMESPACE, "name": "models"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": "embedded-node",
            "resources": {"requests": size},
        },
    }
    pod = a_pod(
        cluster,
        "claimant",
        ["python", "-c", "print(open('/models/file').read())"],
        volumes=[{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        mounts=[{"name": "models", "mountPath": "/models", "readOnly": True}],
    )
    apply(cluster, volume, claim, pod)
    wait(cluster, "jsonpath={.status.phase}=Succeeded", "pod/claimant")
    text = cluster.kubectl("logs", "claimant", "-n", NAMESPACE)
    cluster.kubectl("delete", "pv", "embedded-node", "--wait=false")
    assert text == "from the host\n"


@pytest.fixture
def own_name(node_cluster: Cluster) -> Iterator[str]:
    """The name of a cluster of the test's own, which is down before and after."""
    if node_cluster.provider != "embedded":
        pytest.skip("these tests start and remove an embedded cluster")
    name = f"{node_cluster.name[:20].rstrip('-')}-own"
    api.down(name)
    yield name
    api.down(name)


def _start_pause_pod(cluster: Cluster) -> None:
    cluster.kubectl("run", "idle", "--image=trimtab-pause:embedded", "--image-pull-policy=Never")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/idle", "--timeout=90s")


def kill_everything(name: str) -> None:
    """SIGKILL every process of a cluster that is recorded, and what those run."""
    for record in Processes(state.state_dir(name)).all():
        for pid in namespaces.children(record.pid):
            with contextlib.suppress(ProcessLookupError):  # a probe may end by itself meanwhile
                os.kill(pid, signal.SIGKILL)
        record.kill(signal.SIGKILL)


def test_down_leaves_nothing_behind(own_name: str) -> None:
    """After up, a pod and down: no process, mount, link, route, cgroup, table or file that was not there."""
    before = snapshot.take(own_name)
    cluster = api.up(name=own_name, level="node")
    _start_pause_pod(cluster)
    during = snapshot.difference(before, snapshot.take(own_name))
    assert {"processes", "links", "routes", "cgroups", "files"} <= set(during)
    assert api.down(own_name)
    assert snapshot.difference(before, snapshot.take(own_name)) == {}


def test_up_recovers_from_the_death_of_every_process(own_name: str) -> None:
    """After a kill -9 of everything a second up brings the cluster back with its objects and pods."""
    before = snapshot.take(own_name)
    cluster = api.up(name=own_name, level="node")
    _start_pause_pod(cluster)
    kill_everything(own_name)
    wait_for(
        "every component dead",
        lambda: all(row["health"] == "dead" for row in embedded.status(own_name)),
        seconds=15,
    )
    again = api.up(name=own_name, level="node")
    again.kubectl("wait", "--for=condition=Ready", "pod/idle", "--timeout=90s")
    restarts = again.get("pod", "idle")["status"]["containerStatuses"][0]["restartCount"]
    assert restarts == 1
    api.down(own_name)
    assert snapshot.difference(before, snapshot.take(own_name)) == {}


@pytest.mark.parametrize(
    "after", ["run/namespaces.pid", "run/kube-apiserver.pid", "run/kubelet.pid"]
)
def test_down_works_after_an_up_that_was_killed(own_name: str, after: str) -> None:
    """Whenever up dies, down removes what there is by then."""
    before = snapshot.take(own_name)
    command = [sys.executable, "-m", "e2e.cluster", "up", "--level", "node", "--name", own_name]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        file = state.state_dir(own_name) / after
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline, f"{file} did not appear"
            assert process.poll() is None, "up ended before it could be killed"
        process.kill()
    api.down(own_name)
    assert snapshot.difference(before, snapshot.take(own_name)) == {}
