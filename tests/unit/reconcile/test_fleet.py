"""The fleet's planner: debounced, bounded, never without its last plan."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import Any

import pytest
import structlog

from tests.unit.reconcile.builders import a_plan, a_record, an_option
from trimtab.observe.capabilities import ASSUMED
from trimtab.planning import spare
from trimtab.planning.plan import Findings, FleetPlan, IntentPlan
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import CpuPool, FleetSnapshot
from trimtab.reconcile import fleet as fleet_module
from trimtab.reconcile.fleet import FleetPlanner, Planned, PlannerFailedError, Pool
from trimtab.reconcile.plan_changes import KINDS, plan_changes

RECORD = a_record()


def a_snapshot(millicores: int) -> FleetSnapshot:
    pool = CpuPool(node="n", cpu_model="x", millicores=millicores, memory_bytes=1)
    return FleetSnapshot(intents=(), pools=(pool,), capabilities=ASSUMED)


class Played:
    def __init__(self) -> None:
        self.inputs = [a_snapshot(n) for n in range(1, 100)]
        self.failures = 0
        self.planned_at: list[float] = []
        self.told: list[tuple[Planned, Planned]] = []
        self.findings: tuple[Findings, ...] = ()
        self.unfound: list[int] = []
        self.waiting = 0
        self.planner = FleetPlanner(
            pool=self,  # type: ignore[arg-type]
            policy=PlannerPolicy(),
            observe=self.observe,
            changed=lambda before, after: self.told.append((before, after)),
            clock=lambda: asyncio.get_running_loop().time(),
            seconds=lambda s: s,
            unfound=self.unfound.append,
        )

    async def observe(self) -> FleetSnapshot:
        return self.inputs.pop(0)

    async def plan(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
        self.planned_at.append(asyncio.get_running_loop().time())
        if self.failures:
            self.failures -= 1
            raise PlannerFailedError("it hung")
        return FleetPlan(
            intents=(a_plan(RECORD),),
            policy=policy.digest(),
            findings=self.findings,
            waiting=self.waiting,
        )

    def close(self, *, kill: bool = False) -> None:
        pass


@pytest.mark.looptime
async def test_asking_waits_for_two_seconds_of_quiet() -> None:
    """Changes that come together make one plan."""
    played = Played()
    task = asyncio.create_task(played.planner.run())
    played.planner.open()
    await asyncio.sleep(1)
    for _ in range(3):
        played.planner.ask()
        await asyncio.sleep(1)
    await asyncio.sleep(10)
    task.cancel()
    assert [round(t) for t in played.planned_at] == [0, 5]


@pytest.mark.looptime
async def test_unrest_cannot_put_a_plan_off_for_ever() -> None:
    """After ten seconds a plan is made whatever still changes."""
    played = Played()
    task = asyncio.create_task(played.planner.run())
    played.planner.open()
    await asyncio.sleep(1)
    for _ in range(15):
        played.planner.ask()
        await asyncio.sleep(1)
    task.cancel()
    assert [round(t) for t in played.planned_at] == [0, 11]


@pytest.mark.looptime
async def test_nothing_is_planned_before_all_was_read() -> None:
    """Asking before the start's inputs are known only marks."""
    played = Played()
    task = asyncio.create_task(played.planner.run())
    played.planner.ask()
    await asyncio.sleep(100)
    assert played.planned_at == []
    assert not played.planner.ready.is_set()
    played.planner.open()
    await asyncio.sleep(1)
    task.cancel()
    assert len(played.planned_at) == 1


@pytest.mark.looptime
async def test_a_planner_that_fails_leaves_the_last_plan_in_force() -> None:
    """The plan stays, the problem is told, and planning is repeated until it works."""
    played = Played()
    task = asyncio.create_task(played.planner.run())
    played.planner.open()
    await asyncio.sleep(1)
    played.failures = 1
    played.planner.ask()
    await asyncio.sleep(3)
    assert played.planner.of(RECORD.uid, generation=1) is not None
    assert "it hung" in played.planner.current.problem
    await asyncio.sleep(10)
    assert played.planner.current.problem == ""
    task.cancel()


@pytest.mark.looptime
async def test_the_age_of_what_is_not_planned_yet_grows_until_a_plan_is_made() -> None:
    """A request counts from when it was made, failures do not answer it, a plan does."""
    played = Played()
    task = asyncio.create_task(played.planner.run())
    await asyncio.sleep(100)
    assert played.planner.waiting_seconds() == 0
    played.planner.open()
    await asyncio.sleep(1)
    assert played.planner.waiting_seconds() == 0
    played.failures = 3
    played.planner.ask()
    await asyncio.sleep(5)
    played.planner.ask()
    await asyncio.sleep(5)
    assert played.planner.waiting_seconds() == pytest.approx(10)
    await asyncio.sleep(60)
    assert played.failures == 0
    assert played.planner.waiting_seconds() == 0
    task.cancel()


def _planned(*plans: IntentPlan, first: bool = False) -> Planned:
    return Planned(
        revision=1,
        snapshot=None if first else a_snapshot(1),
        by_uid={plan.uid: plan for plan in plans},
    )


