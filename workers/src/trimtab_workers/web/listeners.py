"""Several aiohttp applications in one process: listen, serve until told, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 * 2**20


class StopSignals:
    """SIGTERM and SIGINT: the first asks to drain, the second forces the end."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def install(self) -> None:
        """Take over both signals of the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.deliver, number)

    def deliver(self, number: int) -> None:
        """Record one signal."""
        name = signal.Signals(number).name
        if self.requested.is_set():
            log.warning("stop_forced", extra={"signal": name})
            self.forced.set()
            return
        log.info("stop_requested", extra={"signal": name})
        self.requested.set()


class Listeners:
    """The open ports of a process.

    Client disconnects cancel their handler, because a request nobody waits for must stop
    costing memory and compute.
    """

    def __init__(self, *, host: str) -> None:
        self._host = host
        self._stack = AsyncExitStack()
        self.ports: dict[str, int] = {}

    async def open(self, apps: Mapping[str, tuple[web.Application, int]]) -> None:
        """Bind every application to its port; port 0 lets the system choose (see `ports`).

        Raises:
            OSError: An address cannot be bound; names host and port.
        """
        for name, (app, port) in apps.items():
            runner = web.AppRunner(
                app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
            )
            await runner.setup()
            self._stack.push_async_callback(runner.cleanup)
            listener = socket.create_server(
                (self._host, port),
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
                backlog=1024,
                reuse_port=False,
            )
            await web.SockSite(runner, listener).start()
            self.ports[name] = listener.getsockname()[1]
        log.info("listening", extra={"host": self._host, "ports": self.ports})

    async def close(self) -> None:
        """Close every port and cancel what still runs."""
        await self._stack.aclose()


class InFlight:
    """Counts requests, so that a drain can wait for the last one."""

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    def idle(self) -> Awaitable[object]:
        """Wait until no request is in flight."""
        return self._idle.wait()


async def wait_or_forced(
    work: Awaitable[object], *, stop: StopSignals, timeout_seconds: float
) -> bool:
    """Wait for `work`; return False when the time is up or a second signal came first."""
    task = asyncio.ensure_future(work)
    forced = asyncio.ensure_future(stop.forced.wait())
    done, pending = await asyncio.wait(
        {task, forced}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
    )
    for unfinished in pending:
        unfinished.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return task in done
