"""What one call used: CPU, throttling, the peak of memory that cannot be reclaimed, kills.

With a cgroup of its own, CPU is the group's less the parent's, and the peak is the larger of the
group's samples and the kernel's own high-water mark of the child, which is reset before each call. Without
one, the child tells its CPU time, and the high-water mark is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from trimtab.rightsizing.types import PeakKind, Size, Usage
from trimtab_workers.node_agent.cgroup import MIB, CPUReading, GroupGoneError, Limits

if TYPE_CHECKING:
    from trimtab_workers.node_agent.cgroup import Group, Reader

FIRST_SECONDS: Final = 0.005
SLOWEST_SECONDS: Final = 0.050
SHARE_OF_AGE: Final = 0.02

_RESET_PEAK: Final = "5"
_NOTHING: Final = CPUReading(used_us=0, throttled_us=0, periods_throttled=0)
_UNLIMITED: Final = Limits(cpu_m=None, mem_mib=None)


class _Resident(NamedTuple):
    """Memory of one process in bytes, of /proc/<pid>/status."""

    peak: int
    file: int
    private: int


class Meter:
    """Measures one call at a time.

    Args:
        own: Reader and group if the runner has a cgroup to itself.
    """

    def __init__(self, own: tuple[Reader, Group] | None) -> None:
        self._own = own
        self._pid = 0
        self._began = self._started = self._received = 0.0
        self._cpu = _NOTHING
        self._parent_s = 0.0
        self._oom_kills = 0
        self._limits = _UNLIMITED
        self._floor = self._peak = self._beside = 0
        self._reset = False
        self._due: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> Limits:
        """What the runner may use at present."""
        if self._own is None:
            return _UNLIMITED
        reader, group = self._own
        try:
            return reader.limits(group)
        except GroupGoneError:
            return _UNLIMITED

    def begin(self, pid: int) -> None:
        """Begin with a call of the child `pid`."""
        self._pid = pid
        self._reset = _reset_peak(pid)
        self._limits = self.limits
        resident = _resident(pid)
        self._floor = self._peak = resident.private
        self._beside = 0
        if self._own is not None:
            reader, group = self._own
            self._floor = self._peak = reader.held_bytes(group)
            self._beside = max(0, self._floor - resident.private)
            self._oom_kills = reader.oom_kills(group)
            self._cpu = reader.cpu(group)
            self._due = asyncio.get_running_loop().call_later(FIRST_SECONDS, self._sample)
        self._parent_s = time.process_time()
        self._began = self._started = self._received = time.monotonic()

    def body_received(self, *, runs_already: bool) -> None:
        """Say that the whole input is here: until then a function that needs it whole has not begun."""
        self._received = time.monotonic()
        if not runs_already:
            self._started = self._received

    def transfer_seconds(self) -> float:
        """Return how long the client took for its body."""
        return self._received - self._began

    def floor_bytes(self) -> int:
        """Return what was held before the call."""
        return self._floor

    def oom_killed(self) -> bool:
        """Return whether a process of the group was killed for its memory since `begin`."""
        if self._own is None:
            return False
        reader, group = self._own
        try:
            return reader.oom_kills(group) > self._oom_kills
        except GroupGoneError:
            return False

    def end(self, *, child_cpu_s: float) -> Usage:
        """End the call and return what it used.

        Args:
            child_cpu_s: What the child says it used, for where there is no cgroup.
        """
        wall_s = time.monotonic() - self._started
        if self._due is not None:
            self._due.cancel()
            self._due = None
        resident = _resident(self._pid)
        # File pages that it maps are in the mark and can be reclaimed.
        marked = self._beside + resident.peak - resident.file if resident.peak else 0
        cpu, throttled, periods = child_cpu_s, 0.0, 0
        if self._own is not None:
            reader, group = self._own
            now = reader.cpu(group)
            own_s = time.process_time() - self._parent_s
            cpu = max(0.0, (now.used_us - self._cpu.used_us) / 1e6 - own_s)
            throttled = (now.throttled_us - self._cpu.throttled_us) / 1e6
            periods = now.periods_throttled - self._cpu.periods_throttled
            self._peak = max(self._peak, reader.held_bytes(group))
        kind = self._kind(marked)
        self._peak = max(self._peak, marked)
        limits = self.limits
        return Usage(
            cpu_s=cpu,
            wall_s=wall_s,
            throttled_s=throttled,
            periods_throttled=periods,
            peak_anon_mib=self._peak / MIB,
            peak_kind=kind,
            oom=self.oom_killed(),
            alloc=Size(limits.cpu_m or 0, limits.mem_mib or 0),
            alloc_changed=limits != self._limits,
        )

    def _kind(self, marked: int) -> PeakKind:
        """Return how the peak was seen: the mark knows the child alone, samples what it started as well."""
        near = self._peak - max(MIB, self._peak // 20)
        if self._reset and marked and marked >= near:
            return PeakKind.RESET
        return PeakKind.CUMULATIVE if self._own is None else PeakKind.SAMPLED

    def _sample(self) -> None:
        """Sample what the child's own mark does not see: what it started, and the kernel's memory.

        Every 5 ms at first, then 2 % of the call's age, up to 50 ms: in a tenth of a vCPU a sample every
        5 ms would take from the function what it measures.
        """
        if self._own is None:
            return
        reader, group = self._own
        with contextlib.suppress(GroupGoneError):
            self._peak = max(self._peak, reader.held_bytes(group))
        age = time.monotonic() - self._began
        pause = min(max(FIRST_SECONDS, SHARE_OF_AGE * age), SLOWEST_SECONDS)
        self._due = asyncio.get_running_loop().call_later(pause, self._sample)


def _reset_peak(pid: int) -> bool:
    """Reset the kernel's high-water mark of a process; return whether that is possible here."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _resident(pid: int) -> _Resident:
    """Return a process's memory, zeros if it ended or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _Resident(0, 0, 0)
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def of(name: str) -> int:
        return int(fields.get(name, "0 kB").split()[0]) * 1024

    return _Resident(of("VmHWM"), of("RssFile"), of("RssAnon") + of("RssShmem"))
