"""Logs, health, metrics, lag."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from typing import Any

import aiohttp
import pytest

from tests.unit.reconcile.builders import a_record
from trimtab.reconcile.beats import HeartBeats
from trimtab.reconcile.figures import publish
from trimtab.reconcile.pacing import Outcome
from trimtab.telemetry import metrics
from trimtab.telemetry.health import HealthServer, Verdict
from trimtab.telemetry.lag import LoopLag
from trimtab.telemetry.logs import LogLevelError, configure

SCRIPT = """
import logging, structlog
from trimtab.telemetry.logs import configure
configure("info")
structlog.get_logger("x").info("thing_done", uid="u1")
logging.getLogger("kopf.activities").warning("not %s", "ours")
logging.getLogger("kopf.objects").info("noise per object")
structlog.get_logger("x").debug("hidden")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("x").exception("thing_failed")
"""


def test_logs_are_one_json_object_per_line() -> None:
    """Our events and every library's are JSON on stderr, with event, level and timestamp."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["thing_done", "not ours", "thing_failed"]
    assert lines[0]["uid"] == "u1"
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    assert "ZeroDivisionError" in lines[2]["exception"]


def test_an_unknown_level_is_named() -> None:
    """A typo in the level is an error that lists the levels."""
    before = logging.getLogger().level
    with pytest.raises(LogLevelError, match=r"'loud'.*warning"):
        configure("loud")
    assert logging.getLogger().level == before


async def test_probes_answer_with_every_check() -> None:
    """A failed probe is a 503 that names the check; metrics have a port of their own."""
    verdict = {"ok": True}
    server = HealthServer(
        address="127.0.0.1",
        health_port=0,
        metrics_port=0,
        livez=lambda: Verdict(checks={"loopLag": verdict["ok"], "audit": True}),
        readyz=lambda: Verdict(checks={"barrier": True}),
        loops=lambda: {"loops": {}},
    )
    await server.start()
    health, scrape = (f"http://127.0.0.1:{port}" for port in server.ports)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{health}/livez") as answer:
            assert answer.status == 200
        verdict["ok"] = False
        async with session.get(f"{health}/livez") as answer:
            assert answer.status == 503
            assert (await answer.json())["checks"] == {"loopLag": False, "audit": True}
        async with session.get(f"{health}/debug/loops") as answer:
            assert await answer.json() == {"loops": {}}
        async with session.get(f"{scrape}/metrics") as answer:
            assert "trimtab_leader" in await answer.text()
        async with session.get(f"{scrape}/livez") as answer:
            assert answer.status == 404
    await server.stop()


async def test_a_blocking_call_shows_as_lag() -> None:
    """A call that blocks the loop for 200 ms is seen."""
    reported: list[float] = []
    lag = LoopLag(clock=time.monotonic, report=reported.append)
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0.06)
    time.sleep(0.2)  # noqa: ASYNC251 - the point of the test
    await asyncio.sleep(0.06)
    task.cancel()
    assert lag.worst() > 0.1
    assert max(reported) > 0.1


def test_heart_beats_show_every_loop() -> None:
    """A step is shown whatever its outcome, and a loop that ended is not."""
    now = [10.0]
    beats = HeartBeats(clock=lambda: now[0])
    beats.names["u"] = "team-a/chat"
    beats.beat("u", outcome=Outcome(failed=True, message="refused"), failures=1, seconds=0.1)
    now[0] = 15.0
    loop = beats.document()["loops"]["team-a/chat"]
    assert (loop["failures"], loop["secondsAgo"], loop["message"]) == (1, 5.0, "refused")
    assert beats.oldest_seconds() == 5.0
    beats.beat("u", outcome=Outcome(ended=True), failures=0, seconds=0.1)
    assert beats.document()["loops"] == {}


def test_intents_series_come_and_go_with_them() -> None:
    """Predicted, observed and cost series exist for intents that exist, unsatisfied by reason."""
    predicted = {"timePerOutputTokenMilliseconds": "20"}
    status = {
        "plan": {"costPerHour": "0.04", "predicted": predicted},
        "observed": {"timePerOutputTokenMilliseconds": "30"},
        "conditions": [{"type": "Ready", "status": "False", "reason": "Loading"}],
    }
    publish([a_record(status=status)])
    labels = {"namespace": "team-a", "intent": "chat", "metric": "tpot", "percentile": "mean"}
    value = metrics.REGISTRY.get_sample_value
    assert value("trimtab_intent_predicted_seconds", labels) == 0.02
    assert value("trimtab_prediction_ratio", {"metric": "tpot"}) == 1.5
    assert value("trimtab_unsatisfied_intents", {"reason": "Loading"}) == 1
    publish([])
    assert value("trimtab_intent_predicted_seconds", labels) is None
    assert value("trimtab_prediction_ratio", {"metric": "tpot"}) is None
    assert value("trimtab_unsatisfied_intents", {"reason": "Loading"}) is None


def a_planned_status(*, observed: str, margin: int = 20) -> dict[str, Any]:
    return {
        "plan": {
            "costPerHour": "0.09",
            "predicted": {"timePerOutputTokenMilliseconds": "20"},
            "margin": {"timePerOutputTokenPercent": margin},
            "confidence": {"level": "Low"},
            "load": {"requestsPerSecond": "0.5", "outputTokens": 100},
        },
        "observed": {"timePerOutputTokenMilliseconds": observed, "requestsPerSecond": "0.25"},
    }


def test_intents_outside_their_margin_are_counted_in_both_directions() -> None:
    """Slower and faster than predicted count beyond the intent's own margin, and not at it."""
    figures = [("24", 20), ("24.1", 20), ("22.1", 10), ("16.6", 20), ("16.7", 20)]
    publish(a_record(status=a_planned_status(observed=o, margin=m)) for o, m in figures)
    value = metrics.REGISTRY.get_sample_value
    name = "trimtab_intents_outside_margin"
    assert value(name, {"metric": "tpot", "direction": "slower"}) == 2
    assert value(name, {"metric": "tpot", "direction": "faster"}) == 1
    assert value(name, {"metric": "ttft", "direction": "slower"}) == 0
    assert value("trimtab_plan_margin_ratio", {"metric": "tpot"}) == 0.2
    assert value("trimtab_intents_by_confidence", {"level": "Low"}) == 5
    assert value("trimtab_intents_by_confidence", {"level": "High"}) == 0


def test_loads_and_costs_are_summed_over_the_intents() -> None:
    """Declared, planned and observed rates are sums; a million tokens cost what those with a price reserve."""
    load = {"requestsPerSecond": "0.4"}
    priced, free = a_planned_status(observed="20"), a_planned_status(observed="20")
    del free["plan"]["costPerHour"]
    publish([a_record(status=priced, load=load), a_record(status=free, load=load)])
    value = metrics.REGISTRY.get_sample_value
    rates = [
        value("trimtab_load_requests_per_second", {"load": load})
        for load in ("declared", "planned", "observed")
    ]
    assert rates == [0.8, 1.0, 0.5]
    # 0.09 per hour over 0.5 · 3,600 · 100 tokens.
    per_million = value("trimtab_cost_per_million_output_tokens", {"load": "planned"})
    assert per_million == pytest.approx(0.5)
    assert value("trimtab_cost_per_million_output_tokens", {"load": "observed"}) is None
