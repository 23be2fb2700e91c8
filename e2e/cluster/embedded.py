"""The embedded provider: a cluster made of processes on this machine, at one of three levels."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from typing import TYPE_CHECKING

from e2e.cluster import build, paths, probes, requirements, state
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.errors import ClusterError, LevelUnavailableError
from e2e.cluster.processes import Processes, start_time
from e2e.cluster.state import PORT_NAMES, State
from e2e.cluster.versions import GO_FOLDER, LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

ROOT = GO_FOLDER.parent.parent.parent
STAND_IN = "stand-in-node"
GRACE_SECONDS = 15.0
CONTROL_PLANE_ORDER = (
    "kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd",
)  # fmt: skip


def missing(level: str) -> list[str]:
    """Return one sentence per thing that this machine lacks for `level`, each with its remedy."""
    if platform.system() not in {"Linux", "Darwin"}:
        return [f"The embedded cluster runs on Linux and macOS; this is {platform.system()}."]
    found = build.missing_for_build(level)
    if level == "process" and platform.system() != "Linux":
        found.append(f"The process level runs on Linux only; this is {platform.system()}.")
    if level == "node":
        found += requirements.missing_for_node()
    return found


def highest_level() -> tuple[str, str]:
    """Return the highest level that can start here, and why not a higher one."""
    why = ""
    for level in reversed(LEVELS):
        problems = missing(level)
        if not problems:
            return level, why
        why = f"The {level} level cannot start: {' '.join(problems)}"
    raise LevelUnavailableError(why)


def default_cpus(level: str) -> list[int] | None:
    """Return the CPUs of the control plane: the first of two, so that it does not disturb what is measured.

    `TRIMTAB_CLUSTER_CPUS` overrides: `all`, or numbers with commas.
    """
    if text := os.environ.get("TRIMTAB_CLUSTER_CPUS"):
        return None if text == "all" else [int(number) for number in text.split(",")]
    if level == "control-plane" or not hasattr(os, "sched_getaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    return mine[:1] if len(mine) == 2 else None


def up(
    *,
    name: str,
    level: str,
    why: str = "",
    console: Console | None = None,
    report: Callable[[str], None] = lambda _: None,
    owned: bool = False,
) -> State:
    """Start the cluster `name`, or what of it does not run; a running one is returned as it is.

    `owned` ties the cluster to this process: `remove_orphans` takes it away after its end.

    Raises:
        LevelUnavailableError: Something is missing on this machine; names it and the remedy.
        BuildError: A component could not be built.
        ClusterError: A component did not start; holds the end of its log.
    """
    state.check_name(name)
    if problems := missing(level):
        raise LevelUnavailableError(
            f"The {level} level cannot start on this machine: {' '.join(problems)}"
        )
    built = build.build_level(level, console=console)
    with paths.locked(paths.clusters() / f".{name}.lock"):
        st = state.load(name)
        if st and (st.provider, st.level) != ("embedded", level):
            raise ClusterError(
                f"The cluster {name} exists at level {st.level} (provider {st.provider}), not {level}. "
                f"Remedy: `python -m e2e.cluster down --name {name}`, or choose another --name."
            )
        st = st or State(
            name=name, provider="embedded", level=level, cpus=default_cpus(level),
            tokens=state.new_tokens(),
        )  # fmt: skip
        st.why = why
        st.binaries = {one.binary: str(one.path) for one in built.values()}
        st.versions = {one.binary: one.version for one in built.values()}
        st.owner = [str(os.getpid()), start_time(os.getpid()) or ""] if owned else []
        _start(st, report)
    return st


def _start(st: State, report: Callable[[str], None]) -> None:
    processes = Processes(st.folder)
    running = any(processes.alive(component) for component in CONTROL_PLANE_ORDER)
    if st.level == "node":
        from e2e.cluster import node

        node.recover(st, processes)
        node.prepare(st)
        running = any(processes.alive(component) for component in CONTROL_PLANE_ORDER)
    if not running:
        ports = [st.ports.get(port, 0) for port in PORT_NAMES]
        if 0 in ports or not state.ports_free(ports):
            st.ports = dict(zip(PORT_NAMES, state.free_ports(len(PORT_NAMES)), strict=True))
    st.ready = False
    st.save()
    plane = ControlPlane(st, processes)
    plane.prepare()
    plane.start(report)
    if st.level == "process":
        _start_stand_in(st, processes, plane, report)
    elif st.level == "node":
        node.start(st, processes, plane, report)
    st.ready = True
    st.save()


def _start_stand_in(
    st: State, processes: Processes, plane: ControlPlane, report: Callable[[str], None]
) -> None:
    from e2e.cluster import process

    folder = st.folder / "process"
    folder.mkdir(exist_ok=True)
    if not processes.alive(STAND_IN):
        process.sweep(folder)
    command = [
        sys.executable, "-m", "e2e.cluster.process", "--kubeconfig", str(st.kubeconfig),
        "--state-dir", str(folder), "--node-name", plane.node_name,
    ]  # fmt: skip
    processes.start(STAND_IN, command, cwd=ROOT)
    wait_node_ready(plane, processes, STAND_IN)
    report(f"the stand-in node {plane.node_name} is ready: pods run as local processes")


def wait_node_ready(plane: ControlPlane, processes: Processes, component: str) -> None:
    """Wait until the cluster's own node is Ready."""
    path = f"/api/v1/nodes/{plane.node_name}"

    def ready() -> bool:
        node = plane.get_json(path) or {}
        conditions = node.get("status", {}).get("conditions", [])
        taints = [taint["key"] for taint in node.get("spec", {}).get("taints", [])]
        return (
            any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            and "node.kubernetes.io/not-ready" not in taints
        )

    def dead() -> str | None:
        if processes.alive(component):
            return None
        return f"{component} ended; the end of its log:\n{processes.tail(component)}"

    probes.wait_for(
        f"node {plane.node_name} Ready", ready, seconds=180, fatal=dead,
        seen=lambda: processes.tail(component),
    )  # fmt: skip


