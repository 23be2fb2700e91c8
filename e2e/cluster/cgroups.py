"""The cgroups of a node-level cluster: one root of our own per hierarchy, removed with all below it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from e2e.cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
V2_CONTROLLERS = ("cpuset", "cpu", "memory", "pids", "hugetlb", "io")


def is_v2() -> bool:
    """Return whether this host has the unified hierarchy only (hybrid hosts count as version 1)."""
    return (ROOT / "cgroup.controllers").exists()


def folder_name(name: str) -> str:
    """Return the name of the cluster's cgroup below each hierarchy's root."""
    return f"trimtab-{name}"


def hierarchies() -> list[Path]:
    """Return the roots of all hierarchies of this host."""
    if is_v2():
        return [ROOT]
    return [path for path in sorted(ROOT.iterdir()) if path.is_dir() and not path.is_symlink()]


def create(name: str) -> None:
    """Make the cluster's cgroup in every hierarchy, with its controllers on."""
    for hierarchy in hierarchies():
        folder = hierarchy / folder_name(name)
        folder.mkdir(exist_ok=True)
        if is_v2():
            _enable_controllers(hierarchy)
            _enable_controllers(folder)
        elif (folder / "cpuset.cpus").exists():
            # A version 1 cpuset starts empty and then takes no process.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not (folder / file).read_text().strip():
                    (folder / file).write_text((hierarchy / file).read_text())


def _enable_controllers(folder: Path) -> None:
    offered = (folder / "cgroup.controllers").read_text().split()
    on = (folder / "cgroup.subtree_control").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in offered and controller not in on:
            try:
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError as exc:
                raise ClusterError(
                    f"The cgroup controller {controller} cannot be enabled below {folder} ({exc}): "
                    "processes live in that cgroup itself, as in many containers. Remedy: run on the "
                    "host, or use the process level."
                ) from exc


def remove(name: str, *, seconds: float = 10.0) -> None:
    """Remove the cluster's cgroups; the kernel refuses while a process is in one, so wait for it.

    Raises:
        ClusterError: One is still in use after `seconds`; names it and its processes.
    """
    deadline = time.monotonic() + seconds
    for hierarchy in hierarchies() if ROOT.exists() else []:
        top = hierarchy / folder_name(name)
        while top.exists():
            left = _remove_tree(top)
            if left is None:
                break
            if time.monotonic() > deadline:
                pids = (left / "cgroup.procs").read_text().split()
                raise ClusterError(
                    f"The cgroup {left} cannot be removed; processes in it: {' '.join(pids) or 'none'}. "
                    "Remedy: look at them, then `python -m e2e.cluster down` again."
                )
            time.sleep(0.05)


def _remove_tree(top: Path) -> Path | None:
    """Remove what can be removed below and with `top`; return a cgroup that could not, or None."""
    left = None
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            left = Path(folder)
    return left
