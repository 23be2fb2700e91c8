"""Scenarios 8, 11 and 12: users delete, edit and change their minds; and nothing happens at all."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.faults import Delay, Drop, Match, Status
from e2e.faults.endstate import difference, normal

if TYPE_CHECKING:
    from e2e.faults.bench import Bench

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(600)]

WATCHES = Match(verbs=frozenset({"watch"}))


def _deployment(bench: Bench) -> dict[str, Any]:
    return bench.list("deployments")[0]


def _workers_objects(bench: Bench) -> dict[tuple[str, str], str]:
    """Return the uids of what serves the model, by kind and name."""
    return {
        (o["kind"], o["metadata"]["name"]): o["metadata"]["uid"]
        for kind in ("services", "networkpolicies", "deployments")
        for o in bench.list(kind)
        if o["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
    }


def _patch(bench: Bench, kind: str, name: str, patch: dict[str, Any]) -> None:
    text = json.dumps(patch)
    bench.cluster.kubectl("patch", kind, name, "-n", bench.namespace, "--type=merge", "-p", text)


def test_children_deleted_by_a_user_come_back(bench: Bench, undisturbed: dict[str, Any]) -> None:
    """Scenario 8: deleted children are made again, though the answer to the first write is lost."""
    bench.apply(bench.intent())
    bench.wait_settled()
    before = _workers_objects(bench)
    again = Match(verbs=frozenset({"patch", "create"}), namespace=bench.namespace, mutating=True)
    fault = bench.proxy.add(Drop(match=again, times=1, after_server=True))
    for kind, name in before:
        bench.cluster.kubectl("delete", kind, name, "-n", bench.namespace, "--wait=true")

    def back() -> bool:
        after = _workers_objects(bench)
        return after.keys() == before.keys() and not set(after.values()) & set(before.values())

    bench.wait("new children of the old names", back)
    bench.wait_settled()
    assert difference(undisturbed, bench.end_state()) == ""
    assert fault.injected == 1


def test_edits_of_owned_fields_are_reverted_and_foreign_fields_kept(bench: Bench) -> None:
    """Scenario 8: what the operator owns is put back, what it does not own stays the user's."""
    bench.apply(bench.intent())
    bench.wait_settled()
    found = _deployment(bench)
    name, container = found["metadata"]["name"], found["spec"]["template"]["spec"]["containers"][0]
    fault = bench.proxy.add(
        Status(match=Match(resource="deployments", mutating=True), times=1, code=500)
    )
    wrong = [{**container, "image": "trimtab-worker:edited"}]
    patch = {
        "metadata": {"annotations": {"team-a/contact": "kim"}},
        "spec": {"template": {"spec": {"containers": wrong}}},
    }
    _patch(bench, "deployment", name, patch)

    def reverted() -> bool:
        now = _deployment(bench)["spec"]["template"]["spec"]["containers"][0]["image"]
        return bool(now == container["image"])

    bench.wait("the image to be put back", reverted)
    assert _deployment(bench)["metadata"]["annotations"]["team-a/contact"] == "kim"
    assert _deployment(bench)["metadata"]["uid"] == found["metadata"]["uid"]
    assert fault.injected == 1


def test_change_of_mind_within_a_second_leaves_no_trace(
    bench: Bench, undisturbed: dict[str, Any]
) -> None:
    """Scenario 11: A to B to A, seen late, ends as A with the same Deployment and the same pods."""
    bench.apply(bench.intent())
    bench.wait_settled()
    before = _deployment(bench)
    pods = bench.worker_pods()
    fault = bench.proxy.add(Delay(match=WATCHES, seconds=1.0))
    bench.proxy.cut_all()
    bench.wait("a late watch", lambda: fault.injected >= 1)
    other = bench.intent(constraints={"precisions": ["fp32"]})
    bench.apply(other, bench.intent(constraints=None))
    bench.wait_settled()
    time.sleep(3)  # what B set off would come late
    bench.proxy.clear()
    bench.proxy.cut_all()
    bench.wait_settled()
    after = _deployment(bench)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["template"] == before["spec"]["template"]
    assert bench.worker_pods() == pods
    assert difference(undisturbed, bench.end_state()) == ""


