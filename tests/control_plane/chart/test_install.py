"""The chart on a real API server: cold install in a restricted namespace, rights, upgrade, uninstall.

Pods run on a fake node (kwok), so nothing here says that a process works: the node tier does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from e2e.cluster.api import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster

pytestmark = pytest.mark.control_plane
CHART = Path(__file__).resolve().parents[3] / "charts" / "trimtab"
SYSTEM, TENANT, RELEASE, NODE = "chart-system", "chart-tenant", "trimtab", "fake-chart-test"
VALUES: dict[str, Any] = {
    "podDefaults": {"nodeSelector": {"chart-test": "true"}},
    "monitoring": {"podMonitor": {"enabled": False}},
    "operator": {"image": {"tag": "pinned"}},
    "gateway": {"image": {"tag": "pinned"}},
    "worker": {"image": {"tag": "pinned"}},
    "prices": {"cpuHour": {"*": "0.04"}},
}
INTENT = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "InferenceIntent",
    "metadata": {"name": "kept", "namespace": TENANT},
    "spec": {
        "model": {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "tiny"}}},
        "objective": "MinLatency",
    },
}


def upgrade(cluster: Cluster, chart: Path = CHART, *arguments: str) -> str:
    """Install or upgrade the release and wait until its pods are Ready."""
    # The definitions may be there already, applied by other tests of the session.
    return cluster.helm(
        "upgrade", "--install", RELEASE, str(chart), "--namespace", SYSTEM, "--take-ownership",
        "--wait", "--timeout", "120s", "--values", "-", *arguments, stdin=yaml.safe_dump(VALUES),
    )  # fmt: skip


def pods(cluster: Cluster) -> dict[str, str]:
    """Return uid -> name of the release's pods."""
    items = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/part-of=trimtab")["items"]
    return {item["metadata"]["uid"]: item["metadata"]["name"] for item in items}


def may(cluster: Cluster, who: str, verb: str, resource: str, *arguments: str) -> bool:
    """Ask the API server whether a user or group may do something."""
    try:
        answer = cluster.kubectl("auth", "can-i", verb, resource, f"--as={who}", *arguments)
    except CommandError as refused:
        answer = str(refused)
    assert "yes" in answer or "no" in answer, answer
    return answer.strip() == "yes"


