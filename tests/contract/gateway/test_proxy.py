from __future__ import annotations

import asyncio
import io
import json

import pytest

from tests.contract.gateway.conftest import (
    ROUTES,
    SLICES,
    a_chat,
    a_config_map,
    a_route,
    a_slice,
    eventually,
)
from tests.unit.server.fake_engine import FakeEngine
from trimtab_workers.web.listeners import StopSignals

OK_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_answers_come_from_the_worker(served):
    """A request by bare or full name reaches the worker under the public name."""
    for name in ("chat", "team-a/chat"):
        status, reply, headers = await served.post(a_chat(model=name))
        assert status == 200
        assert reply["choices"][0]["message"]["content"] == "Paris is nice"
        assert reply["model"] == "team-a/chat"
        assert headers["X-Request-Id"]
    assert {request.model for request in served.engine.requests} == {"team-a/chat"}


async def test_completions_are_proxied_too(served):
    """`/v1/completions` goes the same way."""
    body = {"model": "chat", "prompt": "Hi"}
    status, reply, _ = await served.post(body, path="/v1/completions")
    assert (status, reply["object"]) == (200, "text_completion")


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
async def test_usage_reaches_only_those_who_asked(served, options):
    """The gateway learns usage from every stream; the client sees it only on request."""
    raw = await served.stream(a_chat(stream_options=options))
    asked = bool(options and options["include_usage"])
    assert (b'"usage"' in raw) is asked
    assert raw.endswith(b"data: [DONE]\n\n")
    intent = (await served.observed())["intents"]["team-a/chat"]
    assert intent["output"] == {"n": 1, "mean": 3.0, "m2": 0.0}
    assert intent["prompt"]["mean"] == 5.0
    assert len(intent["ttft_ms"]) == len(intent["tpot_ms"]) == 1
    assert intent["pods"]["u1"]["n"] == 1
    assert intent["counts"][0][1:] == [1, 5, 3, 0]


async def test_latencies_of_whole_replies_come_from_the_worker(served):
    """A reply in one piece counts into TTFT and TPOT by what its worker says."""
    _, _, headers = await served.post(a_chat())
    assert "Server-Timing" not in headers
    intent = (await served.observed())["intents"]["team-a/chat"]
    assert 250.0 <= intent["ttft_ms"][0] < 5000.0
    assert intent["tpot_ms"] == [50.0]


async def test_several_choices_give_no_tpot(served):
    """Tokens of choices that decode side by side are no TPOT sample."""
    await served.stream(a_chat(n=2))
    await served.post(a_chat(n=2))
    body = {"model": "chat", "prompt": ["a", "b"], "stream": True}
    async with served.session.post(served.url("/v1/completions"), json=body) as reply:
        await reply.read()
    intent = (await served.observed())["intents"]["team-a/chat"]
    assert intent["tpot_ms"] == []
    assert intent["output"]["n"] == 3


async def test_streams_are_not_buffered(served):
    """The first event reaches the client before the worker has made the second."""
    served.engine.gate = asyncio.Semaphore(1)
    async with served.session.post(
        served.url("/v1/chat/completions"), json=a_chat(stream=True)
    ) as reply:
        async with asyncio.timeout(30):
            await reply.content.readuntil(b"Paris")
        served.engine.gate.release()
        served.engine.gate.release()
        assert (await reply.read()).endswith(b"[DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_client_disconnect_aborts_on_the_worker(served, stream):
    """A client that leaves ends its request on the worker, streamed or not."""
    served.engine.gate = asyncio.Semaphore(1 if stream else 0)
    pending = asyncio.ensure_future(served.post(a_chat(stream=stream)))
    await served.engine.until(lambda: served.engine.running == 1)
    pending.cancel()
    await served.engine.until(lambda: len(served.engine.aborted) == 1)
    assert served.gateway.picker.outstanding("u1") == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (a_chat(model="nope"), 404, "model_not_found"),
        (a_chat(model="team-b/chat"), 404, "model_not_found"),
        (a_chat(model=None), 400, "missing_required_parameter"),
        (a_chat(model=["chat"]), 400, "missing_required_parameter"),
        ([], 400, "invalid_json"),
        (a_chat(n=0), 400, "invalid_value"),
        (a_chat(stream=True, stream_options=3), 400, "invalid_type"),
        (a_chat(stream=True, stream_options={"include_usage": []}), 400, "invalid_type"),
    ],
)
async def test_bad_requests_are_openai_errors(served, body, status, code):
    """Refusals of gateway and worker alike are OpenAI error objects."""
    got, reply, _ = await served.post(body)
    assert (got, reply["error"]["code"]) == (status, code)


