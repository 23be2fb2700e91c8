"""From what an invocation used to what it needed, and to each class's cost (rightsizer.md §6.2).

One run gives every class's cost, so nothing has to be explored.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.rightsizing.types import PeakKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trimtab.rightsizing.types import Usage

_THROTTLED_SHARE: Final = 0.05
_MEMORY_FLOOR_MIB: Final = 32.0
_SAMPLED_FACTOR: Final = 1.3
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An invocation's work, apart from what it was given.

    Attributes:
        cpu_s: CPU seconds, C.
        idle_s: Seconds that more CPU would not shorten, I.
        width: vCPUs that it can keep busy, p, at least 1.
    """

    cpu_s: float
    idle_s: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """vCPUs that meet the deadline.

    Attributes:
        cpu: vCPUs.
        infeasible: No number meets it; `cpu` is then all that helps.
    """

    cpu: float
    infeasible: bool


def throttled(usage: Usage) -> bool:
    """Return whether the quota held the invocation back for at least a twentieth of its time.

    A size of 0m means that there is no quota.
    """
    return (
        usage.alloc.cpu_m > 0
        and usage.periods_throttled > 0
        and usage.throttled_s >= _THROTTLED_SHARE * usage.wall_s
    )


def split(usage: Usage, *, width_seen: float) -> Work:
    """Return the work behind a usage.

    Args:
        usage: With positive wall_s.
        width_seen: Largest unthrottled C/T of like inputs lately, or the ladder's maximum: a throttled
            run shows only how wide it was at least.
    """
    cpu, wall = usage.cpu_s, usage.wall_s
    if throttled(usage):
        given = usage.alloc.cpu_m / 1000
        return Work(
            cpu_s=cpu, idle_s=max(0.0, wall - cpu / given), width=max(1.0, width_seen, cpu / wall)
        )
    width = max(1.0, cpu / wall)
    return Work(cpu_s=cpu, idle_s=max(0.0, wall - cpu / width), width=width)


def need_cpu(work: Work, *, budget_s: float, margin: float) -> Need:
    """Return the vCPUs that finish the work within the budget: m·C/(E - m·I)."""
    cpu, infeasible = bare_need(work, budget_s=budget_s, margin=margin)
    return Need(cpu=cpu, infeasible=infeasible)


def bare_need(work: Work, *, budget_s: float, margin: float) -> tuple[float, bool]:
    """Return what `need_cpu` does as a pair, which is made in a third of the time."""
    left = budget_s - margin * work.idle_s
    if left <= 0:
        return work.width, True
    need = margin * work.cpu_s / left
    return (work.width, True) if need > work.width else (need, False)


def need_mem(peak_mib: float, *, kind: PeakKind, body_bytes: int, margin: float) -> float:
    """Return the MiB that hold a peak, and at least the body."""
    factor = _SAMPLED_FACTOR if kind is PeakKind.SAMPLED else 1.0
    return max(factor * (margin * peak_mib + _MEMORY_FLOOR_MIB), body_bytes / _MIB)


def smallest_class(classes: Sequence[float], need: float) -> int:
    """Return the index of the smallest class that is at least the need, else the largest."""
    return min(bisect_left(classes, need), len(classes) - 1)


def cost_vector(count: int, *, target: int, under: float) -> NDArray[np.float64]:
    """Return the cost of each class: distance above the target, `under` times the distance below.

    Args:
        count: Number of classes, K.
        target: Index of the class that was needed.
        under: How much dearer it is to give too little.

    Returns:
        float64 of shape (K,), 0 at the target, in units of the whole ladder.
    """
    distance = (np.arange(count) - target) / max(1, count - 1)
    return np.where(distance < 0, -under * distance, distance)
