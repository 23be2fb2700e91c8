"""The fault proxy before a small fake API server that streams a watch."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest
from aiohttp import web

from e2e.faults import (
    Cut,
    Delay,
    Drop,
    FaultProxy,
    Freeze,
    KillAfterWrite,
    Match,
    Status,
    Swallow,
    ThreadedProxy,
)
from e2e.faults.control import FaultSpecError, control, fault

PODS = "/api/v1/namespaces/team-a/pods"


class Upstream:
    """Answers every request with what it got; a watch sends the events put into `events`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.events: asyncio.Queue[dict | None] = asyncio.Queue()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(
            (request.method, request.path_qs, await request.read(), dict(request.headers))
        )
        if request.query.get("watch"):
            answer = web.StreamResponse(headers={"Content-Type": "application/json"})
            await answer.prepare(request)
            while (event := await self.events.get()) is not None:
                await answer.write(json.dumps(event).encode() + b"\n")
            return answer
        return web.json_response({"padding": "x" * 1000}, status=201)


@pytest.fixture
async def upstream():
    server = Upstream()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    server.events.put_nowait(None)
    await runner.cleanup()


@pytest.fixture
async def proxy(upstream):
    async with FaultProxy(upstream.url) as found:
        yield found


@pytest.fixture
async def client(proxy):
    headers = {"Authorization": "Bearer secret", "User-Agent": "trimtab-operator/0"}
    async with aiohttp.ClientSession(proxy.url, headers=headers) as session:
        yield session


def event(name, kind="ADDED"):
    return {"type": kind, "object": {"metadata": {"name": name}}}


async def names(answer, count):
    return [
        json.loads(await answer.content.readline())["object"]["metadata"]["name"]
        for _ in range(count)
    ]


async def test_request_passes_unchanged_and_is_logged(client, proxy, upstream):
    """Body, query, authorization and status pass; the log has verb, resource, manager, no token."""
    path = f"{PODS}/one/status?fieldManager=trimtab-operator&force=true"
    async with client.patch(
        path, data=b"{}", headers={"Content-Type": "application/apply-patch+yaml"}
    ) as answer:
        assert answer.status == 201
        assert len((await answer.json())["padding"]) == 1000
    method, asked, body, headers = upstream.asked[0]
    assert (method, asked, body) == ("PATCH", path, b"{}")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    seen = proxy.log[0]
    assert (seen.verb, seen.resource, seen.subresource, seen.name, seen.status) == (
        "patch",
        "pods",
        "status",
        "one",
        201,
    )
    assert (seen.manager, seen.user_agent) == ("trimtab-operator", "trimtab-operator/0")
    assert seen.identity.startswith("token:")
    assert "secret" not in json.dumps(seen.as_json())


async def test_status_fault_answers_for_the_server(client, proxy, upstream):
    """A status fault gives an API Status with Retry-After, asks nobody, and is counted."""
    fault = proxy.add(Status(code=429, reason="TooManyRequests", retry_after_seconds=7, times=1))
    async with client.get(PODS) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        assert (await answer.json())["reason"] == "TooManyRequests"
    async with client.get(PODS) as answer:
        assert answer.status == 201
    assert len(upstream.asked) == 1
    assert (fault.injected, proxy.injected["status"]) == (1, 1)


async def test_fault_befalls_only_what_it_matches(client, proxy):
    """Verb, resource and user agent choose; the first `skip` matches pass."""
    match = Match(verbs=frozenset({"create"}), resource="pods", user_agent="trimtab-operator")
    proxy.add(Status(match=match, skip=1, times=1))
    codes = []
    for method, path in (
        ("GET", PODS),
        ("POST", PODS),
        ("POST", "/api/v1/nodes"),
        ("POST", PODS),
        ("POST", PODS),
    ):
        async with client.request(method, path, json={}) as answer:
            codes.append(answer.status)
    assert codes == [201, 201, 201, 500, 201]


async def test_drop_before_and_after_the_server(client, proxy, upstream):
    """A dropped request never reaches the server; a dropped answer leaves the write done."""
    proxy.add(Drop(times=1))
    proxy.add(Drop(times=1, after_server=True))
    with pytest.raises(aiohttp.ClientError):
        await client.post(PODS, json={})
    assert not upstream.asked
    with pytest.raises(aiohttp.ClientError):
        await client.post(PODS, json={})
    assert len(upstream.asked) == 1


async def test_cut_ends_the_answer_in_its_body(client, proxy):
    """A cut answer has its headers and fewer bytes than they promise."""
    proxy.add(Cut(after_bytes=100))
    async with client.get(PODS) as answer:
        assert answer.status == 201
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_delay_holds_a_request(client, proxy):
    """A delayed request comes through, later."""
    proxy.add(Delay(seconds=0.2))
    started = time.monotonic()
    async with client.get(PODS) as answer:
        assert answer.status == 201
    assert time.monotonic() - started >= 0.2


async def test_freeze_sends_nothing_and_stays_open(client, proxy):
    """A frozen answer neither ends nor continues."""
    proxy.add(Freeze(seconds=60, after_bytes=10))
    async with client.get(PODS) as answer:
        assert len(await answer.content.readexactly(10)) == 10
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await answer.content.read()
        assert not answer.connection.transport.is_closing()


