"""The gateway's three listeners: clients (8080), the operator (8001), Prometheus (8002)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import exposition

from trimtab_workers.web.errors import ApiError, Handler, openai_errors
from trimtab_workers.web.listeners import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.gateway.metrics import GatewayMetrics
    from trimtab_workers.gateway.proxy import Proxy
    from trimtab_workers.web.listeners import InFlight

_CLIENT_GONE = "499"


class Gate:
    """Says whether requests are taken: `open`, `closing` (taken, but not ready) or `closed`."""

    def __init__(self, *, in_flight: InFlight, limit: int) -> None:
        self.in_flight = in_flight
        self.stage = "open"
        self._limit = limit

    def check(self) -> None:
        """Let a request in that `in_flight` already counts.

        Raises:
            ApiError: 503 if the gateway is full or shuts down.
        """
        if self.stage == "closed":
            raise ApiError(
                503,
                "The gateway is shutting down. Retry; another replica will answer.",
                code="shutting_down",
                retry_after_seconds=1.0,
            )
        if self.in_flight.count > self._limit:
            raise ApiError(
                503,
                f"The gateway already serves {self._limit} requests. Retry in a moment.",
                code="overloaded",
                retry_after_seconds=1.0,
            )


def public_app(proxy: Proxy, *, gate: Gate, metrics: GatewayMetrics) -> web.Application:
    """Return the application of port 8080."""

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        code = _CLIENT_GONE
        try:
            with gate.in_flight, metrics.in_flight.track_inprogress():
                response = await handler(request)
                code = str(response.status)
                if gate.stage != "open" and not response.prepared:
                    response.force_close()
                return response
        finally:
            metrics.requests.labels(code=code).inc()

    @web.middleware
    async def gated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/v1/"):
            gate.check()
        return await handler(request)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(
            text="ok\n" if gate.stage == "open" else "closing\n",
            status=200 if gate.stage == "open" else 503,
        )

    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[counted, openai_errors(), gated]
    )
    app.add_routes(
        [
            web.post("/v1/chat/completions", proxy.generate),
            web.post("/v1/completions", proxy.generate),
            web.get("/v1/models", proxy.models),
            web.get("/v1/models/{name:.+}", proxy.model),
            web.get("/healthz", healthz),
        ]
    )
    return app


def admin_app(
    *, ready: Callable[[], str | None], observed: Callable[[], dict[str, Any]]
) -> web.Application:
    """Return the application of port 8001.

    Args:
        ready: None if requests can be served, else a sentence that says why not.
        observed: The document of `/-/observed`.
    """

    async def readyz(_: web.Request) -> web.Response:
        reason = ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=200 if reason is None else 503)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def document(_: web.Request) -> web.Response:
        return web.json_response(observed())

    app = web.Application()
    app.add_routes(
        [web.get("/readyz", readyz), web.get("/livez", livez), web.get("/-/observed", document)]
    )
    return app


def metrics_app(metrics: GatewayMetrics) -> web.Application:
    """Return the application of port 8002, the only one that Prometheus may reach."""

    async def page(request: web.Request) -> web.Response:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/metrics", page)])
    return app
