"""A worker of two ranks, as a pod runs it: it drains, and it ends when either process does."""

from __future__ import annotations

import json
import os
import select
import signal

import pytest

from tests.contract.server.test_stopping import BODY, post
from tests.contract.server.workers import Worker, a_model_set, a_worker

MANY = BODY | {"n": 64, "max_tokens": 120}


@pytest.fixture
def file(tmp_path):
    return a_model_set(
        tmp_path / "models.json", {"name": "team-a/alice", "path": "alice"}, tensor_parallel_size=2
    )


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is no child of this one."""
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 60)[0], f"process {pid} runs on"
    finally:
        os.close(descriptor)


def follower_of(worker: Worker) -> int:
    worker.until("model_resident", count=2)
    return worker.until("follower_started")["follower_pid"]


def test_a_drain_keeps_the_followers(model_root, file):
    """SIGTERM to the whole process group: the stream ends whole, then both ranks end with 0."""
    with a_worker(file, model_root) as worker:
        follower = follower_of(worker)
        with post(worker.url("/v1/completions"), BODY) as reply:
            reply.readline()
            os.kill(follower, signal.SIGTERM)
            worker.process.send_signal(signal.SIGTERM)
            assert worker.until("stop_requested")["signal"] == "SIGTERM"
            assert reply.read().endswith(b"data: [DONE]\n\n")
        assert worker.until("stopped")["cut_off"] == 0
        assert worker.process.wait(60) == 0
        worker.until("end_of_log")
        assert not {"follower_ended", "group_lost", "rank_0_ended"} & {
            x["event"] for x in worker.log
        }


def test_a_killed_follower_ends_the_worker(model_root, file):
    """The log names the rank, running requests get an error, and the exit status is 1."""
    with a_worker(file, model_root) as worker:
        follower = follower_of(worker)
        with post(worker.url("/v1/completions"), MANY) as reply:
            reply.readline()
            os.kill(follower, signal.SIGKILL)
            rest = reply.read()
        assert b"data: [DONE]" not in rest
        error = json.loads(rest.strip().split(b"data: ")[-1])["error"]
        assert error["code"] == "engine_step_failed"
        lost = worker.until("follower_ended")
        assert (lost["rank"], lost["exit_status"]) == (1, -signal.SIGKILL)
        assert worker.process.wait(60) == 1
        order = [x["event"] for x in worker.log]
        # Two threads notice: who waits for the follower's end, and the step that it was part of.
        assert order.index("group_lost") < order.index("draining")


def test_followers_do_not_outlive_rank_0(model_root, file):
    """When rank 0 is killed in the middle of a step its follower ends too."""
    with a_worker(file, model_root) as worker:
        follower = follower_of(worker)
        with post(worker.url("/v1/completions"), MANY) as reply:
            reply.readline()
            worker.process.kill()
            wait_until_gone(follower)
