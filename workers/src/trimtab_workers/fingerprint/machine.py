"""What a measuring Job needs to know about its machine, and how it reports."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DEFAULT_TERMINATION_LOG = "/dev/termination-log"
_UNKNOWN_CACHE_BYTES = 64 << 20


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model name with single spaces, or the architecture where it is unknown."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.machine() or "unknown"


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache, or 64 MiB where it is unknown."""
    found = [_size(entry) for entry in cpu.glob("index*/size")]
    return max(found, default=0) or _UNKNOWN_CACHE_BYTES


def report(message: str) -> None:
    """Write a Job's message where the kubelet reads it (``TRIMTAB_TERMINATION_LOG``)."""
    path = Path(os.environ.get("TRIMTAB_TERMINATION_LOG") or DEFAULT_TERMINATION_LOG)
    path.write_text(message, encoding="utf-8")


def log(event: str, *, level: str = "info", **fields: Any) -> None:
    """Write one JSON line to stderr, as every Trimtab process does."""
    line = {"event": event, "level": level, "timestamp": now(), **fields}
    print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)  # noqa: T201 - the log


def now() -> str:
    """Return the time in RFC 3339, seconds, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _size(entry: Path) -> int:
    try:
        text = entry.read_text().strip()
    except OSError:
        return 0
    factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * factor if digits.isdigit() else 0
