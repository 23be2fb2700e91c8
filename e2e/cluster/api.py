"""A running cluster as the demo and the tests use it: `up`, `down`, and the `Cluster` they give."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import urllib.parse
from typing import TYPE_CHECKING, Any

from e2e.cluster import providers
from e2e.cluster.errors import BuildError, ClusterError, LevelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

__all__ = [
    "BuildError",
    "Cluster",
    "ClusterError",
    "CommandError",
    "LevelUnavailableError",
    "down",
    "up",
]

STAND_IN_PREFIX = ("192.0.2.", "127.0.2.")
"""Pod addresses of the stand-in node, and where its processes really listen."""


class CommandError(ClusterError):
    """kubectl or helm ended with an error; the message holds the command and its standard error."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that answers; `why` says why it is not of a higher level or another provider."""

    name: str
    provider: str
    level: str
    why: str
    kubeconfig: Path
    state_dir: Path
    binaries: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def api_server_url(self) -> str:
        """Return the URL of the API server."""
        return str(self._user_and_cluster()[1]["server"])

    @property
    def server(self) -> str:
        """Return the URL of the API server."""
        return self.api_server_url

    @property
    def token(self) -> str:
        """Return the administrator's bearer token; empty where a certificate is used instead."""
        return str(self._user_and_cluster()[0].get("token", ""))

    @property
    def pod_security(self) -> str:
        """Return the strictest Pod Security level that the cluster's podDefaults pass.

        Embedded nodes take /usr and the interpreter from the host through hostPath volumes, which
        only `privileged` admits.
        """
        return "restricted" if self.provider == "given" else "privileged"

    def _user_and_cluster(self) -> tuple[dict[str, Any], dict[str, Any]]:
        view = json.loads(self.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        return view["users"][0]["user"], view["clusters"][0]["cluster"]

    def _program(self, name: str) -> str:
        found = self.binaries.get(name) or shutil.which(name)
        if not found:
            raise ClusterError(
                f"{name} is neither built nor on the PATH. "
                "Remedy: `python -m e2e.cluster build --level control-plane`."
            )
        return found

    def environment(self) -> dict[str, str]:
        """Return this process's environment with KUBECONFIG set to the cluster's."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def _run(self, name: str, arguments: tuple[str, ...], stdin: str | None, timeout: float) -> str:
        command = [self._program(name), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=self.environment(),
                check=False, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise CommandError(
                f"{name} {' '.join(arguments)}: no end within {timeout:g} s; "
                f"stderr so far: {exc.stderr or ''!s}"
            ) from exc
        if done.returncode:
            raise CommandError(
                f"{name} {' '.join(arguments)} ended with status {done.returncode}: "
                f"{done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Run kubectl as administrator and return its standard output.

        Raises:
            CommandError: It ended with an error or took more than `timeout` seconds.
        """
        return self._run("kubectl", arguments, stdin, timeout)

    def helm(self, *arguments: str, stdin: str | None = None, timeout: float = 600) -> str:
        """Run helm as administrator and return its standard output.

        Raises:
            CommandError: It ended with an error or took more than `timeout` seconds.
        """
        return self._run("helm", arguments, stdin, timeout)

    def helm_values(self) -> dict[str, Any]:
        """Return the chart values that this cluster's way of running our processes needs."""
        return providers.helm_values(self.name, provider=self.provider, level=self.level)

    def load_image(self, archive: Path) -> None:
        """Make the images of a docker-archive tar known to the cluster's node."""
        providers.load_image(self.name, archive, provider=self.provider, level=self.level)

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get ARGUMENTS -o json` prints, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def api_client(self) -> Any:
        """Return a `kubernetes.client.ApiClient` for this cluster, as administrator; close it."""
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    async def aio_api_client(self) -> Any:
        """Return a `kubernetes.aio.client.ApiClient` for this cluster, as administrator; close it."""
        from kubernetes.aio import config

        return await config.new_client_from_config(str(self.kubeconfig))

    def service_url(self, namespace: str, service: str, port: int | str) -> str:
        """Return a URL at which this machine reaches a Service, without a path.

        The ClusterIP at the node level, the address of a ready pod at the process level (which is not
        balanced and is only good as long as the pod), the API server's proxy elsewhere.

        Raises:
            ClusterError: The Service has no such port, or no ready endpoint.
        """
        spec = self.get("service", service, "-n", namespace)["spec"]
        chosen = next(
            (p for p in spec["ports"] if str(port) in {str(p["port"]), p.get("name")}), None
        )
        if chosen is None:
            known = [f"{p.get('name', '')}/{p['port']}" for p in spec["ports"]]
            raise ClusterError(
                f"Service {namespace}/{service} has no port {port}; it has {', '.join(known)}."
            )
        if self.level == "node" and spec.get("clusterIP") not in {None, "None"}:
            return f"http://{spec['clusterIP']}:{chosen['port']}"
        address, number = self._endpoint(namespace, service, chosen)
        if self.level == "node" or address.startswith(STAND_IN_PREFIX[1]):
            return f"http://{address}:{number}"
        quoted = urllib.parse.quote(f"{service}:{chosen.get('name') or chosen['port']}")
        return f"{self.api_server_url}/api/v1/namespaces/{namespace}/services/{quoted}/proxy"

    def _endpoint(self, namespace: str, service: str, port: dict[str, Any]) -> tuple[str, int]:
        slices = self.get(
            "endpointslices", "-n", namespace, "-l", f"kubernetes.io/service-name={service}"
        )["items"]
        for one in slices:
            for wanted in one.get("ports") or []:
                if (wanted.get("name") or "") != (port.get("name") or ""):
                    continue
                for endpoint in one.get("endpoints") or []:
                    if endpoint.get("conditions", {}).get("ready", True):
                        address = str(endpoint["addresses"][0])
                        return self.host_address(address), int(wanted["port"])
        raise ClusterError(
            f"Service {namespace}/{service} has no ready endpoint for port {port['port']}. "
            f"Remedy: wait for its pods, see `kubectl get pods -n {namespace}`."
        )

    def host_address(self, pod_address: str) -> str:
        """Return the address at which this machine reaches a pod of the address in its status."""
        if self.level == "process" and pod_address.startswith(STAND_IN_PREFIX[0]):
            return pod_address.replace(*STAND_IN_PREFIX, 1)
        return pod_address


def up(
    *,
    name: str = "trimtab",
    level: str = "auto",
    kubeconfig: Path | None = None,
    console: Console | None = None,
    report: Callable[[str], None] = lambda _: None,
    owned: bool = False,
) -> Cluster:
    """Start the cluster `name` through the provider chain, or return it if it runs.

    Args:
        name: Clusters of different names live side by side.
        level: `auto` takes the first provider of the chain that works; a level takes the embedded one
            (a given kubeconfig counts as every level).
        kubeconfig: Use that cluster; default `TRIMTAB_KUBECONFIG`.
        console: Where build progress goes; default stderr.
        report: Called with one line per step.
        owned: The cluster may be removed once this process has ended.

    Raises:
        LevelUnavailableError: The level cannot start here; names what is missing and the remedy.
        ClusterError: It could not be started.
    """
    facts = providers.up(
        name=name, level=level, kubeconfig=kubeconfig, console=console, report=report, owned=owned
    )
    return Cluster(**facts)


def get(name: str = "trimtab") -> Cluster | None:
    """Return the running cluster `name` without starting anything, or None."""
    facts = providers.facts(name)
    return Cluster(**facts) if facts else None


def down(name: str = "trimtab", *, report: Callable[[str], None] = lambda _: None) -> bool:
    """Remove the cluster `name` and everything it left; return whether there was one."""
    return providers.down(name, report=report)
