"""How many bytes of memory this process may still take: the least of machine and cgroup limits."""

from __future__ import annotations

import os
from pathlib import Path

_UNLIMITED = 1 << 60


def free_host_bytes(*, cgroup: Path | None = None, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return free bytes; page cache that the kernel would drop counts as free.

    Args:
        cgroup: Folder of the process's memory cgroup (v2, or v1's `memory`); by default
            `TRIMTAB_CGROUP`, else `/sys/fs/cgroup`, which is the container's own in a pod.
        meminfo: The machine's.
    """
    folder = cgroup or Path(os.environ.get("TRIMTAB_CGROUP") or "/sys/fs/cgroup")
    free = _UNLIMITED
    for base, limit, used in (
        (folder, "memory.max", "memory.current"),
        (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _number(base / limit), _number(base / used)
        if most is not None and now is not None and most < _UNLIMITED:
            free = min(free, max(0, most - now + _field(base / "memory.stat", "inactive_file")))
    available = _field(meminfo, "MemAvailable:") * 1024
    return min(free, available) if available else free


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0
