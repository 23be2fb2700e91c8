from __future__ import annotations

import asyncio
import io
import json

import pytest

from tests.unit.server.conftest import masked, running
from tests.unit.server.fake_engine import FakeEngine
from trimtab_workers.engine.errors import ConfigError

CHAT = {"model": "team-a/chat", "messages": [{"role": "user", "content": "Capital of France?"}]}
TEXT = {"model": "team-a/chat", "prompt": "Capital of France?"}


HEAD = (
    b'data: {"id":"ID","object":"chat.completion.chunk","created":0,'
    b'"model":"team-a/chat","choices":['
)
GOLDEN_CHAT = b"".join(
    HEAD + row + b"]}\n\n"
    for row in (
        b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
        b'{"index":0,"delta":{"content":"Paris"},"logprobs":null,"finish_reason":null}',
        b'{"index":0,"delta":{"content":" is"},"logprobs":null,"finish_reason":null}',
        b'{"index":0,"delta":{"content":" nice"},"logprobs":null,"finish_reason":null}',
        b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}',
    )
)
USAGE = (
    HEAD + b'],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
)
TEXT_HEAD = (
    b'data: {"id":"ID","object":"text_completion","created":0,"model":"team-a/chat","choices":['
)
GOLDEN_TEXT = b"".join(
    TEXT_HEAD + row + b"]}\n\n"
    for row in (
        b'{"index":0,"text":"Paris","logprobs":null,"finish_reason":null}',
        b'{"index":0,"text":" is","logprobs":null,"finish_reason":null}',
        b'{"index":0,"text":" nice","logprobs":null,"finish_reason":null}',
        b'{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}',
    )
)


async def test_chat_stream_bytes(worker):
    """A chat stream is a role chunk, one chunk per text, a finish chunk and [DONE]."""
    raw = await worker.stream("/v1/chat/completions", CHAT)
    assert masked(raw) == GOLDEN_CHAT + b"data: [DONE]\n\n"


async def test_chat_stream_bytes_with_usage(worker):
    """`include_usage` adds null usage to each chunk, and one with usage and no choices at the end."""
    body = CHAT | {"stream_options": {"include_usage": True}}
    raw = await worker.stream("/v1/chat/completions", body)
    golden = GOLDEN_CHAT.replace(b"}]}\n", b'}],"usage":null}\n')
    assert masked(raw) == golden + USAGE + b"data: [DONE]\n\n"


