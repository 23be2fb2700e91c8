"""ASGI applications that leave something behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading

from trimtab_workers.runner import frames
from trimtab_workers.runner.shims import asgi

HEAD = {"method": "GET", "path": "/", "rawPath": "/", "query": "", "headers": [], "peer": ""}


@contextlib.contextmanager
def serving(application):
    """Yield the parent's end of the channel to an application."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    thread = threading.Thread(
        target=asgi.serve, args=(application, theirs), kwargs={"ready": lambda: b""}
    )
    thread.start()
    try:
        yield frames.BlockingChannel(ours)
    finally:
        ours.close()
        thread.join(30)


def ask(channel, body=b""):
    """Return the head and the body of the answer to one request."""
    channel.write(frames.pack_json(frames.HEAD, HEAD))
    channel.write_data(body)
    channel.write(frames.pack(frames.END))
    found = {}
    while (frame := channel.read())[0] != frames.END:
        found[frame[0]] = bytes(frame[1])
    return json.loads(found[frames.HEAD]), found.get(frames.DATA, b"")


async def respond(send, body):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_receive_that_still_waits_takes_nothing_of_the_next_request() -> None:
    """It hears that the client is gone once its own request is answered; the next request is served."""
    left = []

    async def application(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        left.append(asyncio.create_task(receive()))
        await asyncio.sleep(0)
        heard = [await task for task in left[:-1]]
        await respond(send, json.dumps(heard).encode())

    with serving(application) as channel:
        assert ask(channel)[1] == b"[]"
        assert json.loads(ask(channel)[1]) == [{"type": "http.disconnect"}]


def test_a_body_that_nobody_reads_does_not_stop_the_next_request() -> None:
    """However long the unread body is, it is dropped with its request."""

    async def application(scope, receive, send):
        await respond(send, b"early")

    with serving(application) as channel:
        for _ in range(2):
            assert ask(channel, b"x" * 16 * frames.PIECE)[1] == b"early"


def test_an_application_that_meets_its_own_cancellation_fails_and_lives_on() -> None:
    """CancelledError of a task that the application cancelled is a 500, not the end of the process."""

    async def application(scope, receive, send):
        task = asyncio.create_task(asyncio.sleep(600))
        task.cancel()
        await task

    with serving(application) as channel:
        for _ in range(2):
            assert ask(channel)[0]["status"] == 500
