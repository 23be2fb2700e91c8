"""Reading cgroups of version 1 and 2: what a group of processes used, holds and may use.

What counts as held is what cannot be reclaimed and so ends in an out-of-memory kill: anonymous and
shared memory and the kernel's own for the group. Page cache is not part of it (rightsizer.md §6.2).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path("/sys/fs/cgroup")
MIB: Final = 2**20

_DEEPEST: Final = 8
# cgroupfs: pod<uid>; systemd: kubepods-burstable-pod<uid with _ for ->.slice; static pods: 32 hex.
_POD: Final = re.compile(
    r"(?:.*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice)?"
)
# Version 1 says "no limit" as the largest number of whole pages.
_NO_LIMIT: Final = 2**62


class GroupGoneError(Exception):
    """A cgroup is not there, or no longer; names its folder."""


class NoCgroupsError(Exception):
    """A folder is no root of cgroups; names it and the remedy."""


# NamedTuple, not dataclass: importing `dataclasses` would delay every start of the runner's child.
class Group(NamedTuple):
    """The folders of one group of processes; in version 2 all three are the same."""

    cpu: Path
    cpuacct: Path
    memory: Path

    def below(self) -> Iterator[Group]:
        """Yield the groups directly in this one, such as the containers of a pod."""
        with contextlib.suppress(OSError):
            names = [entry.name for entry in os.scandir(self.memory) if entry.is_dir()]
            for name in sorted(names):
                yield Group(
                    cpu=self.cpu / name, cpuacct=self.cpuacct / name, memory=self.memory / name
                )


class CPUReading(NamedTuple):
    """Counters since the group began; times are microseconds."""

    used_us: int
    throttled_us: int
    periods_throttled: int


class Limits(NamedTuple):
    """What a group may use; None where nothing limits it."""

    cpu_m: int | None
    mem_mib: int | None


class Reader(Protocol):
    """One version of cgroups. Every method raises `GroupGoneError` for a group that ended."""

    def group(self, path: str) -> Group:
        """Return the group at a path below the root."""

    def pods(self) -> dict[str, Group]:
        """Return the groups of all pods by their UID, with hyphens."""

    def cpu(self, group: Group) -> CPUReading:
        """Return the group's counters, all below it included."""

    def held_bytes(self, group: Group) -> int:
        """Return the memory of the group and all below it that cannot be reclaimed."""

    def oom_kills(self, group: Group) -> int:
        """Return how many processes of the group and all below it were killed for their memory."""

    def limits(self, group: Group) -> Limits:
        """Return what the group may use."""


def reader(root: Path = ROOT) -> V1Reader | V2Reader:
    """Return the reader for what is mounted at `root`; a hybrid host counts as version 1.

    Raises:
        NoCgroupsError: Neither version is mounted there.
    """
    if (root / "cgroup.controllers").exists():
        return V2Reader(root)
    if (root / "memory").is_dir() and (root / "cpuacct").is_dir():
        return V1Reader(root)
    raise NoCgroupsError(
        f"{root} is not a root of cgroups: it has neither cgroup.controllers (version 2) nor the folders "
        "memory and cpuacct (version 1). Mount the node's /sys/fs/cgroup there, or name another folder."
    )


