"""Where a container's paths really are: mount paths rewritten in its arguments and environment."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PATHS_OF_OTHER_PODS: Final = frozenset(
    {"TRIMTAB_POD_DEFAULTS", "TRIMTAB_SOURCES", "TRIMTAB_FINGERPRINT_SPEC"}
)
"""Variables that speak of the paths of pods yet to be made: rewriting them would misplace those."""

_OF_EVERY_IMAGE: Final = frozenset(
    [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib64",
        "/media",
        "/mnt",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/tmp",
        "/usr",
        "/usr/lib",
        "/usr/local",
        "/usr/share",
        "/var",
        "/var/cache",
        "/var/lib",
        "/var/log",
        "/var/run",
        "/var/tmp",
    ]
)
"""Folders that exist without a mount below them: a path into them means the machine's own."""

_INSIDE_A_PATH: Final = r"A-Za-z0-9._\-"


def rewriter(mounts: Mapping[str, Path]) -> re.Pattern[str] | None:
    """Return the pattern that finds any of the mount paths where a path begins, longest first."""
    found = sorted((path.rstrip("/") for path in mounts), key=len, reverse=True)
    if not any(found):
        return None
    choice = "|".join(re.escape(path) for path in found if path)
    return re.compile(f"(?<![{_INSIDE_A_PATH}/])({choice})(?![{_INSIDE_A_PATH}])")


def localise(text: str, *, mounts: Mapping[str, Path]) -> str:
    """Return `text` with every mount path replaced by the local path that stands for it.

    A mount path counts where a path can begin (not inside a longer path or a URL) and only as whole
    components: `/model` leaves `/models` alone.
    """
    pattern = rewriter(mounts)
    if pattern is None:
        return text
    local = {path.rstrip("/"): str(target) for path, target in mounts.items()}
    return pattern.sub(lambda match: local[match[1]], text)


def parents(folder: Path, *, mounts: Mapping[str, Path]) -> dict[str, Path]:
    """Give the folders that exist in a container only because something is mounted below them.

    `/models` for a mount at `/models/m0`: made under `folder` with a symlink for each mount, since a
    command may be told `/models` alone. Returns where each of them is.
    """
    result: dict[str, Path] = {}
    for path, target in mounts.items():
        above = [str(parent) for parent in PurePosixPath(path).parents]
        own = [p for p in above if p not in _OF_EVERY_IMAGE]
        if not own or any(p in mounts for p in own):
            continue
        link = folder / path.strip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)
        result |= {p: folder / p.strip("/") for p in own}
    return result
