"""The fleet's plan where not everybody's first choice fits: shared out by regret, and explained."""

import sys
from dataclasses import replace

from tests.unit.planning.builders import (
    LLAMA_8B,
    LOAD,
    POLICY,
    SMOLLM2,
    a_fingerprint,
    a_fleet,
    a_key,
    a_model,
    a_pool,
    an_intent,
    plan,
)
from trimtab.planning.capacity import Ledger
from trimtab.planning.case import prepare
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.scarcity import Unit, _wishes
from trimtab.planning.snapshot import Assignment, Constraints
from trimtab.planning.survey import Surveys

# One model gains little from a second thread, the other halves its time.
OTHER = replace(SMOLLM2, hidden_size=640)
TIMES = tuple(
    a_fingerprint(
        key=a_key(architecture, threads=threads), fixed_us=5000 * share, layer_us=700 * share
    )
    for architecture, slower in ((SMOLLM2, 0.9), (OTHER, 0.5))
    for threads, share in ((1, 1.0), (2, slower))
)
ONE = Constraints(max_replicas=1)
OLD = an_intent("old", constraints=ONE)
YOUNG = an_intent(
    "young", model=a_model(OTHER), constraints=ONE, created_seconds=OLD.created_seconds + 1
)


def threads_of(found):
    return {
        p.name: p.option.replicas * p.option.config.threads if p.option else 0
        for p in found.intents
    }


def running(found, *names):
    """Return what a plan made run, as the next snapshot has it."""
    return tuple(
        Assignment(
            intent_uid=p.uid,
            config=p.option.config,
            replicas=p.option.replicas,
            nodes=p.nodes,
            generation=p.generation,
            memory_bytes=p.option.memory_bytes,
        )
        for p in found.intents
        if p.name in names
    )


def test_with_room_for_all_everybody_has_its_first_choice():
    """Nothing is solved where nothing is scarce."""
    found = plan(OLD, YOUNG, pools=(a_pool("n0"), a_pool("n1")), fingerprints=TIMES)
    assert (found.solver, threads_of(found)) == ("Direct", {"old": 2, "young": 2})


def test_a_scarce_thread_goes_to_whom_it_helps_most():
    """By age the older would take the second thread; by regret the one whose time it halves does."""
    found = plan(OLD, YOUNG, pools=(a_pool(threads=3),), fingerprints=TIMES)
    assert (found.solver, threads_of(found)) == ("HiGHS", {"old": 1, "young": 2})


def test_priority_weighs_before_regret():
    """Whoever has priority has its first choice before others' regret is looked at."""
    urgent = replace(OLD, priority=1)
    found = plan(urgent, YOUNG, pools=(a_pool(threads=3),), fingerprints=TIMES)
    assert threads_of(found) == {"old": 2, "young": 1}


def test_what_runs_moves_only_for_more_than_a_move_costs():
    """Its second thread is given up where that halves another's time, not where it saves a tenth."""
    alone = plan(OLD, pools=(a_pool(threads=3),), fingerprints=TIMES)
    assert threads_of(alone) == {"old": 2}
    held = running(alone, "old")
    pools = (a_pool(threads=3),)
    same = replace(YOUNG, model=OLD.model)
    kept = plan(OLD, same, pools=pools, fingerprints=TIMES, assignments=held)
    assert threads_of(kept) == {"old": 2, "young": 1}
    moved = plan(OLD, YOUNG, pools=pools, fingerprints=TIMES, assignments=held)
    assert threads_of(moved) == {"old": 1, "young": 2}
    again = plan(
        OLD, YOUNG, pools=pools, fingerprints=TIMES, assignments=running(moved, "old", "young")
    )
    assert threads_of(again) == {"old": 1, "young": 2}
    assert all(p.keeps_assignment for p in again.intents)


def test_a_thread_is_not_handed_to_and_fro():
    """Where two would gain equally by a third thread, whoever has it keeps it, the younger too."""
    pools = (a_pool(threads=3),)
    old = replace(OLD, model=YOUNG.model)
    alone = plan(YOUNG, pools=pools, fingerprints=TIMES)
    both = plan(old, YOUNG, pools=pools, fingerprints=TIMES, assignments=running(alone, "young"))
    assert threads_of(both) == {"old": 1, "young": 2}
    for _ in range(3):
        held = running(both, "old", "young")
        both = plan(old, YOUNG, pools=pools, fingerprints=TIMES, assignments=held)
        assert threads_of(both) == {"old": 1, "young": 2}


