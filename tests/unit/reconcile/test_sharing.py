"""What sharing changes around a group: whose step writes, where requests go, what is reloaded and shown."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.reconcile.builders import (
    SETTINGS,
    VERDICT,
    a_plan,
    a_record,
    an_observed,
    an_option,
)
from tests.unit.reconcile.test_groups import GROUP, a_group_plan, a_member, one_running
from trimtab.kube import names
from trimtab.kube.resources import DEPLOYMENT
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.groups import ObservedGroup
from trimtab.observe.intents import AccuracyProgress, FingerprintProgress
from trimtab.observe.loads import LoadBook
from trimtab.observe.records import generic, pod
from trimtab.observe.workers import EngineView, ModelState, WorkerState, parse_engine
from trimtab.reconcile.group.gather import charges, mates
from trimtab.reconcile.group.reload import ReloadKeeper, lagging
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.pollers import WorkerPoller
from trimtab.reconcile.routes import RoutesKeeper, serves
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot
from trimtab.reconcile.sweep import Sweeper
from trimtab.reconcile.world import World

WORKER = f"{GROUP}-group"


class Town:
    """Caches and plans of one namespace, filled by hand."""

    def __init__(self) -> None:
        self.caches = Caches()
        self.plans: dict[str, Any] = {}
        self.now = 0.0
        self.version = 10
        self.world = World(
            settings=SETTINGS,
            caches=self.caches,
            clock=lambda: self.now,
            utcnow=lambda: None,  # type: ignore[arg-type,return-value] - nothing here has a time
            capabilities=ASSUMED,
        )
        self.world.fleet = SimpleNamespace(  # type: ignore[assignment] - what gathering reads of it
            current=SimpleNamespace(by_uid=self.plans, revision=1, problem=""),
            of=lambda uid, *, generation: self._plan(uid, generation),
        )
        self.world.fingerprints = SimpleNamespace(  # type: ignore[assignment] - as above
            progress=lambda *_, **__: FingerprintProgress()
        )
        self.world.accuracy = SimpleNamespace(  # type: ignore[assignment] - as above
            progress=lambda *_: AccuracyProgress()
        )

    def _plan(self, uid: str, generation: int) -> Any:
        plan = self.plans.get(uid)
        return plan if plan is not None and plan.generation == generation else None

    def put(self, plural: str, body: dict[str, Any]) -> None:
        self.version += 1
        meta = {"uid": f"{plural}-{body['metadata']['name']}", **body["metadata"]}
        self.caches.by_plural()[plural].put(
            body | {"metadata": meta | {"resourceVersion": str(self.version)}}
        )

    def intent(self, name: str, group: Any = None, **meta: Any) -> str:
        body = {
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": "2026-11-23T00:00:00Z",
            }
            | meta,
            "spec": {
                "model": {
                    "source": {"persistentVolumeClaim": {"claimName": "models", "path": name}}
                },
                "objective": "MinCost",
                "sharing": "Shared",
            },
        }
        self.put("inferenceintents", body)
        self.plans[f"uid-{name}"] = dataclasses.replace(
            a_plan(a_record(name)), option=an_option(), group=group
        )
        return f"uid-{name}"

    def worker(self, home: str, *models: str, uid: str = "", ready: bool = True) -> None:
        """A Service and a pod of a group's worker, or of an intent's own."""
        owner, group = uid or "uid-a", home == "group"
        labels = {
            "app.kubernetes.io/component": "worker",
            "app.kubernetes.io/managed-by": "trimtab-operator",
        }
        labels |= {"trimtab.dev/group": GROUP} if group else {"trimtab.dev/owner-uid": owner}
        name = WORKER if group else names.deployment("a", owner)
        owners = [{"uid": u} for u in (self.plans if group else [owner])]
        meta = {"namespace": "team-a", "labels": labels, "ownerReferences": owners}
        self.put("services", {"metadata": meta | {"name": name}})
        status = {
            "podIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"state": {"running": {}}}],
        }
        self.put("pods", {"metadata": meta | {"name": name, "uid": name}, "status": status})
        self.world.worker_states[name] = WorkerState(
            pod_uid=name,
            revision=1,
            errors=(),
            models=tuple(ModelState(name=f"team-a/{m}", state="Lent") for m in models),
        )

    def route(self, name: str, service: str) -> None:
        models = [{"name": name, "intent": name, "service": service}]
        self.put(
            "configmaps",
            {
                "metadata": {"name": names.routes("team-a"), "namespace": "trimtab-system"},
                "data": {"routes.json": json.dumps({"models": models})},
            },
        )

    def apply(self, *manifests: dict[str, Any]) -> None:
        plurals = {
            "Deployment": "deployments",
            "Service": "services",
            "ConfigMap": "configmaps",
            "NetworkPolicy": "networkpolicies",
        }
        for manifest in manifests:
            self.put(plurals[manifest["kind"]], manifest)

    def record(self, name: str) -> Any:
        return self.caches.inferenceintents.get("team-a", name)


def founded() -> Town:
    """A town whose group of `a` runs, and in which `b` is planned too."""
    town = Town()
    first, _ = one_running()
    town.apply(*first.desired)
    plan = a_group_plan("a", "b")
    town.intent("a", plan)
    town.intent("b", plan)
    return town


def test_one_member_writes_for_all() -> None:
    """The planned member with the smallest uid has charge of the group, the others have none."""
    town = founded()
    (group,) = charges(town.world, town.record("a"))
    assert (group.id, [m.name for m in group.members]) == (GROUP, ["a", "b"])
    assert all(m.joins for m in group.members)
    assert charges(town.world, town.record("b")) == ()


def test_the_next_one_writes_when_the_first_is_deleted() -> None:
    """A founder in deletion writes nothing; the next member takes the group over without it."""
    town = founded()
    town.intent("a", a_group_plan("a", "b"), deletionTimestamp="2026-11-23T00:00:00Z")
    (group,) = charges(town.world, town.record("b"))
    assert [m.name for m in group.members] == ["b"]
    assert group.deployment is not None


def test_an_owner_that_nobody_plans_takes_the_rest_down() -> None:
    """A group without planned members is its owners' to end, and of other namespaces nobody's."""
    town = founded()
    town.intent("a", None)
    town.intent("b", None)
    (group,) = charges(town.world, town.record("a"))
    assert group.plan is None
    assert charges(town.world, town.record("b")) == ()


def test_an_intent_that_is_routed_elsewhere_has_moved() -> None:
    """Whoever gateways send to another Service does not need the group's worker any more."""
    town = founded()
    town.route("a", "elsewhere")
    (group,) = charges(town.world, town.record("a"))
    assert [m.moved for m in group.members] == [True, False]
    town.route("a", WORKER)
    assert not charges(town.world, town.record("a"))[0].members[0].moved


