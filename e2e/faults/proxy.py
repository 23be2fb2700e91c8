"""The reverse proxy: every request is logged, most are passed on as they are, some meet a fault."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from aiohttp import web
from yarl import URL

from e2e.cluster.process.api import lines
from e2e.faults.faults import (
    Cut,
    Delay,
    Drop,
    Fault,
    Freeze,
    KillAfterWrite,
    Status,
    Swallow,
)
from e2e.faults.seen import Seen, describe

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
     "transfer-encoding", "upgrade", "host", "content-length"}
)  # fmt: skip
_LOG_LIMIT: Final = 200_000


class _Abort(Exception):  # noqa: N818 - not an error: how a handler says "close the connection"
    pass


class FaultProxy:
    """Stands between clients and one API server; an async context manager.

    Args:
        upstream: The API server's URL.
        upstream_tls: How to trust it; True for the system's authorities.
        serving: Certificate to serve with; None serves plain HTTP. Clients built on client-go drop
            their token on plain HTTP, so give one if kubectl or helm shall pass.
        host, port: Where to listen; port 0 takes a free one and keeps it across outages.
        clock: Monotonic seconds, for the log.
    """

    def __init__(
        self,
        upstream: str,
        *,
        upstream_tls: ssl.SSLContext | bool = True,
        serving: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._upstream_tls = upstream_tls
        self._serving = serving
        self.host = host
        self.port = port
        self.clock = clock
        self.faults: list[Fault] = []
        self.log: collections.deque[Seen] = collections.deque(maxlen=_LOG_LIMIT)
        self.injected: collections.Counter[str] = collections.Counter()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where clients reach the proxy."""
        return f"{'https' if self._serving else 'http'}://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        """Start to listen."""
        connector = aiohttp.TCPConnector(ssl=self._upstream_tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything; a connection whose client does not read would never close by itself."""
        if self._site:
            await self._site.stop()
        self.cut_all()
        if self._runner:
            await self._runner.cleanup()
        if self._session:
            await self._session.close()

    # What a test does

    def add(self, fault: Fault) -> Fault:
        """Put a fault into force; the first in the list that befalls a request wins."""
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Take all faults out of force; streams that are frozen or late stay so."""
        self.faults.clear()

    async def refuse(self, seconds: float) -> None:
        """Be an API server that is down: cut every connection and refuse new ones for a while."""
        await self.stop_listening()
        await asyncio.sleep(seconds)
        await self.listen_again()

    async def stop_listening(self) -> None:
        """Cut every connection and refuse new ones until `listen_again`."""
        if self._site:
            await self._site.stop()
            self._site = None
        self.injected["refuse"] += 1
        self.cut_all()

    async def listen_again(self) -> None:
        """Take connections again, at the same port."""
        if self._site is None:
            await self._listen()

    def cut_all(self) -> int:
        """Cut every open connection and return how many there were."""
        server = self._runner.server if self._runner else None
        handlers = list(server.connections) if server else []
        for handler in handlers:
            if handler.transport:
                handler.transport.abort()
        return len(handlers)

    async def wait_for(
        self, wanted: Callable[[Seen], bool], *, count: int = 1, seconds: float = 30
    ) -> list[Seen]:
        """Wait until `count` logged requests are wanted ones and return them.

        Raises:
            TimeoutError: They did not come; holds the last requests that did.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    changed = self._changed
                    found = [seen for seen in self.log if wanted(seen)]
                    if len(found) >= count:
                        return found
                    await changed.wait()
        except TimeoutError as error:
            last = [f"{s.verb} {s.path} {s.status}" for s in list(self.log)[-20:]]
            raise TimeoutError(f"not {count} such requests within {seconds} s; {last}") from error

    # What it does with a request

    async def _listen(self) -> None:
        if self._runner is None:
            raise RuntimeError("FaultProxy is an async context manager: enter it first")
        self._site = web.TCPSite(
            self._runner, self.host, self.port, ssl_context=self._serving, reuse_address=True
        )
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    def _take(self, seen: Seen, *kinds: type[Fault]) -> Fault | None:
        fault = next((f for f in list(self.faults) if isinstance(f, kinds) and f.take(seen)), None)
        if fault:
            seen.fault = fault.name
            self.injected[fault.name] += 1
        return fault

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = describe(
            request.method, request.path, query=request.query, headers=request.headers,
            at=self.clock(),
        )  # fmt: skip
        self.log.append(seen)
        self._note()
        try:
            fault = self._take(seen, Status, Delay, Drop, Cut, Freeze, KillAfterWrite)
            if isinstance(fault, Status):
                seen.status = fault.code
                return _refusal(fault)
            if isinstance(fault, Delay) and seen.verb != "watch":
                await asyncio.sleep(fault.seconds)
            return await self._forward(request, seen, fault)
        except (_Abort, aiohttp.ClientError):
            if request.transport:
                request.transport.abort()
            raise asyncio.CancelledError from None  # no answer is sent on a closed connection
        finally:
            self._note()

    async def _forward(
        self, request: web.Request, seen: Seen, fault: Fault | None
    ) -> web.StreamResponse:
        if self._session is None:
            raise RuntimeError("FaultProxy is an async context manager: enter it first")
        if isinstance(fault, Drop) and not fault.after_server:
            raise _Abort
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=await request.read(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as upstream:
            seen.status = upstream.status
            self._note()
            if isinstance(fault, Drop):
                raise _Abort
            if isinstance(fault, KillAfterWrite):
                await upstream.read()
                fault.kill()
                raise _Abort
            answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for key, value in upstream.headers.items():
                if key.lower() not in _HOP_BY_HOP:
                    answer.headers.add(key, value)
            if "Content-Length" in upstream.headers and seen.verb != "watch":
                answer.content_length = int(upstream.headers["Content-Length"])
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError):  # the client may go at any time
                async for chunk in self._body(upstream, seen, fault):
                    await answer.write(chunk)
                await answer.write_eof()
            return answer

    async def _body(
        self, upstream: aiohttp.ClientResponse, seen: Seen, fault: Fault | None
    ) -> AsyncIterator[bytes]:
        chunks = upstream.content.iter_any()
        source = self._events(chunks, seen, fault) if seen.verb == "watch" else chunks
        limit = fault.after_bytes if isinstance(fault, Cut | Freeze) else None
        sent = 0
        if limit == 0:
            await self._stop(fault)
        async for chunk in source:
            if limit is not None and sent + len(chunk) >= limit:
                yield chunk[: limit - sent]
                await self._stop(fault)
            sent += len(chunk)
            yield chunk

    async def _stop(self, fault: Fault | None) -> None:
        if isinstance(fault, Freeze):
            await asyncio.sleep(fault.seconds)
        raise _Abort

    async def _events(
        self, chunks: AsyncIterator[bytes], seen: Seen, fault: Fault | None
    ) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, less those swallowed, each as late as a `Delay` wants it."""
        late = fault.seconds if isinstance(fault, Delay) else 0.0
        queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def read() -> None:
            rest = bytearray()
            try:
                async for chunk in chunks:
                    for line in lines([chunk], rest=rest):
                        if not self._swallowed(line, seen):
                            queue.put_nowait((loop.time() + late, line + b"\n"))
            finally:
                queue.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (item := await queue.get()) is not None:
                due, line = item
                await asyncio.sleep(max(0.0, due - loop.time()))
                yield line
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _swallowed(self, line: bytes, seen: Seen) -> bool:
        candidates = [f for f in list(self.faults) if isinstance(f, Swallow) and f.match(seen)]
        if not candidates:
            return False
        event = json.loads(line)
        meta = event.get("object", {}).get("metadata", {})
        for fault in candidates:
            if event.get("type") not in fault.types:
                continue
            if fault.object_name and meta.get("name") != fault.object_name:
                continue
            if fault.take(seen):
                seen.fault = fault.name
                self.injected[fault.name] += 1
                return True
        return False


def _refusal(fault: Status) -> web.Response:
    body = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": fault.message, "reason": fault.reason, "code": fault.code,
    }  # fmt: skip
    headers = {}
    if fault.retry_after_seconds is not None:
        headers["Retry-After"] = str(fault.retry_after_seconds)
    return web.json_response(body, status=fault.code, headers=headers)
