"""Fail early and clearly where the demo or the tests cannot run: `python -m e2e.preflight [demo|test]`.

Needs only the base dependencies, because it runs before the large ones are fetched.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
from pathlib import Path

GIB = 1 << 30
ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something missing; `fatal` problems end the run, others lower the level of the cluster."""

    what: str
    remedy: str
    fatal: bool


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def disk_problem(
    path: Path, *, needed_gib: float, what: str, free_bytes: int | None = None
) -> Problem | None:
    """Return a fatal problem if the file system of `path` has less than `needed_gib` free."""
    free = shutil.disk_usage(_existing(path)).free if free_bytes is None else free_bytes
    if free >= needed_gib * GIB:
        return None
    return Problem(
        what=f"{path} has {free / GIB:.1f} GiB free and {what} needs {needed_gib:g} GiB.",
        remedy="Free some space, or point XDG_CACHE_HOME (caches) or VENV (the virtual environment) at another disk.",
        fatal=True,
    )


def problems(*, environment: dict[str, str]) -> list[Problem]:
    """Look at this machine: operating system, memory, disk, compilers."""
    found: list[Problem | None] = []
    if platform.system() != "Linux":
        found.append(
            Problem(
                what=f"The embedded cluster runs pods on Linux only; this is {platform.system()}.",
                remedy="Set TRIMTAB_KUBECONFIG to a cluster of your own, or start Docker and install kind.",
                fatal="TRIMTAB_KUBECONFIG" not in environment and not shutil.which("kind"),
            )
        )
    installed = (ROOT / ".venv" / ".installed").exists()
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not installed:
        found.append(disk_problem(ROOT, needed_gib=8, what="the virtual environment (torch)"))
    if not (cache / "trimtab").exists():
        found.append(
            disk_problem(
                cache,
                needed_gib=11,
                what="building the cluster (Go's build cache and the binaries)",
            )
        )
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 3.5 * GIB:
        found.append(
            Problem(
                what="This machine has less than 4 GiB of memory.",
                remedy="The cluster takes about 1 GiB, a worker with SmolLM2 about 1.5 GiB: use a larger machine.",
                fatal=True,
            )
        )
    if os.geteuid() == 0 and not (shutil.which("cc") or shutil.which("gcc")):
        found.append(
            Problem(
                what="No C compiler was found, and runc (real pods) needs one.",
                remedy="apt-get install gcc libc6-dev pkg-config libseccomp-dev, or go on without: pods then run at the process level.",
                fatal=False,
            )
        )
    return [problem for problem in found if problem is not None]


def main() -> int:
    """Print what is missing; exit 2 if the run cannot succeed."""
    found = problems(environment=dict(os.environ))
    for problem in found:
        print(
            f"{'error' if problem.fatal else 'note'}: {problem.what}\n  Remedy: {problem.remedy}",
            file=sys.stderr,
        )
    return 2 if any(problem.fatal for problem in found) else 0


if __name__ == "__main__":
    sys.exit(main())