async def test_watch_streams_event_by_event(client, proxy, upstream):
    """Events pass at once, not when the watch ends."""
    async with client.get(f"{PODS}?watch=1") as answer:
        for name in ("a", "b"):
            upstream.events.put_nowait(event(name))
            assert await names(answer, 1) == [name]
    assert proxy.log[0].verb == "watch"


async def test_swallow_leaves_out_event_k(client, proxy, upstream):
    """The k-th event of a watch is missing, bookmarks do not count, later ones pass."""
    fault = proxy.add(Swallow(skip=1, times=1))
    async with client.get(f"{PODS}?watch=1") as answer:
        for name, kind in (("a", "ADDED"), ("mark", "BOOKMARK"), ("b", "MODIFIED"), ("c", "ADDED")):
            upstream.events.put_nowait(event(name, kind))
        assert await names(answer, 3) == ["a", "mark", "c"]
    assert fault.injected == 1


async def test_late_watch_keeps_its_order(client, proxy, upstream):
    """A delayed watch shows every event that much later, in order."""
    proxy.add(Delay(seconds=0.15, match=Match(verbs=frozenset({"watch"}))))
    async with client.get(f"{PODS}?watch=1") as answer:
        started = time.monotonic()
        for name in ("a", "b", "c"):
            upstream.events.put_nowait(event(name))
        assert await names(answer, 3) == ["a", "b", "c"]
        assert 0.15 <= time.monotonic() - started < 0.45


async def test_kill_after_write_k(client, proxy, upstream):
    """The write takes effect, then the callback runs, and the client gets no answer."""
    killed = []
    proxy.add(KillAfterWrite(skip=1, kill=lambda: killed.append(len(upstream.asked))))
    for path in (PODS, "/apis/coordination.k8s.io/v1/namespaces/x/leases"):
        async with client.post(path, json={}) as answer:
            assert answer.status == 201
    with pytest.raises(aiohttp.ClientError):
        await client.post(PODS, json={})
    assert killed == [3]
    async with client.post(PODS, json={}) as answer:
        assert answer.status == 201


async def test_refusal_cuts_connections_and_refuses_new_ones(client, proxy, upstream):
    """A server that is down ends its watches, refuses connections, and is back at the same port."""
    async with client.get(f"{PODS}?watch=1") as answer:
        upstream.events.put_nowait(event("a"))
        assert await names(answer, 1) == ["a"]
        outage = asyncio.create_task(proxy.refuse(0.3))
        with pytest.raises(aiohttp.ClientError):
            await answer.content.readline()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(PODS)
    await outage
    async with client.get(PODS) as answer:
        assert answer.status == 201
    assert proxy.injected["refuse"] == 1


async def test_wait_for_sees_requests_as_they_come(client, proxy):
    """Waiting ends with the wanted request; without one it says what came instead."""
    waiting = asyncio.create_task(proxy.wait_for(lambda seen: seen.verb == "create"))
    async with client.post(PODS, json={}):
        pass
    assert [seen.resource for seen in await waiting] == ["pods"]
    with pytest.raises(TimeoutError, match="create /api/v1/namespaces/team-a/pods 201"):
        await proxy.wait_for(lambda seen: seen.verb == "delete", seconds=0.05)


async def test_control_over_http(client, proxy):
    """Faults can be set, counted and cleared by HTTP, and the log read."""
    async with control(proxy) as url, aiohttp.ClientSession(url) as admin:
        async with admin.post(
            "/-/faults", json={"kind": "status", "code": 503, "match": {"verbs": ["list"]}}
        ) as answer:
            assert answer.status == 200
        async with client.get(PODS) as answer:
            assert answer.status == 503
        async with admin.get("/-/counters") as answer:
            assert (await answer.json())["injected"] == {"status": 1}
        async with admin.delete("/-/faults") as answer:
            assert answer.status == 200
        async with client.post(PODS, json={}) as answer:
            assert answer.status == 201
        async with admin.get("/-/writes") as answer:
            assert (await answer.json())["writes"] == 1
        async with admin.get("/-/log") as answer:
            assert [entry["verb"] for entry in await answer.json()] == ["list", "create"]
        async with admin.post("/-/faults", json={"kind": "earthquake"}) as answer:
            assert answer.status == 400
        async with admin.post("/-/outage?seconds=0.1") as answer:
            assert answer.status == 202
        async with asyncio.timeout(5):
            while not proxy.injected["refuse"]:  # noqa: ASYNC110 - the counter has no event
                await asyncio.sleep(0.01)


def test_fault_with_an_unknown_field_is_refused():
    """A misspelt field is an error, not a fault that does nothing."""
    with pytest.raises(FaultSpecError, match="sekonds"):
        fault({"kind": "delay", "sekonds": 1})


def test_thread_serves_blocking_callers():
    """The threaded proxy starts, counts and stops without an event loop of the caller's."""
    with ThreadedProxy("http://127.0.0.1:9") as proxy:
        assert proxy.url.startswith("http://127.0.0.1:")
        found = proxy.writes(since=proxy.now() - 60)
        assert (found.writes, found.reads) == (0, 0)