async def test_continuous_usage_counts_in_every_chunk(worker):
    """With vLLM's `continuous_usage_stats` each chunk says how many tokens there are so far."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    raw = await worker.stream("/v1/chat/completions", CHAT | {"stream_options": options})
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 3, 3, 3]


async def test_text_stream_bytes(worker):
    """A completion stream has text chunks, a finish chunk and [DONE]."""
    raw = await worker.stream("/v1/completions", TEXT)
    assert masked(raw) == GOLDEN_TEXT + b"data: [DONE]\n\n"


async def test_stream_headers(worker):
    """A stream says what it is and asks proxies not to buffer it."""
    url = worker.url("/v1/chat/completions")
    async with worker.session.post(url, json=CHAT | {"stream": True}) as reply:
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["X-Accel-Buffering"] == "no"
        await reply.read()


async def test_chat_in_one_piece(worker):
    """Without streaming the reply holds the whole message and its usage."""
    status, reply, _ = await worker.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris is nice", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"]["total_tokens"] == 8


async def test_replies_in_one_piece_tell_their_latencies(worker):
    """A whole reply of one choice carries TTFT and TPOT in `Server-Timing`; of two, none."""
    _, _, headers = await worker.post("/v1/chat/completions", CHAT)
    assert headers["Server-Timing"] == "ttft;dur=250.000, tpot;dur=50.000"
    _, _, headers = await worker.post("/v1/chat/completions", CHAT | {"n": 2})
    assert "Server-Timing" not in headers
    _, _, headers = await worker.post("/v1/chat/completions", CHAT | {"max_tokens": 1})
    assert headers["Server-Timing"] == "ttft;dur=250.000"


async def test_choices_and_prompts_are_indexed(worker, engine):
    """Two prompts with n = 2 give four choices; a shared prompt counts once in the usage."""
    body = TEXT | {"prompt": ["a b", "c"], "n": 2, "seed": 7, "max_tokens": 2}
    status, reply, _ = await worker.post("/v1/completions", body)
    assert status == 200
    assert [row["index"] for row in reply["choices"]] == [0, 1, 2, 3]
    assert {row["finish_reason"] for row in reply["choices"]} == {"length"}
    assert reply["usage"]["prompt_tokens"] == 3 + 2
    assert reply["usage"]["completion_tokens"] == 8
    assert [request.params.seed for request in engine.requests] == [7, 8, 7, 8]


async def test_streamed_choices_interleave(worker):
    """With n = 2 the stream carries both choices, each complete, and one [DONE]."""
    raw = await worker.stream("/v1/chat/completions", CHAT | {"n": 2})
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    for index in (0, 1):
        rows = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(row["delta"].get("content", "") for row in rows) == "Paris is nice"
        assert rows[-1]["finish_reason"] == "stop"
    assert raw.count(b"[DONE]") == 1


async def test_chat_logprobs(worker):
    """Chat logprobs carry token, bytes and alternatives; infinity becomes -9999."""
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    _, reply, _ = await worker.post("/v1/chat/completions", body)
    first = reply["choices"][0]["logprobs"]["content"][0]
    assert first == {
        "token": "Paris",
        "logprob": -0.5,
        "bytes": list(b"Paris"),
        "top_logprobs": [
            {"token": "Paris", "logprob": -0.5, "bytes": list(b"Paris")},
            {"token": "no", "logprob": -9999.0, "bytes": list(b"no")},
        ],
    }


async def test_text_logprobs(worker):
    """Completion logprobs are parallel lists with offsets into the text."""
    _, reply, _ = await worker.post("/v1/completions", TEXT | {"logprobs": 2})
    logprobs = reply["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Paris", " is", " nice"]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert logprobs["text_offset"] == [0, 5, 8]
    assert logprobs["top_logprobs"][0] == {"Paris": -0.5, "no": -9999.0}


async def test_streamed_text_offsets_go_on(worker):
    """Offsets in a stream count from the start of the text, not of the chunk."""
    raw = await worker.stream("/v1/completions", TEXT | {"logprobs": 0})
    rows = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    logprobs = [row["choices"][0]["logprobs"] for row in rows]
    assert [entry["text_offset"] for entry in logprobs if entry] == [[0], [5], [8]]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/chat/completions", CHAT | {"model": "no"}, 404, "model_not_found", "model"),
        ("/v1/chat/completions", CHAT | {"n": 0}, 400, "invalid_value", "n"),
        ("/v1/chat/completions", [], 400, "invalid_json", None),
        (
            "/v1/chat/completions",
            CHAT | {"max_tokens": 60},
            400,
            "context_length_exceeded",
            "messages",
        ),
        ("/v1/completions", TEXT | {"max_tokens": 62}, 400, "context_length_exceeded", "prompt"),
        ("/v1/nothing", {}, 404, "unknown_url", None),
        ("/tokenize", {"model": "team-a/chat"}, 400, "invalid_type", "prompt"),
        ("/tokenize", {"model": "team-a/chat", "messages": []}, 400, "invalid_type", "messages"),
        ("/detokenize", {"model": "team-a/chat", "tokens": [-1]}, 400, "invalid_value", "tokens"),
    ],
)
async def test_errors_are_openais(worker, *, path, body, status, code, param):
    """Each refusal is an OpenAI error object with its code and field."""
    got, reply, _ = await worker.post(path, body)
    assert got == status
    assert reply["error"]["code"] == code
    assert reply["error"]["param"] == param
    assert reply["error"]["type"] == "invalid_request_error"


async def test_context_error_has_both_numbers(worker):
    """A prompt over the context says how long it is and how much fits."""
    _, reply, _ = await worker.post("/v1/chat/completions", CHAT | {"max_tokens": 60})
    assert "60" in reply["error"]["message"]
    assert "64" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"{}", "application/json; charset=nothing"),
        (b"[1" + b"0" * 10_000 + b"]", "application/json"),
    ],
)
async def test_bad_json_is_400(worker, raw, kind):
    """A body that is no JSON, nested without end or of unknown letters is a 400."""
    headers = {"Content-Type": kind}
    url = worker.url("/v1/completions")
    async with worker.session.post(url, data=raw, headers=headers) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413)])
async def test_bodies_over_four_mebibytes_are_413(worker, over, status):
    """A body of 4 MiB is served, one byte more is refused."""
    head, tail = b'{"model": "team-a/chat", "user": "', b'", "prompt": "Hi"}'
    body = head + b"a" * (4 * 2**20 + over - len(head) - len(tail)) + tail
    async with worker.session.post(worker.url("/v1/completions"), data=io.BytesIO(body)) as reply:
        assert reply.status == status
        if over:
            assert (await reply.json())["error"]["code"] == "request_too_large"


async def test_method_not_allowed(worker):
    """GET on a POST endpoint is a 405 with an error object."""
    status, raw = await worker.get("/v1/completions")
    assert status == 405
    assert json.loads(raw)["error"]["code"] == "method_not_allowed"


async def test_full_queue_is_503_with_retry_after(worker, engine):
    """A full queue asks the client to come back."""
    engine.queue_full = True
    status, reply, headers = await worker.post("/v1/chat/completions", CHAT)
    assert (status, headers["Retry-After"]) == (503, "3")
    assert reply["error"]["code"] == "queue_full"
    assert reply["error"]["type"] == "server_error"


async def test_failure_before_the_first_byte_is_a_status(worker, engine):
    """A step that fails before any output answers a stream with a plain 500."""
    engine.fail_after = 0
    status, reply, _ = await worker.post("/v1/chat/completions", CHAT | {"stream": True})
    assert status == 500
    assert reply["error"]["code"] == "engine_step_failed"


async def test_failure_after_the_first_byte_is_an_event(worker, engine):
    """A step that fails in mid-stream sends an error event, no [DONE], and closes."""
    engine.fail_after = 1
    raw = await worker.stream("/v1/chat/completions", CHAT)
    last = raw.rstrip().splitlines()[-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_step_failed"
    assert b"[DONE]" not in raw


async def test_bugs_are_500_without_details(worker, engine, caplog):
    """An unexpected exception is logged and answered without its text."""
    engine.tokenizer = lambda _model: 1 / 0
    status, reply, _ = await worker.post("/v1/chat/completions", CHAT)
    assert status == 500
    assert "division" not in json.dumps(reply)
    assert "request_failed" in caplog.text


async def test_disconnect_of_a_stream_aborts(worker, engine):
    """A client that leaves a stream frees its request at once."""
    engine.gate = asyncio.Semaphore(1)
    url = worker.url("/v1/chat/completions")
    async with worker.session.post(url, json=CHAT | {"stream": True, "n": 2}) as reply:
        await reply.content.readuntil(b"\n\n")
        reply.close()
    await engine.until(lambda: len(engine.aborted) == 2)
    assert engine.idle


async def test_disconnect_while_waiting_aborts(worker, engine):
    """A client that leaves before the first token frees its request too."""
    engine.gate = asyncio.Semaphore(0)
    pending = asyncio.ensure_future(worker.post("/v1/chat/completions", CHAT))
    await engine.until(lambda: engine.running == 1)
    pending.cancel()
    await engine.until(lambda: engine.running == 0)
    assert len(engine.aborted) == 1


async def test_models_tokenize_version_metrics(worker):
    """The small endpoints answer in the shapes that vLLM's users know."""
    _, raw = await worker.get("/v1/models")
    row = json.loads(raw)["data"][0]
    assert (row["id"], row["object"], row["max_model_len"]) == ("team-a/chat", "model", 64)
    assert (await worker.get("/v1/models/team-a/chat"))[0] == 200
    assert (await worker.get("/v1/models/team-b/chat"))[0] == 404
    body = {"model": "team-a/chat", "prompt": "a bb"}
    assert (await worker.post("/tokenize", body))[1] == {"tokens": [1, 1, 2], "count": 3}
    body = {"model": "team-a/chat", "messages": [{"role": "user", "content": "a"}]}
    assert (await worker.post("/tokenize", body))[1]["count"] == 3
    body = {"model": "team-a/chat", "tokens": [1, 2]}
    assert (await worker.post("/detokenize", body))[1] == {"prompt": "x xx"}
    assert json.loads((await worker.get("/version"))[1]) == {"version": "1.2.3"}
    for listener in ("http", "metrics"):
        status, raw = await worker.get("/metrics", listener=listener)
        assert status == 200
        assert b"vllm:prompt_tokens_total" in raw
    assert (await worker.get("/-/state"))[0] == 404
    assert (await worker.get("/v1/models", listener="metrics"))[0] == 404