async def test_large_bodies(served):
    """A body of 3 MiB passes, one over 4 MiB is a 413."""
    long = "x" * (3 * 2**20)
    data = io.BytesIO(json.dumps(a_chat(user=long)).encode())
    async with served.session.post(served.url("/v1/chat/completions"), data=data) as reply:
        assert reply.status == 200
    data = io.BytesIO(json.dumps(a_chat(user=long + long)).encode())
    async with served.session.post(served.url("/v1/chat/completions"), data=data) as reply:
        assert reply.status == 413
        assert (await reply.json())["error"]["code"] == "request_too_large"


async def test_memory_for_bodies_is_bounded(bench):
    """While large bodies are being served, another large one gets 503 and a small one passes."""
    gate = asyncio.Semaphore(0)
    bench.api.put(ROUTES, a_config_map(a_route()))
    engine = await bench.add_worker("u1", FakeEngine(gate=gate))
    await bench.start_gateway(max_body_bytes_in_flight=3 * 2**17)
    await bench.settled()
    large = a_chat(user="x" * 2**18)
    first = asyncio.ensure_future(bench.post(large))
    await engine.until(lambda: engine.running == 1)
    status, reply, _ = await bench.post(large)
    assert (status, reply["error"]["code"]) == (503, "overloaded")
    for _ in range(6):
        gate.release()
    assert (await bench.post(a_chat()))[0] == 200
    assert (await first)[0] == 200


async def test_only_known_paths_pass(served):
    """Workers' other endpoints are not reachable through the gateway."""
    for path in ("/tokenize", "/v1/embeddings", "/-/state", "/metrics", "/health"):
        status, text = await served.get(path)
        assert (status, json.loads(text)["error"]["code"]) == (404, "unknown_url")


async def test_headers_stop_at_the_gateway(bench):
    """A worker never sees the caller's token, and sees the request id."""
    seen = asyncio.get_running_loop().create_future()

    async def talk(reader, writer):
        seen.set_result(None)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\n{}"
        )

    heads = []
    original = asyncio.StreamReader.readuntil

    async def remember(self, separator=b"\n"):
        head = await original(self, separator)
        heads.append(head)
        return head

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    asyncio.StreamReader.readuntil = remember
    try:
        await bench.add_socket("u1", talk)
        await bench.start_gateway()
        await bench.settled()
        headers = {"Authorization": "Bearer secret", "Cookie": "c=d", "X-Request-Id": "abc-1"}
        status, _, back = await bench.post(a_chat(), **headers)
    finally:
        asyncio.StreamReader.readuntil = original
    assert status == 200
    (head,) = heads
    assert b"secret" not in head
    assert b"Cookie" not in head
    assert b"X-Request-Id: abc-1" in head
    assert back["X-Request-Id"] == "abc-1"
    assert "Set-Cookie" not in back


async def test_two_workers_share_the_work(bench):
    """Requests that run at once spread over the pods."""
    gate = asyncio.Semaphore(0)
    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    engines = [await bench.add_worker(uid, FakeEngine(gate=gate)) for uid in ("u1", "u2")]
    await bench.start_gateway()
    await bench.settled(pods=2)
    pending = [asyncio.ensure_future(bench.post(a_chat())) for _ in range(6)]
    for engine in engines:
        await engine.until(lambda engine=engine: engine.running == 3)
    for _ in range(18):
        gate.release()
    assert [(await one)[0] for one in pending] == [200] * 6


async def test_weights_shift_the_work(bench):
    """A pod that the table calls half as fast holds a third of the requests."""
    gate = asyncio.Semaphore(0)
    pods = {"u1": {"prefill": 2000, "decode": 2000}, "u2": {"prefill": 1000, "decode": 1000}}
    bench.api.put(ROUTES, a_config_map(a_route(bare=True, pods=pods)))
    slow, fast = [await bench.add_worker(uid, FakeEngine(gate=gate)) for uid in ("u1", "u2")]
    await bench.start_gateway()
    await bench.settled(pods=2)
    pending = [asyncio.ensure_future(bench.post(a_chat())) for _ in range(6)]
    await fast.until(lambda: fast.running == 4)
    await slow.until(lambda: slow.running == 2)
    for one in pending:
        one.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


