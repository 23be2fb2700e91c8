from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from kubernetes.aio.client import Configuration

from tests.contract.gateway.fake_api_server import FakeApiServer
from tests.unit.server.fake_engine import FakeEngine
from trimtab_workers.gateway.kube.client import WatchingClient
from trimtab_workers.gateway.lifecycle import Gateway
from trimtab_workers.gateway.settings import GatewaySettings
from trimtab_workers.server.lifecycle import ServerSettings, WorkerServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROUTES = "/api/v1/namespaces/trimtab-system/configmaps"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


def a_route(name="chat", **fields):
    return {"name": name, "intent": name, "service": f"{name}-1a2b3c4d"} | fields


def a_config_map(*models, namespace="team-a", revision=1, name=None, text=None):
    document = {"v": 1, "revision": revision, "namespace": namespace, "models": list(models)}
    return {
        "metadata": {
            "name": name or f"trimtab-routes-{namespace}",
            "namespace": "trimtab-system",
            "labels": {"app.kubernetes.io/managed-by": "trimtab-operator"},
        },
        "data": {"routes.json": json.dumps(document) if text is None else text},
    }


def a_slice(uid, port, *, service="chat-1a2b3c4d", namespace="team-a", **conditions):
    return {
        "metadata": {
            "name": f"{service}-{uid}",
            "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": service,
                "app.kubernetes.io/part-of": "trimtab",
            },
        },
        "ports": [{"name": "http", "port": port}],
        "endpoints": [
            {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": True, "terminating": False} | conditions,
                "targetRef": {"kind": "Pod", "name": f"pod-{uid}", "uid": uid},
            }
        ],
    }


def a_chat(**fields):
    return {
        "model": "team-a/chat",
        "messages": [{"role": "user", "content": "Capital of France?"}],
    } | fields


async def eventually(condition: Callable[[], Any], *, seconds: float = 30.0) -> None:
    """Wait for something that announces itself nowhere."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


class Bench:
    """A fake API server, workers, gateways and a client."""

    def __init__(self, session: aiohttp.ClientSession, stack: AsyncExitStack) -> None:
        self.api = FakeApiServer()
        self.session = session
        self._stack = stack
        self.gateway: Gateway = None  # type: ignore[assignment]  # set by `start_gateway`

    async def add_worker(self, uid: str, engine: FakeEngine | None = None, **fields) -> FakeEngine:
        """Start a worker and publish its endpoint."""
        engine = engine or FakeEngine()
        settings = ServerSettings(host="127.0.0.1", port=0, admin_port=0, metrics_port=0)
        server = WorkerServer(settings, build=lambda: engine)
        await server.start()
        self._stack.push_async_callback(server.close)
        engine.server = server
        self.api.put(SLICES, a_slice(uid, server.listeners.ports["http"], **fields))
        return engine

    async def add_socket(self, uid: str, talk: Callable, **fields: Any) -> None:
        """Publish a worker whose bytes the test writes itself."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._stack.callback(server.close)
        self.api.put(SLICES, a_slice(uid, server.sockets[0].getsockname()[1], **fields))

    async def start_gateway(self, *, own_config: bool = True, **fields: Any) -> Gateway:
        """Start a gateway; without auth, and with a configuration of ours, unless asked otherwise."""
        settings = GatewaySettings(
            **{
                "port": 0,
                "admin_port": 0,
                "metrics_port": 0,
                "auth": "None",
                "hold_seconds": 0.0,
                "drain_delay_seconds": 0.0,
                "pod_name": "gw-0",
            }
            | fields
        )
        if own_config:
            config = Configuration(host=f"http://127.0.0.1:{self.api.port}")
            made = WatchingClient(config, manager="test")
        else:
            made = await WatchingClient.connect(manager="test")
        client = await self._stack.enter_async_context(made)
        gateway = Gateway(settings, client=client)
        self._stack.push_async_callback(gateway.close)
        await gateway.start()
        self.gateway = gateway
        return gateway

    async def until(self, condition: Callable[[Gateway], Any]) -> None:
        """Wait until the gateway's directory satisfies a condition."""
        async with asyncio.timeout(30):
            while True:
                changed = self.gateway.directory.next_change()
                if condition(self.gateway):
                    return
                await changed.wait()

    async def settled(self, *, models: int = 1, pods: int = 1) -> None:
        """Wait until the gateway knows that many models and pods."""
        await self.until(
            lambda gateway: (
                len(gateway.directory.table.models()) == models
                and len(gateway.directory.pods()) == pods
            )
        )

    def url(self, path: str, *, listener: str = "http") -> str:
        return f"http://127.0.0.1:{self.gateway.listeners.ports[listener]}{path}"

    async def post(self, body: Any, *, path: str = "/v1/chat/completions", **headers: str):
        async with self.session.post(self.url(path), json=body, headers=headers) as reply:
            return reply.status, await reply.json(), reply.headers

    async def get(self, path: str, *, listener: str = "http", **headers: str) -> tuple[int, str]:
        async with self.session.get(self.url(path, listener=listener), headers=headers) as reply:
            return reply.status, await reply.text()

    async def stream(self, body: dict[str, Any]) -> bytes:
        async with self.session.post(
            self.url("/v1/chat/completions"), json=body | {"stream": True}
        ) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.read()

    async def observed(self) -> dict[str, Any]:
        return json.loads((await self.get("/-/observed", listener="admin"))[1])

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def a_bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        bench = Bench(session, stack)
        await bench.api.start()
        stack.push_async_callback(bench.api.stop)
        yield bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with a_bench() as made:
        yield made


@pytest.fixture
async def served(bench: Bench) -> Bench:
    """One model with one worker `u1` behind a gateway."""
    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    bench.engine = await bench.add_worker("u1")
    await bench.start_gateway()
    await bench.settled()
    return bench
