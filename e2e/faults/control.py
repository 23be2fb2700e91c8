"""The proxy's control over HTTP, at a port of its own: what a shell or another process needs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiohttp import web

from e2e.faults import faults
from e2e.faults.writes import writes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from e2e.faults.faults import Fault
    from e2e.faults.proxy import FaultProxy

KINDS: dict[str, type[Fault]] = {
    kind.name: kind
    for kind in (
        faults.Status,
        faults.Delay,
        faults.Drop,
        faults.Cut,
        faults.Freeze,
        faults.Swallow,
    )
}


class FaultSpecError(ValueError):
    """A fault given over HTTP is malformed."""


def fault(spec: Mapping[str, Any]) -> Fault:
    """Return the fault of a JSON object such as `{"kind": "status", "code": 503, "match": {…}}`.

    Raises:
        FaultSpecError: The kind or a field is unknown; names them.
    """
    fields = dict(spec)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise FaultSpecError(f"kind {kind!r} is unknown; known are {', '.join(sorted(KINDS))}")
    try:
        if "match" in fields:
            match = dict(fields["match"])
            if "verbs" in match:
                match["verbs"] = frozenset(match["verbs"])
            fields["match"] = faults.Match(**match)
        if "types" in fields:
            fields["types"] = frozenset(fields["types"])
        return KINDS[kind](**fields)
    except TypeError as error:
        raise FaultSpecError(f"fault {kind!r}: {error}") from error


def _application(proxy: FaultProxy) -> web.Application:
    outages: set[asyncio.Task[None]] = set()

    async def log(request: web.Request) -> web.Response:
        since = float(request.query.get("since", "-inf"))
        return web.json_response([s.as_json() for s in list(proxy.log) if s.at >= since])

    async def counters(_: web.Request) -> web.Response:
        rows = [{"kind": f.name, "injected": f.injected} for f in proxy.faults]
        return web.json_response(
            {"injected": dict(proxy.injected), "faults": rows, "now": proxy.clock()}
        )

    async def count(request: web.Request) -> web.Response:
        until = float(request.query.get("until", proxy.clock()))
        since = float(request.query.get("since", until - 60))
        who = request.query.get("identity", "")
        found = writes(list(proxy.log), since=since, until=until, identity=who)
        return web.json_response(
            {
                "per_minute": found.per_minute,
                "writes": found.writes,
                "leases": found.leases,
                "reads": found.reads,
                "by_kind": found.by_kind,
            }
        )

    async def add(request: web.Request) -> web.Response:
        try:
            proxy.add(fault(await request.json()))
        except (FaultSpecError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"faults": len(proxy.faults)})

    async def clear(_: web.Request) -> web.Response:
        proxy.clear()
        return web.json_response({"faults": 0})

    async def outage(request: web.Request) -> web.Response:
        task = asyncio.create_task(proxy.refuse(float(request.query["seconds"])))
        outages.add(task)
        task.add_done_callback(outages.discard)
        return web.json_response({"seconds": request.query["seconds"]}, status=202)

    app = web.Application()
    app.router.add_get("/-/log", log)
    app.router.add_get("/-/counters", counters)
    app.router.add_get("/-/writes", count)
    app.router.add_post("/-/faults", add)
    app.router.add_delete("/-/faults", clear)
    app.router.add_post("/-/outage", outage)
    return app


@contextlib.asynccontextmanager
async def control(proxy: FaultProxy, *, port: int = 0) -> AsyncIterator[str]:
    """Serve the control endpoints on loopback while the context is open; yields their URL."""
    runner = web.AppRunner(_application(proxy), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