def test_what_wakes_one_wakes_all_who_share() -> None:
    """A member, a planned joiner and the group's own id stand for the whole group."""
    town = founded()
    for key in ("uid-a", GROUP):
        assert {"uid-a", "uid-b"} <= mates(town.world, key)
    assert mates(town.world, "uid-x") == {"uid-x"}


def keeper(town: Town, told: list[str]) -> RoutesKeeper:
    return RoutesKeeper(
        world=town.world,
        executor=SimpleNamespace(),  # type: ignore[arg-type] - nothing is written
        wake=lambda uid, _: told.append(uid),
    )


def test_requests_move_only_to_a_worker_that_has_the_model() -> None:
    """An intent that joins a group is sent there once the group's worker lists it, not before."""
    town = Town()
    town.intent("a", a_group_plan("a"))
    town.worker("own", "a")
    town.worker("group")
    own = names.deployment("a", "uid-a")
    services = town.caches.services.owned_by("uid-a")
    choose = keeper(town, [])._service
    town.route("a", own)
    assert choose(town.record("a"), services) == own
    town.worker("group", "a", ready=False)
    assert choose(town.record("a"), services) == own
    town.worker("group", "a")
    assert choose(town.record("a"), services) == WORKER


def test_a_group_without_the_model_is_no_place_to_send_requests() -> None:
    """A joiner has no route until it is loaded, while an intent's own worker holds requests up."""
    town = Town()
    town.intent("a", a_group_plan("a"))
    town.worker("group")
    choose = keeper(town, [])._service
    assert choose(town.record("a"), town.caches.services.owned_by("uid-a")) == ""
    town.worker("own")
    assert choose(town.record("a"), town.caches.services.owned_by("uid-a")) == names.deployment(
        "a", "uid-a"
    )


