from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.control_plane.operator.lab import VERDICT, an_intent, running
from trimtab.kube.resources import CONFIG_MAP, DEPLOYMENT, NETWORK_POLICY, SERVICE

if TYPE_CHECKING:
    from tests.control_plane.operator.lab import Lab

pytestmark = pytest.mark.control_plane


async def test_an_intent_becomes_a_served_model(lab: Lab) -> None:
    """From apply to Ready: inspection, plan, children, routes and status, on a real API server."""
    async with running(lab) as run:
        run.admin.models = [f"{lab.namespace}/chat"]
        await lab.apply(an_intent(lab.namespace))
        await lab.condition("Fingerprinted", "Inspecting")
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.condition("Planned", "Chosen")
        await lab.start_workers()
        await lab.condition("Ready", "Serving")
        intent = await lab.intent()
        status = intent["status"]
        assert status["model"]["name"] == f"{lab.namespace}/chat"
        assert status["plan"]["product"] == "cpu"
        assert status["plan"]["costPerHour"] == "0.04"
        assert status["observedGeneration"] == intent["metadata"]["generation"]
        deployment = (await lab.list(DEPLOYMENT, lab.namespace))[0]
        assert deployment["spec"]["replicas"] == 1
        service = (await lab.list(SERVICE, lab.namespace))[0]
        assert service["metadata"]["name"] == deployment["metadata"]["name"]
        assert await lab.list(NETWORK_POLICY, lab.namespace)

        async def routed() -> bool:
            maps = await lab.list(CONFIG_MAP, lab.system, "app.kubernetes.io/component=routes")
            models = json.loads(maps[0]["data"]["routes.json"])["models"] if maps else []
            return [m["service"] for m in models] == [service["metadata"]["name"]]

        await lab.wait("route", routed)
