"""What may be done about a plan, from the caches: and what a step then applies."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.reconcile.builders import SETTINGS, a_plan, a_record, an_observed, an_option
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.intents import FingerprintProgress
from trimtab.observe.loads import LoadBook
from trimtab.observe.records import deployment
from trimtab.planning.plan import Findings
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import Step
from trimtab.planning.snapshot import Assignment, CpuPool, FleetSnapshot
from trimtab.reconcile.fleet import Planned
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.rollout import Rollout, in_force
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot
from trimtab.reconcile.stepping import Stepper

GIB = 2**30
HERE = "team-a"


class Town:
    """One namespace with a stepper; time and plans are set by hand."""

    def __init__(self) -> None:
        self.caches = Caches()
        self.now = 100_000.0
        self.asked = 0
        self.measuring = False
        self.woken: list[str] = []
        self.version = 0
        self.created: dict[str, str] = {}
        self.planned = Planned(revision=1, snapshot=None, by_uid={})
        world: Any = SimpleNamespace(
            caches=self.caches,
            settings=SETTINGS,
            clock=lambda: self.now,
            utcnow=lambda: datetime(2026, 11, 23, tzinfo=UTC),
            oldest_namesake=lambda *_: None,
            fingerprints=SimpleNamespace(
                progress=lambda *_, **__: FingerprintProgress(pending=self.measuring)
            ),
        )
        self.stepper = Stepper(
            world,
            current=lambda: self.planned,
            wake=lambda uid, _: self.woken.append(uid),
            replan=self._ask,
            policy=PlannerPolicy(),
        )

    def _ask(self) -> None:
        self.asked += 1

    def intent(self, name: str = "chat", **spec: Any) -> Any:
        record = a_record(name, **spec)
        record = dataclasses.replace(record, created=self.created.get(name, record.created))
        self.caches.inferenceintents._store(record)
        return record

    def runs(
        self,
        record: Any,
        *,
        replicas: int = 1,
        ready: int | None = None,
        manager: str = "",
        **option: Any,
    ) -> Any:
        """Put the Deployment that a plan of so many replicas has come to."""
        planned = a_plan(record, option=an_option(replicas=replicas, **option))
        manifest = next(
            m
            for m in decide(an_observed(record, plan=planned), settings=SETTINGS).desired
            if m["kind"] == "Deployment"
        )
        count = replicas if ready is None else ready
        self.version += 1
        meta = manifest["metadata"] | {
            "generation": 1,
            "uid": f"d-{record.name}",
            "resourceVersion": str(self.version),
        }
        if manager:
            owned = {"f:spec": {"f:replicas": {}}}
            meta["managedFields"] = [{"manager": manager, "operation": "Update", "fieldsV1": owned}]
        status = {
            "replicas": replicas,
            "readyReplicas": count,
            "availableReplicas": count,
            "updatedReplicas": replicas,
            "observedGeneration": 1,
        }
        body = manifest | {"metadata": meta, "status": status}
        self.caches.deployments.put(body)
        return deployment(body)

    def plans(self, record: Any, *, found: dict[str, Any] | None = None, **option: Any) -> Any:
        plan = a_plan(record, option=an_option(**option))
        findings = dict(self.planned.findings)
        fields: dict[str, Any] = {"meets": True, "running_meets": True, "fewest": 1}
        findings[record.uid] = Findings(uid=record.uid, **(fields | (found or {})))
        running = tuple(
            Assignment(
                intent_uid=uid,
                config=rollout.config,
                replicas=one.replicas,
                nodes=(("n0", one.replicas),),
                generation=1,
                memory_bytes=rollout.memory_bytes,
            )
            for one in self.caches.deployments
            if (rollout := in_force(one, ())) is not None
            for uid in one.owner_uids
        )
        pool = CpuPool(node="n0", cpu_model="Test CPU", millicores=8000, memory_bytes=16 * GIB)
        self.planned = Planned(
            revision=self.planned.revision + 1,
            snapshot=FleetSnapshot(
                intents=(), pools=(pool,), capabilities=ASSUMED, assignments=running
            ),
            by_uid={**self.planned.by_uid, record.uid: plan},
            findings=findings,
        )
        return plan

    def step(self, record: Any) -> Step | None:
        self.stepper.refresh()
        return self.stepper.of(record, self.planned.by_uid[record.uid])


def said(step: Step | None) -> tuple[str, int, str]:
    assert step is not None
    return step.kind, step.replicas, step.held


def test_a_plan_without_a_worker_is_followed_as_it_is() -> None:
    """What is created, or shared, is no change of anything."""
    town = Town()
    record = town.intent()
    town.plans(record, replicas=7)
    assert town.step(record) is None


def test_replicas_follow_a_missed_target_a_quarter_at_a_time() -> None:
    """One more than is ready at once, and no further one before it is."""
    town = Town()
    record = town.intent()
    town.runs(record, replicas=4)
    missed = {"running_meets": False}
    town.plans(record, replicas=12, found=missed)
    assert said(town.step(record)) == ("Scale", 5, "None")
    town.runs(record, replicas=5, ready=4)
    assert said(town.step(record)) == ("Keep", 5, "InFlight")
    assert town.asked == 1
    town.runs(record, replicas=5)
    assert said(town.step(record)) == ("Scale", 6, "None")


def test_replicas_fall_after_ten_minutes_of_findings() -> None:
    """Dwell since it was first seen, then ten minutes in which fewer would have done."""
    town = Town()
    record = town.intent()
    town.runs(record, replicas=4)
    town.plans(record, replicas=1, found={"fewest": 4})
    assert said(town.step(record)) == ("Keep", 4, "Dwell")
    town.now += 601
    assert said(town.step(record)) == ("Keep", 4, "StillNeeded")
    town.plans(record, replicas=1, found={"fewest": 3})
    assert said(town.step(record)) == ("Keep", 4, "StillNeeded")
    town.now += 599
    assert said(town.step(record)) == ("Keep", 4, "StillNeeded")
    town.now += 2
    assert said(town.step(record)) == ("Scale", 3, "None")


def test_a_better_configuration_waits_and_an_edit_does_not() -> None:
    """Ten minutes after a start of the operator nothing moves but for a reason."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=1)
    town.plans(record, threads=2)
    assert said(town.step(record)) == ("Keep", 1, "Dwell")
    town.now += 601
    assert said(town.step(record)) == ("Move", 1, "None")
    edited = town.intent(generation=2)
    town.now -= 601
    town.plans(edited, threads=2)
    assert said(town.step(edited)) == ("Move", 1, "None")


