"""One step of an intent as a pure function: what is created, said and told."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.reconcile.builders import (
    SETTINGS,
    VERDICT,
    a_plan,
    a_record,
    an_observed,
    an_option,
)
from trimtab.api.v1alpha1.conditions import Condition, ConditionType
from trimtab.api.v1alpha1.inferenceintent import InferenceIntentStatus
from trimtab.observe.inspections import Inspection, Refusal
from trimtab.observe.intents import FingerprintProgress, ObservedIntent, Shown, Unplaced
from trimtab.observe.records import config_map, deployment, pod
from trimtab.observe.workers import ModelState, WorkerState
from trimtab.reconcile.group.rollout import GroupRollout
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.gather import unplaced
from trimtab.reconcile.inferenceintent.rollout import Rollout
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION
from trimtab.settings import Sources

if TYPE_CHECKING:
    from trimtab.reconcile.plan import Plan


def conditions(plan: Plan) -> dict[str, Condition]:
    return {str(c.type): c for c in plan.conditions}


def kinds(plan: Plan) -> list[str]:
    return [m["kind"] for m in plan.desired]


def of_kind(plan: Plan, kind: str) -> dict[str, Any]:
    return next(m for m in plan.desired if m["kind"] == kind)


def placed(observed: ObservedIntent, **status: Any) -> ObservedIntent:
    """The same intent with its Deployment as the last step applied it."""
    manifest = of_kind(decide(observed, settings=SETTINGS), "Deployment")
    counts = {"readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    body = manifest | {"status": counts | {"observedGeneration": 1} | status}
    body["metadata"] = manifest["metadata"] | {"generation": 1, "uid": "d"}
    return an_observed(
        observed.record,
        plan=observed.plan,
        deployment=deployment(body),
        pods=(a_worker(body),),
        workers={"p": WorkerState(
            pod_uid="p", revision=1, errors=(),
            models=(ModelState(name="team-a/chat", state="Resident"),),
        )},
    )  # fmt: skip


def a_worker(body: Any, **status: Any) -> Any:
    template = body["spec"]["template"]["metadata"]
    ready = [{"type": "Ready", "status": "True"}]
    running = [{"state": {"running": {}}, "restartCount": 0}]
    return pod(
        {
            "metadata": {"name": "p", "namespace": "team-a", "uid": "p", **template},
            "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "conditions": ready, "containerStatuses": running}
            | status,
        }
    )


def test_a_new_intent_is_inspected_first() -> None:
    """Nothing but the inspection Job and its policy is created before the model was read."""
    seen = an_observed(plan=None, inspection=Inspection(source_digest="s", state="Absent"))
    plan = decide(seen, settings=SETTINGS)
    assert kinds(plan) == ["NetworkPolicy", "Job"]
    assert conditions(plan)["Ready"].reason == "Inspecting"
    assert of_kind(plan, "Job")["spec"]["template"]["spec"]["volumes"][1][
        "persistentVolumeClaim"
    ] == {"claimName": "models", "readOnly": True}


def test_a_verdict_is_kept_outside_the_namespace() -> None:
    """What the Job found becomes a labelled ConfigMap of the system namespace, and the Job goes."""
    source = an_observed().inspection
    assert source is not None
    read = Inspection(
        source_digest=source.source_digest,
        state="Done",
        job_name="chat-inspect-1",
        facts=source.facts,
        message=VERDICT,
        node="node-1",
    )
    plan = decide(an_observed(plan=None, inspection=read), settings=SETTINGS)
    kept = of_kind(plan, "ConfigMap")
    assert kept["metadata"]["namespace"] == "trimtab-system"
    assert kept["metadata"]["labels"]["trimtab.dev/owner-uid"] == "uid-chat"
    assert kept["data"]["inspection.json"] == VERDICT


@pytest.mark.parametrize("reason", ["ModelNotFound", "ModelCorrupt", "UnsupportedModel"])
def test_a_refused_model_says_why_everywhere(reason: Any) -> None:
    """A model that cannot be served turns Fingerprinted, Planned and Ready False with its reason."""
    failed = Inspection(
        source_digest="s",
        state="Failed",
        job_name="j",
        refusal=Refusal(reason=reason, message="/models/m0/x: not there."),
        retry_in_seconds=30,
    )
    plan = decide(an_observed(plan=None, inspection=failed), settings=SETTINGS)
    for kind in ("Fingerprinted", "Planned", "Ready"):
        assert (conditions(plan)[kind].status, conditions(plan)[kind].reason) == ("False", reason)
    assert "InferenceIntent team-a/chat: /models/m0/x" in conditions(plan)["Ready"].message
    assert plan.desired == ()
    assert plan.requeue_after_seconds == 30


def test_a_plan_becomes_children_in_order() -> None:
    """Policy and model set exist before the pods that need them."""
    plan = decide(an_observed(), settings=SETTINGS)
    assert kinds(plan) == ["NetworkPolicy", "ConfigMap", "Service", "Deployment"]
    models = json.loads(of_kind(plan, "ConfigMap")["data"]["models.json"])
    assert models["models"][0]["name"] == "team-a/chat"
    assert models["models"][0]["path"] == "m0/smollm2"
    mounted = of_kind(plan, "Deployment")["spec"]["template"]["spec"]["volumes"][1]
    assert mounted["configMap"]["name"] == of_kind(plan, "ConfigMap")["metadata"]["name"]


def test_ranks_share_the_threads_and_the_arena() -> None:
    """A worker reads sizes of one rank; a set without ranks keeps the form that older workers read."""
    observed = an_observed()
    sets = []
    for ranks, threads in ((1, 2), (2, 4)):
        option = an_option()
        config = dataclasses.replace(option.config, threads=threads, tensor_parallel_size=ranks)
        option = dataclasses.replace(option, config=config)
        seen = an_observed(observed.record, plan=a_plan(observed.record, option=option))
        document = of_kind(decide(seen, settings=SETTINGS), "ConfigMap")["data"]["models.json"]
        sets.append(json.loads(document))
    alone, split = sets
    assert "tensor_parallel_size" not in alone
    assert (split["tensor_parallel_size"], split["threads"]) == (2, 2)
    # Norms lie on both, so each has a little more than half.
    assert 1.0 < 2 * split["memory_bytes"] / alone["memory_bytes"] < 1.03


def test_an_unchanged_intent_keeps_its_pod_template() -> None:
    """Observing one's own Deployment leads to the same template, byte for byte."""
    first = an_observed()
    before = of_kind(decide(first, settings=SETTINGS), "Deployment")
    after = of_kind(decide(placed(first), settings=SETTINGS), "Deployment")
    assert after == before


