"""One client's HTTP/1.1 connection: h11 over asyncio streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import h11

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

MOST_HEADER_BYTES: Final = 64 * 1024
_READ: Final = 64 * 1024
_MOST_AHEAD: Final = 2**20
_LINGER_SECONDS: Final = 1.0
NO_BODY: Final = frozenset({204, 304})
_OF_THE_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)


class ClientGoneError(Exception):
    """The client closed its connection, or sent what is no HTTP, before its request was complete."""


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers without those that are about one connection."""
    return [(name, value) for name, value in headers if name.lower() not in _OF_THE_HOP]


def problem(reason: str, message: str, *, remedy: str = "") -> dict[str, str]:
    """Return the body of one of the runner's own refusals."""
    return {"error": reason, "message": message, "remedy": remedy}


class Connection:
    """Requests in, answers out, one after the other.

    Args:
        reader: From the client.
        writer: To the client.
        closing: Whether no further request is taken.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        closing: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._closing = closing
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._bodiless = False
        self._head_only = False
        peer = writer.get_extra_info("peername")
        self.peer: str = peer[0] if isinstance(peer, tuple) else ""

    async def next_request(self) -> h11.Request | None:
        """Return the next request, None when the client is done.

        Raises:
            h11.RemoteProtocolError: It is no HTTP.
        """
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._http.their_state is not h11.IDLE:
            return None
        event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self._head_only = event.method == b"HEAD"
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the request's body.

        Raises:
            ClientGoneError: It ended before it was complete.
        """
        while True:
            try:
                event = await self._event()
            except (h11.ProtocolError, ConnectionError) as error:
                raise ClientGoneError(str(error)) from error
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise ClientGoneError("The connection ended within a request.")

    async def gone(self) -> None:
        """Return when the client has closed its connection; a next request that it sends is kept."""
        kept = 0
        with contextlib.suppress(ConnectionError):
            while kept < _MOST_AHEAD and (data := await self._reader.read(_READ)):
                kept += len(data)
                self._http.receive_data(data)

    async def answer(
        self, status: int, *, headers: Iterable[tuple[str, str]], body: bytes = b""
    ) -> None:
        """Send a whole answer."""
        await self.begin(status, headers=[*headers, ("content-length", str(len(body)))])
        await self.piece(body)
        await self.end()

    async def refuse(self, status: int, document: dict[str, Any], **headers: str) -> None:
        """Send one of the runner's own answers."""
        pairs = [("content-type", "application/json")]
        pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
        await self.answer(status, headers=pairs, body=json.dumps(document).encode())

    async def begin(self, status: int, *, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head of an answer; without content-length its body is chunked.

        It says so if the connection ends with this answer: after one that came before the request's end,
        what follows could be either the rest or a next request.

        Raises:
            h11.LocalProtocolError: The head is no HTTP.
        """
        self._bodiless = self._head_only or status in NO_BODY
        raw = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in headers
            if status not in NO_BODY or name.lower() != "content-length"
        ]
        if self._closing() or self._http.their_state not in {h11.DONE, h11.ERROR}:
            raw.append((b"connection", b"close"))
        await self._send(h11.Response(status_code=status, headers=raw))

    async def piece(self, data: bytes) -> None:
        """Send a part of the body."""
        if data and not self._bodiless:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """End the answer."""
        await self._send(h11.EndOfMessage())

    @property
    def begun(self) -> bool:
        """Whether the head of an answer has left."""
        return self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def abort(self) -> None:
        """Break the connection, so that a half answer is not taken for a whole one."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection.

        A client that still sends is heard for a second: closing on unread bytes resets the connection,
        and the answer would be lost with it. One that does not read its answer is waited for, but while the
        runner drains no longer than a second.
        """
        with contextlib.suppress(OSError, TimeoutError):
            if self.begun and self._http.their_state in {h11.SEND_BODY, h11.ERROR}:
                self._writer.write_eof()
                async with asyncio.timeout(_LINGER_SECONDS):
                    while await self._reader.read(_READ):
                        pass
        self._writer.close()
        try:
            async with asyncio.timeout(_LINGER_SECONDS if self._closing() else None):
                await self._writer.wait_closed()
        except TimeoutError:
            self.abort()
        except OSError:
            pass  # the client's end of a connection is no event of ours

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(_READ))

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()