def test_a_better_configuration_waits_for_measurements() -> None:
    """What the fingerprints' keeper has on its way may show that it is not better."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=1)
    town.plans(record, threads=2)
    town.step(record)
    town.now += 601
    town.measuring = True
    assert said(town.step(record)) == ("Keep", 1, "Measuring")
    town.measuring = False
    assert said(town.step(record)) == ("Move", 1, "None")


def test_pins_are_read_from_the_object() -> None:
    """Whatever is found, a pinned count is kept at once."""
    town = Town()
    record = town.intent(constraints={"minReplicas": 3, "maxReplicas": 3})
    town.runs(record, replicas=1)
    town.plans(record, replicas=3)
    assert said(town.step(record)) == ("Scale", 3, "None")


def test_replicas_that_are_taken_back_are_taken_back_at_once() -> None:
    """Somebody else scaled; the annotation is an order, not a wish to be weighed."""
    town = Town()
    record = town.intent()
    town.runs(record, replicas=4, manager="hpa")
    town.plans(record, replicas=1)
    assert said(town.step(record)) == ("Keep", 4, "NotOurs")
    asked = town.intent(annotations={"trimtab.dev/replicas": "Trimtab"})
    # Even before the next look, or what somebody else set would be applied as ours.
    assert town.stepper.of(asked, town.planned.by_uid[asked.uid]) is None
    assert town.step(asked) is None


def test_changes_take_turns() -> None:
    """Two intents that want to move: the second waits while the first is in transition."""
    town = Town()
    records = [town.intent(name) for name in ("a", "b")]
    for record in records:
        town.runs(record, threads=1)
        town.plans(record, threads=1)
        town.step(record)
    town.now += 601
    for record in records:
        town.plans(record, threads=2)
    town.stepper.refresh()
    found = [said(town.step(record)) for record in records]
    assert found == [("Move", 1, "None"), ("Keep", 1, "Transition")]


def test_a_crash_loop_holds_up_nobody_for_ever() -> None:
    """A change that gets on holds up the next; replicas that come and go only for a bounded time."""
    town = Town()
    broken, edited = (town.intent(name) for name in ("a", "b"))
    town.runs(broken, threads=2, ready=0)
    town.runs(edited, threads=1)
    town.plans(broken, threads=2)
    town.plans(edited, threads=2, found={"running_meets": False})
    assert said(town.step(edited)) == ("Keep", 1, "Transition")
    for seconds in range(0, 1800, 300):
        # The first time that it is ready is progress, every later one is not.
        town.now += 150
        town.runs(broken, threads=2, ready=1)
        town.step(edited)
        town.now += 150
        town.runs(broken, threads=2, ready=0)
        held = town.step(edited)
        assert said(held) == (
            ("Keep", 1, "Transition") if seconds < 1200 else ("Move", 1, "None")
        ), seconds


def test_what_is_paused_or_refused_holds_up_nobody() -> None:
    """A step that is never taken would keep the budget of the others for ever."""
    town = Town()
    for name in "abc":
        town.runs(town.intent(name), threads=1)
    paused = town.intent("a", annotations={"trimtab.dev/paused": "true"})
    refused = town.intent("b", model={"source": {"hostPath": {"path": "/etc"}}})
    free = town.intent("c")
    for record in (paused, refused, free):
        town.plans(record, threads=1)
        town.step(record)
    town.now += 601
    for record in (paused, refused, free):
        town.plans(record, threads=2)
    assert said(town.step(paused)) == ("Move", 1, "None")
    assert said(town.step(refused)) == ("Move", 1, "None")
    assert said(town.step(free)) == ("Move", 1, "None")


def test_the_older_intent_changes_first() -> None:
    """Two that may not change at once take turns by age, not by the chance of their uids."""
    town = Town()
    town.created = {"a": "2026-11-02T00:00:00Z", "b": "2026-11-01T00:00:00Z"}
    records = [town.intent(name) for name in ("a", "b")]
    for record in records:
        town.runs(record, threads=1)
        town.plans(record, threads=1)
        town.step(record)
    town.now += 601
    for record in records:
        town.plans(record, threads=2)
    assert [said(town.step(record))[2] for record in records] == ["Transition", "None"]


def test_what_can_no_longer_be_judged_is_not_taken_away() -> None:
    """Ten minutes of findings do not count once there are none for the present plan."""
    town = Town()
    record = town.intent()
    town.runs(record, replicas=4)
    town.plans(record, replicas=1, found={"fewest": 3})
    town.step(record)
    town.now += 300
    town.plans(record, replicas=1)
    town.planned = dataclasses.replace(town.planned, findings={})
    town.step(record)
    town.plans(record, replicas=1, found={"fewest": 3})
    town.now += 301
    assert said(town.step(record)) == ("Keep", 4, "StillNeeded")
    town.now += 600
    assert said(town.step(record)) == ("Scale", 3, "None")


def test_a_newcomer_is_made_room_for_at_once() -> None:
    """Somebody is planned who has no replica: what takes less does not wait for its rest."""
    town = Town()
    old, new = town.intent("old"), town.intent("new")
    town.runs(old, threads=2)
    town.plans(old, threads=1)
    assert said(town.step(old)) == ("Keep", 1, "Dwell")
    town.plans(new, threads=1)
    assert said(town.step(old)) == ("Move", 1, "None")


def test_replicas_are_not_broken_for_machines_that_have_no_room() -> None:
    """One that is taken away on this kind of machine makes no room on another."""
    town = Town()
    record = town.intent()
    town.runs(record, replicas=2)
    other = dataclasses.replace(an_option().config, cpu_model="Other CPU")
    town.plans(record, replicas=2, config=other)
    town.step(record)
    town.now += 601
    assert said(town.step(record)) == ("Keep", 2, "NoRoom")


def test_whose_step_changes_is_woken_once() -> None:
    """A loop is not woken for what is as it was."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=1)
    town.plans(record, threads=2)
    town.stepper.refresh()
    town.stepper.refresh()
    assert town.woken == ["uid-chat"]
    town.now += 601
    town.stepper.refresh()
    assert town.woken == ["uid-chat"] * 2