async def test_metrics_keep_the_colon_of_vllms_names_for_a_real_prometheus(worker):
    """Prometheus asks for OpenMetrics first; the names of the samples are vLLM's all the same."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, raw = await worker.get("/metrics", listener="metrics", headers={"Accept": accept})
    assert status == 200
    assert b"\nvllm:prompt_tokens_total" in raw
    assert b"\nvllm_" not in raw


async def test_request_id_comes_back(worker):
    """The caller's X-Request-Id is in the reply."""
    url, headers = worker.url("/v1/chat/completions"), {"X-Request-Id": "abc"}
    async with worker.session.post(url, json=CHAT, headers=headers) as reply:
        assert reply.headers["X-Request-Id"] == "abc"


async def test_health_follows_the_engine(worker, engine):
    """Health is 503 while models load; live is 503 once the engine is stuck."""
    assert (await worker.get("/health"))[0] == 200
    engine.ready_ = False
    status, raw = await worker.get("/health")
    assert (status, json.loads(raw)) == (503, {"status": "starting"})
    assert (await worker.get("/live"))[0] == 200
    engine.live_ = "No step for 60 s although requests wait."
    status, raw = await worker.get("/live")
    assert status == 503
    assert b"60 s" in raw


async def test_reload_waits_for_the_file(worker, engine, monkeypatch):
    """A reload of a revision that the file lacks is 202 until the file has it."""
    monkeypatch.setattr("trimtab_workers.server.app.RELOAD_POLL_SECONDS", 0.01)
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    wanted = []

    def reload(revision=None):
        wanted.append(revision)
        if engine.file_revision >= 2:
            loop.call_soon_threadsafe(seen.set)
        return engine.file_revision

    engine.reload = reload
    url = worker.url("/-/reload?revision=2", listener="admin")
    async with worker.session.post(url) as reply:
        assert (reply.status, await reply.json()) == (202, {"revision": 1})
    engine.file_revision = 2
    await asyncio.wait_for(seen.wait(), 30)
    async with worker.session.post(url) as reply:
        assert (reply.status, await reply.json()) == (200, {"revision": 2})
    assert set(wanted) == {2}


