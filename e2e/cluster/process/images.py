"""Which local command stands for an image: the stand-in node pulls and holds none."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERPRETER = sys.executable

_KNOWN: dict[str, tuple[str, ...]] = {
    "trimtab-operator": ("python", "-m", "trimtab"),
    "trimtab-gateway": ("python", "-m", "trimtab_workers.gateway"),
    "trimtab-worker": ("python", "-m", "trimtab_workers.server"),
    "trimtab": ("python", "-m", "trimtab"),
    "python": ("python",),
    "busybox": ("sh",),
    "debian": ("sh",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """What stands for an image: an entrypoint, and a folder where it is used as a volume."""

    entrypoint: tuple[str, ...]
    folder: Path | None = None


class UnknownImageError(LookupError):
    """No local command or folder stands for the image."""


class Images:
    """The table of images; `file` holds those added at run time and is read at each look-up."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, reference: str, *, entrypoint: Sequence[str] = (), folder: Path | None) -> None:
        """Let a local command, or a folder, stand for `reference` from now on."""
        table = self._added()
        table[reference] = {
            "entrypoint": list(entrypoint),
            "folder": str(folder.resolve()) if folder else None,
        }
        self._file.write_text(json.dumps(table, indent=1))

    def find(self, reference: str) -> Image:
        """Return what stands for an image reference.

        Raises:
            UnknownImageError: Nothing does; says how to add it.
        """
        added: Mapping[str, Any] | None = self._added().get(reference)
        if added:
            folder = Path(added["folder"]) if added["folder"] else None
            return Image(entrypoint=tuple(added["entrypoint"]), folder=folder)
        name = reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
        if name in _KNOWN:
            return Image(entrypoint=_KNOWN[name])
        raise UnknownImageError(
            f'the stand-in node has no containers and nothing stands for image "{reference}"; add it '
            "with `python -m e2e.cluster.process image --state-dir DIR REFERENCE`"
        )

    def _added(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._file.read_text()))
        except FileNotFoundError:
            return {}


def executable(name: str) -> str:
    """Return the local program for argv[0]: `python` is this interpreter."""
    return INTERPRETER if name in {"python", "python3"} else name


def substituted(argv: Sequence[str], *, substitutes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the local command line; `python -m MODULE` may be played by another command."""
    if argv[1:2] == ["-m"] and argv[2] in substitutes:
        argv = [*substitutes[argv[2]], *argv[3:]]
    return [executable(argv[0]), *argv[1:]]


def search_path() -> str:
    """Return the PATH of containers: the interpreter's own scripts first."""
    return f"{Path(INTERPRETER).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
