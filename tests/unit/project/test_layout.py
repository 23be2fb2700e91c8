"""The house rules that a tool can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e import drift, preflight

ROOT = Path(__file__).resolve().parents[3]
MACHINE = re.compile(
    "|".join(
        (
            r"proxy\.gol" + r"ang\.org",
            r"py" + r"pi\.org",
            r"python" + r"hosted",
            r"registry\.npm" + r"js",
            r"deb\.deb" + r"ian\.org",
            r"/wo" + r"rk/",
        )
    )
)


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", ["operator", "tests"])
def test_folders_that_would_shadow_modules_have_no_init(folder: str) -> None:
    """`operator/__init__.py` would shadow the standard library, `tests/**/__init__.py` breaks importlib mode."""
    assert not (ROOT / folder / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_file_names_a_registry_host_or_a_machine_path() -> None:
    """The project can be built anywhere: no file holds a registry host or a path of one machine."""
    bad = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix not in {".png", ".sum"}
        for match in [MACHINE.search(path.read_text(errors="replace"))]
        if match
    ]
    assert bad == []


def test_constraints_hold_names_and_versions_only() -> None:
    """constraints.txt pins versions without URLs, hashes or hosts."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.!+]+", line)
    ] == []


@pytest.mark.parametrize(
    "module",
    [
        "trimtab",
        "trimtab.planning",
        "trimtab.placement",
        "trimtab.rightsizing",
        "trimtab.planning.architecture",
        "trimtab.planning.fingerprint",
        "trimtab.planning.remap",
    ],
)
def test_packages_that_engines_import_stay_light(module: str) -> None:
    """The engine imports these where neither pydantic nor structlog exists, so they import neither."""
    code = (
        f"import sys, {module}; heavy = {{'pydantic', 'structlog', 'kopf', 'kubernetes', 'torch', 'aiohttp'}}"
        " & set(sys.modules); print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_full_disk_is_a_fatal_problem_with_a_remedy() -> None:
    """Too little disk ends the set-up before anything is fetched, and names what to do."""
    problem = preflight.disk_problem(ROOT, needed_gib=8, what="torch", free_bytes=preflight.GIB)
    assert problem is not None
    assert problem.fatal
    assert "needs 8 GiB" in problem.what
    assert "XDG_CACHE_HOME" in problem.remedy
    assert (
        preflight.disk_problem(ROOT, needed_gib=8, what="torch", free_bytes=9 * preflight.GIB)
        is None
    )


def test_drift_names_long_functions_and_branches() -> None:
    """The drift report names a function past the guides, and is silent about a short one."""
    long = "def f(x):\n" + "".join(f"    if x == {n}:\n        return {n}\n" for n in range(25))
    assert drift.drift(long, name="m.py") == ["m.py:1 f: 51 lines", "m.py:1 f: complexity 26"]
    assert drift.drift("def g():\n    return 1\n", name="m.py") == []