def test_requests_stay_where_they_are_while_nothing_is_known() -> None:
    """After a restart, before workers were asked, no route changes."""
    town = Town()
    town.intent("a", a_group_plan("a"))
    town.worker("own")
    town.worker("group")
    town.world.worker_states.clear()
    town.route("a", WORKER)
    assert keeper(town, [])._service(town.record("a"), town.caches.services.owned_by("uid-a")) == (
        WORKER
    )


def test_a_pod_of_another_namespace_serves_nobody() -> None:
    """By label anybody can claim a group; only pods of the intent's own namespace count."""
    town = Town()
    town.intent("a", a_group_plan("a"))
    town.worker("group", "a")
    service = town.caches.services.owned_by("uid-a")[0]
    assert serves(town.world, town.record("a"), service)
    mine = town.caches.pods.get("team-a", WORKER)
    assert mine is not None
    town.caches.pods.forget(mine.uid)
    stranger = {
        "metadata": {
            "name": WORKER,
            "namespace": "team-b",
            "uid": "stranger",
            "labels": dict(mine.labels),
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    town.put("pods", stranger)
    town.world.worker_states["stranger"] = town.world.worker_states[WORKER]
    assert town.caches.pods.owned_by(GROUP)
    assert not serves(town.world, town.record("a"), service)


def moving(routed: str) -> Any:
    own = tuple(
        (plural, generic({"metadata": {"name": "old", "namespace": "team-a", "uid": plural}}))
        for plural in ("deployments", "services", "networkpolicies", "configmaps")
    )
    record = a_record("a", sharing="Shared")
    plan = a_plan(record, group=a_group_plan("a"))
    ready = [{"type": "Ready", "status": "True"}]
    old = pod({"metadata": {"name": "p", "uid": "p"}, "status": {"conditions": ready}})
    return an_observed(record, plan=plan, own=own, routed=routed, former_pods=(old,))


def test_its_own_worker_stays_until_requests_go_to_the_group() -> None:
    """Make before break: only the routing table decides that a worker is not needed any more."""
    before = decide(moving("old"), settings=SETTINGS)
    assert before.deletions == ()
    placed = next(c for c in before.conditions if c.type == "Placed")
    assert (placed.status, placed.reason) == ("True", "Rolling")
    after = decide(moving(WORKER), settings=SETTINGS)
    assert {d.resource.kind for d in after.deletions} == {
        "Deployment",
        "Service",
        "NetworkPolicy",
        "ConfigMap",
    }


def test_an_intent_in_a_group_builds_no_worker_of_its_own() -> None:
    """A member that has charge writes the group's objects, and others write nothing but status."""
    record = a_record("a", sharing="Shared")
    plan = a_group_plan("a")
    seen = an_observed(record, plan=a_plan(record, group=plan))
    assert not [m for m in decide(seen, settings=SETTINGS).desired if m["kind"] == "Deployment"]
    group = ObservedGroup(id=GROUP, namespace="team-a", plan=plan, members=(a_member("a", plan),))
    charged = decide(dataclasses.replace(seen, charges=(group,)), settings=SETTINGS)
    (deployment,) = [m for m in charged.desired if m["kind"] == "Deployment"]
    assert deployment["metadata"]["name"] == WORKER
    assert charged.status["plan"]["group"] == GROUP


ADVICE = {
    "verdict": "IdleOnly",
    "reasons": ["LinkTooSlow: no."],
    "lend_units": {"team-a/b": 28, "team-a/a": 0},
    "switch_s": 0.0495,
    "kv_tokens_before": 4096,
    "kv_tokens_after": 12_288,
    "source": "live",
    "ratio_if_forced": float("inf"),
}


def a_state(*models: tuple[str, str], advice: Any = None) -> dict[str, Any]:
    entries = [{"name": f"team-a/{n}", "state": s, "error": None} for n, s in models]
    return {"revision": 1, "models": entries, "errors": [], "advice": advice}


def test_the_engines_word_is_shown_where_it_gave_one() -> None:
    """Advice and members come from the worker; without advice the planner's verdict stays."""
    record = a_record("a", sharing="Shared")
    plan = a_plan(record, group=a_group_plan("a", "b"), remap_verdict="IdleOnly")
    view = parse_engine(a_state(("a", "Resident"), ("b", "Lent"), advice=ADVICE))
    shown = decide(an_observed(record, plan=plan, engine=view), settings=SETTINGS).status["plan"]
    assert shown["remap"] == {
        "verdict": "IdleOnly",
        "reasons": ["LinkTooSlow: no."],
        "lendUnits": [{"model": "team-a/b", "units": 28}],
        "switchMilliseconds": "49.5",
        "kvTokensBefore": 4096,
        "kvTokensAfter": 12_288,
        "source": "Engine",
    }
    assert shown["members"] == [
        {"model": "team-a/a", "state": "Resident"},
        {"model": "team-a/b", "state": "Lent"},
    ]
    silent = decide(an_observed(record, plan=plan), settings=SETTINGS).status["plan"]
    assert silent["remap"] == {"verdict": "IdleOnly", "reasons": []}


def test_who_left_a_group_is_told_why_beside_the_engines_word() -> None:
    """A group of one has its engine's advice and the planner's reason; the planner's advice gives way."""
    record = a_record("a", sharing="Shared")
    planned = dataclasses.replace(a_group_plan("a").advice, reasons=("SingleModel: planned.",))
    plan = a_plan(
        record,
        group=a_group_plan("a", advice=planned),
        remap_verdict="DoNotRemap",
        remap_reasons=("TooBusy: 97 %.", *planned.reasons),
    )
    view = parse_engine(a_state(("a", "Resident"), advice=ADVICE))
    shown = decide(an_observed(record, plan=plan, engine=view), settings=SETTINGS).status["plan"]
    assert shown["remap"]["reasons"] == ["TooBusy: 97 %.", "LinkTooSlow: no."]


@pytest.mark.parametrize(
    "advice",
    [
        None,
        {},
        {"verdict": "Maybe", "source": "live"},
        "x",
        {"lend_units": 3, "source": "live"},
        {"verdict": "IdleOnly"},
        {"verdict": "IdleOnly", "source": "plan"},
    ],
)
def test_advice_that_cannot_be_read_is_none(advice: Any) -> None:
    """A worker of another release is heard as far as it is understood, one that repeats the plan not at all."""
    view = parse_engine(a_state(("a", "Resident"), advice=advice))
    assert view == EngineView(models=(("team-a/a", "Resident", ""),))


@pytest.mark.parametrize(
    ("before", "after"), [(None, 8), (8, None), (True, 8), (-1, 8), (16, 8), ("8", 16), (8.0, 16)]
)
def test_a_kv_budget_that_cannot_be_read_is_none(before: Any, after: Any) -> None:
    """A worker whose figures are no counts, or shrink by lending, is heard in the rest of its advice."""
    advice = ADVICE | {"kv_tokens_before": before, "kv_tokens_after": after}
    view = parse_engine(a_state(("a", "Resident"), advice=advice))
    assert (view.verdict, view.kv_tokens) == ("IdleOnly", None)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("out_of_memory", "OutOfMemory"),
        ("SlabMismatch", "SlabMismatch"),
        ("a-b c", "ABC"),
        (None, ""),
    ],
)
def test_a_workers_words_are_written_as_statuses_write_them(said: Any, shown: str) -> None:
    """A code of the engine becomes a reason that the API server takes."""
    entry = {"name": "team-a/a", "state": "Failed", "error": {"reason": said, "message": "m"}}
    view = parse_engine({"revision": 1, "models": [entry]})
    assert view.models == (("team-a/a", "Failed", shown),)


