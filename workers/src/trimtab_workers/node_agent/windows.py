"""Windows over pods: counters at begin and end of an invocation, memory sampled between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.rightsizing.types import PeakKind, Size, Usage
from trimtab_workers.node_agent.cgroup import MIB, GroupGoneError, Limits, pod_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.node_agent.cgroup import CPUReading, Group, Reader

MOST_WINDOWS: Final = 4096
# A function pod runs a handful of invocations at once; each begin and end looks at all of its pod's windows.
MOST_PER_POD: Final = 16
LONGEST_SECONDS: Final = 3700.0
RESCAN_SECONDS: Final = 0.1
FIRST_SECONDS: Final = 0.010
SLOWEST_SECONDS: Final = 0.100
SHARE_OF_AGE: Final = 0.02


class WindowError(Exception):
    """A window cannot be begun or ended; the subclass says what a caller can do about it."""


class PodNotFoundError(WindowError):
    """No pod of that UID runs on this node, or it ended during the window."""


class WindowNotFoundError(WindowError):
    """No such window is open: it was never begun, was ended, or was forgotten as too old."""


class WindowExistsError(WindowError):
    """A window of that id is open in that pod."""


class TooManyWindowsError(WindowError):
    """As many windows are open as the agent keeps."""


def pause_seconds(age_seconds: float) -> float:
    """Return how long after a sample the next one is due.

    10 ms at first, then 2 % of the window's age up to 100 ms: a sample costs about 50 µs of the node,
    and every 10 ms for a minute would take more than it tells.
    """
    return min(max(FIRST_SECONDS, SHARE_OF_AGE * age_seconds), SLOWEST_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a window saw.

    Attributes:
        usage: Of the whole pod; `peak_kind` is Sampled.
        overlapping: Another window was open in the pod at some time, so use cannot be told apart.
    """

    usage: Usage
    overlapping: bool


@dataclass(slots=True, kw_only=True)
class _Window:
    group: Group
    began: float
    cpu: CPUReading
    oom_kills: int
    limits: Limits
    peak_bytes: int
    due: float
    overlapping: bool


class Windows:
    """All open windows of a node.

    Args:
        reader: Reads the node's cgroups.
        clock: Monotonic seconds.
    """

    def __init__(self, reader: Reader, *, clock: Callable[[], float]) -> None:
        self._reader = reader
        self._clock = clock
        self._pods: dict[str, Group] = {}
        self._scanned = float("-inf")
        self._open: dict[tuple[str, str], _Window] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, pod: str, window: str) -> None:
        """Open a window.

        Raises:
            PodNotFoundError: No such pod runs here.
            WindowExistsError: It is open already.
            TooManyWindowsError: 4,096 are open, or 16 in the pod.
        """
        if (pod, window) in self._open:
            raise WindowExistsError(f"Pod {pod} has an open window {window}. Use a new id.")
        self._forget_old()
        if len(self._open) >= MOST_WINDOWS:
            raise TooManyWindowsError(
                f"{MOST_WINDOWS} windows are open on this node. End windows; one is forgotten after "
                f"{LONGEST_SECONDS:.0f} seconds."
            )
        now = self._clock()
        others = [other for (owner, _), other in self._open.items() if owner == pod]
        if len(others) >= MOST_PER_POD:
            raise TooManyWindowsError(
                f"{MOST_PER_POD} windows are open in pod {pod}. End windows; one is forgotten after "
                f"{LONGEST_SECONDS:.0f} seconds."
            )
        try:
            group = self._group(pod)
            opened = _Window(
                group=group,
                began=now,
                cpu=pod_cpu(self._reader, group),
                oom_kills=self._reader.oom_kills(group),
                limits=self._reader.limits(group),
                peak_bytes=self._reader.held_bytes(group),
                due=now + FIRST_SECONDS,
                overlapping=bool(others),
            )
        except GroupGoneError as error:
            self._pods.pop(pod, None)
            raise PodNotFoundError(f"Pod {pod} ended. {error}") from error
        for other in others:
            other.overlapping = True
        self._open[pod, window] = opened

    def end(self, pod: str, window: str) -> Ended:
        """Close a window and return what was used while it was open.

        Raises:
            WindowNotFoundError: It is not open.
            PodNotFoundError: The pod ended meanwhile; the window is closed.
        """
        seen = self._open.pop((pod, window), None)
        if seen is None:
            raise WindowNotFoundError(
                f"Pod {pod} has no open window {window}. Begin it first; one is forgotten after "
                f"{LONGEST_SECONDS:.0f} seconds and when the agent restarts."
            )
        try:
            return self._ended(seen)
        except GroupGoneError as error:
            self._pods.pop(pod, None)
            raise PodNotFoundError(f"Pod {pod} ended during window {window}. {error}") from error

    def sample(self) -> float | None:
        """Sample the memory of all windows that are due; return seconds until the next, None if none is open.

        A pod is read once, however many windows are open in it.
        """
        self._forget_old()
        now = self._clock()
        held: dict[str, int] = {}
        for (pod, _), window in self._open.items():
            if window.due <= now:
                if pod not in held:
                    held[pod] = self._held(window.group)
                window.peak_bytes = max(window.peak_bytes, held[pod])
                window.due = now + pause_seconds(now - window.began)
        if not self._open:
            return None
        return max(0.0, min(window.due for window in self._open.values()) - self._clock())

    def _held(self, group: Group) -> int:
        try:
            return self._reader.held_bytes(group)
        except GroupGoneError:
            return 0  # `end` will say so

    def _ended(self, seen: _Window) -> Ended:
        cpu = pod_cpu(self._reader, seen.group)
        limits = self._reader.limits(seen.group)
        peak = max(seen.peak_bytes, self._reader.held_bytes(seen.group))
        # Containers that restarted begin again at nothing.
        throttled_us = max(0, cpu.throttled_us - seen.cpu.throttled_us)
        usage = Usage(
            cpu_s=max(0, cpu.used_us - seen.cpu.used_us) / 1e6,
            wall_s=self._clock() - seen.began,
            throttled_s=throttled_us / 1e6,
            periods_throttled=max(0, cpu.periods_throttled - seen.cpu.periods_throttled),
            peak_anon_mib=peak / MIB,
            peak_kind=PeakKind.SAMPLED,
            oom=self._reader.oom_kills(seen.group) > seen.oom_kills,
            alloc=Size(limits.cpu_m or 0, limits.mem_mib or 0),
            alloc_changed=limits != seen.limits,
        )
        return Ended(usage=usage, overlapping=seen.overlapping)

    def _group(self, pod: str) -> Group:
        now = self._clock()
        if pod not in self._pods and now - self._scanned >= RESCAN_SECONDS:
            self._pods = self._reader.pods()
            self._scanned = now
        group = self._pods.get(pod)
        if group is None:
            raise PodNotFoundError(
                f"No pod of UID {pod} runs on this node. Ask the agent of the pod's node; a pod that has "
                f"just started is found within {RESCAN_SECONDS} seconds."
            )
        return group

    def _forget_old(self) -> None:
        oldest = self._clock() - LONGEST_SECONDS
        for key in [key for key, window in self._open.items() if window.began < oldest]:
            del self._open[key]
