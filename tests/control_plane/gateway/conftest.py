"""A gateway process with its own account and rights beside a real API server, and a worker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import sys
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from e2e.faults import FaultProxy
from tests.unit.server.fake_engine import FakeEngine
from trimtab.kube.client import KubeClient
from trimtab_workers.server.lifecycle import ServerSettings, WorkerServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from e2e.cluster.api import Cluster

# What charts/trimtab/templates/rbac/gateway.yaml grants, and nothing more.
CLUSTER_RULES = [
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["tokenreviews"],
        "verbs": ["create"],
    },
    {
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["subjectaccessreviews"],
        "verbs": ["create"],
    },
]
SYSTEM_RULES = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}]
WORKER_ADDRESS = ("192.0.2.77", "127.0.2.77")


@dataclass
class Lab:
    """Namespaces of their own per test, and requests to the gateway as anybody."""

    client: KubeClient
    cluster: Cluster
    session: aiohttp.ClientSession
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    ports: dict[str, int] = field(default_factory=dict)
    engine: FakeEngine = field(default_factory=FakeEngine)
    worker_port: int = 0

    def user_and_cluster(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the administrator's entries of the kubeconfig."""
        text = self.cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json")
        config = json.loads(text)
        return config["users"][0]["user"], config["clusters"][0]["cluster"]

    @property
    def system(self) -> str:
        return f"sys-{self.mark}"

    def team(self, letter: str) -> str:
        return f"team-{letter}-{self.mark}"

    async def create(self, path: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
        metadata = {"name": name} | fields.pop("metadata", {})
        version = path.removeprefix("/apis/").split("/")
        api_version = "v1" if path.startswith("/api/") else "/".join(version[:2])
        body = {"apiVersion": api_version, "kind": kind, "metadata": metadata} | fields
        return await self.client.request("POST", path, body=body)

    async def namespace(self, name: str) -> None:
        await self.create("/api/v1/namespaces", "Namespace", name)

    async def account(self, namespace: str, name: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await self.create(path, "ServiceAccount", name)

    async def token(self, namespace: str, name: str, *, audience: str | None = "trimtab") -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return (await self.client.request("POST", path, body=body))["status"]["token"]

    async def grant(
        self, *, account: tuple[str, str], rules: list[dict], namespace: str | None
    ) -> None:
        """Bind rules to an account, in one namespace or everywhere."""
        scope = f"namespaces/{namespace}/" if namespace else ""
        base = f"/apis/rbac.authorization.k8s.io/v1/{scope}"
        prefix = "" if namespace else "Cluster"
        name = f"{account[1]}-{uuid.uuid4().hex[:6]}"
        kind = f"{prefix}Role"
        await self.create(f"{base}{kind.lower()}s", kind, name, rules=rules)
        await self.create(
            f"{base}{kind.lower()}bindings",
            f"{kind}Binding",
            name,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            subjects=[{"kind": "ServiceAccount", "namespace": account[0], "name": account[1]}],
        )

    async def may_invoke(self, account: tuple[str, str], namespace: str, intent: str) -> None:
        rule = {
            "apiGroups": ["trimtab.dev"],
            "resources": ["inferenceintents"],
            "verbs": ["invoke"],
            "resourceNames": [intent],
        }
        await self.grant(account=account, rules=[rule], namespace=namespace)

    async def routes(self, namespace: str, *models: str, revision: int = 1) -> None:
        """Create or replace a namespace's routing table, as the operator would."""
        rows = [{"name": name, "intent": name, "service": name} for name in models]
        document = {"v": 1, "revision": revision, "namespace": namespace, "models": rows}
        name = f"trimtab-routes-{namespace}"
        await self.client.request(
            "PATCH",
            f"/api/v1/namespaces/{self.system}/configmaps/{name}",
            query={"fieldManager": "test", "force": "true"},
            content_type="application/apply-patch+yaml",
            body={
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": name,
                    "labels": {"app.kubernetes.io/managed-by": "trimtab-operator"},
                },
                "data": {"routes.json": json.dumps(document)},
            },
        )

    async def endpoints(self, namespace: str, service: str, *, ready: bool = True) -> None:
        """Announce the worker behind a Service; its address is rewritten to loopback."""
        await self.client.request(
            "PATCH",
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{service}-x",
            query={"fieldManager": "test", "force": "true"},
            content_type="application/apply-patch+yaml",
            body={
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{service}-x",
                    "labels": {
                        "kubernetes.io/service-name": service,
                        "app.kubernetes.io/part-of": "trimtab",
                    },
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": self.worker_port, "protocol": "TCP"}],
                "endpoints": [{"addresses": [WORKER_ADDRESS[0]], "conditions": {"ready": ready}}],
            },
        )

    async def ask(self, model: str, *, token: str | None = None) -> tuple[int, str]:
        """Return status and error code (or the model) of a chat request."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        url = f"http://127.0.0.1:{self.ports['http']}/v1/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as reply:
            answer = await reply.json()
            return reply.status, answer["model"] if reply.ok else answer["error"]["code"]

    async def models(self, token: str) -> list[str]:
        url, headers = (
            f"http://127.0.0.1:{self.ports['http']}/v1/models",
            {"Authorization": f"Bearer {token}"},
        )
        async with self.session.get(url, headers=headers) as reply:
            return [row["id"] for row in (await reply.json())["data"]]

    async def ready(self) -> bool:
        url = f"http://127.0.0.1:{self.ports['admin']}/readyz"
        async with self.session.get(url) as reply:
            return reply.ok

    async def until(self, model: str, token: str, expected: tuple[int, str]) -> None:
        """Wait until a request is answered as expected; say what was seen otherwise."""
        seen: list[tuple[int, str]] = []
        try:
            async with asyncio.timeout(30):
                while not seen or seen[-1] != expected:
                    seen.append(await self.ask(model, token=token))
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"{model}: waited for {expected}, saw {seen[-3:]}")


@pytest.fixture
async def lab(control_plane: Cluster, monkeypatch, tmp_path: Path) -> AsyncIterator[Lab]:
    """Two teams, a worker, and a gateway process."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with a_lab(control_plane) as made:
        kubeconfig = await gateway_account(made, tmp_path)
        async with a_gateway(made, tmp_path, kubeconfig=kubeconfig):
            yield made


@pytest.fixture
async def fragile_lab(
    control_plane: Cluster, monkeypatch, tmp_path: Path
) -> AsyncIterator[tuple[Lab, FaultProxy, Path]]:
    """The same without a gateway yet; its kubeconfig leads through a proxy that can fail."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with a_lab(control_plane) as made:
        _, cluster = made.user_and_cluster()
        async with FaultProxy(cluster["server"], upstream_tls=trust(cluster)) as proxy:
            yield made, proxy, await gateway_account(made, tmp_path, server=proxy.url)


def trust(cluster: dict[str, Any]) -> ssl.SSLContext:
    """Return how to trust a kubeconfig's cluster."""
    data = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"),
        cadata=base64.b64decode(data).decode() if data else None,
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.asynccontextmanager
async def a_lab(cluster: Cluster) -> AsyncIterator[Lab]:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(await KubeClient.connect(manager="test"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = Lab(client, cluster, session)
        await made.namespace(made.system)
        for letter in "ab":
            await made.namespace(made.team(letter))
        made.engine.models_ = tuple(
            f"{made.team(letter)}/{name}" for letter in "ab" for name in ("chat", "code")
        )
        settings = ServerSettings(host=WORKER_ADDRESS[1], port=0, admin_port=0, metrics_port=0)
        server = WorkerServer(settings, build=lambda: made.engine)
        await server.start()
        stack.push_async_callback(server.close)
        made.worker_port = server.listeners.ports["http"]
        yield made
        for name in (made.system, made.team("a"), made.team("b")):
            await client.request("DELETE", f"/api/v1/namespaces/{name}")


async def gateway_account(lab: Lab, folder: Path, *, server: str | None = None) -> Path:
    """Create the gateway's ServiceAccount with the chart's rights; return its kubeconfig."""
    account = (lab.system, "trimtab-gateway")
    await lab.account(*account)
    await lab.grant(account=account, rules=CLUSTER_RULES, namespace=None)
    await lab.grant(account=account, rules=SYSTEM_RULES, namespace=lab.system)
    config = json.loads(lab.cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"][0]["user"] = {"token": await lab.token(*account, audience=None)}
    if server is not None:
        config["clusters"][0]["cluster"] = {"server": server}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    (folder / "state").mkdir()
    return kubeconfig


@contextlib.asynccontextmanager
async def a_gateway(
    lab: Lab, folder: Path, *, kubeconfig: Path, killed: bool = False
) -> AsyncIterator[None]:
    """Run the gateway as a process; it ends by SIGTERM with status 0, or is killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trimtab_workers.gateway"),
        *("--port", "0", "--admin-port", "0", "--metrics-port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ
        | {
            "KUBECONFIG": str(kubeconfig),
            "TRIMTAB_BIND_ADDRESS": "127.0.0.1",
            "TRIMTAB_ADDRESS_REWRITE": "192.0.2.:127.0.2.",
            "TRIMTAB_SYSTEM_NAMESPACE": lab.system,
            "TRIMTAB_STATE_DIR": str(folder / "state"),
            "TRIMTAB_HOLD_SECONDS": "0",
            "TRIMTAB_DRAIN_DELAY_SECONDS": "0",
        },
    )
    lines: list[dict[str, Any]] = []
    reader = asyncio.create_task(_read(process, lines))
    try:
        lab.ports = await _ports(process, lines)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill() if killed else process.terminate()
        code = await asyncio.wait_for(process.wait(), 30)
        await reader
        print(*lines, sep="\n")
    if not killed:
        assert code == 0
        assert lines[-1]["event"] == "stopped"


async def _read(process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> None:
    async for raw in process.stderr:
        lines.append(json.loads(raw))  # noqa: PERF401 - read while others look


async def _ports(
    process: asyncio.subprocess.Process, lines: list[dict[str, Any]]
) -> dict[str, int]:
    async with asyncio.timeout(60):
        while True:
            for line in lines:
                if line["event"] == "listening":
                    return line["ports"]
            assert process.returncode is None, lines
            await asyncio.sleep(0.05)