async def test_reload_reports_a_bad_file(worker, engine):
    """A bad file is named in the reply; without a revision to wait for it is a 400."""
    engine.reload_error = ConfigError("The model set has the unknown field 'modles'.")
    async with worker.session.post(worker.url("/-/reload", listener="admin")) as reply:
        assert reply.status == 400
        assert "modles" in (await reply.json())["error"]["message"]
    url = worker.url("/-/reload?revision=x", listener="admin")
    async with worker.session.post(url) as reply:
        assert reply.status == 400


async def test_ports_answer_before_the_engine_exists():
    """While the engine's modules load, health says starting and requests get 503."""
    started = asyncio.Event()
    settled = asyncio.Event()
    loop = asyncio.get_running_loop()
    engine = FakeEngine()

    def build():
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(settled.wait(), loop).result(30)
        return engine

    import aiohttp

    from tests.unit.server.conftest import Running
    from trimtab_workers.server.lifecycle import ServerSettings, WorkerServer

    settings = ServerSettings(host="127.0.0.1", port=0, admin_port=0, metrics_port=0)
    server = WorkerServer(settings, build=build)
    starting = asyncio.ensure_future(server.start())
    await started.wait()
    async with aiohttp.ClientSession() as session:
        worker = Running(server, session)
        assert (await worker.get("/health"))[0] == 503
        assert (await worker.get("/live"))[0] == 200
        assert (await worker.get("/metrics"))[0] == 200
        status, reply, headers = await worker.post("/v1/chat/completions", CHAT)
        assert (status, reply["error"]["code"]) == (503, "starting")
        assert "Retry-After" in headers
        _, raw = await worker.get("/-/state", listener="admin")
        assert json.loads(raw)["models"] == []
        settled.set()
        await starting
        assert (await worker.get("/health"))[0] == 200
    await server.close()


async def test_drain_finishes_what_runs_and_refuses_the_rest():
    """While draining, a running stream ends whole, new requests get 503, health is red."""
    from trimtab_workers.web.listeners import StopSignals

    engine = FakeEngine(gate=asyncio.Semaphore(0))
    async with running(engine) as worker:
        stream = asyncio.ensure_future(worker.stream("/v1/chat/completions", CHAT))
        await engine.until(lambda: engine.running == 1)
        drain = asyncio.ensure_future(worker.server.drain(stop=StopSignals()))
        status, reply, headers = await worker.post("/v1/chat/completions", CHAT)
        assert (status, reply["error"]["code"]) == (503, "shutting_down")
        assert "Retry-After" in headers
        status, raw = await worker.get("/health")
        assert (status, json.loads(raw)) == (503, {"status": "draining"})
        assert not drain.done()
        for _ in range(3):
            engine.gate.release()
        assert await drain
        assert (await stream).endswith(b"[DONE]\n\n")
    assert engine.stopped


async def test_drain_gives_up_after_its_time():
    """A drain that takes longer than the shutdown time-out reports it."""
    from trimtab_workers.web.listeners import StopSignals

    engine = FakeEngine(gate=asyncio.Semaphore(0))
    async with running(engine, drain_seconds=0.05) as worker:
        pending = asyncio.ensure_future(worker.post("/v1/chat/completions", CHAT))
        await engine.until(lambda: engine.running == 1)
        assert not await worker.server.drain(stop=StopSignals())
        pending.cancel()


async def test_second_signal_forces_the_end():
    """A second SIGTERM ends a drain at once."""
    import signal

    from trimtab_workers.web.listeners import StopSignals

    engine = FakeEngine(gate=asyncio.Semaphore(0))
    stop = StopSignals()
    async with running(engine, drain_seconds=60) as worker:
        pending = asyncio.ensure_future(worker.post("/v1/chat/completions", CHAT))
        await engine.until(lambda: engine.running == 1)
        stop.deliver(signal.SIGTERM)
        drain = asyncio.ensure_future(worker.server.drain(stop=stop))
        stop.deliver(signal.SIGTERM)
        assert not await asyncio.wait_for(drain, 30)
        pending.cancel()
