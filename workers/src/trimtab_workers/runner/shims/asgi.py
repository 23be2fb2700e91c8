"""Knative func's ASGI: `new()` gives an object with `handle(scope, receive, send)`; both ways streamed.

Of the object's optional methods `start(settings)` runs before the first request, `stop()` at the end, and
`alive()` and `ready()` answer `/health/liveness` and `/health/readiness`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.runner import frames
from trimtab_workers.runner.costs import cpu_micros
from trimtab_workers.runner.exchange import FunctionError
from trimtab_workers.runner.failures import reported

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_HEALTH: Final = {"/health/liveness": "alive", "/health/readiness": "ready"}
_STOP_SECONDS: Final = 1.0


def serve(made: Any, sock: socket.socket, *, ready: Callable[[], bytes]) -> None:
    """Serve until the parent ends.

    Args:
        made: What `new()` gave, or the ASGI callable itself.
        sock: The channel to the parent.
        ready: Gives the frame that tells the parent so, once `start` has returned.
    """
    asyncio.run(_serve(made, sock, ready))


async def _serve(made: Any, sock: socket.socket, ready: Callable[[], bytes]) -> None:
    reader, writer = await asyncio.open_connection(sock=sock)
    await _optional(made, "start", dict(os.environ))
    writer.write(ready())
    requests: asyncio.Queue[tuple[dict[str, Any], _Inbox] | None] = asyncio.Queue()
    pump = asyncio.create_task(_pump(reader, requests))
    try:
        while (request := await requests.get()) is not None:
            head, inbox = request
            await _Exchange(made, inbox, writer, head).run()
    finally:
        pump.cancel()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_optional(made, "stop"), _STOP_SECONDS)
        writer.close()


class _Inbox:
    """The body of one request.

    Each request has its own: an application may leave a `receive()` behind that waits, and that must not
    take what the next request sends.
    """

    def __init__(self) -> None:
        self._frames: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(maxsize=8)
        self._closed = False

    async def put(self, frame: tuple[int, bytes] | None) -> None:
        """Add a frame, None for the end of all; a closed inbox keeps nothing."""
        if not self._closed:
            await self._frames.put(frame)

    async def get(self) -> tuple[int, bytes] | None:
        """Return the next frame, None if there will be no other."""
        if self._closed:
            return None
        frame = await self._frames.get()
        if frame is None:
            self._frames.put_nowait(None)  # whoever else waits
        return frame

    def close(self) -> None:
        """Let go whoever waits, and take no more."""
        self._closed = True
        while not self._frames.empty():
            self._frames.get_nowait()
        self._frames.put_nowait(None)


async def _pump(
    reader: asyncio.StreamReader,
    requests: asyncio.Queue[tuple[dict[str, Any], _Inbox] | None],
) -> None:
    """Read frames apart from the application, which may stop waiting for one at any time."""
    inbox = _Inbox()
    inbox.close()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            kind, payload = await frames.read(reader)
            if kind == frames.HEAD:
                inbox = _Inbox()
                await requests.put((json.loads(payload), inbox))
            else:
                await inbox.put((kind, payload))
    await inbox.put(None)
    await requests.put(None)


async def _optional(made: Any, name: str, *arguments: Any) -> Any:
    method = getattr(made, name, None)
    if not callable(method):
        return None
    result = method(*arguments)
    return await result if hasattr(result, "__await__") else result


class _Exchange:
    def __init__(
        self,
        made: Any,
        inbox: _Inbox,
        writer: asyncio.StreamWriter,
        head: dict[str, Any],
    ) -> None:
        self._made = made
        self._inbox = inbox
        self._writer = writer
        self._head = head
        self._cpu = cpu_micros()
        self._received = False
        self._gone = False
        self._start: dict[str, Any] | None = None
        self._begun = False
        self._whole = False
        self._ended = False

    async def run(self) -> None:
        """Call the application once; the parent gets its END whatever happens."""
        try:
            await self._call()
            self._check_ended()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(error)  # the application awaited a task of its own that it had cancelled
        except Exception as error:  # noqa: BLE001 - whatever user code raises
            self._failed(error)
        finally:
            # What the application left behind must not speak into the next exchange.
            self._ended = True
            self._inbox.close()
        if not self._whole:
            self._writer.write(frames.pack_json(frames.END, {"cpu": cpu_micros() - self._cpu}))
        else:
            self._writer.write(frames.pack(frames.END))
        await self._writer.drain()

    def _check_ended(self) -> None:
        if not self._ended and not self._gone:
            raise FunctionError(
                "The ASGI application returned before its answer was complete. Send "
                "http.response.start, and http.response.body without more_body."
            )

    async def _call(self) -> None:
        probe = _HEALTH.get(self._head["path"])
        if probe is not None and self._head["method"] == "GET" and not callable(self._made):
            await self._health(probe)
            return
        application = getattr(self._made, "handle", self._made)
        await application(self._scope(), self._receive, self._send)

    async def _health(self, probe: str) -> None:
        found = await _optional(self._made, probe)
        well, text = found if isinstance(found, tuple) else (found, "")
        failing = well is not None and not well
        body = str(text or ("not well" if failing else "OK")).encode()
        status = 503 if failing else 200
        await self._send({"type": "http.response.start", "status": status, "headers": []})
        await self._send({"type": "http.response.body", "body": body})

    def _scope(self) -> dict[str, Any]:
        head = self._head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": head["method"],
            "scheme": "http",
            "path": head["path"],
            "raw_path": head["rawPath"].encode("latin-1"),
            "query_string": head["query"].encode("latin-1"),
            "root_path": "",
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in head["headers"]],
            "client": (head["peer"], 0) if head["peer"] else None,
            "server": None,
            "extensions": {},
            "state": {},
        }

    async def _receive(self) -> dict[str, Any]:
        if self._gone:
            return {"type": "http.disconnect"}
        frame = await self._inbox.get()
        if frame is None or frame[0] == frames.ABORT:
            self._gone = True
            return {"type": "http.disconnect"}
        if frame[0] == frames.END:
            self._received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": bytes(frame[1]), "more_body": True}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._start is not None:
                raise FunctionError("The ASGI application sent http.response.start twice.")
            self._start = message
            return
        if kind != "http.response.body":
            raise FunctionError(f"The ASGI application sent {kind!r}, which HTTP has not.")
        if self._start is None or self._ended:
            raise FunctionError(
                f"The ASGI application sent {kind} before its start or after its end."
            )
        body, more = bytes(message.get("body", b"")), bool(message.get("more_body"))
        if not self._begun:
            self._begin(whole=not more, length=len(body))
        self._ended = not more
        for at in range(0, len(body), frames.PIECE):
            self._writer.write(frames.pack(frames.DATA, body[at : at + frames.PIECE]))
        await self._writer.drain()

    def _begin(self, *, whole: bool, length: int) -> None:
        if self._start is None:
            raise RuntimeError("An answer began without its start. This is a bug; report it.")
        self._begun, self._whole = True, whole
        head: dict[str, Any] = {
            "status": int(self._start["status"]),
            "headers": [
                (bytes(n).decode("latin-1"), bytes(v).decode("latin-1"))
                for n, v in self._start.get("headers", [])
            ],
            "whole": whole,
        }
        if whole:
            head |= {"length": length, "cpu": cpu_micros() - self._cpu}
        self._writer.write(frames.pack_json(frames.HEAD, head))

    def _failed(self, error: BaseException) -> None:
        body = reported(error)
        if self._begun:
            if not self._ended:
                self._writer.write(frames.pack(frames.ABORT))
            return
        self._whole = True
        head = {
            "status": 500,
            "headers": [("content-type", "application/json")],
            "whole": True,
            "failed": True,
            "length": len(body),
            "cpu": cpu_micros() - self._cpu,
        }
        self._writer.write(frames.pack_json(frames.HEAD, head))
        self._writer.write(frames.pack(frames.DATA, body))
