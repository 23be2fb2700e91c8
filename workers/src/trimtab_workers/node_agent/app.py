"""The node agent's HTTP interface: begin and end windows over the pods of its node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from trimtab_workers.node_agent.windows import (
    PodNotFoundError,
    TooManyWindowsError,
    WindowError,
    WindowExistsError,
    WindowNotFoundError,
)
from trimtab_workers.usage import to_wire
from trimtab_workers.web.listeners import Listeners, StopSignals

if TYPE_CHECKING:
    from trimtab_workers.node_agent.windows import Windows
    from trimtab_workers.web.errors import Handler

log = logging.getLogger(__name__)

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REFUSALS: Final[dict[type[WindowError], tuple[int, str]]] = {
    PodNotFoundError: (404, "PodNotFound"),
    WindowNotFoundError: (404, "WindowNotFound"),
    WindowExistsError: (409, "WindowExists"),
    TooManyWindowsError: (503, "TooManyWindows"),
}


class Sampler:
    """Samples while a window is open and sleeps while none is."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Say that a window was begun."""
        self._wanted.set()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            pause = self._windows.sample()
            if pause is None:
                self._wanted.clear()
                await self._wanted.wait()
            else:
                await asyncio.sleep(pause)


def agent_app(windows: Windows, *, sampler: Sampler) -> web.Application:
    """Return the application: POST and DELETE on `/-/pods/<uid>/windows/<id>`, `/livez`, `/readyz`."""

    async def begin(request: web.Request) -> web.Response:
        pod, window = _names(request)
        windows.begin(pod, window)
        sampler.wake()
        return web.json_response({}, status=201)

    async def end(request: web.Request) -> web.Response:
        ended = windows.end(*_names(request))
        return web.json_response({**to_wire(ended.usage), "overlapping": ended.overlapping})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    @web.middleware
    async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except WindowError as error:
            status, reason = _REFUSALS[type(error)]
            document = {"error": reason, "message": str(error), "object": request.path}
            return web.json_response(document, status=status)

    app = web.Application(client_max_size=1024, middlewares=[refusals])
    path = "/-/pods/{pod}/windows/{window}"
    app.add_routes(
        [
            web.post(path, begin),
            web.delete(path, end),
            web.get("/livez", alive),
            web.get("/readyz", alive),
        ]
    )
    return app


def _names(request: web.Request) -> tuple[str, str]:
    pod, window = request.match_info["pod"], request.match_info["window"]
    for field, value in (("pod", pod), ("window", window)):
        if not _ID.fullmatch(value):
            raise web.HTTPBadRequest(
                text=f"{field} is {value[:200]!r}; use 1 to 128 letters, digits, dots, colons, hyphens."
            )
    return pod, window


async def serve(windows: Windows, *, host: str, port: int) -> None:
    """Serve until a signal asks to stop.

    Raises:
        OSError: The port cannot be bound.
    """
    stop = StopSignals()
    stop.install()
    sampler = Sampler(windows)
    listeners = Listeners(host=host)
    sampling = asyncio.create_task(sampler.run(), name="sampler")
    try:
        await listeners.open({"http": (agent_app(windows, sampler=sampler), port)})
        asked = asyncio.create_task(stop.requested.wait())
        # A sampler that ends by itself is a bug; without it every peak would be too low.
        await asyncio.wait({asked, sampling}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if sampling.done():
            sampling.result()
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
        await listeners.close()