def test_a_little_more_load_rolls_nothing() -> None:
    """Within a generation the running sizes stay while they suffice."""
    first = an_observed()
    seen = placed(first)
    option = an_option(arena_bytes=400 * 2**20, memory_bytes=920 * 2**20)
    moved = an_observed(
        first.record, deployment=seen.deployment, plan=a_plan(first.record, option=option)
    )
    template = of_kind(decide(moved, settings=SETTINGS), "Deployment")["spec"]["template"]
    assert template == of_kind(decide(first, settings=SETTINGS), "Deployment")["spec"]["template"]


def test_more_memory_than_estimated_rolls() -> None:
    """A measurement that finds 5 % more beside the arena raises the limit before the pod dies of it."""
    first = an_observed()
    arena, beside = 384 * 2**20, 516 * 2**20
    for growth, limit in ((104, "900Mi"), (106, "931Mi")):
        option = an_option(arena_bytes=arena, memory_bytes=arena + beside * growth // 100)
        measured = an_observed(
            first.record,
            deployment=placed(first).deployment,
            plan=a_plan(first.record, option=option),
        )
        template = of_kind(decide(measured, settings=SETTINGS), "Deployment")["spec"]["template"]
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        assert limits["memory"] == limit


def test_an_estimate_rolls_nothing_that_serves() -> None:
    """Where a measurement was lost, what runs was sized by a better one than what replaces it."""
    first = an_observed()
    arena, beside = 384 * 2**20, 516 * 2**20
    option = an_option(arena_bytes=arena, memory_bytes=arena + 2 * beside, fingerprint="Roofline")
    plan = a_plan(first.record, option=option)
    seen = an_observed(first.record, deployment=placed(first).deployment, plan=plan)
    before, after = (of_kind(decide(o, settings=SETTINGS), "Deployment") for o in (first, seen))
    assert after["spec"]["template"] == before["spec"]["template"]


def test_another_precision_rolls() -> None:
    """A changed configuration is a changed template and a model set of its own."""
    first = an_observed()
    seen = placed(first)
    moved = an_observed(
        first.record,
        deployment=seen.deployment,
        plan=a_plan(first.record, option=an_option(precision="fp32")),
    )
    before, after = decide(first, settings=SETTINGS), decide(moved, settings=SETTINGS)
    names = [of_kind(p, "ConfigMap")["metadata"]["name"] for p in (before, after)]
    assert names[0] != names[1]
    assert conditions(after)["Placed"].reason == "Rolling"


def test_an_edit_that_decides_alike_rolls_nothing() -> None:
    """A new generation with the same sizes keeps the template."""
    first = an_observed()
    seen = placed(first)
    edited = a_record(generation=2, priority=3)
    again = an_observed(edited, deployment=seen.deployment)
    template = of_kind(decide(again, settings=SETTINGS), "Deployment")["spec"]["template"]
    assert template == of_kind(decide(first, settings=SETTINGS), "Deployment")["spec"]["template"]


def test_the_first_roll_out_is_held_for_a_measurement() -> None:
    """While held nothing is created and Placed says what is waited for, and until when."""
    hold = FingerprintProgress(wanted=1, running=("fp-1",), hold=True, hold_ends_in_seconds=42)
    plan = decide(an_observed(fingerprints=hold), settings=SETTINGS)
    assert plan.desired == ()
    assert conditions(plan)["Placed"].reason == "Fingerprinting"
    assert plan.requeue_after_seconds == 42


def test_a_running_deployment_is_never_held() -> None:
    """Holding is for first roll-outs: what serves is rolled to the new plan at once."""
    seen = placed(an_observed())
    hold = FingerprintProgress(wanted=1, hold=True)
    plan = decide(
        an_observed(seen.record, deployment=seen.deployment, fingerprints=hold), settings=SETTINGS
    )
    assert "Deployment" in kinds(plan)


def test_no_option_removes_nothing() -> None:
    """A plan that found nothing leaves the serving Deployment alone and says so."""
    seen = placed(an_observed())
    refused = a_plan(
        seen.record, option=None, verdict="Unplanned", reason="NoCapacity", message="Held by 3."
    )
    plan = decide(
        an_observed(seen.record, deployment=seen.deployment, plan=refused), settings=SETTINGS
    )
    assert plan.desired == ()
    assert plan.deletions == ()
    assert conditions(plan)["Ready"].reason == "NoCapacity"


def test_ready_when_everything_holds() -> None:
    """Planned, Placed and Serving make Ready."""
    plan = decide(placed(an_observed()), settings=SETTINGS)
    assert conditions(plan)["Ready"].status == "True"
    assert conditions(plan)["Ready"].reason == "Serving"


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 3, "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "Boom"}}}]}, "WorkerCrashing", "exit code 3"),
        ({"containerStatuses": [{"state": {"running": {}}, "restartCount": 1, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}, "OutOfMemory", "memory"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image x"}}}]}, "ImagePullFailed", "no such image x"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CreateContainerConfigError", "message": "container has runAsNonRoot and image will run as root"}}}]}, "RunsAsRoot", "numeric USER"),
        ({"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 2, "lastState": {"terminated": {"exitCode": 1, "message": '{"v":1,"ok":false,"reason":"PickleRefused","message":"pickles"}'}}}]}, "PickleRefused", "pickles"),
    ],
)  # fmt: skip
def test_a_worker_in_trouble_is_explained(status: Any, reason: str, words: str) -> None:
    """The pod's own trouble is the reason of Serving, with its exit or its message."""
    seen = placed(an_observed())
    manifest = of_kind(decide(an_observed(), settings=SETTINGS), "Deployment")
    sick = a_worker(
        manifest, phase="Pending", conditions=[], **({"containerStatuses": []} | status)
    )
    plan = decide(
        an_observed(seen.record, deployment=seen.deployment, pods=(sick,)), settings=SETTINGS
    )
    assert conditions(plan)["Serving"].reason == reason
    assert words in conditions(plan)["Serving"].message


