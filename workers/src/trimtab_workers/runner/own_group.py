"""The runner's own cgroup, if it has one to itself: then its counters are the function's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trimtab_workers.node_agent.cgroup import Group, GroupGoneError, Reader, V1Reader, V2Reader

_CONTROLLERS: Final = ("cpu", "cpuacct", "memory")


def find(proc: Path = Path("/proc/self")) -> tuple[Reader, Group] | None:
    """Return the reader and the group, None where other processes are in the same group.

    In a container the group is the container's. A process of a stand-in node, or one that a person
    started, shares its group with others, whose use is none of the function's.
    """
    try:
        folders = _folders(proc)
        if folders is None:
            return None
        version, group = folders
        reader: Reader = V2Reader() if version == 2 else V1Reader()
        if not _alone(group):
            return None
        reader.cpu(group)
        reader.held_bytes(group)
    except (OSError, GroupGoneError, ValueError, KeyError):
        return None
    return reader, group


def _folders(proc: Path) -> tuple[int, Group] | None:
    memberships = {}
    for line in (proc / "cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            memberships[controller] = path
    mounts = _mounts((proc / "mountinfo").read_text(encoding="utf-8"))
    if all(name in memberships and name in mounts for name in _CONTROLLERS):
        found = {name: _below(*mounts[name], memberships[name]) for name in _CONTROLLERS}
        return 1, Group(**found)
    if "" in memberships and "" in mounts:
        folder = _below(*mounts[""], memberships[""])
        if (folder / "cpu.stat").exists() and (folder / "memory.stat").exists():
            return 2, Group(cpu=folder, cpuacct=folder, memory=folder)
    return None


def _mounts(text: str) -> dict[str, tuple[str, Path]]:
    """Return root and mount point by controller, "" for version 2."""
    found: dict[str, tuple[str, Path]] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split(" ", 2)
        root, point = fields[3], Path(fields[4])
        if kind == "cgroup2":
            found.setdefault("", (root, point))
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _CONTROLLERS:
                    found.setdefault(option, (root, point))
    return found


def _below(root: str, point: Path, path: str) -> Path:
    """Return the folder of a membership; a container mounts its own group, so root and path are equal."""
    relative = os.path.relpath(path, root)
    return point if relative == "." or relative.startswith("..") else point / relative


def _alone(group: Group) -> bool:
    """Return whether nothing is in the group but this process, and process 1 if a shell or init started it.

    Version 1 may have the three folders in different groups, each with processes of its own.
    """
    members = {
        int(pid)
        for folder in {group.cpu, group.cpuacct, group.memory}
        for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split()
    }
    return members <= {os.getpid(), 1}
