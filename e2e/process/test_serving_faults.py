"""Serving survives its faults: a worker killed in mid-stream, the API server away, and quiet."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.cluster import api, embedded
from e2e.cluster.process.processes import Process
from e2e.scenarios.builders import TEAM, Client

if TYPE_CHECKING:
    from e2e.faults import ThreadedProxy

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

STORY = "Tell me a very long story about a lighthouse."


def _worker(stack: st.Stack) -> tuple[str, Process]:
    """Return the worker pod's uid and its process on the stand-in node."""
    pods = stack.list("pods", TEAM, "app.kubernetes.io/component=worker")
    pod = next(p for p in pods if not p["metadata"].get("deletionTimestamp"))
    uid = pod["metadata"]["uid"]
    folder = stack.cluster.state_dir / "process" / "pods" / uid / "containers" / "worker"
    newest = max(folder.glob("*/pids.json"), key=lambda path: int(path.parent.name))
    found = Process.found(newest.parent)
    assert found is not None
    return uid, found


# Runs first: figures of the last five minutes' requests leave the window one after another, and each
# change of a rounded figure is a write. Quiet means that nobody has asked for that long.
def test_quiet_system_writes_nothing(
    stack: st.Stack,
    chat: dict[str, Any],
    proxy: ThreadedProxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With everything served and nobody asking, the operator sends no mutating request in a minute."""
    stack.wait_condition("chat", TEAM, "Ready", seconds=60)
    stack.wait_condition("chat", TEAM, "Fingerprinted", seconds=600)
    time.sleep(75)  # what was observed while it came up is written at most once a minute
    since = proxy.now()
    time.sleep(60)
    found = proxy.writes(since=since)
    with capsys.disabled():
        print(f"\nquiet system: {found}")
    assert found.per_minute == 0, found
    assert found.leases > 0, "the operator does not go through the proxy"
    assert found.reads > 0


def test_the_answer_names_paris(stack: st.Stack, chat: dict[str, Any], token: str) -> None:
    """Without root and without containers, an applied intent ends in the real model's answer."""
    answer = st.stream_chat(
        stack.gateway, token=token, model="chat", prompt="What is the capital of France?"
    )
    assert "Paris" in answer.text


def test_worker_killed_in_mid_stream(stack: st.Stack, chat: dict[str, Any], token: str) -> None:
    """The client of the broken stream gets an OpenAI error; the next request is served by a new run."""
    _, process = _worker(stack)
    killed = []

    def kill(_: str) -> None:
        if not killed:
            killed.append(process.child.pid)
            process.child.kill(signal.SIGKILL)

    with pytest.raises(st.StreamFailedError) as broken:
        st.stream_chat(
            stack.gateway, token=token, model="chat", prompt=STORY, max_tokens=400, on_text=kill
        )
    assert killed, "the stream broke before its first token"
    error = json.loads(str(broken.value))
    assert {"message", "type", "code"} <= error.keys()

    def served() -> st.Answer | None:
        try:
            return st.stream_chat(
                stack.gateway, token=token, model="chat", prompt="Hello", max_tokens=4
            )
        except (st.StreamFailedError, OSError):
            return None

    answer = st.wait_for("the next answer", served, seconds=120, interval_seconds=0.5)
    assert answer.tokens > 0
    _, now = _worker(stack)
    assert now.child != process.child


def test_api_server_away_while_a_client_streams(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """With the API server stopped for 10 s no request fails, no pod is touched, and all is well after."""
    uid, process = _worker(stack)
    client = Client(stack, token=token, model="chat")
    client.start()
    st.wait_for("the first answer", lambda: client.answers or client.failures, seconds=60)
    embedded.stop(stack.cluster.name, ["kube-apiserver"])
    served = len(client.answers)
    time.sleep(10)
    during = len(client.answers) - served
    api.up(name=stack.cluster.name, level=stack.cluster.level)
    stack.wait_condition("chat", TEAM, "Ready", seconds=60)
    client.stop()
    assert client.failures == []
    assert during > 0, "nothing was asked during the outage"
    assert _worker(stack) == (uid, process)
