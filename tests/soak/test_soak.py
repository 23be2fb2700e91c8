"""Mixed load ends with the start state; `make test-long` runs an hour of it, CI about a minute."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from e2e.soak import Answers, shortened, soak
from trimtab_workers.engine.config import PRESSURES

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("glassllm")
CI_SECONDS = float(os.environ.get("TRIMTAB_SOAK_SECONDS", "48"))
HOUR_SECONDS = 3600.0


@pytest.fixture(scope="module")
def expected() -> Answers:
    """What each request answers alone, under whichever policy comes first."""
    return {}


async def check(folder: Path, *, pressure: str, seconds: float, expected: Answers) -> None:
    with shortened():
        report = await soak(folder, pressure=pressure, seconds=seconds, expected=expected)
    print(report.line())
    assert report.problems == []
    assert min(report.answers, report.aborted, report.turned_away, report.refused_files) > 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pressure", PRESSURES)
async def test_a_minute_of_mixed_load(tmp_path: Path, pressure: str, expected: Answers):
    """Streams, aborts, models that come and go and a full arena leave nothing behind."""
    await check(tmp_path, pressure=pressure, seconds=CI_SECONDS / len(PRESSURES), expected=expected)


@pytest.mark.long
@pytest.mark.timeout(HOUR_SECONDS + 900)
async def test_an_hour_of_mixed_load(tmp_path: Path, expected: Answers):
    """The same for an hour, under the policy that moves most."""
    pressure = "remap" if "remap" in PRESSURES else PRESSURES[0]
    await check(tmp_path, pressure=pressure, seconds=HOUR_SECONDS, expected=expected)
