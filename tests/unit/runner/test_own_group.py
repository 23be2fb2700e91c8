"""In a cgroup of its own the runner sees throttling, all processes' CPU, and kills for memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from trimtab_workers.node_agent import cgroup
from trimtab_workers.node_agent.windows import Windows

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


class Groups:
    """Cgroups of version 1 below a folder of our own in each hierarchy."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self.name = f"trimtab-test-{uuid.uuid4().hex[:12]}"

    def make(self, path: str) -> str:
        """Make the group and those above it; return a shell's words that put it there."""
        whole = f"{self.name}/{path}".rstrip("/")
        for hierarchy in ("cpu", "cpuacct", "memory"):
            folder = cgroup.ROOT / hierarchy
            for part in whole.split("/"):
                folder /= part
                if not folder.exists():
                    folder.mkdir()
                    self._paths.append(folder)
        files = [cgroup.ROOT / h / whole / "cgroup.procs" for h in ("cpu", "cpuacct", "memory")]
        return " && ".join(f"echo $$ > {file}" for file in files) + ' && exec "$@"'

    def set(self, path: str, file: str, value: int) -> None:
        hierarchy = file.partition(".")[0]
        (cgroup.ROOT / hierarchy / self.name / path / file).write_text(str(value))

    def remove(self) -> None:
        for folder in reversed(self._paths):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


@pytest.fixture
def groups():
    if os.geteuid() != 0:
        pytest.skip("making cgroups needs root")
    if not isinstance(cgroup.reader(), cgroup.V1Reader):
        pytest.skip("this host has cgroups of version 2: not run there")
    if not os.access(cgroup.ROOT / "memory", os.W_OK):
        pytest.skip("the host's cgroups cannot be written")
    made = Groups()
    try:
        made.make("")
    except OSError as error:
        pytest.skip(f"the host's cgroups cannot be written: {error}")
    yield made
    made.remove()


@pytest.fixture
def confined(groups, run):
    """A runner in a pod's cgroup of 96 MiB, and the pod's UID; from its start on it has 0.1 vCPU."""
    pod = str(uuid.uuid4())
    path = f"kubepods/pod{pod}/container"
    into = groups.make(path)
    groups.set(path, "memory.limit_in_bytes", 96 * MIB)
    served = run("behaviours", prefix=("sh", "-c", into, "sh"))
    groups.set(path, "cpu.cfs_quota_us", 10_000)
    return served, pod, path


def test_runner_and_agent_see_cpu_and_throttling_alike(confined, groups) -> None:
    """50 ms of CPU at 0.1 vCPU are throttled; both meters say so, and how large the container is."""
    served, pod, path = confined
    assert not noted(served)
    windows = Windows(cgroup.reader(), clock=time.monotonic)
    windows.begin(pod, "w")
    usage = served.request("GET", "/burn").usage
    groups.set(path, "cpu.cfs_quota_us", 100_000)
    seen = windows.end(pod, "w").usage
    assert usage["cpuMicros"] >= 50_000
    assert seen.cpu_s * 1e6 >= usage["cpuMicros"]
    for periods, throttled in (
        (usage["throttledPeriods"], usage["throttledMicros"]),
        (seen.periods_throttled, seen.throttled_s),
    ):
        assert periods >= 1
        assert throttled > 0
    assert (usage["allocCpuMillis"], usage["allocMemoryMib"], usage["oom"]) == (100, 96, False)
    assert not seen.oom


def test_a_kill_for_memory_is_told_and_survived(confined, groups) -> None:
    """A call that needs more than the limit gets 502 OutOfMemory from a parent that lives on."""
    served, pod, path = confined
    groups.set(path, "cpu.cfs_quota_us", -1)
    windows = Windows(cgroup.reader(), clock=time.monotonic)
    windows.begin(pod, "w")
    answer = served.request("GET", "/allocate?mib=200")
    assert (answer.status, answer.headers["Trimtab-Outcome"]) == (502, "oom")
    assert (answer.json["error"], answer.usage["oom"]) == ("OutOfMemory", True)
    assert "96 MiB" in answer.json["message"]
    assert windows.end(pod, "w").usage.oom
    assert served.request("GET", "/allocate?mib=8").status == 200


def test_a_group_that_others_are_in_is_not_the_runners(groups, run) -> None:
    """With another process in its group, or in a group of its own for memory alone, it has none to itself."""
    into = groups.make("shared")
    waiting = [*("sh", "-c", into, "sh"), *("sh", "-c", "echo in; read line")]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        beside = run("openfaas_classic", prefix=("sh", "-c", into, "sh"))
        other.stdin.close()
    assert noted(beside)
    memory_alone = into.split(" && ", 2)[2]
    assert "/memory/" in memory_alone
    assert noted(run("openfaas_classic", prefix=("sh", "-c", memory_alone, "sh")))


def noted(served) -> bool:
    return any('"no_group_of_its_own"' in line for line in served.log)
