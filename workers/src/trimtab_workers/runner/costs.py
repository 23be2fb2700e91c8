"""What the child's own process has used; a cgroup of its own tells more, where there is one."""

from __future__ import annotations

import resource


def cpu_micros() -> int:
    """Return the CPU time of this process and of children it has waited for, in microseconds."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return round(total * 1e6)
