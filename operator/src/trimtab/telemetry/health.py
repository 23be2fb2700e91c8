"""`/livez`, `/readyz`, `/debug/loops` on one port, `/metrics` alone on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from trimtab.telemetry.metrics import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a probe passes, and every single check with its result."""

    checks: Mapping[str, bool]

    @property
    def ok(self) -> bool:
        """All checks pass."""
        return all(self.checks.values())


class HealthServer:
    """Two listeners; the probes are given as functions."""

    def __init__(
        self,
        *,
        address: str,
        health_port: int,
        metrics_port: int,
        livez: Callable[[], Verdict],
        readyz: Callable[[], Verdict],
        loops: Callable[[], Mapping[str, Any]],
        before_scrape: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._ports = (health_port, metrics_port)
        self._livez = livez
        self._readyz = readyz
        self._loops = loops
        self._before_scrape = before_scrape
        self._runners: list[web.AppRunner] = []
        self.ports: tuple[int, int] = (0, 0)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: A port is taken.
        """
        health = web.Application()
        health.add_routes(
            [
                web.get("/livez", self._probe(self._livez)),
                web.get("/readyz", self._probe(self._readyz)),
                web.get("/debug/loops", self._debug),
            ]
        )
        metrics = web.Application()
        metrics.add_routes([web.get("/metrics", self._metrics)])
        bound = []
        for app, port in zip((health, metrics), self._ports, strict=True):
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, self._address, port).start()
            bound.append(runner.addresses[0][1])
        self.ports = (bound[0], bound[1])

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    @staticmethod
    def _probe(judge: Callable[[], Verdict]) -> Callable[[web.Request], Any]:
        async def handler(_: web.Request) -> web.Response:
            verdict = judge()
            return web.json_response(
                {"ok": verdict.ok, "checks": dict(verdict.checks)},
                status=200 if verdict.ok else 503,
            )

        return handler

    async def _debug(self, _: web.Request) -> web.Response:
        return web.json_response(dict(self._loops()))

    async def _metrics(self, _: web.Request) -> web.Response:
        self._before_scrape()
        return web.Response(
            body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
