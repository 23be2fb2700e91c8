"""The worker's life: listen at once, load, serve, drain on the first signal, end on the second."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab_workers.server.app import Reloads, admin_app, metrics_app, public_app
from trimtab_workers.server.slot import EngineSlot, ServedEngine
from trimtab_workers.web.listeners import InFlight, Listeners, StopSignals, wait_or_forced

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where to listen and how long to drain; port 0 lets the system choose."""

    host: str
    port: int = 8000
    admin_port: int = 8001
    metrics_port: int = 8002
    shutdown_timeout_seconds: float = 45.0
    version: str = "0"


class WorkerServer:
    """One worker process, without its process: tests run several in one loop."""

    def __init__(self, settings: ServerSettings, *, build: Callable[[], ServedEngine]) -> None:
        self._settings = settings
        self._build = build
        self.slot = EngineSlot()
        self.in_flight = InFlight()
        self.listeners = Listeners(host=settings.host)
        self._reloads = Reloads(self.slot)

    async def start(self) -> None:
        """Open the ports, then build the engine; returns when the engine has started to load.

        Raises:
            OSError: A port cannot be bound.
            EngineError: The model set cannot be used; the ports are closed again.
        """
        settings = self._settings
        public = public_app(self.slot, in_flight=self.in_flight, version=settings.version)
        admin = admin_app(self.slot, reloads=self._reloads, version=settings.version)
        apps = {
            "http": (public, settings.port),
            "admin": (admin, settings.admin_port),
            "metrics": (metrics_app(self.slot), settings.metrics_port),
        }
        try:
            await self.listeners.open(apps)
            await self.slot.fill(self._build)
        except BaseException:
            await self.listeners.close()
            raise

    async def drain(self, *, stop: StopSignals) -> bool:
        """Refuse new requests and wait for the running ones; False if some were cut off."""
        self.slot.drain()
        log.info("draining", extra={"in_flight": self.in_flight.count})
        return await wait_or_forced(
            self.in_flight.idle(),
            stop=stop,
            timeout_seconds=self._settings.shutdown_timeout_seconds,
        )

    async def close(self) -> None:
        """Close the ports, which cancels and aborts what still runs, and end the engine."""
        cut_off = self.in_flight.count
        await self._reloads.close()
        await self.listeners.close()
        await self.slot.stop()
        log.info("stopped", extra={"cut_off": cut_off})


async def serve(settings: ServerSettings, *, build: Callable[[], ServedEngine]) -> None:
    """Serve until a signal asks to stop.

    Raises:
        OSError: A port cannot be bound.
        EngineError: The model set cannot be used.
    """
    stop = StopSignals()
    stop.install()
    server = WorkerServer(settings, build=build)
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(stop.requested.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await stopping
    else:
        await asyncio.gather(starting, return_exceptions=True)
    try:
        await server.drain(stop=stop)
    finally:
        await server.close()
