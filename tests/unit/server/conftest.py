from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.unit.server.fake_engine import FakeEngine
from trimtab_workers.server.lifecycle import ServerSettings, WorkerServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Running:
    """A worker server on loopback and a client session for it."""

    def __init__(self, server: WorkerServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    def url(self, path: str, *, listener: str = "http") -> str:
        return f"http://127.0.0.1:{self.server.listeners.ports[listener]}{path}"

    async def post(self, path: str, body: object) -> tuple[int, dict, dict]:
        async with self.session.post(self.url(path), json=body) as reply:
            return reply.status, await reply.json(), dict(reply.headers)

    async def get(
        self, path: str, *, listener: str = "http", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        async with self.session.get(self.url(path, listener=listener), headers=headers) as reply:
            return reply.status, await reply.read()

    async def stream(self, path: str, body: dict) -> bytes:
        async with self.session.post(self.url(path), json=body | {"stream": True}) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.read()


@asynccontextmanager
async def running(engine: FakeEngine, *, drain_seconds: float = 5) -> AsyncIterator[Running]:
    settings = ServerSettings(
        host="127.0.0.1",
        port=0,
        admin_port=0,
        metrics_port=0,
        shutdown_timeout_seconds=drain_seconds,
        version="1.2.3",
    )
    server = WorkerServer(settings, build=lambda: engine)
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Running(server, session)
    finally:
        await asyncio.wait_for(server.close(), 30)


def masked(raw: bytes) -> bytes:
    """Replace what differs from call to call: id and time."""
    lines = []
    for line in raw.splitlines():
        lines.append(line)
        if line.startswith(b"data: {"):
            document = json.loads(line[6:]) | {"id": "ID", "created": 0}
            lines[-1] = b"data: " + json.dumps(document, separators=(",", ":")).encode()
    return b"\n".join(lines) + b"\n"


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def worker(engine: FakeEngine) -> AsyncIterator[Running]:
    async with running(engine) as started:
        yield started