def test_the_next_look_is_when_time_changes_something() -> None:
    """At most fifteen seconds, less where a rest ends before."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=1)
    town.plans(record, threads=2)
    assert town.stepper.refresh() == 15.0
    town.now += 595
    assert town.stepper.refresh() == pytest.approx(5.0)


def test_a_step_made_for_another_plan_is_none() -> None:
    """Nothing stale is followed."""
    town = Town()
    record = town.intent()
    town.runs(record)
    plan = town.plans(record)
    town.stepper.refresh()
    assert town.stepper.of(record, plan) is not None
    assert town.stepper.of(record, dataclasses.replace(plan, message="other")) is None


# What is applied.


def _applied(step: Step | None, **option: Any) -> tuple[Any, str]:
    town = Town()
    record = town.intent()
    running = town.runs(record, replicas=4)
    plan = a_plan(record, option=an_option(**option))
    observed = an_observed(record, plan=plan, deployment=running, step=step)
    decided = decide(observed, settings=SETTINGS)
    manifest = next(m for m in decided.desired if m["kind"] == "Deployment")
    rollout = Rollout.from_json(manifest["metadata"]["annotations"][ROLLOUT_ANNOTATION])
    assert rollout is not None
    counted = manifest["spec"]["replicas"]
    return (rollout.config.threads, counted), str(decided.status["plan"]["message"])


def test_a_step_decides_about_replicas_and_configuration() -> None:
    """A held move changes nothing, a step goes as far as it says, a plan alone is followed."""
    one = an_option(threads=1).config
    held = Step(kind="Keep", config=one, replicas=4, held="Dwell")
    scaled = Step(kind="Scale", config=one, replicas=5, cause="Missed")
    moved = Step(kind="Move", config=an_option(threads=2).config, replicas=3, cause="Better")
    assert _applied(held, threads=2, replicas=2)[0] == (1, 4)
    assert _applied(scaled, threads=1, replicas=12)[0] == (1, 5)
    assert _applied(moved, threads=2, replicas=2)[0] == (2, 3)
    assert _applied(None, threads=2, replicas=2)[0] == (2, 2)


def test_a_status_says_what_a_change_waits_for() -> None:
    """The plan that is shown is not what runs, so the message says why."""
    one = an_option(threads=1).config
    held = Step(kind="Keep", config=one, replicas=4, held="Dwell")
    assert "one change in ten minutes" in _applied(held, threads=2)[1]
    kept = Step(kind="Keep", config=one, replicas=4)
    assert "What runs stays" not in _applied(kept, threads=1)[1]


def test_a_group_holds_its_place_once() -> None:
    """Three members of 6 GiB in one worker leave 10 GiB of 16 for a new replica beside an old one."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=1)
    town.plans(record, threads=1)
    town.step(record)
    town.now += 601
    town.plans(record, threads=2)
    snapshot = town.planned.snapshot
    assert snapshot is not None
    (own,) = snapshot.assignments
    members = tuple(
        dataclasses.replace(own, intent_uid=uid, group="g", memory_bytes=6 * GIB)
        for uid in ("m1", "m2", "m3")
    )
    # A pod beyond the replicas is passing, and holds nothing.
    passing = (("n0", 2),)
    own = dataclasses.replace(own, nodes=passing, memory_bytes=5 * GIB)
    town.planned = dataclasses.replace(
        town.planned, snapshot=dataclasses.replace(snapshot, assignments=(own, *members))
    )
    step = town.step(record)
    assert step is not None
    assert (step.kind, step.mode) == ("Move", "MakeBeforeBreak")


