"""How connections end: announced, and in time."""

from __future__ import annotations

import asyncio

import pytest

from trimtab_workers.runner import connection as connection_module
from trimtab_workers.runner.connection import Connection


class Writer:
    def __init__(self):
        self.sent = b""
        self.transport = self
        self.aborted = asyncio.Event()

    def get_extra_info(self, name):
        return None

    def write(self, data):
        self.sent += data

    async def drain(self):
        pass

    def close(self):
        pass

    def abort(self):
        self.aborted.set()

    async def wait_closed(self):
        await self.aborted.wait()


@pytest.mark.parametrize(
    ("sent", "read", "closing", "announced"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True, False, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True, True, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", False, False, True),
    ],
    ids=["whole", "at the runner's end", "before the request's end"],
)
async def test_an_answer_announces_that_its_connection_ends(sent, read, closing, announced) -> None:
    """`Connection: close` is in the last answer while draining and in one that came early, in no other."""
    reader, writer = asyncio.StreamReader(), Writer()
    reader.feed_data(sent)
    connection = Connection(reader, writer, closing=lambda: closing)
    await connection.next_request()
    if read:
        assert [piece async for piece in connection.body()] == []
    await connection.answer(200, headers=[], body=b"ok")
    assert (b"\r\nconnection: close\r\n" in writer.sent.lower()) == announced
    assert connection.reusable != announced


async def test_a_client_that_stops_reading_does_not_hold_up_the_end(monkeypatch) -> None:
    """While the runner drains, a connection whose client takes no more of its answer is broken."""
    monkeypatch.setattr(connection_module, "_LINGER_SECONDS", 0.01)
    writer = Writer()
    closing = Connection(asyncio.StreamReader(), writer, closing=lambda: True).close()
    await asyncio.wait_for(closing, 30)
    assert writer.aborted.is_set()
