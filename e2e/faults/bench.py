"""The bench of the failure scenarios: a control plane, a node of played pods, the proxy, the operator.

The operator runs as a process of this machine with the rights of the chart's ServiceAccount, and every
request it makes passes the proxy. Its pods are played (see `played`), so that a scenario is about the
operator alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from e2e import stack as st
from e2e.cluster.process import sweep
from e2e.faults import cluster as led
from e2e.faults import played
from e2e.faults.endstate import end_state
from e2e.faults.operators import ROOT, OperatorProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from e2e.cluster.api import Cluster
    from e2e.faults.thread import ThreadedProxy

RELEASE = "faults"
SYSTEM = "faults-system"
NODE = "played"
LOOPBACK = "127.0.9."
_KEPT = frozenset(
    {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ConfigMap"}
)
TIMES = {
    "TRIMTAB_LEASE_SECONDS": "3",
    "TRIMTAB_RENEW_DEADLINE_SECONDS": "2",
    "TRIMTAB_RETRY_SECONDS": "0.3",
    "TRIMTAB_POLICY_TIME_DIVISOR": "20",
}
"""Short, so that a killed leader's Lease does not cost every scenario 15 s."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What the chart would have given the operator."""

    account: str
    environment: dict[str, str]


def render(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the chart's objects for this bench; Deployments among them, which are not applied."""
    values = {"crds": {"enabled": False}, "prices": st.DEMO_PRICES, "gateway": {"auth": "None"}}
    text = cluster.helm(
        "template", RELEASE, str(st.CHART), "--namespace", SYSTEM, "--values", "-",
        stdin=yaml.safe_dump(values),
    )  # fmt: skip
    return [one for one in yaml.safe_load_all(text) if one]


def install(cluster: Cluster) -> Installation:
    """Apply CRDs, rights and prices, and return what the operator's pod would be told."""
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(space))
    objects = render(cluster)
    hook = "helm.sh/hook"
    kept = [
        one for one in objects
        if one["kind"] in _KEPT and hook not in one["metadata"].get("annotations", {})
    ]  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(kept))
    pod = next(
        one["spec"]["template"]["spec"] for one in objects
        if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("operator")
    )  # fmt: skip
    env = {e["name"]: e["value"] for e in pod["containers"][0]["env"] if "value" in e}
    return Installation(account=pod["serviceAccountName"], environment=env)


