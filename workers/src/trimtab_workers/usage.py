"""How runner and node agent tell what an invocation used (docs/design/20261123-contracts.md, section 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.rightsizing.types import Usage


def to_wire(usage: Usage) -> dict[str, Any]:
    """Return the JSON object of one invocation: integers, times in microseconds.

    `allocCpuMillis` and `allocMemoryMib` are 0 where no cgroup limits the pod.
    """
    return {
        "v": 1,
        "cpuMicros": round(usage.cpu_s * 1e6),
        "wallMicros": round(usage.wall_s * 1e6),
        "throttledMicros": round(usage.throttled_s * 1e6),
        "throttledPeriods": usage.periods_throttled,
        "peakKib": round(usage.peak_anon_mib * 1024),
        "peakKind": str(usage.peak_kind),
        "oom": usage.oom,
        "allocCpuMillis": usage.alloc.cpu_m,
        "allocMemoryMib": usage.alloc.mem_mib,
        "allocChanged": usage.alloc_changed,
    }
