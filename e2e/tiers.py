"""Run the test tiers one after another, print the seconds of each and one closing line.

`python -m e2e.tiers [TIER …]`; without arguments every tier but `long`. A tier that cannot run on
this machine counts as skipped and says why; with CI=true the control-plane and node tiers must run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of a tier; `pytest` stages are counted by test, others as one check each.

    Attributes:
        beside: It may run at the same time as the stage before it: both use one core, and neither a
            cluster nor a clock.
    """

    tier: str
    name: str
    command: tuple[str, ...]
    beside: bool = False

    @property
    def counted(self) -> bool:
        return "pytest" in self.command


@dataclasses.dataclass(slots=True, kw_only=True)
class Result:
    stage: Stage
    seconds: float
    returncode: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def _pytest(tier: str, name: str, *arguments: str, beside: bool = False) -> Stage:
    command = (PYTHON, "-m", "pytest", "-q", *arguments)
    return Stage(tier=tier, name=name, command=command, beside=beside)


def _check(name: str, *command: str) -> Stage:
    return Stage(tier="lint", name=name, command=command)


NOT_LONG = ("-m", "not long")
STAGES: tuple[Stage, ...] = (
    _check("ruff", str(BIN / "ruff"), "check", "."),
    _check("format", str(BIN / "ruff"), "format", "--check", "."),
    _check("mypy", str(BIN / "mypy")),
    _check("import contracts", str(BIN / "lint-imports")),
    _check("dead code", str(BIN / "vulture")),
    _check("generated files", PYTHON, "-m", "e2e.generated"),
    _check("sizes (drift report)", PYTHON, "-m", "e2e.drift"),
    _pytest(
        "unit",
        "unit, property (seed 1)",
        "-p",
        "randomly",
        "-p",
        "no:cacheprovider",
        "--randomly-seed=1",
        "tests/unit",
        "tests/property",
    ),
    _pytest(
        "unit",
        "unit, property (seed 2)",
        "-p",
        "randomly",
        "-p",
        "no:cacheprovider",
        "--randomly-seed=2",
        "tests/unit",
        "tests/property",
        beside=True,
    ),
    _pytest("contract", "contract", "tests/contract"),
    _pytest("chart", "chart", "tests/chart", beside=True),
    _pytest("contract", "soak", *NOT_LONG, "-s", "tests/soak"),
    _pytest("control-plane", "control plane", *NOT_LONG, "tests/control_plane"),
    _pytest("process", "process", *NOT_LONG, "-p", "no:randomly", "e2e/process"),
    _pytest("node", "node", *NOT_LONG, "-p", "no:randomly", "e2e/scenarios"),
    _pytest(
        "long",
        "long",
        "-m",
        "long",
        "-p",
        "no:randomly",
        "e2e",
        "tests/control_plane",
        "tests/soak",
    ),
)
TIERS = tuple(dict.fromkeys(stage.tier for stage in STAGES))
DEFAULT = tuple(tier for tier in TIERS if tier != "long")


def _counts(report: Path) -> tuple[int, int, int]:
    passed = failed = skipped = 0
    for suite in ET.parse(report).getroot().iter("testsuite"):  # our own file, written by pytest
        tests, errors = int(suite.get("tests", 0)), int(suite.get("errors", 0))
        failures, skips = int(suite.get("failures", 0)), int(suite.get("skipped", 0))
        failed += errors + failures
        skipped += skips
        passed += max(0, tests - errors - failures - skips)
    return passed, failed, skipped


def run(stage: Stage, output: IO[str] | None = None) -> Result:
    """Run one stage; a pytest stage is counted from its JUnit file.

    Args:
        stage: The stage.
        output: Where its output goes; None shows it at once.
    """
    print(f"\n=== {stage.tier}: {stage.name}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        extra = (f"--junitxml={report}",) if stage.counted else ()
        error = None if output is None else subprocess.STDOUT
        code = subprocess.run(
            [*stage.command, *extra], cwd=ROOT, check=False, stdout=output, stderr=error
        ).returncode
        result = Result(stage=stage, seconds=time.monotonic() - start, returncode=code)
        if stage.counted and report.exists():
            result.passed, result.failed, result.skipped = _counts(report)
            if code not in (0, 1) and not result.failed:
                result.failed = 1
        else:
            result.passed, result.failed = (1, 0) if code == 0 else (0, 1)
    return result


def together(stages: Iterable[Stage]) -> list[list[Stage]]:
    """Return the stages in rounds: those of a round run at the same time."""
    rounds: list[list[Stage]] = []
    for stage in stages:
        if stage.beside and rounds and len(rounds[-1]) < len(os.sched_getaffinity(0)):
            rounds[-1].append(stage)
        else:
            rounds.append([stage])
    return rounds


def run_round(stages: list[Stage]) -> list[Result]:
    """Run stages at the same time; the first one's output is shown as it comes, then the others'."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(stages)))
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in stages[1:]]
        running = [
            pool.submit(run, stage, o) for stage, o in zip(stages, [None, *files], strict=True)
        ]
        results = [future.result() for future in running]
        for stage, file in zip(stages[1:], files, strict=True):
            file.seek(0)
            print(
                f"\n=== {stage.tier}: {stage.name}, which ran beside it\n{file.read()}", flush=True
            )
    return results


def _table(results: list[Result]) -> str:
    width = max(len(r.stage.name) for r in results)
    lines = [f"{'stage':<{width}}  {'seconds':>8}  passed  failed  skipped"]
    lines += [
        f"{r.stage.name:<{width}}  {r.seconds:8.1f}  {r.passed:6d}  {r.failed:6d}  {r.skipped:7d}"
        for r in results
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the tiers named on the command line; exit 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tiers", nargs="*", default=list(DEFAULT), metavar="TIER", help=", ".join(TIERS)
    )
    wanted = parser.parse_args().tiers
    unknown = sorted(set(wanted) - set(TIERS))
    if unknown:
        parser.error(f"unknown tier {', '.join(unknown)}; there are {', '.join(TIERS)}")
    os.environ.setdefault("TRIMTAB_DATA", str(ROOT.parent / "shared" / "data"))
    rounds = together(stage for stage in STAGES if stage.tier in wanted)
    results = [result for stages in rounds for result in run_round(stages)]
    print("\n" + _table(results))
    passed, failed, skipped = (
        sum(getattr(r, field) for r in results) for field in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
