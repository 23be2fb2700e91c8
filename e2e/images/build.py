"""Build images with Debian's buildah on a debootstrap base; results are docker-archive tars in the user's cache.

Needs root (debootstrap and buildah's chroot isolation change roots). The base comes from the Debian mirror that apt
on this machine is configured for, wheels from the package index that pip is configured for; nothing names a host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("operator", "gateway")
PREFIX = "localhost/trimtab-"
TAG = "e2e"
SUITE, SUITE_PYTHON = "bookworm", "3.11"
INPUTS = (
    "constraints.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "operator/src",
    "workers/src",
)
PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap", "tar": "tar"}
USELESS = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)


class ImageBuildError(RuntimeError):
    """An image could not be built; the message holds the command and the end of what it said."""


class ImageToolsMissingError(ImageBuildError):
    """This machine cannot build images; says what is missing and how to get it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: its reference in a cluster, and the docker-archive tar."""

    name: str
    reference: str
    archive: Path


def check_tools() -> None:
    """Do nothing if this machine can build images.

    Raises:
        ImageToolsMissingError: Not Linux, not root, or a program is missing.
    """
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise ImageToolsMissingError(
            "Building images needs root on Linux, because debootstrap and buildah change the root folder. "
            "Remedy: run as root, or build images/*/Dockerfile with an engine of your own."
        )
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        raise ImageToolsMissingError(
            f"Not installed: {', '.join(missing)}. Remedy: apt-get install {' '.join(missing)}"
        )


def cache() -> Path:
    """Return the folder of bases and images."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "trimtab" / "images"


def _run(*command: str | Path, cwd: Path = ROOT) -> str:
    # dpkg flushes every file of the base otherwise, and the base is thrown away if anything breaks.
    environment = {**os.environ, "DPKG_FORCE": "unsafe-io"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise ImageBuildError(f"{' '.join(map(str, command))} ended with {done.returncode}: {said}")
    return done.stdout


def mirror(sources: Iterator[str]) -> str:
    """Return the first Debian mirror in the texts of apt's source files.

    Raises:
        ImageToolsMissingError: None of them names one.
    """
    for text in sources:
        for line in text.splitlines():
            found = re.match(
                r"(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(https?://\S+/debian/?)(?:\s|$)", line.strip()
            )
            if found:
                return found.group(1)
    raise ImageToolsMissingError(
        "No Debian mirror was found in /etc/apt. Remedy: set TRIMTAB_DEBIAN_MIRROR to one."
    )


def _mirror() -> str:
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    return os.environ.get("TRIMTAB_DEBIAN_MIRROR") or mirror(
        f.read_text() for f in files if f.is_file()
    )


def base(report: Callable[[str], None]) -> Path:
    """Return a tar of a small Debian with Python, made once per suite."""
    target = cache() / f"base-{SUITE}.tar"
    if target.exists():
        return target
    report(f"base: debootstrap {SUITE}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trimtab-base-", dir=target.parent) as name:
        root = Path(name) / "root"
        _run(
            "debootstrap", "--variant=minbase", "--include=python3-minimal,python3-venv,ca-certificates",
            SUITE, root, _mirror(),
        )  # fmt: skip
        for useless in USELESS:
            shutil.rmtree(root / useless, ignore_errors=True)
        scratch = Path(name) / "base.tar"
        _run("tar", "--one-file-system", "--exclude=./dev/*", "-C", root, "-cf", scratch, ".")
        scratch.replace(target)
    return target


def wheels(folder: Path, report: Callable[[str], None]) -> None:
    """Fetch what the images install, for the base's Python, into a folder of wheels."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    report(f"wheels: {len(wanted)} requirements for Python {SUITE_PYTHON}")
    _run(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder,
        "--only-binary=:all:", "--python-version", SUITE_PYTHON, "-c", "constraints.txt", *wanted,
    )  # fmt: skip


def digest(name: str) -> str:
    """Return what tells two states of an image's inputs apart."""
    found = hashlib.sha256(f"{SUITE}\n".encode())
    for part in (*INPUTS, f"images/{name}"):
        path = ROOT / part
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        for file in files:
            if "__pycache__" not in file.parts and ".egg-info" not in str(file):
                found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield buildah with a storage of its own, emptied at the end: vfs copies every layer."""
    command = (
        "buildah", "--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run"),
    )  # fmt: skip
    try:
        yield command
    finally:
        subprocess.run([*command, "rmi", "--all", "--force"], capture_output=True, check=False)


def _import_base(buildah: tuple[str, ...], archive: Path) -> str:
    reference = f"{PREFIX}base:{SUITE}"
    container = _run(*buildah, "from", "scratch").strip()
    _run(*buildah, "add", "--quiet", container, archive, "/")
    _run(*buildah, "commit", "--quiet", "--rm", container, reference)
    return reference


def build(
    *, names: tuple[str, ...] = NAMES, report: Callable[[str], None] = lambda _: None
) -> list[Image]:
    """Return the images, building those whose inputs changed since the last time.

    Raises:
        ImageToolsMissingError: This machine cannot build images.
        ImageBuildError: A step failed.
    """
    check_tools()
    found = {
        name: Image(
            name=name,
            reference=f"{PREFIX}{name}:{TAG}",
            archive=cache() / f"{name}-{digest(name)}.tar",
        )
        for name in names
    }
    todo = [image for image in found.values() if not image.archive.exists()]
    if todo:
        archive = base(report)
        with (
            tempfile.TemporaryDirectory(prefix="trimtab-images-", dir=cache()) as work,
            _storage(Path(work)) as buildah,
        ):
            folder = Path(work) / "wheels"
            wheels(folder, report)
            reference = _import_base(buildah, archive)
            for image in todo:
                _build(
                    image,
                    buildah=buildah,
                    base_reference=reference,
                    wheel_folder=folder,
                    report=report,
                )
    return list(found.values())


def _build(
    image: Image, *, buildah: tuple[str, ...], base_reference: str, wheel_folder: Path, report: Callable[[str], None]
) -> None:  # fmt: skip
    report(f"{image.name}: buildah")
    _run(
        *buildah, "bud", "--isolation", "chroot", "--pull-never", "--layers=false", "--quiet",
        "--volume", f"{wheel_folder}:/wheels:ro",
        "--build-arg", f"BASE={base_reference}",
        "--build-arg", "PIP_ARGS=--no-index --find-links /wheels",
        "--file", ROOT / "images" / image.name / "Dockerfile", "--tag", image.reference, ROOT,
    )  # fmt: skip
    for old in cache().glob(f"{image.name}-*.tar"):
        old.unlink()
    scratch = image.archive.with_suffix(".part")
    scratch.unlink(missing_ok=True)
    _run(
        *buildah, "push", "--quiet", image.reference, f"docker-archive:{scratch}:{image.reference}"
    )
    scratch.replace(image.archive)
