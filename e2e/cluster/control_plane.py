"""etcd, API server, controller manager, scheduler and kwok as processes of this user; no root needed."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING, Any

from e2e.cluster import paths, probes, state
from e2e.cluster.errors import ClusterError
from e2e.cluster.versions import GO_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.cluster.processes import Processes
    from e2e.cluster.state import State

STAGES = GO_FOLDER.parent / "kwok-stages.yaml"
SERVICE_NAMES = (
    "kubernetes", "kubernetes.default", "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)  # fmt: skip
DEFAULT_SERVICE_CIDR = "10.255.240.0/20"
DEFAULT_SERVICE_IP = "10.255.240.1"
KWOK_POD_CIDR = "10.254.0.0/16"
READY_SECONDS = 120.0
FAKE_NODE = "kwok.x-k8s.io/node=fake"
"""Annotation of the nodes that kwok plays; real nodes do not carry it."""


def kubeconfig(st: State, user: str, *, ca: Path, client: Path | None = None) -> str:
    """Return a kubeconfig for one user, as JSON (which is YAML): token, or the certificate `client`."""
    credentials: dict[str, str] = (
        {"token": st.tokens[user]}
        if client is None
        else {
            "client-certificate": f"{client}.crt",
            "client-key": f"{client}.key",
        }
    )
    name = f"trimtab-{st.name}"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": st.server, **_authority(ca)}},
            ],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        },
        indent=1,
    )


def _authority(ca: Path) -> dict[str, str]:

    return {"certificate-authority-data": base64.b64encode(ca.read_bytes()).decode()}


class ControlPlane:
    """Starts the control plane of one cluster from its state; every step can be repeated."""

    def __init__(self, st: State, processes: Processes) -> None:
        self.state = st
        self.processes = processes
        self.folder = st.folder
        self.pki = st.folder / "pki"

    def prepare(self) -> None:
        """Write keys, tokens and kubeconfigs; what exists from an earlier start is kept."""
        st = self.state
        if not (self.pki / ".done").exists():
            hosts = [*SERVICE_NAMES, self._service_ip(), st.api_host]
            command = [st.binaries["pki"], "-folder", self.pki, "-node", self.node_name]
            command += [word for host in hosts for word in ("-api-host", host)]
            node = st.network.get("node")
            command += ["-node-host", self.node_name, *(["-node-host", node] if node else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ClusterError(f"the certificates could not be made: {done.stderr.strip()}")
            (self.pki / ".done").touch()
        rows = [
            f'{st.tokens[name]},{user},{user},"{group}"\n'
            for name, (user, group) in state.USERS.items()
        ]
        paths.write_atomically(self.folder / "tokens.csv", "".join(rows))
        for user in state.USERS:
            target = st.kubeconfig if user == "admin" else self.folder / f"{user}.kubeconfig"
            paths.write_atomically(target, kubeconfig(st, user, ca=self.pki / "ca.crt"))

    @property
    def node_name(self) -> str:
        """Return the name of the cluster's own node, real or stand-in."""
        return f"trimtab-{self.state.name}"

    def _service_ip(self) -> str:
        return self.state.network.get("service_ip", DEFAULT_SERVICE_IP)

    def commands(self) -> dict[str, list[str | Path]]:
        """Return the command line of every component, in the order in which they start."""
        own = {
            "etcd": self._etcd(),
            "kube-apiserver": self._apiserver(),
            "kube-controller-manager": self._controller_manager(),
            "kube-scheduler": self._scheduler(),
        }
        return own | {"kwok": self._kwok()}

    def _etcd(self) -> list[str | Path]:
        client = f"https://127.0.0.1:{self.state.ports['etcd']}"
        peer = f"https://127.0.0.1:{self.state.ports['etcd-peer']}"
        key = self.pki / "etcd"
        return [
            self.state.binaries["etcd"], "--name=etcd", f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=etcd={peer}", "--unsafe-no-fsync", "--log-level=warn",
            f"--trusted-ca-file={self.pki / 'ca.crt'}", "--client-cert-auth",
            f"--cert-file={key}.crt", f"--key-file={key}.key",
            f"--peer-trusted-ca-file={self.pki / 'ca.crt'}", "--peer-client-cert-auth",
            f"--peer-cert-file={key}.crt", f"--peer-key-file={key}.key",
        ]  # fmt: skip

    def _apiserver(self) -> list[str | Path]:
        st, pki = self.state, self.pki
        advertised = [f"--advertise-address={st.api_host}"]
        if not st.network:
            # A loopback address is refused in EndpointSlices: without a real one there are no endpoints.
            advertised.append("--endpoint-reconciler-type=none")
        return [
            st.binaries["kube-apiserver"], f"--bind-address={st.api_host}", *advertised,
            f"--secure-port={st.ports['apiserver']}",
            f"--etcd-servers=https://127.0.0.1:{st.ports['etcd']}", f"--etcd-cafile={pki / 'ca.crt'}",
            f"--etcd-certfile={pki / 'apiserver-client.crt'}",
            f"--etcd-keyfile={pki / 'apiserver-client.key'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}", f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}", f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={st.network.get('service_cidr', DEFAULT_SERVICE_CIDR)}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true", "--profiling=false", "--event-ttl=1h",
        ]  # fmt: skip

    def _manager(self, user: str, binary: str) -> list[str | Path]:
        config = self.folder / f"{user}.kubeconfig"
        return [
            self.state.binaries[binary], f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1", f"--secure-port={self.state.ports[user]}",
            "--leader-elect=false", "--profiling=false", "--kube-api-qps=100", "--kube-api-burst=200",
        ]  # fmt: skip

    def _controller_manager(self) -> list[str | Path]:
        return [
            *self._manager("controller-manager", "kube-controller-manager"),
            f"--service-account-private-key-file={self.pki / 'sa.key'}",
            f"--root-ca-file={self.pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={self.pki / 'ca.crt'}",
            f"--cluster-signing-key-file={self.pki / 'ca.key'}",
            "--use-service-account-credentials=true",
        ]

    def _scheduler(self) -> list[str | Path]:
        return self._manager("scheduler", "kube-scheduler")

    def _kwok(self) -> list[str | Path]:
        return [
            self.state.binaries["kwok"], f"--kubeconfig={self.folder / 'kwok.kubeconfig'}",
            f"--config={STAGES}", "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={FAKE_NODE}",
            "--node-lease-duration-seconds=40", f"--cidr={KWOK_POD_CIDR}",
            f"--server-address=127.0.0.1:{self.state.ports['kwok']}",
        ]  # fmt: skip

    def start(self, report: Callable[[str], None]) -> None:
        """Start what does not run yet and wait until the cluster takes pods.

        Raises:
            ClusterError: A component ended or did not become ready; holds the end of its log.
        """
        commands = self.commands()
        for component in ("etcd", "kube-apiserver"):
            self._start(component, commands)
        self._wait("kube-apiserver")
        report(f"kube-apiserver is ready at {self.state.server}")
        rest = [name for name in commands if name not in {"etcd", "kube-apiserver"}]
        for component in rest:
            self._start(component, commands)
        for component in rest:
            self._wait(component)
        probes.wait_for(
            "ServiceAccount default/default",
            lambda: self._get("/api/v1/namespaces/default/serviceaccounts/default"),
            seconds=READY_SECONDS,
            fatal=lambda: self._dead("kube-controller-manager"),
        )
        report(f"{', '.join(rest)} are ready")

    def _start(self, component: str, commands: dict[str, list[str | Path]]) -> None:
        self.processes.start(component, commands[component], cpus=self.state.cpus)

    def _get(self, path: str, *, base: str | None = None) -> bool:
        return probes.ok(
            (base or self.state.server) + path, ca=self.pki / "ca.crt",
            token=self.state.tokens["admin"],
        )  # fmt: skip

    def get_json(self, path: str) -> dict[str, Any] | None:
        """Return the object at an API path as admin, or None if it is not there (yet)."""
        return probes.get_json(
            self.state.server + path, ca=self.pki / "ca.crt", token=self.state.tokens["admin"]
        )

    def healthy(self, component: str) -> bool:
        """Return whether a component answers its own health check."""
        ports = self.state.ports
        if component == "etcd":
            key = self.pki / "apiserver-client"
            return probes.ok(
                f"https://127.0.0.1:{ports['etcd']}/health", ca=self.pki / "ca.crt", client=key
            )
        if component == "kube-apiserver":
            return self._get("/readyz")
        if component == "kwok":
            return probes.ok(f"http://127.0.0.1:{ports['kwok']}/healthz")
        name = component.removeprefix("kube-")
        # Their serving certificates are made at start, in memory: only that they answer is checked.
        return probes.ok(f"https://127.0.0.1:{ports[name]}/healthz", verify=False)

    def _dead(self, component: str) -> str | None:
        if self.processes.alive(component):
            return None
        return f"{component} ended; the end of its log:\n{self.processes.tail(component)}"

    def _wait(self, component: str) -> None:
        probes.wait_for(
            f"{component} to be healthy",
            lambda: self.healthy(component),
            seconds=READY_SECONDS,
            fatal=lambda: self._dead(component) or self._dead("etcd"),
            seen=lambda: self.processes.tail(component),
        )
