"""Scenarios 2 and 7: the API server is away, or refuses the status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e.faults import Match, Status
from e2e.faults.endstate import difference

if TYPE_CHECKING:
    from e2e.faults.bench import Bench

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(600)]


def _steps(bench: Bench) -> int:
    loop = bench.operator.loops().get(f"{bench.namespace}/chat", {})
    return int(loop.get("steps", 0))


def _survives(bench: Bench, undisturbed: dict[str, Any], *, seconds: float) -> None:
    bench.apply(bench.intent())
    bench.wait_settled()
    before = bench.worker_pods()
    edited = bench.intent(
        load={"requestsPerSecond": "0.12", "promptTokens": 64, "outputTokens": 32}
    )
    bench.proxy.refuse(0.1)
    asked = len(bench.proxy.log())
    started = time.monotonic()
    bench.apply(edited)
    bench.proxy.refuse(seconds)
    assert time.monotonic() - started >= seconds
    assert len(bench.proxy.log()) - asked < 50, "the outage let requests through"
    starts = bench.operator.starts
    bench.wait_settled(seconds=60)
    bench.wait("a tick of the loop", lambda: _steps(bench) > 0, seconds=60)
    assert bench.worker_pods() == before, "serving pods were touched"
    assert bench.operator.alive
    assert starts == len(bench.operator.ends) + 1
    bench.apply(bench.intent())
    bench.wait_settled(seconds=60)
    assert difference(undisturbed, bench.end_state()) == ""
    assert bench.proxy.injected["refuse"] == 2


@pytest.mark.parametrize("seconds", [10, 60])
def test_api_server_away_for_seconds(
    bench: Bench, undisturbed: dict[str, Any], seconds: float
) -> None:
    """Scenario 2: pods stay, an edit made meanwhile is reconciled within 60 s of the return, loops tick."""
    _survives(bench, undisturbed, seconds=seconds)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [120, 600])
def test_api_server_away_for_minutes(
    bench: Bench, undisturbed: dict[str, Any], seconds: float
) -> None:
    """Scenario 2, in full: the same after two and ten minutes."""
    _survives(bench, undisturbed, seconds=seconds)


@pytest.mark.parametrize(
    ("code", "reason"), [(409, "Conflict"), (422, "Invalid")], ids=["conflict", "invalid"]
)
def test_status_writes_refused(
    bench: Bench, undisturbed: dict[str, Any], code: int, reason: str
) -> None:
    """Scenario 7: while the status cannot be written loops tick, and it is right soon after."""
    bench.apply(bench.intent())
    bench.wait_settled()
    status = Match(resource="inferenceintents", subresource="status", mutating=True)
    fault = bench.proxy.add(Status(match=status, code=code, reason=reason))
    edited = bench.intent(constraints={"minReplicas": 1, "maxReplicas": 3})
    bench.apply(edited)
    steps = _steps(bench)
    bench.wait("refused status writes", lambda: fault.injected >= 3, seconds=60)
    bench.wait("ticks of the loop", lambda: _steps(bench) >= steps + 3, seconds=60)
    assert bench.settled() is None, "the status cannot have been written"
    bench.proxy.clear()
    intent = bench.wait_settled(seconds=60)
    assert intent["status"]["observedGeneration"] == intent["metadata"]["generation"] == 2
    assert bench.operator.starts == 1
    bench.apply(bench.intent(constraints=None))
    bench.wait_settled()
    assert difference(undisturbed, bench.end_state()) == ""
