"""What changes while an intent serves: its load, its replicas step by step, and an operator that restarts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import (
    VERDICT,
    a_plan,
    an_intent,
    an_option,
    config_map,
    running,
)
from trimtab.kube.names import load_history
from trimtab.kube.resources import DEPLOYMENT

if TYPE_CHECKING:
    from tests.control_plane.operator.lab import Lab
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import IntentView

pytestmark = pytest.mark.control_plane

RATE = 5


def _by_load(view: IntentView) -> IntentPlan:
    """One replica for each request per second."""
    replicas = 1 if view.load is None else round(view.load.requests_per_second)
    return a_plan(view, option=an_option(view, replicas=replicas), load_assumed=view.load is None)


def _traffic(lab: Lab) -> dict[str, Any]:
    """What a gateway says that had so many requests a second for the last two minutes."""
    now = time.time()
    first = int(now) // 10 * 10 - 120
    counts = [
        [start, 10 * RATE, 640 * RATE, 320 * RATE, 0] for start in range(first, first + 130, 10)
    ]
    entry = {"counts": counts, "gap_cv": 3.0}
    return {"v": 1, "now": now, "intents": {f"{lab.namespace}/chat": entry}}


async def _replicas(lab: Lab) -> int:
    found = await lab.list(DEPLOYMENT, lab.namespace)
    return int(found[0]["spec"]["replicas"])


async def test_replicas_follow_real_traffic_one_ready_step_after_the_other(lab: Lab) -> None:
    """Assumed load gives way to observed load; five replicas are wanted, one more than is ready is made."""
    unknown = an_intent(lab.namespace)
    del unknown["spec"]["load"]
    async with running(lab) as run:
        run.admin.models = [f"{lab.namespace}/chat"]
        run.planner.decide = _by_load
        run.planner.missed = {"chat"}
        await lab.apply(unknown)
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.condition("Planned", "LoadAssumed")
        await lab.start_workers()
        await lab.condition("Ready", "Serving")
        plan = (await lab.intent())["status"]["plan"]
        assert plan["load"] == {"source": "Assumed"}
        run.admin.observed = lambda: _traffic(lab)
        await lab.start_gateway()
        await run.poll("gateways")

        async def waits() -> bool:
            now = (await lab.intent())["status"]["plan"]
            held = "until the replicas of the last change are ready" in now["message"]
            return bool(held and now["replicas"] == RATE)

        steps = [1]
        while steps[-1] < RATE:

            async def grown(last: int = steps[-1]) -> int:
                count = await _replicas(lab)
                return count if count > last else 0

            steps.append(await lab.wait(f"more than {steps[-1]} replicas", grown))
            if steps[-1] < RATE:
                await lab.wait("a step that waits", waits)
                assert await _replicas(lab) == steps[-1]
            await lab.start_workers(count=steps[-1])
        assert steps == [1, 2, 3, 4, 5]
        load = (await lab.intent())["status"]["plan"]["load"]
        assert load["source"] == "Observed"
        assert float(load["requestsPerSecond"]) == RATE
        assert load["gapVariation"] == "3"
        await lab.condition("Ready", "Serving")
        await run.poll("loads")
        await lab.wait("the history", lambda: _history(lab))
    async with running(lab) as run:
        run.admin.models = [f"{lab.namespace}/chat"]
        run.planner.decide = _by_load
        uid = (await lab.intent())["metadata"]["uid"]
        await lab.wait("a step", lambda: run.stepped_past(uid, 0))
        await run.quiet()
        assert run.operator is not None
        assert run.operator.world.loads.history(uid).requests(3600) >= 60 * RATE
        assert await _replicas(lab) == RATE
        assert (await lab.intent())["status"]["plan"]["load"] == load


async def _history(lab: Lab) -> Any:
    return await config_map(lab, load_history(lab.namespace))
