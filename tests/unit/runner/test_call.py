"""One call between a client and a child, neither of which is a process here."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import h11
import pytest

from trimtab.rightsizing.types import PeakKind, Size, Usage
from trimtab_workers.runner import frames
from trimtab_workers.runner.call import Call
from trimtab_workers.runner.connection import ClientGoneError


class Meter:
    def __init__(self, *, oom):
        self.oom = oom

    def begin(self, pid):
        pass

    def body_received(self, *, runs_already):
        pass

    def transfer_seconds(self):
        return 0.0

    def floor_bytes(self):
        return 0

    def end(self, *, child_cpu_s):
        return Usage(
            cpu_s=child_cpu_s, wall_s=1.0, throttled_s=0.0, periods_throttled=0, peak_anon_mib=1.0,
            peak_kind=PeakKind.RESET, oom=self.oom, alloc=Size(100, 64), alloc_changed=False,
        )  # fmt: skip


class Client:
    peer, begun = "", False

    def __init__(self, *, leaves):
        self.leaves = leaves
        self.headers = {}

    async def body(self):
        if self.leaves:
            raise ClientGoneError
        yield b"x"

    async def gone(self):
        await asyncio.Event().wait()

    async def begin(self, status, *, headers):
        self.headers = dict(headers)

    async def piece(self, data):
        pass

    async def end(self):
        pass


class ToChild:
    def __init__(self):
        self.sent = b""

    def write(self, data):
        self.sent += data

    async def drain(self):
        pass


def call_of(*, headers=(), oom=False, leaves=False, answer=None):
    """Return a call, its client and its child, which has answered already."""
    child = SimpleNamespace(
        pid=0, calls=0, cpu_s=0.0, reader=asyncio.StreamReader(), writer=ToChild()
    )
    if answer is not None:
        child.reader.feed_data(frames.pack_json(frames.HEAD, answer) + frames.pack(frames.END))
    client = Client(leaves=leaves)
    request = h11.Request(method="POST", target="/", headers=[("Host", "x"), *headers])
    call = Call(
        client, child, meter=Meter(oom=oom), request=request, streams=False, over=lambda: None
    )
    return call, client, child


def answered(**more):
    return {"status": 500, "headers": [], "whole": True, "length": 0, "cpu": 0, **more}


@pytest.mark.parametrize(
    ("oom", "more", "outcome"),
    [
        (True, {"failed": True}, "oom"),
        (False, {"failed": True}, "error"),
        (True, {}, "ok"),
    ],
)
async def test_an_error_for_want_of_memory_is_told_as_such(oom, more, outcome) -> None:
    """A function that raises because the kernel killed what it had started ran out of memory."""
    call, client, _ = call_of(oom=oom, answer=answered(**more))
    await call.run()
    assert client.headers["Trimtab-Outcome"] == outcome


async def test_a_length_beside_chunks_does_not_reach_the_function() -> None:
    """A request with both headers is read by its chunks, so the function is not told the other length."""
    both = [("Transfer-Encoding", "chunked"), ("Content-Length", "5"), ("X-Own", "1")]
    call, _, child = call_of(headers=both, answer=answered())
    await call.run()
    reader = asyncio.StreamReader()
    reader.feed_data(child.writer.sent)
    _, head = await frames.read(reader)
    assert json.loads(head)["headers"] == [["host", "x"], ["x-own", "1"]]


async def test_a_request_that_never_arrived_whole_is_no_call() -> None:
    """The first call is the first that the function sees, not the first that a client broke off."""
    call, _, child = call_of(leaves=True)
    with pytest.raises(ClientGoneError):
        await call.run()
    assert child.calls == 0
    child.reader.feed_data(frames.pack(frames.END))
    assert await call.settled(within_seconds=30)
