"""What a cluster remembers about itself between commands: one JSON file, written before it is used."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import socket
from typing import TYPE_CHECKING, Any

from e2e.cluster import paths
from e2e.cluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
PORT_NAMES = ("apiserver", "etcd", "etcd-peer", "controller-manager", "scheduler", "kwok")
USERS = {
    "admin": ("trimtab-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kwok": ("system:kwok", "system:masters"),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("system:coredns", ""),
}
"""Token name → (user, group) of the token file."""


def check_name(name: str) -> str:
    """Return `name` if it can be part of file, cgroup and interface names.

    Raises:
        ClusterError: It cannot; says what can.
    """
    if not NAME.fullmatch(name):
        raise ClusterError(
            f"cluster name {name!r} is not made of at most 40 lower-case letters, digits and dashes "
            "(first and last a letter or digit). Remedy: choose another --name."
        )
    return name


@dataclasses.dataclass(slots=True, kw_only=True)
class State:
    """One cluster's durable facts; `network` is set at the node level only."""

    name: str
    provider: str
    level: str
    why: str = ""
    ports: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    network: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    binaries: dict[str, str] = dataclasses.field(default_factory=dict)
    cpus: list[int] | None = None
    created_paths: list[str] = dataclasses.field(default_factory=list)
    owner: list[str] = dataclasses.field(default_factory=list)
    ready: bool = False

    @property
    def folder(self) -> Path:
        """Return the folder that holds everything of this cluster."""
        return state_dir(self.name)

    @property
    def kubeconfig(self) -> Path:
        """Return the admin kubeconfig's path."""
        return self.folder / "kubeconfig"

    @property
    def api_host(self) -> str:
        """Return the address on which the API server listens."""
        return self.network.get("host", "127.0.0.1")

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return f"https://{self.api_host}:{self.ports['apiserver']}"

    def save(self) -> None:
        """Write the state; a reader sees the old or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(dataclasses.asdict(self), indent=1)
        paths.write_atomically(self.folder / "cluster.json", text)


def state_dir(name: str) -> Path:
    """Return the folder of the cluster `name`, which need not exist."""
    return paths.clusters() / check_name(name)


def load(name: str) -> State | None:
    """Return a cluster's state, or None if there is none that can be read."""
    try:
        values: dict[str, Any] = json.loads((state_dir(name) / "cluster.json").read_text())
        return State(**values)
    except (OSError, ValueError, TypeError):
        return None


def names() -> list[str]:
    """Return the names of all clusters with a folder, running or not."""
    folder = paths.clusters()
    if not folder.exists():
        return []
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)
    )


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Return that many different TCP ports that are free on `host` now."""
    sockets = []
    try:
        for _ in range(count):
            opened = socket.socket()
            sockets.append(opened)
            opened.bind((host, 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def ports_free(ports: list[int], *, host: str = "127.0.0.1") -> bool:
    """Return whether all ports can be listened on."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def new_tokens() -> dict[str, str]:
    """Return a fresh secret per user of the token file."""
    return {name: secrets.token_urlsafe(32) for name in USERS}
