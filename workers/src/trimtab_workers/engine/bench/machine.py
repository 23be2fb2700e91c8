"""What a figure depends on and a reader cannot see: the machine, its load, the versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """Return the CPU's model name, or its architecture where it is unknown."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def cpus() -> tuple[int, ...]:
    """Return the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def load_average() -> float:
    """Return the load average of the last minute: far above 0 before a run, the machine is busy."""
    return os.getloadavg()[0]


def conditions() -> dict[str, Any]:
    """Return what every result names."""
    return {
        "cpu": cpu_model(),
        "cpus": len(cpus()),
        "load_average": round(load_average(), 2),
        "torch_version": version("torch"),
        "python_version": platform.python_version(),
    }


def version(distribution: str) -> str:
    """Return an installed distribution's version, or "none"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"