def test_change_of_mind_while_down_is_no_change(bench: Bench, undisturbed: dict[str, Any]) -> None:
    """Scenario 11: A to B to A while the operator is down ends as A, and nothing is deleted."""
    bench.apply(bench.intent())
    bench.wait_settled()
    before = _deployment(bench)
    bench.operator.hold()
    bench.apply(bench.intent(constraints={"precisions": ["fp32"]}), bench.intent(constraints=None))
    since = bench.proxy.now()
    bench.operator.release()
    bench.wait("the operator to lead", bench.operator.ready)
    bench.wait_settled()
    deletes = [s for s in bench.proxy.log() if s.at > since and s.verb == "delete" and not s.lease]
    assert not deletes
    after = _deployment(bench)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert difference(normal(before), normal(after)) == ""
    assert difference(undisturbed, bench.end_state()) == ""
    assert [end.code for end in bench.operator.ends] == [-9]


def test_infeasible_intent_is_told_why_and_harms_nobody(
    bench: Bench, undisturbed: dict[str, Any]
) -> None:
    """Scenario 12: a condition with the remedy, no hot retries, others unaffected, and a way back."""
    bench.apply(bench.intent())
    bench.wait_settled()
    healthy = _deployment(bench)["metadata"]["uid"]
    impossible = {
        "objective": "TargetLatency",
        "targets": {"timePerOutputTokenMilliseconds": 1, "percentile": 95},
        "infeasible": "Refuse",
    }
    bench.apply(bench.intent("greedy", **impossible))

    def refused() -> dict[str, Any] | None:
        planned = st.condition(bench.get("greedy") or {}, "Planned")
        told = "timePerOutputTokenMilliseconds" in planned.get("message", "")
        return planned if planned.get("status") == "False" and told else None

    planned = bench.wait("greedy to be refused", refused, seconds=90)
    assert planned["reason"] == "TargetBelowFloor", planned
    mine = Match(namespace=bench.namespace, mutating=True)
    fault = bench.proxy.add(Status(match=mine, code=500, times=3))
    bench.apply(bench.intent("greedy", **impossible, priority=1))
    bench.wait("injected errors", lambda: fault.injected >= 1)
    bench.wait(
        "greedy's newest generation",
        lambda: (refused() or {}).get("observedGeneration") == 2,
    )
    since = bench.proxy.now()
    time.sleep(15)
    found = bench.proxy.writes(since=since)
    assert found.writes <= 2, f"hotter than the back-off: {found}"
    assert bench.settled() is not None
    assert _deployment(bench)["metadata"]["uid"] == healthy
    bench.apply(
        bench.intent("greedy", objective="MinCost", targets=None, infeasible=None, priority=None)
    )
    bench.wait_settled("greedy", seconds=120)
    assert difference(undisturbed, bench.end_state()) == ""


def test_corrupt_model_is_a_condition_and_recovers(bench: Bench) -> None:
    """Scenario 12: a model that cannot be read ends in a condition; a better path recovers."""
    corrupt = bench.intent("broken")
    sentence = "/models/broken/model.gguf: cut in half. Copy the file again."
    (bench.models / "broken" / "refusal").write_text(sentence)
    jobs = Match(resource="jobs", mutating=True)
    fault = bench.proxy.add(Status(match=jobs, code=500, times=1))
    bench.apply(corrupt)

    def told() -> bool:
        found = st.condition(bench.get("broken") or {}, "Fingerprinted")
        return bool(found.get("reason") == "ModelCorrupt" and sentence in found["message"])

    bench.wait("ModelCorrupt", told, seconds=90)
    assert fault.injected == 1
    good = bench.models / "good"
    good.mkdir()
    bench.apply(bench.intent("broken", model={"source": {"hostPath": {"path": str(good)}}}))
    bench.wait_settled("broken", seconds=90)


def test_quiet_cluster_sees_no_writes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Without events the operator writes nothing in a minute, its Lease aside, and still ticks."""
    bench.apply(bench.intent(), bench.intent("second"))
    bench.wait_settled()
    bench.wait_settled("second")
    time.sleep(20)  # the roll-out's last echoes
    since = bench.proxy.now()
    time.sleep(60)
    found = bench.proxy.writes(since=since)
    with capsys.disabled():
        print(f"\nquiet cluster: {found}")
    assert found.per_minute == 0, found
    assert found.leases > 0
    assert found.reads > 0
    jobs = (bench.operator.get("/debug/loops") or {})["jobs"]
    assert min(job["secondsAgo"] for job in jobs.values()) < 60