def test_without_highs_the_plan_is_made_by_the_greedy(monkeypatch):
    """The plan is sound and says who made it."""
    monkeypatch.setitem(sys.modules, "highspy", None)
    found = plan(OLD, YOUNG, pools=(a_pool(threads=3),), fingerprints=TIMES)
    assert found.solver == "Greedy"
    assert sum(threads_of(found).values()) == 3
    assert all(p.option is not None for p in found.intents)


def test_what_runs_may_be_rolled_to_other_nodes():
    """What runs and is no option any more is a column in its place and one elsewhere."""
    pools = (a_pool("n0"), a_pool("n1"))
    spread = replace(OLD, constraints=Constraints(min_replicas=2, max_replicas=2))
    held = running(plan(spread, pools=pools, fingerprints=TIMES), "old")
    snapshot = a_fleet(OLD, pools=pools, fingerprints=TIMES, assignments=held)
    surveys = Surveys()
    surveys.begin(snapshot, POLICY)
    case = prepare(OLD, snapshot=snapshot, fleet=Ledger(pools), surveys=surveys, policy=POLICY)
    unit = Unit(case=case, worker=None, runs=held)
    columns = {w.column.id: w for w in _wishes(unit, snapshot=snapshot, policy=POLICY)}
    place, other = columns["uid-old/stays"], columns["uid-old/stays/elsewhere"]
    assert place.column.nodes == (("n0", 1), ("n1", 1))
    assert (other.column.nodes, place.stays, other.stays) == ((), True, False)


def test_no_capacity_names_who_has_what():
    """The message of an intent that finds no place says how much others of its namespace have."""
    found = {p.name: p for p in plan(OLD, YOUNG, pools=(a_pool(threads=1),)).intents}
    assert found["young"].reason == "NoCapacity"
    assert "old has 1 thread." in found["young"].message


def test_more_than_the_fleet_has_names_who_has_what():
    """So does that of one whose objective the whole fleet could not meet."""
    heavy = replace(YOUNG, load=replace(LOAD, requests_per_second=500.0), constraints=Constraints())
    found = {p.name: p for p in plan(OLD, heavy, pools=(a_pool(threads=2),)).intents}
    assert found["young"].reason == "TargetNeedsMoreGPUs"
    assert "old has 1 thread." in found["young"].message


def test_a_model_that_fits_nowhere_asks_for_nothing():
    """An intent that could not be placed on an empty fleet does not disturb the others."""
    huge = an_intent("huge", model=a_model(LLAMA_8B, depth=32))
    found = plan(OLD, YOUNG, huge, pools=(a_pool(threads=3),), fingerprints=TIMES)
    assert threads_of(found) == {"huge": 0, "old": 1, "young": 2}


def test_a_sharing_group_competes_as_one():
    """Two Shared intents take one thread together, and the one that they leave serves a third."""
    shared = [
        an_intent(
            name,
            sharing="Shared",
            objective="MinCost",
            group_id=f"team-a-{name}",
            created_seconds=OLD.created_seconds + 2,
        )
        for name in ("s", "t")
    ]
    found = plan(*shared, OLD, pools=(a_pool(threads=2),), fingerprints=TIMES)
    groups = {p.name: p.group.id if p.group else "" for p in found.intents}
    assert groups == {"old": "", "s": "team-a-s", "t": "team-a-s"}
    assert threads_of(found) == {"old": 1, "s": 1, "t": 1}
    assert found.solver == "HiGHS"


def test_equal_snapshots_give_equal_plans_where_threads_are_scarce():
    """The order of intents, pools and fingerprints does not matter to the joint choice either."""
    pools = (a_pool("n0", threads=3), a_pool("n1", threads=2))
    intents = [
        replace(one, uid=f"{one.uid}-{n}", name=f"{one.name}-{n}")
        for n in range(3)
        for one in (OLD, YOUNG)
    ]
    one = a_fleet(*intents, pools=pools, fingerprints=TIMES)
    two = a_fleet(*intents[::-1], pools=pools[::-1], fingerprints=TIMES[::-1])
    found = plan_fleet(one, POLICY)
    assert found.solver == "HiGHS"
    assert repr(found) == repr(plan_fleet(two, POLICY))