async def test_refused_connections_are_retried_elsewhere(bench, unused_tcp_port):
    """A pod that accepts no connection costs the client nothing while another can serve."""
    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    bench.api.put(SLICES, a_slice("dead", unused_tcp_port))
    await bench.add_worker("u1")
    await bench.start_gateway()
    await bench.settled(pods=2)
    for _ in range(4):
        assert (await bench.post(a_chat()))[0] == 200
    assert bench.metric("trimtab_gateway_retries_total", reason="connect") == 1
    assert bench.metric("trimtab_gateway_upstream_errors_total", reason="connect") == 1


@pytest.mark.parametrize("trouble", ["queue_full", "draining", "no_model"])
async def test_refusals_before_acceptance_are_retried_elsewhere(bench, trouble):
    """A worker that is full, drains or lacks the model passes the request on."""
    engine = FakeEngine()
    engine.queue_full = trouble == "queue_full"
    engine.draining = trouble == "draining"
    if trouble == "no_model":
        engine.models_ = ("team-a/other",)
    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_worker("u1", engine)
    await bench.add_worker("u2")
    await bench.start_gateway()
    await bench.settled(pods=2)
    for _ in range(4):
        assert (await bench.post(a_chat()))[0] == 200
    assert engine.requests == []


async def test_full_everywhere_is_the_workers_own_503(served):
    """If every pod is full the client gets the worker's answer with its Retry-After."""
    served.engine.queue_full = True
    status, reply, headers = await served.post(a_chat())
    assert (status, reply["error"]["code"], headers["Retry-After"]) == (503, "queue_full", "3")


async def test_failures_after_acceptance_are_not_retried(bench):
    """A worker that dies with the request is a 502, and nobody else gets that request."""

    async def die(reader, writer):
        pass

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_socket("dies", die)
    other = await bench.add_worker("other", ready=False)
    await bench.start_gateway()
    await bench.settled(pods=2)
    bench.api.put(SLICES, a_slice("other", other.server.listeners.ports["http"]))
    await bench.until(
        lambda gateway: len(gateway.directory.serving(gateway.directory.table.models()[0])) == 2
    )
    statuses = sorted([(await bench.post(a_chat()))[0] for _ in range(2)])
    assert statuses == [200, 502]
    assert len(other.requests) == 1
    assert (await bench.observed())["intents"]["team-a/chat"]["counts"][0][4] == 1


async def test_bugs_are_counted_as_errors(served, monkeypatch, caplog):
    """A bug in the gateway is a 500 without details, logged, and an error of its intent."""
    monkeypatch.setattr(served.gateway.picker, "pick", lambda *_, **__: 1 / 0)
    status, reply, _ = await served.post(a_chat())
    assert (status, reply["error"]["code"]) == (500, "internal_error")
    assert "division" not in json.dumps(reply)
    assert "request_failed" in caplog.text
    assert (await served.observed())["intents"]["team-a/chat"]["counts"][0][4] == 1


async def test_worker_500_passes_unchanged(served):
    """A worker's own 500 is the client's, once."""
    served.engine.fail_after = 0
    status, reply, _ = await served.post(a_chat())
    assert (status, reply["error"]["code"]) == (500, "engine_step_failed")
    assert len(served.engine.requests) == 1


async def test_a_worker_that_dies_in_mid_stream_leaves_an_error_event(bench):
    """After the first byte a dead worker becomes an OpenAI error event and a closed stream."""

    async def talk(reader, writer):
        writer.write(OK_STREAM + chunk(b'data: {"choices":[{"delta":{"content":"Pa"}}]}\n\n'))
        await writer.drain()

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_socket("u1", talk)
    await bench.start_gateway()
    await bench.settled()
    raw = await bench.stream(a_chat())
    events = [json.loads(line[6:]) for line in raw.splitlines() if line]
    assert events[0]["choices"][0]["delta"]["content"] == "Pa"
    assert events[1]["error"]["code"] == "worker_failed"
    assert b"[DONE]" not in raw
    assert bench.metric("trimtab_gateway_upstream_errors_total", reason="stream") == 1
    assert (await bench.observed())["intents"]["team-a/chat"]["counts"][0][4] == 1


