"""A worker process told to stop, and one that must do without the control plane's packages."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request

import pytest

from tests.contract.server.workers import a_model_set, a_worker

BODY = {
    "model": "team-a/alice",
    "prompt": "Alice",
    "max_tokens": 100,
    "ignore_eos": True,
    "stream": True,
}


def post(url: str, body: dict):
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers)
    return urllib.request.urlopen(request, timeout=60)


@pytest.fixture
def file(tmp_path):
    return a_model_set(tmp_path / "models.json", {"name": "team-a/alice", "path": "alice"})


def test_without_pydantic_structlog_and_typer(model_root, file):
    """A worker that cannot import them loads, answers, streams, drains and exits 0."""
    with a_worker(file, model_root, extras=False) as worker:
        worker.until("model_resident")
        assert worker.until("configured")["config"]["memory_bytes"] == 64_000_000
        talk = {"model": "team-a/alice", "messages": [{"role": "user", "content": "Alice"}]}
        with post(worker.url("/v1/chat/completions"), talk | {"max_tokens": 3}) as reply:
            assert json.loads(reply.read())["usage"]["completion_tokens"] == 3
        for path in ("/health", "/live", "/version", "/metrics", "/v1/models"):
            with urllib.request.urlopen(worker.url(path), timeout=30) as reply:
                assert reply.status == 200
        # SIGTERM while a stream runs: it ends whole, and so does the process.
        with post(worker.url("/v1/completions"), BODY) as reply:
            reply.readline()
            worker.process.send_signal(signal.SIGTERM)
            assert worker.until("stop_requested")["signal"] == "SIGTERM"
            assert reply.read().endswith(b"data: [DONE]\n\n")
        assert worker.until("stopped")["cut_off"] == 0
        assert worker.process.wait(30) == 0


def test_a_second_sigterm_forces(model_root, file):
    """A second SIGTERM cuts a stream off and ends the process long before the drain's time."""
    # So many choices that they cannot all be done before the second signal comes.
    endless = BODY | {"max_tokens": 120, "n": 128}
    with a_worker(file, model_root, shutdown_seconds=600) as worker:
        worker.until("model_resident")
        url = worker.url("/v1/completions")
        with post(url, endless) as reply:
            reply.readline()
            worker.process.send_signal(signal.SIGTERM)
            assert worker.until("draining")["in_flight"] == 1
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(url, BODY)
            assert refused.value.code == 503
            assert refused.value.headers["Retry-After"]
            error = json.loads(refused.value.read())["error"]
            assert (error["code"], error["type"]) == ("shutting_down", "server_error")
            refused.value.close()
            worker.process.send_signal(signal.SIGTERM)
            assert worker.until("stop_forced")["signal"] == "SIGTERM"
            assert worker.until("stopped")["cut_off"] == 1
            assert worker.process.wait(60) == 0


def test_a_bad_model_set_ends_the_process_with_its_reason(model_root, tmp_path):
    """A model set that cannot be read is named in the last log line, and the exit is 1."""
    file = tmp_path / "models.json"
    file.write_text('{"v": 1, "models": []}')
    with a_worker(file, model_root) as worker:
        assert "models" in worker.until("engine_cannot_start")["reason"]
        assert worker.process.wait(30) == 1
