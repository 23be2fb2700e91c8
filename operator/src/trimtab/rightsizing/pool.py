"""Which pod serves an invocation (rightsizer.md §6.6): the first rule that applies, and why.

Pure: the gateway's actor holds the pods and the queue, and acts on what this says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.rightsizing.targets import Work
    from trimtab.rightsizing.types import Size

MOST_QUEUED: Final = 128


class PodState(StrEnum):
    """What a pod is doing."""

    STARTING = "Starting"
    IDLE = "Idle"
    BUSY = "Busy"
    RESIZING = "Resizing"
    """Idle, with a resize in flight: it may serve at its real size."""
    LEAVING = "Leaving"


_WARM: Final = frozenset({PodState.IDLE, PodState.RESIZING})
_COUNTED: Final = frozenset(PodState) - {PodState.LEAVING}
_FREE_LATER: Final = frozenset({PodState.BUSY, PodState.STARTING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of one function.

    Attributes:
        name: The object's name.
        size: What its container really has.
        state: What it is doing.
        since_s: Clock reading at which it came into that state.
        free_s: Clock reading at which a busy or starting pod is expected to be free.
    """

    name: str
    size: Size
    state: PodState
    since_s: float
    free_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """An invocation that asks for a pod.

    Attributes:
        size: That was decided.
        work: What it is expected to do: its bucket's 90th percentile; None if nothing is known.
        deadline_s: Clock reading by which it should be answered.
    """

    size: Size
    work: Work | None
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What was seen of the function's pods lately.

    Attributes:
        rates: Invocations per second by decided size.
        resize_s: 90th percentile of resize times; None if none was seen or resizes are off.
    """

    rates: Mapping[Size, float] = field(default_factory=dict)
    resize_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the spec bounds.

    Attributes:
        max_pods: Pods of all sizes, starting ones included.
        idle_s: Seconds until an unused pod is removed.
        max_queued: Invocations that may wait.
    """

    max_pods: int
    idle_s: float
    max_queued: int = MOST_QUEUED


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Send it to a warm pod of exactly the size."""

    pod: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UseLarger:
    """Send it to a larger warm pod; `start` a pod of the exact size in the background."""

    pod: str
    start: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UseAndGrow:
    """Send it to a warm pod with less CPU, and resize that pod beside it."""

    pod: str
    to: Size
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Let it wait for a pod."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a pod of the size, after deleting the idle pod `evict`, if there is one."""

    evict: str | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Answer 503."""

    why: str


Placement = Use | UseLarger | UseAndGrow | Queue | Start | Reject


def place(
    need: Need,
    *,
    pods: Sequence[Pod],
    queued: int,
    stats: PoolStats,
    limits: Limits,
    now_s: float,
) -> Placement:
    """Return what is done with an invocation; equal input, equal answer.

    Never a busy pod, never too little memory, never more pods than allowed. Among pods that serve equally
    well the one that has been idle longest is taken.

    Args:
        need: The invocation.
        pods: All of the function.
        queued: Invocations that wait before it.
        stats: What was seen lately.
        limits: Of the spec.
        now_s: Clock reading.
    """
    warm = sorted(
        (pod for pod in pods if pod.state in _WARM), key=lambda pod: (pod.since_s, pod.name)
    )
    room = sum(pod.state in _COUNTED for pod in pods) < limits.max_pods
    return (
        _warm(need, pods, warm=warm, stats=stats, room=room, idle_s=limits.idle_s)
        or _growing(need, warm, stats=stats, left_s=need.deadline_s - now_s)
        or _waiting(need, pods, queued=queued, limits=limits, now_s=now_s)
        or _starting(warm, queued=queued, stats=stats, room=room, limits=limits)
    )


def _warm(
    need: Need,
    pods: Sequence[Pod],
    *,
    warm: Sequence[Pod],
    stats: PoolStats,
    room: bool,
    idle_s: float,
) -> Use | UseLarger | None:
    """Return the idle pod of exactly the size, else the smallest larger one."""
    exact = next((pod for pod in warm if pod.size == need.size), None)
    if exact is not None:
        return Use(pod=exact.name, why="a warm pod of this size is idle")
    larger = min(
        (pod for pod in warm if pod.size.covers(need.size)), key=lambda pod: pod.size, default=None
    )
    if larger is None:
        return None
    often = stats.rates.get(need.size, 0.0) * idle_s > 1
    coming = any(pod.state is PodState.STARTING and pod.size == need.size for pod in pods)
    return UseLarger(
        pod=larger.name, start=often and room and not coming, why="a larger warm pod is idle"
    )


def _waiting(
    need: Need, pods: Sequence[Pod], *, queued: int, limits: Limits, now_s: float
) -> Queue | None:
    """Let it wait where that is in time, or where a pod is on its way for it already."""
    if queued >= limits.max_queued:
        return None
    if _worth_waiting(need, pods, queued=queued, now_s=now_s):
        return Queue(why="a pod is free in time")
    coming = sum(pod.state is PodState.STARTING and pod.size.covers(need.size) for pod in pods)
    return Queue(why="a pod is starting for it") if coming > queued else None


def _starting(
    warm: Sequence[Pod], *, queued: int, stats: PoolStats, room: bool, limits: Limits
) -> Start | Queue | Reject:
    if room:
        return Start(evict=None, why="no pod serves it in time")
    evicted = _least_used(warm, stats)
    if evicted is not None:
        return Start(evict=evicted, why="the idle pod of the size used least makes room")
    if queued < limits.max_queued:
        return Queue(why="every pod is busy and there may be no more")
    return Reject(why=f"{queued} invocations wait already")


def _growing(
    need: Need, warm: Sequence[Pod], *, stats: PoolStats, left_s: float
) -> UseAndGrow | None:
    """Return a pod with enough memory that becomes fast enough in time: r + max(0, C - a₀·r)/a₁ + I."""
    work, resize = need.work, stats.resize_s
    if work is None or resize is None:
        return None
    for pod in warm:
        if pod.state is not PodState.IDLE or pod.size.mem_mib < need.size.mem_mib:
            continue
        before = min(pod.size.cpu_m / 1000, work.width) * resize
        after = min(need.size.cpu_m / 1000, work.width)
        if resize + max(0.0, work.cpu_s - before) / after + work.idle_s <= left_s:
            to = type(need.size)(need.size.cpu_m, pod.size.mem_mib)
            return UseAndGrow(pod=pod.name, to=to, why="a warm pod grows in time")
    return None


def _worth_waiting(need: Need, pods: Sequence[Pod], *, queued: int, now_s: float) -> bool:
    """Return whether the pod that is free after those who wait already still meets the deadline."""
    if need.work is None:
        return False
    fitting = sorted(
        (
            pod
            for pod in pods
            if pod.state in _FREE_LATER and pod.free_s > 0 and pod.size.covers(need.size)
        ),
        key=lambda pod: (pod.free_s, pod.name),
    )
    if len(fitting) <= queued:
        return False
    pod = fitting[queued]
    runs = need.work.idle_s + need.work.cpu_s / min(pod.size.cpu_m / 1000, need.work.width)
    return max(pod.free_s, now_s) + runs <= need.deadline_s


def _least_used(warm: Sequence[Pod], stats: PoolStats) -> str | None:
    """Return the idle pod of the size that is asked for least."""
    idle = [pod for pod in warm if pod.state is PodState.IDLE]
    if not idle:
        return None
    return min(idle, key=lambda pod: (stats.rates.get(pod.size, 0.0), pod.since_s, pod.name)).name
