"""Where binaries are cached and clusters keep their state; locks shared between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable)
    return (Path(value) if value else Path.home() / fallback) / "trimtab"


def cache() -> Path:
    """Return the folder of what can be built again: `$XDG_CACHE_HOME/trimtab`."""
    return _base("XDG_CACHE_HOME", ".cache")


def clusters() -> Path:
    """Return the folder with one folder per cluster: `$XDG_STATE_HOME/trimtab/clusters`."""
    return _base("XDG_STATE_HOME", ".local/state") / "clusters"


@contextlib.contextmanager
def locked(path: Path, *, remove: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path` across processes; the kernel frees it if this one dies.

    `remove` unlinks the file at the end. Who waited for a file that is gone by then locks the new one.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                if path.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace `path` by `text` so that a reader sees the old or the new content, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)
