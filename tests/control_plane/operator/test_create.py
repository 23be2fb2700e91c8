"""The road of one intent, step by step, on a real API server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import (
    FINGERPRINT,
    VERDICT,
    a_need,
    a_plan,
    an_intent,
    an_option,
    config_map,
    prices,
    running,
)
from trimtab.kube.names import routes
from trimtab.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    INTENT,
    JOB,
    NETWORK_POLICY,
    POD,
    SERVICE,
)

if TYPE_CHECKING:
    from tests.control_plane.operator.lab import Lab
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import IntentView

pytestmark = pytest.mark.control_plane


async def _serve(lab: Lab, run: Any) -> None:
    run.admin.models = [f"{lab.namespace}/chat"]
    await lab.apply(an_intent(lab.namespace))
    await lab.end_job(lab.namespace, "inspection", VERDICT)
    await lab.condition("Planned", "Chosen")
    await lab.start_workers()
    await lab.condition("Ready", "Serving")


async def test_an_intent_becomes_a_served_model(lab: Lab) -> None:
    """From apply to Ready: inspection, plan, children, routes and status, on a real API server."""
    async with running(lab) as run:
        await _serve(lab, run)
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
        assert len(await lab.list(NETWORK_POLICY, lab.namespace)) == 2

        async def routed() -> bool:
            found = await config_map(lab, routes(lab.namespace))
            models = json.loads(found["data"]["routes.json"])["models"] if found else []
            return [m["service"] for m in models] == [service["metadata"]["name"]]

        await lab.wait("route", routed)


async def test_a_served_intent_costs_no_writes(lab: Lab) -> None:
    """A step of an unchanged intent sends nothing, and an operator that restarts changes nothing."""
    async with running(lab) as run:
        await _serve(lab, run)
        assert run.operator is not None
        uid = (await lab.intent())["metadata"]["uid"]
        await run.quiet()
        before = len(run.writes)
        steps = run.steps(uid)
        for _ in range(3):
            run.operator.inbox.wake(uid, "test")
            await lab.wait("another step", lambda s=steps: run.stepped_past(uid, s))
            steps = run.steps(uid)
        assert run.writes[before:] == []
    versions = await lab.versions()
    async with running(lab) as again:
        again.admin.models = [f"{lab.namespace}/chat"]
        await lab.wait("a step", lambda: again.stepped_past(uid, 0))
        await again.quiet()
        assert await lab.versions() == versions
        assert not [path for _, path in again.writes if "/inferenceintents/" in path]


async def test_children_that_users_change_are_put_right(lab: Lab) -> None:
    """An owned field is reverted, a foreign one is kept, a deleted child comes back."""
    async with running(lab) as run:
        await _serve(lab, run)
        name = (await lab.list(DEPLOYMENT, lab.namespace))[0]["metadata"]["name"]
        await lab.patch(
            DEPLOYMENT,
            lab.namespace,
            name,
            {
                "metadata": {"labels": {"team": "blue"}},
                "spec": {"template": {"spec": {"enableServiceLinks": True}}},
            },
        )

        async def reverted() -> Any:
            found = await lab.client.get(DEPLOYMENT, namespace=lab.namespace, name=name) or {}
            right = found["spec"]["template"]["spec"]["enableServiceLinks"] is False
            return found if right else None

        assert (await lab.wait("revert", reverted))["metadata"]["labels"]["team"] == "blue"
        service = await lab.client.get(SERVICE, namespace=lab.namespace, name=name)
        assert service is not None
        await lab.delete(SERVICE, lab.namespace, name)

        async def back() -> bool:
            found = await lab.client.get(SERVICE, namespace=lab.namespace, name=name)
            return found is not None and found["metadata"]["uid"] != service["metadata"]["uid"]

        await lab.wait("Service again", back)


async def test_replicas_have_one_owner(lab: Lab) -> None:
    """A scaled Deployment keeps its scale until the annotation gives replicas back."""
    async with running(lab) as run:
        await _serve(lab, run)
        name = (await lab.list(DEPLOYMENT, lab.namespace))[0]["metadata"]["name"]
        await lab.client.request(
            "PATCH",
            DEPLOYMENT.path(namespace=lab.namespace, name=name, subresource="scale"),
            query={"fieldManager": "hpa"},
            body={"spec": {"replicas": 3}},
            content_type="application/merge-patch+json",
        )
        await lab.start_workers(count=3)
        await lab.condition("Placed", "ReplicasNotOurs")
        found = await lab.client.get(DEPLOYMENT, namespace=lab.namespace, name=name)
        assert found is not None
        assert found["spec"]["replicas"] == 3
        note = {"metadata": {"annotations": {"trimtab.dev/replicas": "Trimtab"}}}
        await lab.patch(INTENT, lab.namespace, "chat", note)

        async def ours() -> bool:
            found = await lab.client.get(DEPLOYMENT, namespace=lab.namespace, name=name) or {}
            return bool(found["spec"]["replicas"] == 1)

        await lab.wait("one replica again", ours)


async def test_an_edit_rolls_and_the_old_model_set_stays_until_unused(lab: Lab) -> None:
    """A new plan brings a new pod template and model set; the old set goes with its last pod."""
    async with running(lab) as run:
        await _serve(lab, run)
        old = (await lab.list(DEPLOYMENT, lab.namespace))[0]
        run.planner.decide = lambda view: a_plan(view, option=an_option(view, precision="fp32"))
        await lab.apply(an_intent(lab.namespace, objective="MinLatency"))

        async def rolled() -> Any:
            new = (await lab.list(DEPLOYMENT, lab.namespace))[0]
            return new if new["spec"]["template"] != old["spec"]["template"] else None

        await lab.wait("a new template", rolled)
        selector = "app.kubernetes.io/component=worker"
        assert len(await lab.list(CONFIG_MAP, lab.namespace, selector)) == 2
        await lab.start_workers(count=2)

        async def one_left() -> bool:
            for pod in await lab.list(POD, lab.namespace, selector):
                if pod["metadata"].get("deletionTimestamp"):
                    await lab.force_delete(pod)
            return len(await lab.list(CONFIG_MAP, lab.namespace, selector)) == 1

        await lab.wait("the old model set gone", one_left)
        assert (await lab.intent())["status"]["plan"]["precision"] == "fp32"


async def test_more_replicas_bring_a_disruption_budget_and_fewer_remove_it(lab: Lab) -> None:
    """The budget exists exactly while there is more than one replica."""

    def with_replicas(count: int) -> Any:
        return lambda view: a_plan(view, option=an_option(view, replicas=count))

    async with running(lab) as run:
        run.planner.decide = with_replicas(2)
        await lab.apply(an_intent(lab.namespace))
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.wait("a budget", lambda: lab.list(DISRUPTION_BUDGET, lab.namespace))
        run.planner.decide = with_replicas(1)
        await lab.apply(an_intent(lab.namespace, priority=1))

        async def gone() -> bool:
            return not await lab.list(DISRUPTION_BUDGET, lab.namespace)

        await lab.wait("no budget", gone)


async def test_the_first_roll_out_waits_for_a_measurement(lab: Lab) -> None:
    """A roofline plan is held for its first fingerprint, which is kept and planned with."""

    def decide(view: IntentView) -> IntentPlan:
        measured = any(s.fingerprints for s in run.planner.snapshots[-1:])
        option = an_option(view, fingerprint="feedfeedfeedfeed" if measured else "Roofline")
        return a_plan(view, option=option, needs=() if measured else (a_need(view),))

    # With the usual divisor the hold is over before a busy machine has played the kubelet.
    async with running(lab, policy_time_divisor=4) as run:
        run.planner.decide = decide
        await lab.apply(an_intent(lab.namespace))
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.condition("Placed", "Fingerprinting")
        assert await lab.list(DEPLOYMENT, lab.namespace) == []
        await lab.end_job(lab.system, "fingerprint", FINGERPRINT)
        await lab.wait("a Deployment", lambda: lab.list(DEPLOYMENT, lab.namespace))
        await lab.condition("Fingerprinted", "Measured")
        assert await lab.list(JOB, lab.system) == []


async def test_a_failed_measurement_holds_nothing_up(lab: Lab) -> None:
    """A fingerprint Job that fails is told, and the roll-out goes on with the estimate."""
    async with running(lab) as run:
        run.planner.decide = lambda view: a_plan(
            view, option=an_option(view, fingerprint="Roofline"), needs=(a_need(view),)
        )
        await lab.apply(an_intent(lab.namespace))
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.end_job(
            lab.system,
            "fingerprint",
            json.dumps({"v": 1, "ok": False, "reason": "OutOfMemory", "message": "too large"}),
        )
        await lab.wait("a Deployment", lambda: lab.list(DEPLOYMENT, lab.namespace))
        found = await lab.condition("Fingerprinted", "FingerprintFailed")
        assert "too large" in found["message"]


async def test_a_refused_model_is_read_again_after_an_edit(lab: Lab) -> None:
    """ModelNotFound stands in the status with its path, and an edit tries again at once."""
    refusal = {
        "v": 1,
        "ok": False,
        "reason": "ModelNotFound",
        "message": "/models/m0/x is missing.",
    }
    async with running(lab, policy_time_divisor=1) as run:
        await lab.apply(an_intent(lab.namespace))
        first = await lab.end_job(lab.namespace, "inspection", json.dumps(refusal))
        found = await lab.condition("Fingerprinted", "ModelNotFound")
        assert "/models/m0/x" in found["message"]
        assert (await lab.condition("Ready", "ModelNotFound"))["status"] == "False"
        await lab.apply(an_intent(lab.namespace, priority=1))
        # The refused Job may linger beside the new one, not even complete.
        await lab.end_job(lab.namespace, "inspection", VERDICT, after=first)
        await lab.condition("Planned", "Chosen")
        assert run.writes


async def test_a_source_outside_the_prefixes_creates_nothing(lab: Lab) -> None:
    """A hostPath that is not allowed is a condition with the chart value, and no Job."""
    async with running(lab):
        source = {"source": {"hostPath": {"path": "/etc"}}}
        await lab.apply(an_intent(lab.namespace, model=source))
        found = await lab.condition("Fingerprinted", "SourcePathNotAllowed")
        assert "sources.hostPath.allowedPrefixes" in found["message"]
        assert await lab.list(JOB, lab.namespace) == []


async def test_a_paused_intent_keeps_its_children(lab: Lab) -> None:
    """While paused a new plan changes no child and leaves it its room; afterwards it does."""
    async with running(lab) as run:
        await _serve(lab, run)
        before = (await lab.list(DEPLOYMENT, lab.namespace))[0]["metadata"]["generation"]
        await lab.patch(
            INTENT,
            lab.namespace,
            "chat",
            {"metadata": {"annotations": {"trimtab.dev/paused": "true"}}},
        )

        async def kept(*, fixed: bool) -> bool:
            return [a.fixed for a in run.planner.snapshots[-1].assignments] == [fixed]

        await lab.wait("the plan that leaves it its room", lambda: kept(fixed=True))
        run.planner.decide = lambda view: a_plan(view, option=an_option(view, precision="fp32"))
        await lab.patch(INTENT, lab.namespace, "chat", {"spec": {"priority": 5}})
        await lab.condition("Placed", "Paused")
        assert (await lab.list(DEPLOYMENT, lab.namespace))[0]["metadata"]["generation"] == before
        await lab.patch(
            INTENT,
            lab.namespace,
            "chat",
            {"metadata": {"annotations": {"trimtab.dev/paused": None}}},
        )

        async def rolled() -> bool:
            found = (await lab.list(DEPLOYMENT, lab.namespace))[0]
            return bool(found["metadata"]["generation"] > before)

        await lab.wait("the roll", rolled)
        await lab.wait("the plan that decides about it again", lambda: kept(fixed=False))


async def test_a_deleted_intent_leaves_nothing(lab: Lab) -> None:
    """Deletion is fast, children are collected, leftovers of the system namespace are swept."""
    async with running(lab) as run:
        await _serve(lab, run)
        await lab.delete(INTENT, lab.namespace, "chat")

        async def gone() -> bool:
            left = [
                found
                for resource in (INTENT, DEPLOYMENT, SERVICE, NETWORK_POLICY, JOB)
                for found in await lab.list(resource, lab.namespace)
            ]
            selector = "app.kubernetes.io/part-of=trimtab"
            for namespace in (lab.namespace, lab.system):
                left += await lab.list(CONFIG_MAP, namespace, selector)
            return not left

        await lab.wait("everything gone", gone, seconds=60)


async def test_an_intent_deleted_while_the_operator_is_down_goes_at_its_start(lab: Lab) -> None:
    """An object found in deletion gets no loop and loses the finalizer."""
    async with running(lab) as run:
        await _serve(lab, run)
    await lab.delete(INTENT, lab.namespace, "chat")
    assert (await lab.intent())["metadata"]["deletionTimestamp"]
    async with running(lab):

        async def gone() -> bool:
            return not await lab.list(INTENT, lab.namespace)

        await lab.wait("the intent gone", gone)


async def test_a_bad_price_book_is_told_and_the_last_good_one_holds(lab: Lab) -> None:
    """A typo in the price book is an event and a condition that name the key; plans go on."""
    await lab.apply(prices(lab, 'cpuHour: {"*": "0.04"}\nmemoryGiBHour: "0.005"\n'))
    async with running(lab) as run:
        await _serve(lab, run)
        assert run.planner.snapshots[-1].prices.cpu_hour[0].micro_usd == 40_000
        await lab.apply(prices(lab, 'cpuHuor: {"*": "0.04"}\n'))
        await run.poll("prices")
        found = await lab.condition("Planned", "PriceBookInvalid")
        assert "cpuHuor" in found["message"]
        assert found["status"] == "True"
        assert run.planner.snapshots[-1].prices.cpu_hour[0].micro_usd == 40_000
        events = await lab.events(lab.system)
        assert [e["reason"] for e in events] == ["PriceBookInvalid"]


async def test_events_tell_each_transition_once(lab: Lab) -> None:
    """The road to Ready is told by events without repetition, also across a restart."""
    async with running(lab) as run:
        await _serve(lab, run)
        await run.quiet()
        told = sorted((e["action"], e["reason"]) for e in await lab.events(lab.namespace))
        assert len(told) == len(set(told))
        assert ("Planned", "Chosen") in told
        assert ("Serving", "Serving") in told
    async with running(lab) as again:
        again.admin.models = [f"{lab.namespace}/chat"]
        uid = (await lab.intent())["metadata"]["uid"]
        await lab.wait("a step", lambda: again.stepped_past(uid, 0))
        await again.quiet()
    assert len(await lab.events(lab.namespace)) == len(told)


async def test_an_unplanned_intent_creates_nothing_and_says_why(lab: Lab) -> None:
    """Without an option nothing is created; what serves already is not removed."""

    def refuse(view: IntentView) -> IntentPlan:
        return a_plan(
            view,
            option=None,
            verdict="Unplanned",
            reason="TargetBelowFloor",
            message="p95 TPOT 1 ms; best now 30 ms.",
        )

    async with running(lab) as run:
        await _serve(lab, run)
        run.planner.decide = refuse
        await lab.apply(an_intent(lab.namespace, infeasible="Refuse"))
        await lab.apply(an_intent(lab.namespace, "other"))
        found = await lab.condition("Planned", "TargetBelowFloor")
        assert "best now 30 ms" in found["message"]
        await lab.end_job(lab.namespace, "inspection", VERDICT)
        await lab.condition("Ready", "TargetBelowFloor", name="other")
        assert len(await lab.list(DEPLOYMENT, lab.namespace)) == 1