def test_changes_of_plans_are_counted_by_kind() -> None:
    """Placed, unplaced, another configuration and another count differ; new predictions count as nothing."""
    option = an_option()
    none = a_plan(RECORD, option=None)
    told = a_plan(RECORD, message="Told otherwise.")
    more = a_plan(RECORD, option=replace(option, replicas=2))
    other = a_plan(RECORD, option=an_option(threads=2))
    plan = a_plan(RECORD)
    for before, after, expected in (
        (_planned(none), _planned(plan), {"placed": 1}),
        (_planned(), _planned(plan), {"placed": 1}),
        (_planned(plan), _planned(none), {"unplaced": 1}),
        (_planned(plan), _planned(other), {"configuration": 1}),
        (_planned(plan), _planned(more), {"replicas": 1}),
        (_planned(plan), _planned(told), {}),
        (_planned(plan), _planned(), {}),
        (_planned(first=True), _planned(plan), {}),
    ):
        assert plan_changes(before, after) == expected
        assert expected.keys() <= set(KINDS)


@pytest.mark.looptime
async def test_equal_inputs_are_not_planned_again() -> None:
    """Asking without a change costs no plan and wakes nobody."""
    played = Played()
    played.inputs = [a_snapshot(1)] * 5
    task = asyncio.create_task(played.planner.run())
    played.planner.open()
    await asyncio.sleep(1)
    played.planner.ask()
    await asyncio.sleep(5)
    task.cancel()
    assert len(played.planned_at) == 1
    assert len(played.told) == 1


@pytest.mark.looptime
async def test_of_whom_nothing_could_be_found_out_is_told_with_every_plan() -> None:
    """Nothing of it is taken away, which nobody would notice without a log line and a count."""
    played = Played()
    fields: dict[str, Any] = {"meets": True, "running_meets": True, "fewest": 1}
    played.findings = (
        Findings(uid=RECORD.uid, problem="KeyError: 'x'", **fields),
        Findings(uid="other", **fields),
    )
    with structlog.testing.capture_logs() as logs:
        await played.planner.plan_once()
    (line,) = (entry for entry in logs if entry["event"] == "findings_failed")
    assert (line["intent"], line["error"]) == ("team-a/chat", "KeyError: 'x'")
    played.findings = ()
    await played.planner.plan_once()
    assert played.unfound == [1, 0]


@pytest.mark.looptime
async def test_a_plan_for_another_generation_is_not_followed() -> None:
    """An edit waits for its own plan."""
    played = Played()
    await played.planner.plan_once()
    assert played.planner.of(RECORD.uid, generation=1) is not None
    assert played.planner.of(RECORD.uid, generation=2) is None


def _plans(snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
    return FleetPlan(intents=(), policy=policy.digest())


def _dies(snapshot: FleetSnapshot, policy: PlannerPolicy) -> Any:
    os._exit(3)


def _hangs(snapshot: FleetSnapshot, policy: PlannerPolicy) -> Any:
    time.sleep(60)


def _raises(snapshot: FleetSnapshot, policy: PlannerPolicy) -> Any:
    raise KeyError("bug")


@pytest.mark.parametrize(
    ("solver", "words"),
    [(_dies, "process ended"), (_hangs, "took longer"), (_raises, "KeyError")],
)
async def test_a_lost_planner_process_is_replaced(
    solver: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it dies, hangs or raises, it is told in a sentence, and the next plan works."""
    # A planner that hangs is given no time; one that dies needs its time to start.
    seconds = 0.5 if solver is _hangs else 60
    monkeypatch.setattr(fleet_module, "_FIRST_PLAN_SECONDS", seconds)
    pool = Pool(solver)
    with pytest.raises(PlannerFailedError, match=words):
        await pool.plan(a_snapshot(1), PlannerPolicy())
    monkeypatch.setattr(fleet_module, "_FIRST_PLAN_SECONDS", 60)
    pool._solver = _plans
    plan = await pool.plan(a_snapshot(1), PlannerPolicy())
    assert plan.intents == ()
    pool.close(kill=True)


async def test_who_fails_to_hear_of_the_first_plan_leaves_the_operator_ready() -> None:
    """The plan is in force, and what it left unsimulated is planned again."""
    played = Played()
    played.waiting = 1

    def fails(before: Planned, after: Planned) -> None:
        del before, after
        raise KeyError("nobody")

    played.planner._changed = fails
    with pytest.raises(KeyError):
        await played.planner.plan_once()
    assert played.planner.ready.is_set()
    played.planner._changed = lambda before, after: played.told.append((before, after))
    played.inputs[0] = a_snapshot(1)
    await played.planner.plan_once()
    assert len(played.planned_at) == 2


def test_findings_that_waited_for_the_budget_are_made_by_the_next_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a scale-down would wait for a change that has nothing to do with it."""
    found = Findings(uid="a", meets=True, running_meets=True, fewest=2, waits=True)
    monkeypatch.setattr(spare, "findings", lambda *_, **__: (found, replace(found, waits=False)))
    assert fleet_module.solve(a_snapshot(1), PlannerPolicy()).waiting == 1