@pytest.fixture(scope="module")
def node(control_plane: Cluster) -> Iterator[Cluster]:
    """A fake node of our own, and a namespace that admits restricted pods only."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    fake = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": NODE,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"chart-test": "true"},
        },
    }
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name in (SYSTEM, TENANT)
    ]
    for item in (fake, *spaces):
        control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(item))
    control_plane.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=60s")
    yield control_plane
    control_plane.kubectl("delete", "node", NODE)
    control_plane.kubectl("delete", "namespace", SYSTEM, TENANT, "--wait=false")


@pytest.fixture
def release(node: Cluster) -> Iterator[Cluster]:
    """The release, freshly installed; gone afterwards, its definitions kept."""
    upgrade(node)
    yield node
    node.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait")


def test_first_install_succeeds_in_a_restricted_namespace(release: Cluster) -> None:
    """One command, cold: every pod is admitted under the restricted standard and becomes Ready."""
    assert sorted(name.rsplit("-", 2)[0] for name in pods(release).values()) == [
        "trimtab-gateway",
        "trimtab-gateway",
        "trimtab-operator",
    ]
    served = release.kubectl("api-resources", "--api-group=trimtab.dev", "-o", "name").split()
    assert sorted(name.partition(".")[0] for name in served) == [
        "gpuprofiles",
        "inferenceintents",
        "serverlessfunctions",
    ]


def test_hooks_and_tests_are_admitted_too(release: Cluster) -> None:
    """Pods and Jobs of hooks and of `helm test` pass a server-side dry-run in the restricted namespace."""
    text = release.helm("get", "hooks", RELEASE, "--namespace", SYSTEM)
    found = [item for item in yaml.safe_load_all(text) if item]
    assert {"Pod", "Job"} <= {item["kind"] for item in found}
    for item in found:
        spec = item["spec"]["template"]["spec"] if item["kind"] == "Job" else item.get("spec")
        if spec:
            admitted = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "of-hook", "namespace": SYSTEM},
                "spec": {**spec, "serviceAccountName": "default"},
            }
            release.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(admitted))


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_no_process_may_read_secrets(release: Cluster, component: str) -> None:
    """Neither ServiceAccount may get, list or watch Secrets anywhere, its own namespace included."""
    account = f"system:serviceaccount:{SYSTEM}:trimtab-{component}"
    for verb in ("get", "list", "watch"):
        assert not may(release, account, verb, "secrets", "--all-namespaces")
        assert not may(release, account, verb, "secrets", "-n", SYSTEM)


def test_rights_of_processes_hold_on_the_server(release: Cluster) -> None:
    """Spot checks against the authoriser: reviews and routes for the gateway, children and Lease for the operator."""
    gateway = f"system:serviceaccount:{SYSTEM}:trimtab-gateway"
    operator = f"system:serviceaccount:{SYSTEM}:trimtab-operator"
    assert may(release, gateway, "create", "tokenreviews.authentication.k8s.io")
    assert may(release, gateway, "create", "subjectaccessreviews.authorization.k8s.io")
    assert may(release, gateway, "watch", "configmaps", "-n", SYSTEM)
    assert may(release, gateway, "watch", "endpointslices.discovery.k8s.io", "--all-namespaces")
    assert not may(release, gateway, "watch", "configmaps", "-n", TENANT)
    assert not may(release, gateway, "patch", "configmaps", "-n", SYSTEM)
    assert may(release, operator, "patch", "deployments.apps", "-n", TENANT)
    assert may(
        release, operator, "update", "leases.coordination.k8s.io/trimtab-operator", "-n", SYSTEM
    )
    assert not may(release, operator, "update", "leases.coordination.k8s.io/other", "-n", SYSTEM)
    assert not may(release, operator, "create", "pods", "-n", TENANT)


def test_people_and_callers_get_their_rights(release: Cluster) -> None:
    """The cluster's edit role writes intents and calls them, view only looks, trimtab-invoke only calls."""
    for role, user in (("edit", "eve"), ("view", "vic"), ("trimtab-invoke", "ivy")):
        release.kubectl(
            "create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", TENANT
        )
    kind = "inferenceintents.trimtab.dev"
    expected = {
        "eve": {"get", "create", "invoke"},
        "vic": {"get"},
        "ivy": {"invoke"},
    }
    for user, verbs in expected.items():
        for verb in ("get", "create", "invoke"):
            assert may(release, user, verb, kind, "-n", TENANT) == (verb in verbs), (user, verb)
    assert not may(release, "eve", "create", kind, "-n", SYSTEM)


def test_an_upgrade_of_the_chart_alone_restarts_nothing(release: Cluster, tmp_path: Path) -> None:
    """A higher chart and app version, images unchanged, leaves every pod as it was."""
    before = pods(release)
    newer = tmp_path / "trimtab"
    shutil.copytree(CHART, newer)
    chart = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(
        yaml.safe_dump(chart | {"version": "9.9.9", "appVersion": "9.9.9"})
    )
    upgrade(release, newer)
    listing = json.loads(release.helm("list", "--namespace", SYSTEM, "-o", "json"))
    assert [item["chart"] for item in listing] == ["trimtab-9.9.9"]
    assert pods(release) == before


def test_uninstalling_keeps_definitions_and_objects_and_leaves_nothing_else(
    release: Cluster,
) -> None:
    """After `helm uninstall` intents are still there; of the release no object remains; a new install finds them."""
    release.kubectl("apply", "-f", "-", stdin=json.dumps(INTENT))
    release.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")
    kept = release.kubectl("get", "inferenceintents", "-n", TENANT, "-o", "name").split()
    assert kept == ["inferenceintent.trimtab.dev/kept"]
    kinds = (
        "deployments,services,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets,"
        "jobs,roles,rolebindings,clusterroles,clusterrolebindings"
    )
    left = release.kubectl(
        "get", kinds, "--all-namespaces", "-l", f"app.kubernetes.io/name=trimtab,app.kubernetes.io/instance={RELEASE}",
        "-o", "name",
    )  # fmt: skip
    assert left.split() == []
    upgrade(release)
    release.kubectl("delete", "inferenceintent", "kept", "-n", TENANT, "--timeout=30s")
