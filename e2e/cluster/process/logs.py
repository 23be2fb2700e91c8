"""Logs of containers: found on disk, and served to `kubectl logs` where certificates are given."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from e2e.cluster.process.node import Settings


class LogNotFoundError(LookupError):
    """No such pod or container has run on this stand-in node."""


def find(
    state_dir: Path, pod: str, *, container: str | None = None, previous: bool = False
) -> Path:
    """Return the newest log of `NAMESPACE/NAME`, of a pod that runs or of one that has ended.

    Raises:
        LogNotFoundError: There is none; names the pods that there are.
    """
    names = []
    for path in sorted(state_dir.glob("pods/*/pod.json"), key=lambda p: p.stat().st_mtime):
        manifest = json.loads(path.read_text())["manifest"]
        name = f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
        names.append(name)
        if name == pod:
            chosen = container or manifest["spec"]["containers"][0]["name"]
            logs = (path.parent / "containers" / chosen).glob("*/log")
            return _newest(logs, pod, chosen, previous=previous)
    space, _, short = pod.partition("/")
    folders = state_dir.glob(f"ended/{space}_{short}_*")
    for folder in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True):
        return _newest(folder.glob(f"{container or '*'}/*.log"), pod, container, previous=previous)
    raise LogNotFoundError(f"pod {pod} has not run here; these do: {', '.join(names) or 'none'}")


def _newest(found: object, pod: str, container: str | None, *, previous: bool) -> Path:
    logs = sorted(found, key=lambda p: p.stat().st_mtime_ns)  # type: ignore[call-overload]
    logs = logs[:-1] if previous else logs
    if not logs:
        raise LogNotFoundError(f"container {container} of pod {pod} has no such log")
    return logs[-1]


def tail(data: bytes, *, lines: int) -> bytes:
    """Return the last lines of a log."""
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def _routes(state_dir: Path) -> web.Application:
    async def logs(request: web.Request) -> web.StreamResponse:
        pod = f"{request.match_info['namespace']}/{request.match_info['pod']}"
        query = request.query
        try:
            path = find(
                state_dir,
                pod,
                container=request.match_info["container"],
                previous=query.get("previous") == "true",
            )
        except LogNotFoundError as error:
            return web.Response(status=404, text=str(error))
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        data = path.read_bytes()
        seen = len(data)
        if "tailLines" in query:
            data = tail(data, lines=int(query["tailLines"]))
        await answer.write(data[: int(query["limitBytes"])] if "limitBytes" in query else data)
        while query.get("follow") == "true" and not (path.parent / "exit.json").exists():
            await asyncio.sleep(0.2)
            with contextlib.suppress(FileNotFoundError):
                more = path.read_bytes()[seen:]
                seen += len(more)
                await answer.write(more)
        return answer

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    return app


@contextlib.asynccontextmanager
async def serve_logs(settings: Settings) -> AsyncIterator[Settings]:
    """Answer `kubectl logs` while the context is open; yields the settings with the port in them.

    The API server asks kubelets by TLS only, so without a certificate nothing is served.
    """
    if settings.certificate is None:
        yield settings
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.certificate, settings.certificate.with_suffix(".key"))
    if settings.client_authority is not None:
        context.load_verify_locations(settings.client_authority)
        context.verify_mode = ssl.CERT_REQUIRED  # logs are for the API server alone
    runner = web.AppRunner(_routes(settings.state_dir), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        yield dataclasses.replace(settings, log_port=port)
    finally:
        await runner.cleanup()
