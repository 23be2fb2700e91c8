"""The node's own mount, network and process namespaces: whatever a crash leaves in them ends with them.

A holder (`pause`) is process 1 inside. When it dies the kernel kills every other process of the namespace,
and with the last of them go mounts, interfaces and nftables tables. On disk and in cgroups things stay.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import probes
from e2e.cluster.errors import ClusterError
from e2e.cluster.processes import start_time
from e2e.cluster.requirements import which

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2e.cluster.processes import Processes, Record

HOLDER = "namespaces"
SHADOWED = ("/var/lib/kubelet", "/var/lib/cni", "/var/log")
"""Host folders that components write to by a fixed path; inside, each is a folder of the cluster's state."""


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(path.name))
    return sorted(found)


def inner_pid(processes: Processes, component: str = HOLDER) -> int | None:
    """Return the pid, as the host counts, of what a recorded `unshare` or `nsenter` runs; None if it is gone."""
    record = processes.get(component)
    if record is None or not record.alive:
        return None
    return next((pid for pid in children(record.pid) if start_time(pid)), None)


def enter(pid: int) -> list[str]:
    """Return the command that runs a program inside the namespaces of `pid`."""
    return [which("nsenter") or "nsenter", "-t", str(pid), "--mount", "--net", "--pid", "--"]


def shadow_folder(folder: Path, shadowed: str) -> Path:
    """Return the folder of the state that stands for a host folder inside the namespace."""
    return folder / "shadow" / shadowed.strip("/").replace("/", "-")


def hold(
    processes: Processes, *, folder: Path, pause: str, cpus: Sequence[int] | None = None
) -> int:
    """Start the holder with its private mounts and return its pid as the host counts.

    `folder` is the node's part of the cluster's state; `pause` the program that holds.
    """
    steps = ["set -e", "mount --make-rshared /", "mount -t tmpfs -o mode=755 tmpfs /run"]
    steps.append("mkdir -p /run/lock /run/netns")
    for shadowed in SHADOWED:
        source = shadow_folder(folder, shadowed)
        source.mkdir(parents=True, exist_ok=True)
        steps.append(f"mount --bind '{source}' {shadowed}")
    steps.append(f"exec '{pause}'")
    command = [
        which("unshare") or "unshare", "--mount", "--propagation", "slave", "--net", "--pid",
        "--fork", "--kill-child", "--mount-proc", "sh", "-c", "; ".join(steps),
    ]  # fmt: skip
    processes.start(HOLDER, command, cpus=cpus)

    def holding() -> int | None:
        pid = inner_pid(processes)
        try:
            return (
                pid if pid and Path(f"/proc/{pid}/exe").resolve() == Path(pause).resolve() else None
            )
        except OSError:
            return None

    def ended() -> str | None:
        if processes.alive(HOLDER):
            return None
        return f"the holder ended; the end of its log:\n{processes.tail(HOLDER)}"

    probes.wait_for("the node's namespaces", holding, seconds=60, fatal=ended)
    pid = holding()
    if pid is None:
        raise ClusterError(f"the node's namespaces ended at once:\n{processes.tail(HOLDER)}")
    return pid


def run(pid: int, command: Sequence[str], *, timeout_seconds: float = 120) -> str:
    """Run a program inside the namespaces and return its standard output.

    Raises:
        ClusterError: It ended with an error.
    """
    done = subprocess.run(
        [*enter(pid), *command], capture_output=True, text=True, check=False,
        timeout=timeout_seconds,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError(
            f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout


def _freeze(record: Record) -> str | None:
    """Stop `unshare` where it stands and return the process namespace it made; None where it made none yet."""
    deadline = time.monotonic() + 5
    record.kill(signal.SIGSTOP)
    proc = Path("/proc", str(record.pid))
    try:
        while (proc / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZX":
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        made = str((proc / "ns/pid_for_children").readlink())
        return made if made != str(Path("/proc/self/ns/pid").readlink()) else None
    except OSError:
        return None


def _members(space: str) -> list[int]:
    """Return the living processes of a process namespace."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and start_time(int(path.name)):
            with contextlib.suppress(OSError):
                if str((path / "ns/pid").readlink()) == space:
                    found.append(int(path.name))
    return found


def end(processes: Processes, *, members: Sequence[str]) -> None:
    """End the namespaces with everything in them, and forget the recorded `members`.

    Raises:
        ClusterError: A process in them hangs in the kernel.
    """
    record = processes.get(HOLDER)
    if record and record.alive:
        # Frozen first: between `unshare`'s fork and its child's request to die with it, an `up` that
        # was killed leaves a child that only its namespace names.
        space = _freeze(record)
        record.kill(signal.SIGKILL)
        deadline = time.monotonic() + 20
        # Killing process 1 kills all the others, and it is gone only when they are.
        while space and (left := _members(space)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Processes {left} of the node's namespace survived SIGKILL: one hangs in the "
                    f"kernel. Remedy: look at /proc/{left[0]}/stack and its children's."
                )
            time.sleep(0.02)
    if record:
        processes.stop_all([HOLDER], grace_seconds=2)
    processes.stop_all([name for name in members if processes.get(name)], grace_seconds=2)