async def test_states_that_come_and_go_are_shown_once_a_minute() -> None:
    """Lent and Resident alternate without writes; a model that fails is shown at once."""
    town = Town()
    town.intent("a", a_group_plan("a"))
    town.worker("group", "a")
    record = town.caches.pods.get("team-a", WORKER)
    assert record is not None
    poller = WorkerPoller(
        town.world,
        SimpleNamespace(),  # type: ignore[arg-type] - nobody is asked
        wake=lambda *_: None,
        replan=lambda: None,
        moved=lambda: None,
        anchors=SimpleNamespace(),  # type: ignore[arg-type] - nobody is asked
    )
    assert poller._show(record, a_state(("a", "Resident")))
    town.now = 30.0
    assert not poller._show(record, a_state(("a", "Lent")))
    assert poller._show(record, a_state(("a", "Failed")))
    town.now = 95.0
    assert poller._show(record, a_state(("a", "Failed"), advice=ADVICE))


class Workers:
    def __init__(self, *, answers: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers = answers

    async def post(self, address: str, path: str) -> bool:
        self.asked.append((address, path))
        return self.answers


def behind() -> tuple[Town, list[tuple[str, str]]]:
    """A running group whose set is a revision ahead of its worker."""
    town = Town()
    first, _ = one_running()
    town.intent("a", a_group_plan("a"))
    town.worker("group", "a")
    set_ = next(m for m in first.desired if m["kind"] == "ConfigMap")
    document = json.loads(set_["data"]["models.json"]) | {"revision": 2}
    town.apply(set_ | {"data": {"models.json": json.dumps(document)}})
    template = next(m for m in first.desired if m["kind"] == "Deployment")["spec"]["template"]
    body = {
        "metadata": {
            "name": WORKER,
            "namespace": "team-a",
            "uid": WORKER,
            **template["metadata"],
        },
        "status": {"podIP": "192.0.2.1", "containerStatuses": [{"state": {"running": {}}}]},
    }
    town.put("pods", body)
    return town, []


async def test_a_worker_that_lags_is_annotated_and_asked_once() -> None:
    """The pod's annotation names the revision, the worker is asked to reload, and no more than that."""
    town, written = behind()
    workers = Workers()

    async def annotate(record: Any, key: str, value: str) -> None:
        written.append((key, value))
        town.caches.pods._index(
            dataclasses.replace(record, annotations={**record.annotations, key: value})
        )

    polls: list[int] = []
    keeper = ReloadKeeper(
        town.world,
        workers,  # type: ignore[arg-type] - all that it uses
        annotate=annotate,
        poll=lambda: polls.append(1),
    )
    for _ in range(3):
        assert await keeper.step() == 1.0
    assert written == [("trimtab.dev/model-set-revision", "2")]
    assert workers.asked == [("192.0.2.1", "/-/reload?revision=2")]
    assert polls, "its state is read soon"
    state = town.world.worker_states[WORKER]
    town.world.worker_states[WORKER] = dataclasses.replace(state, revision=2)
    assert await keeper.step() is None


async def test_a_worker_that_does_not_answer_is_asked_again() -> None:
    """A refused or lost question is repeated at the next look."""
    town, _ = behind()
    workers = Workers(answers=False)

    async def annotate(*_: Any) -> None:
        pass

    keeper = ReloadKeeper(
        town.world,
        workers,  # type: ignore[arg-type] - all that it uses
        annotate=annotate,
        poll=lambda: None,
    )
    await keeper.step()
    await keeper.step()
    assert len(workers.asked) == 2


async def test_a_worker_that_never_takes_its_set_over_is_looked_at_seldom() -> None:
    """After two minutes nobody is polled each second for a set that a worker refuses."""
    town, _ = behind()
    workers = Workers()
    polls: list[int] = []

    async def annotate(*_: Any) -> None:
        pass

    keeper = ReloadKeeper(
        town.world,
        workers,  # type: ignore[arg-type] - all that it uses
        annotate=annotate,
        poll=lambda: polls.append(1),
    )
    assert await keeper.step() == 1.0
    town.now += 121.0
    assert await keeper.step() == 30.0
    assert (len(polls), len(workers.asked)) == (1, 2)


def test_pods_of_workers_of_their_own_are_never_reloaded() -> None:
    """Their sets are one per template and do not change."""
    town, _ = behind()
    assert [one.revision for one in lagging(town.world)] == [2]
    town.caches.pods.forget(WORKER)
    town.worker("own", "a")
    assert list(lagging(town.world)) == []


def test_the_planner_sees_a_groups_place_once_per_member() -> None:
    """Members' assignments name their group and the precision that each runs with."""
    town = Town()
    first, _ = one_running()
    town.apply(*first.desired)
    town.intent("a")
    facts = {
        "metadata": {
            "name": "x",
            "namespace": "trimtab-system",
        },
        "data": {"inspection.json": VERDICT},
    }
    town.put("configmaps", facts)
    snapshot = fleet_snapshot(
        town.caches,
        loads=LoadBook(),
        settings=SETTINGS,
        surroundings=Surroundings(capabilities=ASSUMED),
    )
    (assignment,) = snapshot.assignments
    assert (assignment.group, assignment.config.precision) == (GROUP, "bf16")
    assert assignment.intent_uid == "uid-a"
    assert snapshot.headroom_models == 1


@pytest.mark.parametrize("alive", [True, False])
async def test_a_groups_objects_are_swept_only_without_any_owner(alive: bool) -> None:  # noqa: FBT001 - a parameter
    """Garbage collection keeps what one member still owns, and so does the sweep."""
    town = Town()
    first, _ = one_running()
    town.apply(*first.desired)
    deleted: list[str] = []

    class Client:
        async def items(self, *_: Any, **__: Any) -> Any:
            for uid in ["uid-a"] if alive else ["uid-other"]:
                yield {"metadata": {"uid": uid}}

    class Executor:
        async def delete(self, deletion: Any) -> None:
            deleted.append(deletion.resource.kind)

    sweeper = Sweeper(
        client=Client(),  # type: ignore[arg-type] - all that it uses
        writer=SimpleNamespace(),  # type: ignore[arg-type] - nothing is released
        executor=Executor(),  # type: ignore[arg-type] - all that it uses
        caches=town.caches,
        utcnow=lambda: None,  # type: ignore[arg-type,return-value] - no time is read
        changed=lambda *_: None,
    )
    await sweeper.step()
    assert (DEPLOYMENT.kind in deleted) is not alive
    assert bool(deleted) is not alive


@pytest.mark.parametrize("reason", ["ModelCorrupt", "SlabMismatch", "OutOfMemory"])
def test_a_model_that_fails_is_its_own_intents_trouble(reason: str) -> None:
    """Of two models in one pod the failed one's intent says why, and the other's goes on serving."""
    ready = [{"type": "Ready", "status": "True"}]
    one = pod({"metadata": {"name": "p", "uid": "p"}, "status": {"conditions": ready}})
    state = WorkerState(
        pod_uid="p",
        revision=1,
        errors=(),
        models=(
            ModelState(name="team-a/a", state="Lent"),
            ModelState(name="team-a/b", state="Failed", error=(reason, "m1/b is cut short.")),
        ),
    )
    plan = a_group_plan("a", "b")

    def serving(name: str) -> Any:
        record = a_record(name, sharing="Shared")
        seen = an_observed(
            record,
            plan=a_plan(record, group=plan),
            pods=(one,),
            workers={"p": state},
            routed=WORKER,
        )
        found = decide(seen, settings=SETTINGS).conditions
        return next(c for c in found if c.type == "Serving")

    assert serving("a").status == "True"
    failed = serving("b")
    assert (failed.status, failed.reason) == ("False", reason)
    assert "m1/b is cut short." in failed.message