def test_an_engine_that_refuses_a_model_is_quoted() -> None:
    """A model that the worker lists as Failed gives its reason and sentence."""
    seen = placed(an_observed())
    failed = ModelState(
        name="team-a/chat", state="Failed", error=("ModelCorrupt", "Layer 3 is cut.")
    )
    state = WorkerState(pod_uid="p", revision=1, models=(failed,), errors=())
    plan = decide(
        an_observed(seen.record, deployment=seen.deployment, pods=seen.pods, workers={"p": state}),
        settings=SETTINGS,
    )
    assert conditions(plan)["Serving"].reason == "ModelCorrupt"
    assert "Layer 3 is cut." in conditions(plan)["Serving"].message


def test_replicas_of_another_manager_are_left_out() -> None:
    """A Deployment that somebody scales is applied without replicas, until the annotation."""
    seen = placed(an_observed())
    assert seen.deployment is not None
    body_fields = {
        name: getattr(seen.deployment, name) for name in seen.deployment.__dataclass_fields__
    }
    scaled = type(seen.deployment)(**(body_fields | {"foreign_replicas_manager": "hpa"}))
    plan = decide(an_observed(seen.record, deployment=scaled), settings=SETTINGS)
    assert "replicas" not in of_kind(plan, "Deployment")["spec"]
    many = type(seen.deployment)(
        **(body_fields | {"foreign_replicas_manager": "hpa", "replicas": 5})
    )
    assert "PodDisruptionBudget" in kinds(
        decide(an_observed(seen.record, deployment=many), settings=SETTINGS)
    )
    back = a_record(annotations={"trimtab.dev/replicas": "Trimtab"})
    plan = decide(an_observed(back, deployment=scaled), settings=SETTINGS)
    assert of_kind(plan, "Deployment")["spec"]["replicas"] == 1