@pytest.mark.parametrize(("ready", "counted"), [(0, 0), (1, 1), (3, 2)])
def test_a_snapshot_tells_how_many_replicas_serve(ready: int, counted: int) -> None:
    """As a step counts them: a pod beyond the replicas is passing."""
    town = Town()
    town.runs(town.intent(), replicas=2, ready=ready)
    surroundings = Surroundings(capabilities=ASSUMED)
    found = fleet_snapshot(
        town.caches, loads=LoadBook(), settings=SETTINGS, surroundings=surroundings
    )
    assert [one.ready for one in found.assignments] == [counted]


@pytest.mark.parametrize(
    ("manager", "back", "counted"),
    [("", False, False), ("keda", False, True), ("keda", True, False)],
)
def test_a_snapshot_tells_whose_replicas_somebody_else_counts(
    manager: str, *, back: bool, counted: bool
) -> None:
    """Until the annotation takes them back."""
    town = Town()
    notes = {"trimtab.dev/replicas": "Trimtab"} if back else {}
    town.runs(town.intent(annotations=notes), replicas=2, manager=manager)
    surroundings = Surroundings(capabilities=ASSUMED)
    found = fleet_snapshot(
        town.caches, loads=LoadBook(), settings=SETTINGS, surroundings=surroundings
    )
    assert [one.counted for one in found.assignments] == [counted]


@pytest.mark.parametrize(("before", "asked"), [(None, 0), (1, 0), (0, 1)])
def test_what_serves_again_and_cannot_move_is_planned_again(before: int | None, asked: int) -> None:
    """The plan was made while it did not serve, and promised its place to others."""
    town = Town()
    record = town.intent()
    town.runs(record, threads=8)
    town.plans(record, threads=4)
    snapshot = town.planned.snapshot
    assert snapshot is not None
    (own,) = snapshot.assignments
    own = dataclasses.replace(own, ready=before, memory_bytes=16 * GIB)
    town.planned = dataclasses.replace(
        town.planned, snapshot=dataclasses.replace(snapshot, assignments=(own,))
    )
    town.step(record)
    town.now += 601
    assert said(town.step(record)) == ("Keep", 1, "Lone")
    assert town.asked == asked