async def test_a_refusal_that_never_ends_frees_its_place(bench, monkeypatch):
    """A worker that begins a refusal and stalls costs its request seconds, not for ever."""
    monkeypatch.setattr("trimtab_workers.gateway.forward._REFUSAL_SECONDS", 0.1)
    released = asyncio.Event()

    async def talk(reader, writer):
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        await released.wait()

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_socket("u1", talk)
    await bench.start_gateway(silence_seconds=0.1)
    await bench.settled()
    status, reply, _ = await bench.post(a_chat())
    released.set()
    assert (status, reply["error"]["code"]) == (502, "worker_failed")
    assert bench.gateway.picker.outstanding("u1") == 0


async def test_a_client_that_stops_reading_loses_its_place(bench):
    """A stream that nobody takes ends after the time a stream may pause."""

    async def talk(reader, writer):
        writer.write(OK_STREAM)
        event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 2**16)
        for _ in range(1_000):
            writer.write(chunk(event))
            await writer.drain()

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_socket("u1", talk)
    await bench.start_gateway(silence_seconds=0.2)
    await bench.settled()
    body = json.dumps(a_chat(stream=True)).encode()
    port = bench.gateway.listeners.ports["http"]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.pause_reading()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    in_flight = bench.gateway.gate.in_flight
    await eventually(lambda: in_flight.count == 1)
    await eventually(lambda: in_flight.count == 0)
    assert bench.gateway.picker.outstanding("u1") == 0
    writer.close()


