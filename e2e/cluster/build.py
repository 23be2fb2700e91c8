"""Build the components from their Go modules into the cache, once per version and machine.

`<cache>/<part>/<key>/<binary>`: the key is a digest of the wrapper module, its go.sum, the flags and
the Go version, so an upgrade never meets an old binary. Builders share the work through file locks.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from e2e.cluster import paths, toolchain
from e2e.cluster.errors import BuildError
from e2e.cluster.versions import NEEDED, PARTS, Part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.cluster.toolchain import Go

TAIL_LINES = 25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One binary in the cache; `seconds` is 0 when it was there already."""

    part: str
    binary: str
    path: Path
    version: str
    seconds: float


def cache_key(part: Part, *, go_version: str) -> str:
    """Return the folder name under which binaries of `part` are cached: version and digest."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        file = part.folder / name
        digest.update(file.read_bytes() if file.exists() else b"")
        digest.update(b"\0")
    flags = (part.ldflags, part.tags, part.cgo, go_version, platform.system(), platform.machine())
    digest.update(repr(flags).encode())
    return f"{part.version}-{digest.hexdigest()[:16]}"


def binary_path(part: Part, binary: str, *, go_version: str) -> Path:
    """Return where a binary is, or would be, in the cache."""
    return paths.cache() / part.name / cache_key(part, go_version=go_version) / binary


def _compiler_problem(part: Part) -> str | None:
    """Return what is missing to build a part with C code, or None."""
    if not part.cgo:
        return None
    remedy = "Remedy: apt-get install gcc libc6-dev pkg-config libseccomp-dev"
    if not (shutil.which("gcc") or shutil.which("cc")):
        return f"{part.name} needs a C compiler and none is on the PATH. {remedy}"
    if not shutil.which("pkg-config"):
        return f"{part.name} needs pkg-config and it is not on the PATH. {remedy}"
    found = subprocess.run(["pkg-config", "--exists", "libseccomp"], check=False)
    return f"{part.name} needs the headers of libseccomp. {remedy}" if found.returncode else None


def missing_for_build(level: str) -> list[str]:
    """Return one sentence per thing that building `level` needs and this machine lacks.

    Binaries that are cached already need nothing.
    """
    if level == "node" and platform.system() != "Linux":
        return [f"The node level runs on Linux only; this is {platform.system()}."]
    go = toolchain.cached()
    problems = []
    for name in dict.fromkeys(part for part, _ in NEEDED[level]):
        part = PARTS[name]
        if go and all(binary_path(part, b, go_version=go.version).exists() for b in part.binaries):
            continue
        if problem := _compiler_problem(part):
            problems.append(problem)
    return problems


def _compile(go: Go, part: Part, binary: str, target: Path, on_line: Callable[[str], None]) -> None:
    """Run `go build` into a partial file beside `target` and rename it."""
    partial = target.with_name(f".{binary}.{os.getpid()}.partial")
    command: list[str | Path] = [go.binary, "build", "-v", "-trimpath", "-o", partial]
    if part.tags:
        command += ["-tags", ",".join(part.tags)]
    command += ["-ldflags", " ".join(("-s", "-w", *part.ldflags)), part.binaries[binary]]
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command, cwd=part.folder, env=go.environment(cgo=part.cgo), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            tail.append(line.rstrip())
            on_line(line.rstrip())
    if process.returncode:
        partial.unlink(missing_ok=True)
        raise BuildError(
            f"go build of {binary} ({part.name} {part.version}) ended with status "
            f"{process.returncode}. Remedy: read the last lines below; a failed download needs a "
            "reachable GOPROXY, a killed compiler needs memory (2 GiB), a full disk needs 6 GiB.\n"
            + "\n".join(tail)
        )
    partial.replace(target)


def build_one(
    go: Go, part: Part, binary: str, *, on_line: Callable[[str], None] = lambda _: None
) -> Built:
    """Return `binary` from the cache, building it if needed; others who want it wait and share it.

    Raises:
        BuildError: The compiler failed, or something it needs is missing.
    """
    target = binary_path(part, binary, go_version=go.version)
    start = time.monotonic()
    seconds = 0.0
    if not target.exists():
        if problem := _compiler_problem(part):
            raise BuildError(problem)
        with paths.locked(target.parent / ".lock"):
            if not target.exists():
                _compile(go, part, binary, target, on_line)
                seconds = time.monotonic() - start
    return Built(part=part.name, binary=binary, path=target, version=part.version, seconds=seconds)


def _plain(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def build_level(level: str, *, console: Console | None = None) -> dict[str, Built]:
    """Build everything a level needs, with progress on stderr, and return it by binary name.

    Raises:
        BuildError: Something could not be built; what was built before stays cached.
    """
    console = console or Console(stderr=True)
    go = toolchain.find(report=_plain)
    wanted = NEEDED[level]
    present = [
        (p, b) for p, b in wanted if binary_path(PARTS[p], b, go_version=go.version).exists()
    ]
    if len(present) == len(wanted):
        return {b: build_one(go, PARTS[p], b) for p, b in wanted}
    console.print(
        f"building {len(wanted) - len(present)} of {len(wanted)} components with {go.version} "
        f"into {paths.cache()} (about 9 minutes on 2 cores when nothing is cached)"
    )
    if console.is_terminal:
        return _with_bars(go, wanted, console)
    return _with_lines(go, wanted)


def _with_lines(go: Go, wanted: tuple[tuple[str, str], ...]) -> dict[str, Built]:
    built: dict[str, Built] = {}
    for number, (name, binary) in enumerate(wanted, 1):
        part = PARTS[name]
        if not binary_path(part, binary, go_version=go.version).exists():
            about = part.typical_seconds.get(binary)
            hint = f" (about {about} s on 2 cores)" if about else ""
            _plain(f"[{number}/{len(wanted)}] building {binary} {part.version}{hint} ...")
        done = built[binary] = build_one(go, part, binary)
        if done.seconds:
            size = done.path.stat().st_size / 1e6
            _plain(
                f"[{number}/{len(wanted)}] {binary} {done.version}: built in {done.seconds:.0f} s, "
                f"{size:.0f} MB"
            )
    return built


def _with_bars(go: Go, wanted: tuple[tuple[str, str], ...], console: Console) -> dict[str, Built]:
    built: dict[str, Built] = {}
    columns = (
        SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for name, binary in wanted:
            part = PARTS[name]
            task = progress.add_task(f"{binary} {part.version}", total=None, note="")
            packages = 0

            def on_line(line: str, task: object = task) -> None:
                nonlocal packages
                packages += not line.startswith("go: ")
                progress.update(task, note=f"{packages} packages, {line[-48:]}")  # type: ignore[arg-type]

            done = built[binary] = build_one(go, part, binary, on_line=on_line)
            note = f"{done.path.stat().st_size / 1e6:.0f} MB" if done.seconds else "cached"
            progress.update(task, total=1, completed=1, note=note)
    return built