def test_paused_freezes_children_and_says_so() -> None:
    """A paused intent writes no child; what it would change shows in Placed."""
    record = a_record(annotations={"trimtab.dev/paused": "true"})
    plan = decide(an_observed(record), settings=SETTINGS)
    assert plan.desired == ()
    assert conditions(plan)["Placed"].reason == "Paused"


def test_an_old_model_set_stays_while_a_pod_uses_it() -> None:
    """Model sets go with their last pod, not before."""
    seen = placed(an_observed())
    used = seen.deployment.plan_digest if seen.deployment else ""
    own = of_kind(decide(an_observed(), settings=SETTINGS), "ConfigMap")["metadata"]["name"]

    def a_set(name: str) -> Any:
        return config_map({"metadata": {"name": name, "namespace": "team-a", "uid": name}})

    plan = decide(
        an_observed(
            seen.record,
            plan=a_plan(seen.record, option=an_option(precision="fp32")),
            deployment=seen.deployment,
            pods=seen.pods,
            model_sets=(a_set(own), a_set("chat-x-00000000")),
        ),
        settings=SETTINGS,
    )
    assert used
    assert [d.name for d in plan.deletions] == ["chat-x-00000000"]


def test_a_roll_without_room_is_told_while_old_replicas_serve() -> None:
    """After a minute Placed is False with the scheduler's words and the remedy; Serving stays True."""
    rolling = placed(an_observed(), updatedReplicas=0)
    template = of_kind(decide(an_observed(), settings=SETTINGS), "Deployment")["spec"]["template"]
    said = "0/1 nodes are available: 1 Insufficient memory."
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": said,
        "lastTransitionTime": "2026-11-23T00:00:00Z",
    }
    new = pod(
        {
            "metadata": {"name": "new", "namespace": "team-a", "uid": "new"} | template["metadata"],
            "status": {"phase": "Pending", "conditions": [unscheduled]},
        }
    )
    pods = (*rolling.pods, new)

    def judged(second: int, pods: Any = pods) -> Plan:
        now = datetime(2026, 11, 23, 0, second // 60, second % 60, tzinfo=UTC)
        seen = dataclasses.replace(
            rolling, pods=pods, unplaced=unplaced(pods, now=now, seconds=lambda s: s)
        )
        return decide(seen, settings=SETTINGS)

    early, late = judged(10), judged(61)
    assert conditions(early)["Placed"].status == "True"
    assert early.requeue_after_seconds == pytest.approx(50.5)
    for kind in ("Placed", "Ready"):
        found = conditions(late)[kind]
        assert (found.status, found.reason) == ("False", "PendingReplicas")
        assert said in found.message
        assert "900Mi of free memory" in found.message
        assert "Old replicas serve" in found.message
    assert conditions(late)["Serving"].status == "True"
    assert late.deletions == ()
    # An old pod that drains gives its memory back: that is no stuck roll.
    draining = dataclasses.replace(rolling.pods[0], name="old", deleting=True)
    assert conditions(judged(61, (*pods, draining)))["Placed"].status == "True"


def test_a_groups_roll_without_room_names_the_memory_that_the_group_needs() -> None:
    """The group's roll-out has other fields than an intent's own; the remedy is the same."""
    rollout = GroupRollout(
        product="cpu",
        cpu_model="Test CPU",
        threads=1,
        memory_bytes=1234 * 2**20,
        arena_bytes=2**20,
        max_model_len=2048,
        max_seqs=8,
        max_batch_tokens=512,
        drain_seconds=45,
        host_bytes=567 * 2**20,
    )
    own = placed(an_observed()).deployment
    assert own is not None
    group = dataclasses.replace(own, annotations={ROLLOUT_ANNOTATION: rollout.to_json()})
    template = {"annotations": {"trimtab.dev/plan-digest": own.plan_digest}}
    new = dataclasses.replace(
        pod({"metadata": {"name": "new", "namespace": "team-a", "uid": "new"} | template}),
        unschedulable="0/1 nodes are available: 1 Insufficient memory.",
    )
    seen = an_observed(deployment=group, pods=(new,), unplaced=Unplaced(long=frozenset({"new"})))
    message = conditions(decide(seen, settings=SETTINGS))["Placed"].message
    assert "one more with 1234Mi of free memory and 567Mi of free disk." in message


def test_model_sets_stay_while_the_deployment_rolls() -> None:
    """An old pod that is evicted meanwhile is started again, and reads its own set."""
    seen = placed(an_observed(), updatedReplicas=0)
    old = config_map({"metadata": {"name": "chat-x-0", "namespace": "team-a", "uid": "x"}})
    sets = {"deployment": seen.deployment, "model_sets": (old,)}
    assert decide(an_observed(seen.record, **sets), settings=SETTINGS).deletions == ()
    sets["deployment"] = placed(an_observed()).deployment
    assert decide(an_observed(seen.record, **sets), settings=SETTINGS).deletions


def test_a_second_intent_of_one_name_waits() -> None:
    """The younger of two namesakes creates nothing and names the older one."""
    plan = decide(an_observed(plan=None, name_taken_by="team-a/older"), settings=SETTINGS)
    assert plan.desired == ()
    assert conditions(plan)["Ready"].reason == "ModelNameTaken"
    assert "team-a/older" in conditions(plan)["Ready"].message


def test_what_is_no_longer_allowed_rolls_nothing() -> None:
    """A model that was read stays unserved, or as it serves, once its source is switched off."""
    record = a_record(model={"source": {"hostPath": {"path": "/srv/models/chat"}}})
    assert "Deployment" in kinds(decide(an_observed(record), settings=SETTINGS))
    closed = SETTINGS.model_copy(update={"sources": Sources()})
    plan = decide(an_observed(record), settings=closed)
    assert plan.desired == ()
    assert plan.deletions == ()
    assert conditions(plan)["Ready"].reason == "SourceDisabled"


@pytest.mark.parametrize(
    "garbled",
    [
        {"threads": 0},
        {"threads": "1"},
        {"threads": 10**400},
        {"precision": "int3"},
        {"precision": None},
    ],
)
def test_a_garbled_roll_out_is_not_planned_with(garbled: dict[str, Any]) -> None:
    """Anybody who may edit a Deployment may edit its annotation; plans are made for everybody."""
    built = of_kind(decide(an_observed(), settings=SETTINGS), "Deployment")
    annotations = built["metadata"]["annotations"]
    rollout = json.loads(annotations[ROLLOUT_ANNOTATION])
    del rollout["seal"]
    assert Rollout.from_json(json.dumps(rollout)) is not None
    rollout["config"] |= garbled
    assert Rollout.from_json(json.dumps(rollout)) is None


TARGETS = {"timeToFirstTokenMilliseconds": 500, "timePerOutputTokenMilliseconds": 50}


@pytest.mark.parametrize(
    ("shown", "answers", "status", "reason"),
    [
        (Shown(), False, "Unknown", "GatewayUnreachable"),
        (Shown(figures={"timeToFirstTokenMilliseconds": "900"}), True, "Unknown", "TooFewRequests"),
        (Shown(figures={"timeToFirstTokenMilliseconds": "900"}, enough=True), True, "False", "OutsideTarget"),
        (Shown(figures={"timeToFirstTokenMilliseconds": "400", "timePerOutputTokenMilliseconds": "50"}, enough=True), True, "True", "WithinTarget"),
    ],
)  # fmt: skip
def test_targets_are_judged_at_the_gateway(
    *, shown: Shown, answers: bool, status: str, reason: str
) -> None:
    """WithinTarget follows the figures that the status shows, and is Unknown below 50 requests."""
    record = a_record(objective="TargetLatency", targets=TARGETS)
    plan = decide(an_observed(record, shown=shown, gateway_answers=answers), settings=SETTINGS)
    found = conditions(plan)["WithinTarget"]
    assert (found.status, found.reason) == (status, reason)


def test_status_fits_the_schema_and_shows_the_plan() -> None:
    """The status is what the API describes: decimal strings, margins in percent, alternatives."""
    plan = decide(an_observed(a_record(targets=None)), settings=SETTINGS)
    status = InferenceIntentStatus.model_validate(plan.status, extra="forbid")
    assert status.plan is not None
    assert status.plan.cost_per_hour == "0.045"
    assert status.plan.predicted is not None
    assert status.plan.predicted.time_to_first_token_milliseconds == "123"
    assert status.plan.predicted.percentile is None
    assert status.plan.margin is not None
    assert status.plan.margin.time_per_output_token_percent == 15
    assert status.alternatives[0].reason == "Costlier"
    assert status.endpoint == "http://trimtab-gateway.trimtab-system.svc:8080/v1"


def test_status_names_what_decided() -> None:
    """What bound the choice is part of the plan that a user sees."""
    record = a_record()
    plan = decide(an_observed(record, plan=a_plan(record, binding="Memory")), settings=SETTINGS)
    assert plan.status["plan"]["binding"] == "Memory"


def test_an_intent_with_targets_shows_its_percentile() -> None:
    """Predictions stand at the percentile that the targets are judged at."""
    record = a_record(objective="TargetLatency", targets=TARGETS)
    status = decide(an_observed(record), settings=SETTINGS).status
    assert status["plan"]["predicted"]["percentile"] == 95
    assert status["plan"]["predicted"]["timePerOutputTokenMilliseconds"] == "30"


def test_while_planning_the_last_plan_stays_shown() -> None:
    """An edit does not empty the status of what still serves."""
    record = a_record(generation=2, status={"plan": {"product": "cpu"}, "alternatives": []})
    plan = decide(an_observed(record, plan=None), settings=SETTINGS)
    assert plan.status["plan"] == {"product": "cpu"}
    assert conditions(plan)["Planned"].reason == "Planning"


def test_an_unreadable_object_is_said_to_be_so() -> None:
    """An object of a newer schema ends in a condition, not in a crash."""
    seen = ObservedIntent(record=a_record(), intent=None, parse_error="spec.objective: wrong")
    plan = decide(seen, settings=SETTINGS)
    assert conditions(plan)["Ready"].reason == "InvalidObject"
    assert "spec.objective: wrong" in conditions(plan)["Ready"].message


def test_events_tell_transitions_only() -> None:
    """A condition whose status and reason stay is no event; a new one is, Ready never."""
    first = decide(an_observed(), settings=SETTINGS)
    actions = {e.action for e in first.events}
    assert {"Planned", "Placed", "Fingerprinted"} <= actions
    assert "Ready" not in actions
    stored = [
        {"type": str(c.type), "status": c.status, "reason": str(c.reason)} for c in first.conditions
    ]
    again = an_observed(a_record(status={"conditions": stored}))
    assert decide(again, settings=SETTINGS).events == ()


def test_a_refused_child_is_blamed_on_the_right_step() -> None:
    """A refused Job blames Planned, a refused Deployment Placed."""
    reading = an_observed(plan=None, inspection=Inspection(source_digest="s", state="Absent"))
    assert decide(reading, settings=SETTINGS).blames is ConditionType.PLANNED
    assert decide(an_observed(), settings=SETTINGS).blames is ConditionType.PLACED
