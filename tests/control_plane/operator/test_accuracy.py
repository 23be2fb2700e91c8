"""What precisions lose, measured beside the model and kept for plans, on a real API server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import (
    VERDICT,
    a_plan,
    an_intent,
    an_option,
    running,
)
from tests.unit.planning.builders import a_loss
from trimtab.kube.resources import CONFIG_MAP, JOB
from trimtab.planning.accuracy import dump

if TYPE_CHECKING:
    from tests.control_plane.operator.lab import Lab
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import IntentView

pytestmark = pytest.mark.control_plane
DOCUMENT = dump([a_loss("int8", percent=0.4), a_loss("int4", percent=6.0, error_percent=0.5)])


def decide(view: IntentView) -> IntentPlan:
    """Plan in int4, and ask for what is not measured, as the planner does."""
    assert view.model is not None
    known = {loss.precision for loss in view.model.losses}
    return replace(
        a_plan(view, option=an_option(view, precision="int4")),
        losses=view.model.losses,
        unmeasured=tuple(p for p in ("int4", "int8") if p not in known),
    )


async def test_losses_are_measured_kept_and_shown(lab: Lab) -> None:
    """A Job in the intent's namespace, a document per precision, the loss in the status, no Job left."""
    async with running(lab) as run:
        run.planner.decide = decide
        pins = {"precisions": ["bf16", "int8", "int4"]}
        await lab.apply(an_intent(lab.namespace, constraints=pins))
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        job = await lab.job(lab.namespace, "accuracy")

        async def told() -> bool:
            message = (await lab.condition("Planned", "Chosen"))["message"]
            return f"Job {job['metadata']['name']} measures it" in message

        await lab.wait("the measurement in the condition", told)
        await lab.end_job(lab.namespace, "accuracy", DOCUMENT)

        async def shown() -> Any:
            plan = (await lab.intent())["status"]["plan"]
            return plan if "accuracyLossPercent" in plan else None

        plan = await lab.wait("the loss in the status", shown)
        assert (plan["accuracyLossPercent"], plan["accuracyLossErrorPercent"]) == ("6", "0.5")
        selector = "app.kubernetes.io/component=accuracy"
        kept = [m["metadata"]["name"] for m in await lab.list(CONFIG_MAP, lab.system, selector)]
        assert sorted(name.rsplit("-", 1)[1] for name in kept) == ["int4", "int8"]

        async def gone() -> bool:
            return not await lab.list(JOB, lab.namespace, selector)

        await lab.wait("the Job gone", gone)
    # Another operator finds what the first one kept, and measures nothing again.
    async with running(lab) as run:
        run.planner.decide = decide

        async def known() -> bool:
            views = [view for s in run.planner.snapshots[-1:] for view in s.intents]
            return any(view.model and len(view.model.losses) == 2 for view in views)

        await lab.wait("the losses in the snapshot", known)
        assert not await lab.list(JOB, lab.namespace, "app.kubernetes.io/component=accuracy")
