"""Volumes made of API objects, container records, and what is swept at the end."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from e2e.cluster.process import processes, sweep
from e2e.cluster.process.logs import LogNotFoundError, find, tail
from e2e.cluster.process.processes import Identity
from e2e.cluster.process.records import Record, conditions, container_status, phase
from e2e.cluster.process.volumes import MountError, pick, write_payload


def test_payload_is_replaced_as_a_whole(tmp_path):
    """Files appear, change and vanish together; an unchanged payload is left alone."""
    folder = tmp_path / "volume"
    assert write_payload(folder, {"a": b"1", "sub/b": b"1"})
    assert not write_payload(folder, {"a": b"1", "sub/b": b"1"})
    assert write_payload(folder, {"a": b"2", "c": b"2"})
    assert {path.name for path in folder.iterdir() if not path.name.startswith("..")} == {"a", "c"}
    assert (folder / "a").read_bytes() == b"2"


def test_reader_never_sees_half_of_an_update(tmp_path):
    """Two files that always change together are equal whenever they are read in one folder."""
    folder = tmp_path / "volume"
    write_payload(folder, {"a": b"0", "b": b"0"})
    stopped = threading.Event()
    torn = []

    def read():
        while not stopped.is_set():
            try:
                real = (folder / "..data").resolve(strict=True)
                pair = (real / "a").read_bytes(), (real / "b").read_bytes()
            except FileNotFoundError:
                continue
            if pair[0] != pair[1]:
                torn.append(pair)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        write_payload(folder, {"a": b"%d" % number, "b": b"%d" % number})
    stopped.set()
    reader.join()
    assert not torn


def test_items_choose_and_rename_keys():
    """`items` map keys to paths; a missing key is an error unless the source is optional."""
    data = {"a": b"1", "b": b"2"}
    chosen = pick(data, [{"key": "a", "path": "x/y"}], what="configMap c", optional=False)
    assert chosen == {"x/y": b"1"}
    with pytest.raises(MountError, match="configMap c has no key 'z'"):
        pick(data, [{"key": "z", "path": "z"}], what="configMap c", optional=False)


ENDED = {"exitCode": 0, "reason": "Completed"}
FAILED = {"exitCode": 1, "reason": "Error"}


@pytest.mark.parametrize(
    ("init", "main", "expected"),
    [
        ([], [Record()], "Pending"),
        ([], [Record(attempt=1, running=True)], "Running"),
        ([Record(attempt=1, running=True)], [Record()], "Pending"),
        ([], [Record(attempt=3, termination=FAILED)], "Running"),
        ([], [Record(over=True, termination=ENDED)], "Succeeded"),
        ([], [Record(over=True, termination=ENDED), Record(over=True, termination=FAILED)], "Failed"),
        ([Record(over=True, termination=FAILED)], [Record()], "Failed"),
    ],
)  # fmt: skip
def test_phase_follows_from_the_containers(init, main, expected):
    """Phases are those of a kubelet: crash looping is Running, a failed init container is final."""
    assert phase(init, main) == expected


def test_ready_needs_containers_and_gates():
    """A pod is Ready when its containers are and its gates are open, and says what is missing."""
    live = [{"type": "Ready", "status": "False", "lastTransitionTime": "T0"}]

    def ready(record, gates=()):
        found = conditions(phase="Running", init=[], main={"c": record}, gates=gates, live=live, now=1e9)  # fmt: skip
        return next(c for c in found if c["type"] == "Ready")

    assert ready(Record())["message"] == "containers with unready status: [c]"
    assert ready(Record())["lastTransitionTime"] == "T0"
    assert ready(Record(ready=True))["status"] == "True"
    assert ready(Record(ready=True))["lastTransitionTime"] == "2001-09-09T01:46:40Z"
    assert ready(Record(ready=True), ["gate"])["reason"] == "ReadinessGatesNotReady"


def test_record_survives_the_disk(tmp_path):
    """What the node knows of a container is the same after its restart."""
    record = Record(attempt=2, restarts=1, waiting=("CrashLoopBackOff", "x"), termination=FAILED)
    record.save(tmp_path / "a" / "record.json")
    assert Record.load(tmp_path / "a" / "record.json") == record
    status = container_status({"name": "c", "image": "i"}, record, uid="u")
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status["lastState"]["terminated"] == FAILED


async def started(tmp_path, code, number=1):
    folder = tmp_path / "pods" / "uid" / "containers" / "main" / str(number)
    command = [sys.executable, "-c", code]
    return await processes.start(folder, argv=command, env={}, cwd=tmp_path, log=folder / "log")


async def test_sweep_ends_what_was_started_and_nothing_else(tmp_path):
    """Recorded processes end with their children; a stranger that has the pid does not."""
    victim = await started(tmp_path, "import time; time.sleep(600)")
    stranger = await started(tmp_path / "other", "import time; time.sleep(600)")
    forged = tmp_path / "pods" / "uid" / "containers" / "main" / "2"
    forged.mkdir()
    pid = stranger.child.pid
    (forged / "pids.json").write_text(f'{{"shim": [{pid}, 1], "child": [{pid}, 1], "started": 0}}')
    assert await asyncio.to_thread(sweep, tmp_path) == 1
    assert not victim.child.alive()
    assert stranger.child.alive()
    assert not (tmp_path / "pods").exists()
    assert sweep(tmp_path) == 0
    stranger.kill()
    await stranger.wait()


async def test_end_of_a_lost_shim_is_unknown(tmp_path):
    """Where the shim was killed the node still learns of the end, with a kubelet's code for it."""
    process = await started(tmp_path, "import time; time.sleep(600)")
    process.shim.kill(9)
    await process.shim.ended()
    assert process.child.alive()
    process.kill()
    ended = await process.wait()
    assert (ended.code, ended.problem) == (137, "shim lost")


def test_identity_of_an_ended_process_is_dead():
    """A pid that was given again is not the same process."""
    me = processes.identify()
    assert me.alive()
    assert not Identity(me.pid, me.start_ticks + 1).alive()


def test_logs_of_nobody_name_who_there_is(tmp_path):
    """Asking for an unknown pod's log says which pods have one; a tail has whole lines."""
    with pytest.raises(LogNotFoundError, match="team-a/x has not run here; these do: none"):
        find(tmp_path, "team-a/x")
    assert tail(b"a\nb\nc\n", lines=2) == b"b\nc\n"
    assert tail(b"a\n", lines=0) == b""