@contextlib.contextmanager
def played_node(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """Run a stand-in node of played pods while the context is open; yields its state directory."""
    state = folder / "played-node"
    state.mkdir()
    table = folder / "substitutes.json"
    table.write_text(json.dumps(played.substitutes()))
    command = [
        sys.executable, "-m", "e2e.cluster.process", "--kubeconfig", str(cluster.kubeconfig),
        "--state-dir", str(state), "--node-name", NODE, "--substitutes", str(table),
        "--loopback-prefix", LOOPBACK, "--back-off-seconds", "0.5",
    ]  # fmt: skip
    with (folder / "played-node.log").open("w") as log:
        node = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        cluster.kubectl("wait", "--for=create", f"node/{NODE}", "--timeout=60s")
        cluster.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=60s")
        st.wait_for(
            "taints of the played node to go",
            lambda: not cluster.get("node", NODE)["spec"].get("taints"),
            seconds=30,
        )
        yield state
    finally:
        node.terminate()
        node.wait(timeout=30)
        sweep(state)
        cluster.kubectl("delete", "node", NODE, "--ignore-not-found")


@dataclasses.dataclass(slots=True, kw_only=True)
class Bench:
    """One scenario's hands: its namespace, its proxy, and its operator."""

    cluster: Cluster
    installation: Installation
    models: Path
    """Folder below which hostPath sources are allowed; the same for every scenario of a session."""
    proxy: ThreadedProxy
    operator: OperatorProcess
    namespace: str = dataclasses.field(default_factory=lambda: f"fault-{uuid.uuid4().hex[:6]}")

    def intent(self, name: str = "chat", **spec: Any) -> dict[str, Any]:
        """An intent of this scenario's namespace whose model is played."""
        path = self.models / name
        path.mkdir(parents=True, exist_ok=True)
        base = {
            "model": {"source": {"hostPath": {"path": str(path)}}},
            "objective": "MinCost",
            # So little that one thread is best by estimate and by measurement: a scenario that asks
            # whether anything moved must have no reason to move.
            "load": {"requestsPerSecond": "0.1", "promptTokens": 64, "outputTokens": 32},
        }
        return {
            "apiVersion": "trimtab.dev/v1alpha1",
            "kind": "InferenceIntent",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": base | spec,
        }

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests past the proxy, as a user."""
        for manifest in manifests:
            self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def delete(self, name: str, *, wait: bool = True) -> None:
        """Delete an intent, as a user."""
        self.cluster.kubectl(
            "delete", "inferenceintent", name, "-n", self.namespace, f"--wait={str(wait).lower()}",
            "--timeout=60s",
        )  # fmt: skip

    def get(self, name: str = "chat") -> dict[str, Any] | None:
        """Return an intent, None where there is none."""
        text = self.cluster.kubectl(
            "get", "inferenceintent", name, "-n", self.namespace, "-o", "json", "--ignore-not-found"
        )
        return json.loads(text) if text.strip() else None

    def list(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind in the scenario's namespace."""
        return list(self.cluster.get(kind, "-n", self.namespace)["items"])

    def worker_pods(self) -> set[tuple[str, int]]:
        """Return uid and restarts of every worker pod."""
        return {
            (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
            for pod in self.list("pods")
            if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
        }

    def settled(self, name: str = "chat") -> dict[str, Any] | None:
        """Return the intent if it is Ready at its newest generation."""
        intent = self.get(name)
        found = st.condition(intent or {}, "Ready")
        generation = (intent or {}).get("metadata", {}).get("generation")
        good = found.get("status") == "True" and found.get("observedGeneration") == generation
        return intent if good else None

    def wait(self, what: str, probe: Callable[[], Any], *, seconds: float = 60) -> Any:
        """Wait for a truthy answer; a failure shows conditions and the operator's last words."""

        def seen() -> str:
            intents = self.list("inferenceintents")
            found = {
                i["metadata"]["name"]: i.get("status", {}).get("conditions", []) for i in intents
            }
            return f"{json.dumps(found)[:3000]}\n{self.operator.tail()}"

        return st.wait_for(what, probe, seconds=seconds, seen=seen)

    def wait_settled(self, name: str = "chat", *, seconds: float = 90) -> dict[str, Any]:
        """Wait until an intent is Ready at its newest generation."""
        return dict(self.wait(f"{name} Ready", lambda: self.settled(name), seconds=seconds))

    def end_state(self, name: str = "chat") -> dict[str, Any]:
        """Return what the intent came to, comparable between runs."""
        return end_state(self.cluster.get, namespace=self.namespace, name=name)


@contextlib.contextmanager
def bench(
    cluster: Cluster, installation: Installation, folder: Path, *, models: Path, **environment: str
) -> Iterator[Bench]:
    """Start proxy and operator for one scenario, and clean its namespace up after it."""
    sources = {"hostPath": {"enabled": True, "allowedPrefixes": [str(models)]}}
    told = {
        **installation.environment, **TIMES,
        "TRIMTAB_SYSTEM_NAMESPACE": SYSTEM,
        "TRIMTAB_POD_NAME": f"operator-{uuid.uuid4().hex[:6]}",
        "TRIMTAB_WORKER_IMAGE": "trimtab-worker:played",
        "TRIMTAB_SOURCES": json.dumps(sources),
        "TRIMTAB_ADDRESS_REWRITE": f"192.0.2.:{LOOPBACK}",
        **environment,
    }  # fmt: skip
    with led.before(cluster) as proxy:
        kubeconfig = led.write_kubeconfig(
            cluster, folder / "operator.kubeconfig", url=proxy.url, namespace=SYSTEM,
            account=installation.account,
        )  # fmt: skip
        operator = OperatorProcess(
            kubeconfig=kubeconfig, log=folder / "operator.log", environment=told
        )
        found = Bench(
            cluster=cluster,
            installation=installation,
            models=models,
            proxy=proxy,
            operator=operator,
        )
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.namespace}}
        found.apply(space)
        with operator:
            try:
                yield found
            finally:
                proxy.clear()
                operator.release()
                _clean(found)


def _clean(found: Bench) -> None:
    """Delete what the scenario made; the operator still runs and releases its finalizers.

    The namespace is not waited for: its controller sleeps for half of the pods' grace period.
    """
    cluster = found.cluster
    where = ["-n", found.namespace]
    try:
        cluster.kubectl("delete", "inferenceintents", "--all", *where, "--timeout=60s")
    finally:
        cluster.kubectl("delete", "namespace", found.namespace, "--wait=false")
        chosen = ["-n", SYSTEM, "-l", "app.kubernetes.io/managed-by=trimtab-operator"]
        cluster.kubectl("delete", "jobs,configmaps", *chosen, "--wait=false")
