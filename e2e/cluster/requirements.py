"""What the node level needs of a machine, each missing thing as one sentence with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from e2e.cluster.errors import ClusterError

PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "nft": "nftables",
}
"""Program → Debian package."""

CAP_SYS_ADMIN = 21
CAP_NET_ADMIN = 12


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has_capability(number: int) -> bool:
    """Return whether this process has an effective capability."""
    return bool(_capabilities() >> number & 1)


def missing_programs() -> list[str]:
    """Return the Debian packages of the programs that are not on the PATH."""
    return sorted({package for name, package in PROGRAMS.items() if not which(name)})


def missing_packages() -> list[str]:
    """Return every Debian package that building and running the node level lacks here."""
    packages = set(missing_programs())
    if not (shutil.which("gcc") or shutil.which("cc")):
        packages |= {"gcc", "libc6-dev"}
    if not shutil.which("pkg-config"):
        packages |= {"pkg-config", "libseccomp-dev"}
    elif subprocess.run(["pkg-config", "--exists", "libseccomp"], check=False).returncode:
        packages.add("libseccomp-dev")
    return sorted(packages)


def install(packages: list[str]) -> None:
    """Install Debian packages.

    Raises:
        ClusterError: This is not root on Debian, or apt-get failed; holds the command to run by hand.
    """
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ClusterError(
            f"Installing {', '.join(packages)} needs root and apt-get. "
            f"Remedy: run `sudo {' '.join(command)}`, or what your system has in its place."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-q"], command):
        done = subprocess.run(step, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise ClusterError(
                f"`{' '.join(step)}` ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
            )


def which(name: str) -> str | None:
    """Return the path of a program, also where an ordinary user's PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def missing_for_node() -> list[str]:
    """Return one sentence per thing that this machine lacks to run real pods."""
    if platform.system() != "Linux":
        return [f"The node level runs on Linux only; this is {platform.system()}."]
    problems = []
    if os.geteuid() != 0:
        problems.append(
            "It needs root, for namespaces, cgroups and mounts, and this user's id is "
            f"{os.geteuid()}. Remedy: run it as root, or use the process level."
        )
    else:
        lacking = [
            name
            for name, number in (("CAP_SYS_ADMIN", CAP_SYS_ADMIN), ("CAP_NET_ADMIN", CAP_NET_ADMIN))
            if not has_capability(number)
        ]
        if lacking:
            problems.append(
                f"It needs {' and '.join(lacking)}, which this container does not have. Remedy: run "
                "the container privileged, or use the process level."
            )
    if packages := missing_programs():
        problems.append(
            f"It needs the programs of {', '.join(packages)}. "
            f"Remedy: apt-get install -y {' '.join(packages)}"
        )
    problems += _missing_cgroups()
    return problems


def _missing_cgroups() -> list[str]:
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.controllers"
    wanted = {"cpu", "memory", "pids"}
    if unified.exists():
        absent = wanted - set(unified.read_text().split())
    else:
        absent = {name for name in wanted if not (root / name).is_dir()}
    if absent:
        return [
            (
                f"It needs the cgroup controllers {', '.join(sorted(absent))} under {root}. "
                "Remedy: mount them, or use the process level."
            )
        ]
    if os.geteuid() == 0 and not os.access(root, os.W_OK):
        return [
            f"It needs to write under {root}, which is read-only. Remedy: a privileged container."
        ]
    return []
