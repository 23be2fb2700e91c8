"""One step of a sharing group as a pure function: joins, leaves, rolls, and who is never lost."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.reconcile.builders import SETTINGS, a_plan, a_record, an_option
from tests.unit.reconcile.test_execute import Bench
from trimtab.observe.groups import ObservedGroup, ObservedMember
from trimtab.observe.records import config_map, deployment, generic, pod
from trimtab.observe.workers import ModelState, WorkerState
from trimtab.planning.plan import GroupPlan
from trimtab.planning.remap import RemapAdvice
from trimtab.planning.snapshot import Config
from trimtab.reconcile.group.decide import GroupStep, decide_group
from trimtab.reconcile.group.rollout import GroupRollout
from trimtab.reconcile.inferenceintent.policies import Admission, path_below_its_volume
from trimtab.reconcile.plan import Plan
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION
from trimtab.reconcile.snapshot import parse_intent
from trimtab.settings import Sources

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 2**20
GROUP = "team-a-12345678"
ADVICE = RemapAdvice(
    verdict="IdleOnly",
    lend_units={},
    alpha=0,
    slots=0,
    hidden_m=0.0,
    kv_tokens_before=0,
    kv_tokens_after=0,
    switch_s=0.1,
    ratio_if_forced=1.0,
    reasons=(),
)


def a_group_plan(*names: str, **changes: Any) -> GroupPlan:
    fields: dict[str, Any] = {
        "id": GROUP,
        "members": tuple(f"uid-{name}" for name in names),
        "config": Config(product="cpu", cpu_model="Test CPU", precision="bf16", threads=1),
        "memory_bytes": 2000 * MIB,
        "arena_bytes": 1000 * MIB,
        "least_memory_bytes": 1200 * MIB,
        "least_arena_bytes": 500 * MIB,
        "max_model_len": 2048,
        "max_seqs": 8,
        "max_batch_tokens": 512,
        "slowest_tpot_us": 20_000,
        "advice": ADVICE,
        "host_bytes": 600 * MIB,
        "least_host_bytes": 300 * MIB,
    }
    return GroupPlan(**(fields | changes))


def a_source(claim: str = "models", path: str = "smollm2") -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": claim, "path": path}}


def a_member(
    name: str,
    plan: GroupPlan | None,
    *,
    source: Mapping[str, Any] | None = None,
    precision: str = "bf16",
    **changes: Any,
) -> ObservedMember:
    record = a_record(name, model={"source": source or a_source(path=name)}, sharing="Shared")
    decided = a_plan(record, option=an_option(precision=precision), group=plan)
    fields: dict[str, Any] = {
        "uid": record.uid,
        "namespace": record.namespace,
        "name": name,
        "intent": parse_intent(record),
        "plan": decided if plan else None,
        "joins": plan is not None,
        "moved": False,
    }
    return ObservedMember(**(fields | changes))


def a_group(plan: GroupPlan | None, *members: ObservedMember, **changes: Any) -> ObservedGroup:
    return ObservedGroup(id=GROUP, namespace="team-a", plan=plan, members=members, **changes)


def step(group: ObservedGroup) -> GroupStep:
    return decide_group(group, settings=SETTINGS)


def of_kind(found: GroupStep, kind: str) -> dict[str, Any]:
    return next(m for m in found.desired if m["kind"] == kind)


def the_set(found: GroupStep) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(of_kind(found, "ConfigMap")["data"]["models.json"])
    return document


def names(found: GroupStep) -> list[str]:
    return [model["name"] for model in the_set(found)["models"]]


def rolled(found: GroupStep) -> str:
    template = of_kind(found, "Deployment")["spec"]["template"]
    return str(template["metadata"]["annotations"]["trimtab.dev/plan-digest"])


def placed(found: GroupStep) -> dict[str, Any]:
    """Return the fields of a group whose last step was carried out: Deployment, pod, model set."""
    body = of_kind(found, "Deployment")
    counts = {"readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    meta = body["metadata"] | {"generation": 1, "uid": "d"}
    template = body["spec"]["template"]["metadata"]
    return {
        "deployment": deployment(
            body | {"metadata": meta, "status": counts | {"observedGeneration": 1}}
        ),
        "pods": (pod({"metadata": {"name": "p", "namespace": "team-a", "uid": "p", **template}}),),
        "model_sets": (config_map(of_kind(found, "ConfigMap")),),
    }


def one_running() -> tuple[GroupStep, dict[str, Any]]:
    plan = a_group_plan("a")
    first = step(a_group(plan, a_member("a", plan)))
    return first, placed(first)


def test_a_group_is_everybodys_and_nobodys() -> None:
    """Objects carry the group's label, are owned by all members and controlled by none."""
    plan = a_group_plan("a", "b")
    found = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    assert [m["kind"] for m in found.desired] == [
        "NetworkPolicy",
        "ConfigMap",
        "Service",
        "Deployment",
    ]
    for manifest in found.desired:
        meta = manifest["metadata"]
        assert [owner["name"] for owner in meta["ownerReferences"]] == ["a", "b"]
        assert not any(owner.get("controller") for owner in meta["ownerReferences"])
        assert meta["labels"]["trimtab.dev/group"] == GROUP
        assert "trimtab.dev/owner-uid" not in meta["labels"]
    spec = of_kind(found, "Deployment")["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert of_kind(found, "Service")["spec"]["selector"] == spec["selector"]["matchLabels"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("../../models/m0/x", False), ("../v1/x", False), ("a/../../b", False), ("a/../b", True)],
)
def test_a_path_never_leaves_its_volume(path: str, allowed: bool) -> None:  # noqa: FBT001 - a parameter
    """A path that climbs would name another member's volume, or make the whole set unreadable."""
    for source in (a_source(path=path), {"image": {"reference": "r", "path": path}}):
        intent = parse_intent(a_record("a", model={"source": source}, sharing="Shared"))
        found = path_below_its_volume(Admission(intent=intent, settings=SETTINGS))
        assert (found is None) is allowed