class V2Reader:
    """The unified hierarchy."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def group(self, path: str) -> Group:
        """Return the group at a path below the root."""
        folder = self._root / path
        return Group(cpu=folder, cpuacct=folder, memory=folder)

    def pods(self) -> dict[str, Group]:
        """Return the groups of all pods by UID."""
        return {uid: self.group(path) for uid, path in _pod_paths(self._root)}

    def cpu(self, group: Group) -> CPUReading:
        """Return usage_usec, throttled_usec and nr_throttled of cpu.stat."""
        return _reading(_fields(group.cpu / "cpu.stat"), group=group)

    def held_bytes(self, group: Group) -> int:
        """Return anon + shmem + sock + kernel, less reclaimable slab, of memory.stat."""
        stat = _fields(group.memory / "memory.stat")
        # `kernel` is the sum of the others since Linux 5.18.
        parts = ("kernel_stack", "pagetables", "percpu", "vmalloc", "slab")
        kernel = stat.get("kernel", sum(stat.get(part, 0) for part in parts))
        kernel -= stat.get("slab_reclaimable", 0)
        return stat["anon"] + stat.get("shmem", 0) + stat.get("sock", 0) + max(0, kernel)

    def oom_kills(self, group: Group) -> int:
        """Return oom_kill of memory.events, which counts all below as well."""
        return _fields(group.memory / "memory.events").get("oom_kill", 0)

    def limits(self, group: Group) -> Limits:
        """Return cpu.max and memory.max; the root has neither."""
        cpu_m = None
        with contextlib.suppress(GroupGoneError):
            quota, period = _text(group.cpu / "cpu.max").split()
            cpu_m = None if quota == "max" else _millis(int(quota), int(period))
        mem_mib = None
        with contextlib.suppress(GroupGoneError):
            most = _text(group.memory / "memory.max").strip()
            mem_mib = None if most == "max" else int(most) // MIB
        return Limits(cpu_m=cpu_m, mem_mib=mem_mib)


class V1Reader:
    """One hierarchy per controller; a group has the same path in each."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def group(self, path: str) -> Group:
        """Return the group at a path below the root of each hierarchy."""
        return Group(
            cpu=self._root / "cpu" / path,
            cpuacct=self._root / "cpuacct" / path,
            memory=self._root / "memory" / path,
        )

    def pods(self) -> dict[str, Group]:
        """Return the groups of all pods by UID."""
        return {uid: self.group(path) for uid, path in _pod_paths(self._root / "memory")}

    def cpu(self, group: Group) -> CPUReading:
        """Return cpuacct.usage, throttled_time and nr_throttled, all of them in nanoseconds there."""
        used = int(_text(group.cpuacct / "cpuacct.usage"))
        stat = _fields(group.cpu / "cpu.stat")
        stat["usage_usec"] = used // 1000
        stat["throttled_usec"] = stat.get("throttled_time", 0) // 1000
        return _reading(stat, group=group)

    def held_bytes(self, group: Group) -> int:
        """Return total_rss + total_shmem of memory.stat and memory.kmem.usage_in_bytes.

        Reclaimable slab is not told apart there, so it counts.
        """
        stat = _fields(group.memory / "memory.stat")
        kernel = 0
        with contextlib.suppress(GroupGoneError):
            kernel = int(_text(group.memory / "memory.kmem.usage_in_bytes"))
        return stat["total_rss"] + stat.get("total_shmem", 0) + kernel

    def oom_kills(self, group: Group) -> int:
        """Return oom_kill of memory.oom_control, here and below: version 1 counts in one group only."""
        killed = _fields(group.memory / "memory.oom_control").get("oom_kill", 0)
        for inner in group.below():
            with contextlib.suppress(GroupGoneError):
                killed += self.oom_kills(inner)
        return killed

    def limits(self, group: Group) -> Limits:
        """Return the quota over its period, and memory.limit_in_bytes."""
        cpu_m = None
        with contextlib.suppress(GroupGoneError):
            quota = int(_text(group.cpu / "cpu.cfs_quota_us"))
            period = int(_text(group.cpu / "cpu.cfs_period_us"))
            cpu_m = _millis(quota, period) if quota > 0 else None
        most = int(_text(group.memory / "memory.limit_in_bytes"))
        return Limits(cpu_m=cpu_m, mem_mib=most // MIB if most < _NO_LIMIT else None)


def pod_cpu(source: Reader, group: Group) -> CPUReading:
    """Return a pod's counters, where throttling may have been counted at its containers.

    Pod and container have equal quotas, and whichever runs out first is the one that is throttled.
    """
    whole = source.cpu(group)
    throttled, periods = whole.throttled_us, whole.periods_throttled
    for inner in group.below():
        with contextlib.suppress(GroupGoneError):
            reading = source.cpu(inner)
            throttled = max(throttled, reading.throttled_us)
            periods = max(periods, reading.periods_throttled)
    return CPUReading(used_us=whole.used_us, throttled_us=throttled, periods_throttled=periods)


def _pod_paths(root: Path) -> Iterator[tuple[str, str]]:
    """Yield UID and path of every pod; what is inside a pod is not looked at."""
    todo = [(root, 0)]
    while todo:
        folder, depth = todo.pop()
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:
            continue  # ended meanwhile
        for name in names:
            found = _POD.fullmatch(name)
            if found:
                yield found.group(1).replace("_", "-"), str((folder / name).relative_to(root))
            elif depth < _DEEPEST:
                todo.append((folder / name, depth + 1))


def _reading(stat: dict[str, int], *, group: Group) -> CPUReading:
    try:
        return CPUReading(
            used_us=stat["usage_usec"],
            throttled_us=stat.get("throttled_usec", 0),
            periods_throttled=stat.get("nr_throttled", 0),
        )
    except KeyError as error:
        raise GroupGoneError(f"{group.cpu}/cpu.stat has no {error.args[0]}.") from error


def _millis(quota: int, period: int) -> int:
    return round(1000 * quota / period)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read()
    except OSError as error:  # ENOENT when opened, ENODEV when read after the group was removed
        raise GroupGoneError(f"{path} cannot be read ({error.strerror}).") from error


def _fields(path: Path) -> dict[str, int]:
    words = _text(path).split()
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False)}