async def test_headers_that_are_no_text_stay_behind(served):
    """Bytes in a header that cannot be sent on do not fail the request."""
    port = served.gateway.listeners.ports["http"]
    body = json.dumps(a_chat()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"traceparent: \xff\xfe\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = await reader.read()
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_stream_without_end_mark_is_an_error(bench):
    """A stream that ends politely but without [DONE] is not passed off as whole."""

    async def talk(reader, writer):
        writer.write(OK_STREAM + chunk(b'data: {"choices":[]}\n\n') + chunk(b""))

    bench.api.put(ROUTES, a_config_map(a_route(bare=True)))
    await bench.add_socket("u1", talk)
    await bench.start_gateway()
    await bench.settled()
    assert b"worker_failed" in await bench.stream(a_chat())


async def test_worker_errors_in_mid_stream_pass_once(served):
    """A worker's own error event passes, without a second one from the gateway."""
    served.engine.fail_after = 1
    raw = await served.stream(a_chat())
    assert raw.count(b'"error"') == 1
    assert b"engine_step_failed" in raw


async def test_slow_workers_time_out(bench):
    """A worker that does not begin to answer in time is a 504; a silent stream ends in error."""

    async def hang(reader, writer):
        await reader.read()

    async def pause(reader, writer):
        writer.write(OK_STREAM + chunk(b'data: {"choices":[]}\n\n'))
        await reader.readexactly(10**6)

    bench.api.put(ROUTES, a_config_map(a_route(), a_route("slow")))
    await bench.add_socket("u1", hang)
    await bench.add_socket("u2", pause, service="slow-1a2b3c4d")
    await bench.start_gateway(upstream_seconds=0.1, silence_seconds=0.1)
    await bench.settled(models=2, pods=2)
    status, reply, _ = await bench.post(a_chat())
    assert (status, reply["error"]["code"]) == (504, "upstream_timeout")
    assert b"worker_failed" in await bench.stream(a_chat(model="team-a/slow"))


async def test_no_ready_pod_is_503_with_retry_after(bench):
    """A known model without a ready pod is a 503 that says so."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway()
    await bench.settled(pods=0)
    status, reply, headers = await bench.post(a_chat())
    assert (status, reply["error"]["code"]) == (503, "no_ready_replica")
    assert headers["Retry-After"] == "2"


async def test_requests_are_held_until_a_pod_is_ready(bench):
    """A held request is served once a pod comes; holding is not counted as overhead."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway(hold_seconds=30.0)
    await bench.settled(pods=0)
    pending = asyncio.ensure_future(bench.post(a_chat()))
    await eventually(lambda: bench.metric("trimtab_gateway_held"))
    await bench.add_worker("u1")
    assert (await pending)[0] == 200
    assert (await bench.observed())["intents"]["team-a/chat"]["overhead_ms_p50"] < 1000


async def test_a_container_that_restarts_in_place_is_found_again(bench, unused_tcp_port):
    """While held, the same pod is tried again: a restart changes neither uid nor address."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    bench.api.put(SLICES, a_slice("u1", unused_tcp_port))
    await bench.start_gateway(hold_seconds=30.0)
    await bench.settled()
    pending = asyncio.ensure_future(bench.post(a_chat()))
    await eventually(lambda: bench.metric("trimtab_gateway_held"))

    async def talk(reader, writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", unused_tcp_port)
    assert (await pending)[0] == 200
    server.close()


async def test_terminating_pods_keep_their_streams_and_get_nothing_new(bench):
    """A stream on a terminating pod ends whole, while new requests go elsewhere."""
    gate = asyncio.Semaphore(1)
    bench.api.put(ROUTES, a_config_map(a_route()))
    old = await bench.add_worker("old", FakeEngine(gate=gate))
    await bench.start_gateway()
    await bench.settled()
    stream = asyncio.ensure_future(bench.stream(a_chat()))
    await old.until(lambda: old.running == 1)
    new = await bench.add_worker("new")
    port = old.server.listeners.ports["http"]
    bench.api.put(SLICES, a_slice("old", port, ready=False, serving=True, terminating=True))
    await bench.until(
        lambda gateway: (
            [row.uid for row in gateway.directory.serving(gateway.directory.table.models()[0])]
            == ["new"]
        )
    )
    for _ in range(3):
        assert (await bench.post(a_chat()))[0] == 200
    assert len(new.requests) == 3
    gate.release()
    gate.release()
    assert (await stream).endswith(b"[DONE]\n\n")


async def test_in_flight_is_bounded(bench):
    """Past its limit the gateway answers 503 at once."""
    gate = asyncio.Semaphore(0)
    bench.api.put(ROUTES, a_config_map(a_route()))
    engine = await bench.add_worker("u1", FakeEngine(gate=gate))
    await bench.start_gateway(max_in_flight=2)
    await bench.settled()
    pending = [asyncio.ensure_future(bench.post(a_chat())) for _ in range(2)]
    await engine.until(lambda: engine.running == 2)
    status, reply, headers = await bench.post(a_chat())
    assert (status, reply["error"]["code"]) == (503, "overloaded")
    assert "Retry-After" in headers
    for _ in range(6):
        gate.release()
    assert [(await one)[0] for one in pending] == [200, 200]


async def test_models_are_listed(served):
    """Without auth every model is listed and can be looked up."""
    status, text = await served.get("/v1/models")
    assert status == 200
    assert json.loads(text)["data"] == [
        {"id": "team-a/chat", "object": "model", "created": 0, "owned_by": "team-a"}
    ]
    assert (await served.get("/v1/models/team-a/chat"))[0] == 200
    assert (await served.get("/v1/models/team-a%2Fchat"))[0] == 200
    assert (await served.get("/v1/models/nope"))[0] == 404


async def test_drain_lets_requests_end(served):
    """On a signal readiness falls, running requests end whole, new ones are refused."""
    served.engine.gate = asyncio.Semaphore(0)
    pending = asyncio.ensure_future(served.stream(a_chat()))
    await served.engine.until(lambda: served.engine.running == 1)
    drain = asyncio.ensure_future(served.gateway.drain(stop=StopSignals()))
    await eventually(lambda: served.gateway.gate.stage == "closed")
    assert (await served.get("/readyz", listener="admin"))[0] == 503
    assert (await served.get("/healthz"))[0] == 503
    assert (await served.get("/livez", listener="admin"))[0] == 200
    status, reply, _ = await served.post(a_chat())
    assert (status, reply["error"]["code"]) == (503, "shutting_down")
    for _ in range(3):
        served.engine.gate.release()
    assert await drain
    assert (await pending).endswith(b"[DONE]\n\n")


async def test_metrics_count_requests(served):
    """Each answer is counted by its code, with duration and overhead."""
    await served.post(a_chat())
    await served.post(a_chat(model="nope"))
    _, text = await served.get("/metrics", listener="metrics")
    assert 'trimtab_gateway_requests_total{code="200"} 1.0' in text
    assert 'trimtab_gateway_requests_total{code="404"} 1.0' in text
    assert "trimtab_gateway_request_duration_seconds_count 1.0" in text
    assert "trimtab_gateway_time_overhead_seconds_count 1.0" in text
    assert "trimtab_gateway_time_to_first_byte_seconds_count 1.0" in text
    assert "trimtab_gateway_inflight 0.0" in text
    assert "trimtab_gateway_routes_revision 1.0" in text
    assert "team-a" not in text