def test_one_claim_is_mounted_once_and_whole() -> None:
    """Two models of a claim need one volume, and each path names its own folder below it."""
    plan = a_group_plan("a", "b")
    found = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    volumes = of_kind(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert sum("persistentVolumeClaim" in volume for volume in volumes) == 1
    paths = [model["path"] for model in the_set(found)["models"]]
    folder = paths[0].partition("/")[0]
    assert paths == [f"{folder}/a", f"{folder}/b"]


def test_an_intent_joins_without_a_roll() -> None:
    """A model of a mounted claim, within the ceiling, comes into the set: same pods, next revision."""
    first, running = one_running()
    plan = a_group_plan("a", "b")
    found = step(a_group(plan, a_member("a", plan), a_member("b", plan), **running))
    assert rolled(found) == rolled(first)
    assert names(found) == ["team-a/a", "team-a/b"]
    assert the_set(found)["revision"] == the_set(first)["revision"] + 1


def test_a_joiner_owns_everything_before_it_is_in_the_set() -> None:
    """The set is written last, so a worker never serves a model whose intent could not keep it."""
    _, running = one_running()
    plan = a_group_plan("a", "b")
    found = step(a_group(plan, a_member("a", plan), a_member("b", plan), **running))
    assert [m["kind"] for m in found.desired][-2:] == ["Deployment", "ConfigMap"]


@pytest.mark.parametrize(
    ("plan", "member"),
    [
        ({}, {"source": a_source(claim="others")}),
        ({"least_arena_bytes": 1001 * MIB}, {}),
        ({"least_memory_bytes": 2001 * MIB}, {}),
        ({"least_host_bytes": 601 * MIB}, {}),
        ({"max_model_len": 4096}, {}),
    ],
)
def test_what_the_worker_cannot_take_in_rolls_it(plan: Any, member: Any) -> None:
    """Another volume, or more memory or context than the ceiling, makes a new worker before the old one goes."""
    first, running = one_running()
    wanted = a_group_plan("a", "b", **plan)
    found = step(a_group(wanted, a_member("a", wanted), a_member("b", wanted, **member), **running))
    assert rolled(found) != rolled(first)
    old = of_kind(first, "ConfigMap")["metadata"]["name"]
    assert of_kind(found, "ConfigMap")["metadata"]["name"] != old
    assert not found.deletions, "old pods read their set until they are gone"


def disk(found: GroupStep) -> str | None:
    (worker,) = of_kind(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "ephemeral-storage" not in worker["resources"]["limits"]
    asked: str | None = worker["resources"]["requests"].get("ephemeral-storage")
    return asked


def test_a_group_asks_for_the_disk_of_its_host_copies() -> None:
    """Files that nobody asked room for make a pod the first to go where a node's disk fills up."""
    first, running = one_running()
    assert disk(first) == "664Mi"
    plan = a_group_plan("a", "b", host_bytes=900 * MIB, least_host_bytes=600 * MIB)
    joined = step(a_group(plan, a_member("a", plan), a_member("b", plan), **running))
    assert (rolled(joined), disk(joined)) == (rolled(first), "664Mi")


def test_a_group_of_an_older_release_goes_on_without_that_request() -> None:
    """A roll-out that was kept before says nothing of disk, and that alone is no reason to roll."""
    plan = a_group_plan("a", host_bytes=0)
    first = step(a_group(plan, a_member("a", plan)))
    assert disk(first) is None
    text = json.loads(of_kind(first, "Deployment")["metadata"]["annotations"][ROLLOUT_ANNOTATION])
    del text["host_bytes"], text["seal"]
    running = placed(first)
    running["deployment"] = dataclasses.replace(
        running["deployment"], annotations={ROLLOUT_ANNOTATION: json.dumps(text)}
    )
    wanted = a_group_plan("a")
    found = step(a_group(wanted, a_member("a", wanted), **running))
    assert (rolled(found), disk(found)) == (rolled(first), None)


def test_a_model_that_changes_in_place_rolls_the_group() -> None:
    """Another precision or path of a served model is a new worker, not a gap in the old one."""
    first, running = one_running()
    plan = a_group_plan("a")
    found = step(a_group(plan, a_member("a", plan, precision="fp32"), **running))
    assert rolled(found) != rolled(first)


@pytest.mark.parametrize("reason", ["SlabMismatch", "OutOfMemory"])
def test_a_model_that_the_arena_refuses_rolls_the_group_once(reason: str) -> None:
    """A worker made without the model is replaced by one made with it; that one's refusal is final."""
    _, running = one_running()
    plan = a_group_plan("a", "b")
    members = (a_member("a", plan), a_member("b", plan))
    joined = step(a_group(plan, *members, **running))
    running = placed(joined)
    refused = WorkerState(
        pod_uid="p",
        revision=2,
        errors=(),
        models=(
            ModelState(name="team-a/a", state="Resident"),
            ModelState(name="team-a/b", state="Failed", error=(reason, "it does not fit")),
        ),
    )
    new = step(a_group(plan, *members, **running, workers={"p": refused}))
    assert rolled(new) != rolled(joined)
    again = step(a_group(plan, *members, **placed(new), workers={"p": refused}))
    assert rolled(again) == rolled(new)


def test_an_intent_that_leaves_is_taken_out_of_the_set() -> None:
    """The others' pods and memory stay as they are, and the leaver owns nothing any more."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    left = a_group_plan("b")
    found = step(
        a_group(left, a_member("a", None, moved=True), a_member("b", left), **placed(both))
    )
    assert rolled(found) == rolled(both)
    assert names(found) == ["team-a/b"]
    owners = of_kind(found, "Deployment")["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["b"]


def test_a_leaver_stays_until_it_is_served_elsewhere() -> None:
    """As long as gateways send its requests here, its model is kept, whatever is planned."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    left = a_group_plan("b")
    found = step(a_group(left, a_member("a", None), a_member("b", left), **placed(both)))
    assert names(found) == ["team-a/a", "team-a/b"]
    assert rolled(found) == rolled(both)


def test_a_roll_takes_a_stayers_volume_along() -> None:
    """Whoever has no plan of its own at the moment keeps its files when the group rolls."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan, source=a_source("others"))))
    larger = a_group_plan("a", max_model_len=4096)
    stays = a_member("b", None, source=a_source("others"))
    found = step(a_group(larger, a_member("a", larger), stays, **placed(both)))
    assert rolled(found) != rolled(both)
    volumes = of_kind(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
    ]
    assert sorted(claims) == ["models", "others"]


@pytest.mark.parametrize(
    ("unschedulable", "sheds"), [("volume node affinity conflict", True), ("", False)]
)
def test_a_roll_that_finds_no_node_sheds_what_nobody_uses(unschedulable: str, sheds: bool) -> None:  # noqa: FBT001 - a parameter
    """A volume of another node keeps the pod from all; without its intent it goes, else it may stay."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan, source=a_source("others"))))
    running = placed(both)
    running["pods"] = (dataclasses.replace(running["pods"][0], unschedulable=unschedulable),)
    left = a_group_plan("a")
    gone = a_member("b", None, source=a_source("others"), moved=True)
    found = step(a_group(left, a_member("a", left), gone, **running))
    assert (rolled(found) != rolled(both)) is sheds
    volumes = of_kind(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert sum("persistentVolumeClaim" in volume for volume in volumes) == (1 if sheds else 2)


def test_a_deleted_founder_is_forgotten() -> None:
    """Without the founder the set shrinks and the group keeps its name and its pods."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    left = a_group_plan("b")
    found = step(a_group(left, a_member("b", left), **placed(both)))
    assert rolled(found) == rolled(both)
    assert names(found) == ["team-a/b"]
    assert of_kind(found, "Deployment")["metadata"]["name"] == f"{GROUP}-group"


def test_a_group_without_plans_keeps_serving() -> None:
    """While plans are made anew nothing is removed, rolled or added."""
    plan = a_group_plan("a", "b")
    both = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    found = step(a_group(None, a_member("a", None), a_member("b", None), **placed(both)))
    assert found.deletions == ()
    assert [m["kind"] for m in found.desired] == ["ConfigMap"]
    assert the_set(found) == the_set(both)


def test_the_last_one_that_moves_takes_the_group_down() -> None:
    """When every owner is served elsewhere the worker and all its objects go."""
    _, running = one_running()
    service = generic({"metadata": {"name": "s", "namespace": "team-a", "uid": "s"}})
    gone = a_member("a", None, moved=True)
    found = step(a_group(None, gone, **running, others={"Service": service}))
    assert {deletion.resource.kind for deletion in found.deletions} == {
        "Deployment",
        "ConfigMap",
        "Service",
    }
    assert found.desired == ()


def test_a_group_is_taken_down_only_as_it_was_seen() -> None:
    """Each deletion names the version it was decided from: whoever joins meanwhile changes that, and stays."""
    _, running = one_running()
    seen = {
        "deployment": dataclasses.replace(running["deployment"], resource_version=7),
        "model_sets": (dataclasses.replace(running["model_sets"][0], resource_version=8),),
    }
    gone = a_member("a", None, moved=True)
    found = step(a_group(None, gone, **(running | seen)))
    assert [d.resource_version for d in found.deletions] == ["7", "8"]


async def test_who_joins_a_group_that_is_being_taken_down_keeps_it() -> None:
    """The server refuses the deletion of what changed; the step fails, and the rest is not touched."""
    bench = Bench()
    bench.writer.versions = {"Deployment": "8"}
    _, running = one_running()
    seen = dataclasses.replace(running["deployment"], resource_version=7)
    found = step(a_group(None, a_member("a", None, moved=True), **(running | {"deployment": seen})))
    outcome = await bench.run(Plan(deletions=found.deletions))
    assert outcome.failed
    assert [w for w in bench.writer.writes if w[0] == "delete"] == []
    assert bench.writer.status == {}


def test_a_member_that_is_held_back_waits_outside() -> None:
    """Before its model is measured a newcomer is in nobody's set, and holds nobody up."""
    plan = a_group_plan("a", "b")
    found = step(a_group(plan, a_member("a", plan), a_member("b", plan, joins=False)))
    assert names(found) == ["team-a/a"]
    assert step(a_group(plan, a_member("a", plan, joins=False))).desired == ()


def test_a_paused_member_freezes_the_pods_and_not_the_others() -> None:
    """Nobody rolls a worker with a paused model in it, yet another one may still join."""
    first, running = one_running()
    plan = a_group_plan("a", "b", max_model_len=4096)
    paused = a_member("a", plan, paused=True)
    found = step(a_group(plan, paused, a_member("b", plan), **running))
    assert rolled(found) == rolled(first)
    assert names(found) == ["team-a/a", "team-a/b"]


def test_a_new_release_of_the_worker_waits_for_a_paused_member() -> None:
    """Nothing rolls the pods of a paused member, and nobody joins pods that are to be replaced."""
    first, running = one_running()
    plan = a_group_plan("a", "b")
    both = (a_member("a", plan, paused=True), a_member("b", plan))
    newer = SETTINGS.model_copy(update={"worker_image": "worker:2"})
    found = decide_group(a_group(plan, *both, **running), settings=newer)
    assert [m["kind"] for m in found.desired] == ["ConfigMap"]
    assert the_set(found) == the_set(first)


def test_who_changes_beside_a_paused_member_is_served_as_before() -> None:
    """A worker that stays is told of no other precision and of no model that it cannot read."""
    plan = a_group_plan("a", "b")
    first = step(a_group(plan, a_member("a", plan), a_member("b", plan)))
    after = a_group_plan("a", "b", "c", "d")
    found = step(
        a_group(
            after,
            a_member("a", after, paused=True),
            a_member("b", after, precision="int8"),
            a_member("c", after, source=a_source(claim="other")),
            a_member("d", after),
            **placed(first),
        )
    )
    assert rolled(found) == rolled(first)
    assert names(found) == ["team-a/a", "team-a/b", "team-a/d"]
    assert the_set(found)["models"][:2] == the_set(first)["models"]


def a_host_path(path: str) -> dict[str, Any]:
    return {"hostPath": {"path": path}}


def host_paths(found: GroupStep) -> list[str]:
    volumes = of_kind(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    return [volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume]


@pytest.mark.parametrize("path", ["/etc", "/srv/models/../../etc", "/srv/models-of-others"])
def test_an_edited_annotation_mounts_nothing_that_is_not_allowed(path: str) -> None:
    """What a running group says of its volumes is held to the same prefixes as what an intent says."""
    first, running = one_running()
    annotations = running["deployment"].annotations
    said = json.loads(annotations[ROLLOUT_ANNOTATION])
    # As an older release wrote it, so that it is believed.
    del said["seal"]
    said["volumes"].append(json.dumps(a_host_path(path)))
    running["deployment"] = dataclasses.replace(
        running["deployment"], annotations={ROLLOUT_ANNOTATION: json.dumps(said)}
    )
    plan = a_group_plan("a", "b")
    for second in (a_member("b", plan), a_member("b", None)):
        found = step(a_group(plan, a_member("a", plan), second, **running))
        assert host_paths(found) == []
        assert rolled(found) == rolled(first)


@pytest.mark.parametrize("edit", [{"threads": 2}, {"arena_bytes": 1}, None])
def test_an_edited_roll_out_is_read_from_the_model_set(edit: dict[str, Any] | None) -> None:
    """Whatever somebody writes on the Deployment, the worker that serves is left as it is."""
    first, running = one_running()
    said = json.loads(running["deployment"].annotations[ROLLOUT_ANNOTATION])
    text = "nonsense" if edit is None else json.dumps(said | edit)
    running["deployment"] = dataclasses.replace(
        running["deployment"], annotations={ROLLOUT_ANNOTATION: text}
    )
    # What is planned now is twice as large: without knowing what runs it would be rolled out.
    plan = dataclasses.replace(a_group_plan("a"), max_seqs=9, memory_bytes=4096 * MIB)
    found = step(a_group(plan, a_member("a", plan), **running))
    assert rolled(found) == rolled(first)
    alone = step(a_group(plan, a_member("a", plan), **running | {"model_sets": ()}))
    assert rolled(alone) != rolled(first)


def test_a_prefix_that_is_taken_back_rolls_nobody_and_is_mounted_by_nothing_new() -> None:
    """Who lies below it is served as before until it moves, and then the volume goes."""
    plan = a_group_plan("a", "b")
    below = a_host_path("/srv/models/b")
    first = step(a_group(plan, a_member("a", plan), a_member("b", plan, source=below)))
    assert host_paths(first) == ["/srv/models"]
    running, left = placed(first), a_group_plan("a", "c")
    narrowed = SETTINGS.model_copy(update={"sources": Sources()})
    refused = a_member("b", plan, source=below, joins=False)
    both = (a_member("a", left), a_member("c", left))
    stays = decide_group(a_group(left, refused, *both, **running), settings=narrowed)
    assert rolled(stays) == rolled(first)
    assert names(stays) == ["team-a/b", "team-a/a", "team-a/c"]
    newer = narrowed.model_copy(update={"worker_image": "worker:2"})
    waits = decide_group(a_group(left, refused, *both, **running), settings=newer)
    assert [m["kind"] for m in waits.desired] == ["ConfigMap"]
    gone = dataclasses.replace(refused, moved=True)
    after = decide_group(a_group(left, gone, *both, **running), settings=narrowed)
    assert host_paths(after) == []
    assert rolled(after) != rolled(first)


def test_a_rollout_that_somebody_spoilt_takes_nobody_away() -> None:
    """Without a readable roll-out who only stays is left as it is until everybody has a plan."""
    plan = a_group_plan("a", "b")
    running = placed(step(a_group(plan, a_member("a", plan), a_member("b", plan))))
    running["deployment"] = dataclasses.replace(running["deployment"], annotations={})
    sets = running["model_sets"]
    running["model_sets"] = tuple(dataclasses.replace(one, annotations={}) for one in sets)
    waits = a_group(a_group_plan("a"), a_member("a", plan), a_member("b", None), **running)
    assert step(waits) == GroupStep()
    again = step(a_group(plan, a_member("a", plan), a_member("b", plan), **running))
    assert names(again) == ["team-a/a", "team-a/b"]


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_member_of_any_precision_stays_while_its_plan_is_made_anew(precision: str) -> None:
    """Who runs is known by the roll-out that is kept, whatever its weights' precision."""
    plan = a_group_plan("a", "b")
    both = [a_member(name, plan, precision=precision) for name in "ab"]
    running = placed(step(a_group(plan, *both)))
    waits = a_member("b", None, precision=precision)
    found = step(a_group(a_group_plan("a"), both[0], waits, **running))
    assert names(found) == ["team-a/a", "team-a/b"]
    assert rolled(found) == running["deployment"].plan_digest


def test_a_set_that_was_deleted_comes_back_newer_than_what_workers_have() -> None:
    """A worker takes over newer revisions only, so counting does not begin again beside it."""
    _, running = one_running()
    running["model_sets"] = ()
    state = WorkerState(pod_uid="p", revision=7, models=(), errors=())
    plan = a_group_plan("a", "b")
    members = (a_member("a", plan), a_member("b", plan))
    found = step(a_group(plan, *members, **running, workers={"p": state}))
    assert the_set(found)["revision"] == 8


def test_a_little_more_load_rolls_nothing() -> None:
    """A new figure for those who run is noise up to a point."""
    first, running = one_running()
    plan = a_group_plan("a", least_arena_bytes=1100 * MIB, least_memory_bytes=2050 * MIB)
    assert rolled(step(a_group(plan, a_member("a", plan), **running))) == rolled(first)


def test_equal_observations_write_nothing_new() -> None:
    """A second step wants exactly what the first one did, its revision included."""
    first, running = one_running()
    plan = a_group_plan("a")
    again = step(a_group(plan, a_member("a", plan), **running))
    key = {m["kind"]: m for m in again.desired}
    assert key == {m["kind"]: m for m in first.desired}


def test_sets_of_former_templates_go_once_nobody_reads_them() -> None:
    """A set that no pod and no template names is deleted, and others are kept."""
    first, running = one_running()
    body = of_kind(first, "ConfigMap")
    old = body | {"metadata": body["metadata"] | {"name": f"{GROUP}-group-00000000"}}
    sets = (*running.pop("model_sets"), config_map(old))
    plan = a_group_plan("a")
    found = step(a_group(plan, a_member("a", plan), **running, model_sets=sets))
    assert [d.name for d in found.deletions] == [f"{GROUP}-group-00000000"]


def test_replicas_that_somebody_else_set_are_left_alone() -> None:
    """A foreign manager keeps the field until a member's annotation takes it back."""
    _, running = one_running()
    plan = a_group_plan("a")
    running["deployment"] = dataclasses.replace(
        running["deployment"], foreign_replicas_manager="hpa", replicas=2
    )
    spec = of_kind(step(a_group(plan, a_member("a", plan), **running)), "Deployment")["spec"]
    assert "replicas" not in spec
    back = a_member("a", plan, takes_replicas=True)
    assert of_kind(step(a_group(plan, back, **running)), "Deployment")["spec"]["replicas"] == 1


def test_a_rollout_is_read_back_as_written() -> None:
    """What a Deployment carries is understood by the operator that restarts, and nonsense is not."""
    first, _ = one_running()
    text = of_kind(first, "Deployment")["metadata"]["annotations"][ROLLOUT_ANNOTATION]
    read = GroupRollout.from_json(text)
    assert read is not None
    assert read.to_json() == text
    config = read.config("uid-a")
    assert config is not None
    assert config.precision == "bf16"
    assert read.config("uid-nobody") is None
    changed = json.loads(text)
    del changed["seal"]
    assert GroupRollout.from_json(json.dumps(changed)) == read
    spoilt = [
        json.dumps(changed | {"volumes": [volume]})
        for volume in ("", "nonsense", "{}", '{"hostPath":{}}', '{"image":null}', 7)
    ]
    # Plans are made for everybody, with floats: what one of them cannot hold is no size.
    spoilt += [
        json.dumps(changed | {field: 10**400})
        for field in ("threads", "memory_bytes", "arena_bytes", "host_bytes")
    ]
    member = changed["members"]["uid-a"]
    spoilt += [json.dumps(changed | {"members": {"uid-a": member | {"generation": -1}}})]
    for garbage in ("", "[]", "{}", text.replace('"threads":1', '"threads":0'), *spoilt):
        assert GroupRollout.from_json(garbage) is None
