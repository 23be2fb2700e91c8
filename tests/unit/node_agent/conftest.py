"""Trees of files as kernels show them, made here after the formats of cgroup version 1 and 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

UID = "0f6e9a1c-3b5d-4a7e-9c21-5d8f0b7a6e43"
STATIC = "9f86d081884c7d659a2feaa0c55ad015"
MIB = 2**20


def v2_files(
    *, usage=1_500_000, throttled=40_000, periods=3, anon=50, kills=0, cpu_max="50000 100000"
):
    """Return the files of a version 2 group; memory in MiB."""
    return {
        "cgroup.controllers": "cpuset cpu io memory pids\n",
        "cpu.stat": f"usage_usec {usage}\nuser_usec 1\nsystem_usec 1\nnr_periods 9\n"
        f"nr_throttled {periods}\nthrottled_usec {throttled}\nnr_bursts 0\nburst_usec 0\n",
        "cpu.max": f"{cpu_max}\n",
        "memory.max": f"{256 * MIB}\n",
        "memory.stat": f"anon {anon * MIB}\nfile {70 * MIB}\nkernel {9 * MIB}\nkernel_stack 1\nsock {MIB}\n"
        f"shmem {2 * MIB}\nslab_reclaimable {4 * MIB}\nslab_unreclaimable {3 * MIB}\nslab {7 * MIB}\n",
        "memory.events": f"low 0\nhigh 0\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 0\n",
    }


def v1_files(
    *, usage=1_500_000_000, throttled=40_000_000, periods=3, anon=50, kills=0, quota=50_000
):
    """Return the files of a version 1 group by hierarchy; memory in MiB, times in nanoseconds."""
    return {
        "cpuacct": {"cpuacct.usage": f"{usage}\n"},
        "cpu": {
            "cpu.stat": f"nr_periods 9\nnr_throttled {periods}\nthrottled_time {throttled}\n",
            "cpu.cfs_quota_us": f"{quota}\n",
            "cpu.cfs_period_us": "100000\n",
        },
        "memory": {
            "memory.stat": f"cache 1\nrss 1\nshmem 1\ntotal_cache {70 * MIB}\ntotal_rss {anon * MIB}\n"
            f"total_shmem {2 * MIB}\n",
            "memory.kmem.usage_in_bytes": f"{9 * MIB}\n",
            "memory.limit_in_bytes": f"{256 * MIB}\n",
            "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
        },
    }


class Tree:
    """Writes groups below a root."""

    def __init__(self, root: Path, *, version: int) -> None:
        self.root = root
        self.version = version
        self.group("")

    def group(self, path: str, **figures) -> None:
        """Write a group's files; figures as `v1_files` and `v2_files` take them."""
        if self.version == 2:
            folders = {self.root / path: v2_files(**figures)}
        else:
            folders = {
                self.root / hierarchy / path: files
                for hierarchy, files in v1_files(**figures).items()
            }
        for folder, files in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text)


@pytest.fixture
def tree(tmp_path):
    """Make a tree of a version."""
    return lambda version: Tree(tmp_path, version=version)


@pytest.fixture
async def aiohttp_agent():
    """Serve applications; clients are closed with the test."""
    from aiohttp.test_utils import TestClient, TestServer

    clients = []

    async def serve(application):
        client = TestClient(TestServer(application))
        await client.start_server()
        clients.append(client)
        return client

    yield serve
    for client in clients:
        await client.close()
