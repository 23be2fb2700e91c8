"""What a cluster can leave behind on a machine, as comparable sets: for the test that it leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import cgroups, namespaces, node, paths, state
from e2e.cluster.processes import Processes, start_time
from e2e.cluster.requirements import which

if TYPE_CHECKING:
    from collections.abc import Iterable

    from e2e.cluster.state import State

FIXED_FOLDERS = (
    "/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd", "/var/log/pods", "/var/log/containers",
    "/run/containerd", "/run/netns", "/run/runc", "/run/cni", "/etc/cni", "/etc/containerd", "/etc/cdi",
    "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes", "/etc/kubernetes",
)  # fmt: skip
"""Where the components write when nobody stops them."""


def _output(*command: str) -> str:
    found = which(command[0])
    if not found:
        return ""
    done = subprocess.run([found, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout


def _namespace(path: Path) -> str:
    return str((path / "ns/pid").readlink())


def _processes(name: str, others: list[State]) -> set[str]:
    """Return processes that mention the cluster, or live in a process namespace that no other cluster owns."""
    holders = [namespaces.inner_pid(Processes(other.folder)) for other in others]
    known = {_namespace(Path("/proc", str(pid))) for pid in ("self", *holders) if pid}
    groups = [f"/{cgroups.folder_name(other.name)}/" for other in others]
    found = set()
    for path in Path("/proc").iterdir():
        if (
            not path.name.isdigit()
            or int(path.name) == os.getpid()
            or not start_time(int(path.name))
        ):
            continue
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            elsewhere = _namespace(path) not in known
            cgroup = (path / "cgroup").read_text()
        except OSError:
            continue
        if any(group in cgroup for group in groups):
            continue
        if elsewhere or f"/clusters/{name}/" in command:
            found.add(f"{path.name} {command.strip()}")
    return found


def _without(lines: Iterable[str], words: Iterable[str]) -> set[str]:
    words = list(words)
    return {line for line in lines if not any(word in line for word in words)}


def _tree(folder: Path) -> set[str]:
    if not folder.exists():
        return set()
    # Not rglob: that fails when a folder goes while it looks.
    below = ((parent, names) for parent, *kinds in os.walk(folder) for names in kinds)
    return {str(folder), *(f"{parent}/{name}" for parent, names in below for name in names)}


def take(name: str) -> dict[str, set[str]]:
    """Return everything that the cluster `name` could have left, by kind, without other clusters' things."""
    others = [st for other in state.names() if other != name and (st := state.load(other))]
    networks = [other.network for other in others if other.network]
    theirs = [word for net in networks for word in (net["interface"], f"10.{net['number']}.")]
    links = json.loads(_output("ip", "-j", "addr", "show") or "[]")
    lines = {f"{link['ifname']} {[one['local'] for one in link['addr_info']]}" for link in links}
    foreign = {cgroups.folder_name(other.name) for other in others}
    groups = [path for one in cgroups.hierarchies() for path in one.glob("trimtab-*")]
    files = {path for text in FIXED_FOLDERS for path in _tree(Path(text))}
    if networks:  # another node-level cluster keeps these until it goes
        files -= {*namespaces.SHADOWED, str(paths.clusters() / f".{node.CREATED}")}
    files |= {str(state.state_dir(name))} if state.state_dir(name).exists() else set()
    lock = paths.clusters() / f".{name}.lock"
    return {
        "processes": _processes(name, others),
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": _without(lines, theirs),
        "routes": _without(_output("ip", "route", "show", "table", "all").splitlines(), theirs),
        "rules": set(_output("ip", "rule", "show").splitlines()),
        "cgroups": {str(path) for path in groups if path.name not in foreign},
        "nftables": set(_output("nft", "list", "ruleset").splitlines()),
        "files": files | ({str(lock)} if lock.exists() else set()),
    }


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return what is there after and was not before, by kind, without the kinds where nothing is."""
    new = {kind: sorted(after[kind] - before[kind]) for kind in after}
    return {kind: items for kind, items in new.items() if items}