def down(name: str, *, report: Callable[[str], None] = lambda _: None) -> bool:
    """Remove the cluster `name` and all it left on this machine; return whether there was one."""
    folder = state.state_dir(name)
    if not paths.clusters().exists():
        return False
    with paths.locked(paths.clusters() / f".{name}.lock", remove=True):
        existed = folder.exists()
        if existed:
            _remove(name, folder)
    for empty in (paths.clusters(), paths.clusters().parent):
        with contextlib.suppress(OSError):  # other clusters, or other files of the project
            empty.rmdir()
    if existed:
        report(f"cluster {name} is removed")
    return existed


def _remove(name: str, folder: Path) -> None:
    st = state.load(name)
    processes = Processes(folder)
    processes.stop_all([STAND_IN], grace_seconds=GRACE_SECONDS)
    if (folder / "process").exists():
        from e2e.cluster import process

        process.sweep(folder / "process")
    if (folder / "node").exists():
        from e2e.cluster import node

        unreadable = State(name=name, provider="embedded", level="node")
        node.remove(st or unreadable, processes)
    # Their data goes next, so nobody is given time to wait for connections that lead nowhere by now.
    processes.stop_all(CONTROL_PLANE_ORDER[:-1], grace_seconds=1)
    processes.stop_all(grace_seconds=1)
    shutil.rmtree(folder)


def remove_orphans(prefix: str) -> list[str]:
    """Remove clusters whose name starts with `prefix` and whose owning process has ended."""
    removed = []
    for name in state.names():
        st = state.load(name) if name.startswith(prefix) else None
        if st and st.owner and start_time(int(st.owner[0])) != st.owner[1]:
            down(name)
            removed.append(name)
    return removed


def status(name: str) -> list[dict[str, object]]:
    """Return one row per component: its pid, version, health and log."""
    st = state.load(name)
    if st is None:
        return []
    processes = Processes(st.folder)
    plane = ControlPlane(st, processes)
    rows: list[dict[str, object]] = []
    for record in processes.all():
        component = record.component
        if not record.alive:
            health = "dead"
        elif component in CONTROL_PLANE_ORDER:
            health = "healthy" if plane.healthy(component) else "unhealthy"
        elif st.level == "node":
            from e2e.cluster import node

            health = node.health(st, component)
        else:
            health = "running"
        rows.append(
            {
                "component": component,
                "pid": record.pid if record.alive else None,
                "version": st.versions.get(component, ""),
                "health": health,
                "log": str(processes.log(component)),
            }
        )
    return rows


def stop(name: str, components: Sequence[str]) -> None:
    """Stop single components of a running cluster; `up` starts them again (fault tests)."""
    Processes(state.state_dir(name)).stop_all(components, grace_seconds=GRACE_SECONDS)
