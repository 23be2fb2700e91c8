from dataclasses import replace

import pytest

from tests.unit.planning.builders import (
    POLICY,
    a_fingerprint,
    a_fleet,
    a_key,
    a_pool,
    an_intent,
)
from tests.unit.planning.change_builders import ONE, TWO, a_load
from trimtab.planning import spare
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.snapshot import Assignment, Constraints, Targets
from trimtab.planning.spare import findings

TARGET = Targets(tpot_us=80_000, ttft_us=2_000_000)
# One thread each, so that there is one configuration.
POOLS = tuple(a_pool(f"n{n}", threads=1, gib=8) for n in range(9))


def _finding(*, rate, replicas, busy=None, objective="TargetLatency", group=""):
    targets = TARGET if objective == "TargetLatency" else Targets()
    intent = an_intent(
        load=a_load(rate),
        busy_load=None if busy is None else a_load(busy),
        objective=objective,
        targets=targets,
    )
    held = Assignment(
        intent_uid=intent.uid,
        config=ONE,
        replicas=replicas,
        nodes=(("n0", replicas),),
        generation=1,
        group=group,
    )
    bare = a_fleet(intent, pools=POOLS, fingerprints=(a_fingerprint(),))
    # Planned as if nothing ran: what a switch costs is another rule.
    fleet, plan = replace(bare, assignments=(held,)), plan_fleet(bare, POLICY)
    return next(iter(findings(fleet, plan, policy=POLICY)), None)


def test_what_runs_is_judged_at_the_present_load():
    """One replica misses what eight meet, and the plan has an option that meets it."""
    few, many = _finding(rate=9.0, replicas=1), _finding(rate=9.0, replicas=8)
    assert (few.running_meets, few.meets) == (False, True)
    assert many.running_meets


@pytest.mark.parametrize("objective", ["TargetLatency", "MinCost", "MinLatency"])
def test_fewer_do_only_if_they_carry_the_busy_load(objective):
    """The rate fell to nothing, but the last half hour needed what there is."""
    quiet = _finding(rate=0.2, replicas=4, objective=objective)
    busy = _finding(rate=0.2, busy=30.0, replicas=4, objective=objective)
    assert quiet.fewest == 3
    assert busy.fewest == 4


def test_at_most_a_quarter_fewer_are_looked_for():
    """Each count costs a prediction, and no step is larger."""
    assert _finding(rate=0.2, replicas=8).fewest == 6
    assert _finding(rate=0.2, replicas=2).fewest == 1
    assert _finding(rate=0.2, replicas=1).fewest == 1


def test_where_nothing_changes_nothing_is_predicted():
    """What runs is what is wanted: it counts as needed."""
    found = _finding(rate=0.2, replicas=1)
    assert (found.meets, found.running_meets, found.fewest) == (True, True, 1)


def test_fewer_replicas_need_more_than_what_is_just_enough():
    """At the highest load that r replicas are planned for, the one beyond them is not taken away."""

    def planned(rate):
        intent = an_intent(load=a_load(rate), objective="TargetLatency", targets=TARGET)
        fleet = a_fleet(intent, pools=POOLS, fingerprints=(a_fingerprint(),))
        return plan_fleet(fleet, POLICY).intents[0].option.replicas

    low, high, replicas = 3.0, 12.0, planned(3.0)
    assert planned(high) > replicas
    while high - low > 0.2:
        middle = (low + high) / 2
        low, high = (middle, high) if planned(middle) == replicas else (low, middle)
    assert _finding(rate=low, replicas=replicas + 1).fewest == replicas + 1
    assert _finding(rate=low / 2, replicas=replicas + 1).fewest == replicas


def test_members_of_a_group_are_left_to_the_rules_of_sharing():
    """A group's worker is no replica of one intent."""
    assert _finding(rate=1.0, replicas=1, group="team-a-1") is None


def test_an_intent_without_a_model_has_no_findings():
    """Nothing can be predicted for it."""
    intent = an_intent(model=None)
    held = Assignment(intent_uid=intent.uid, config=ONE, replicas=2, generation=1)
    fleet = a_fleet(intent, assignments=(held,))
    plan = plan_fleet(fleet, POLICY)
    assert findings(fleet, plan, policy=POLICY) == ()
    assert findings(replace(fleet, intents=()), plan, policy=POLICY) == ()


def test_one_that_cannot_be_predicted_says_so_and_the_others_are_judged(monkeypatch):
    """All of it counts as needed, and the error is told: silence would hide a bug for ever."""
    names = ("bad", "good")
    intents = [an_intent(name=name, uid=name, load=a_load(0.2)) for name in names]
    held = tuple(
        Assignment(intent_uid=name, config=ONE, replicas=4, nodes=(("n0", 4),), generation=1)
        for name in names
    )
    bare = a_fleet(*intents, pools=POOLS, fingerprints=(a_fingerprint(),))
    fleet, plan = replace(bare, assignments=held), plan_fleet(bare, POLICY)
    real = spare.evaluate

    def evaluate(intent, *args, **kwargs):
        if intent.uid == "bad":
            raise ZeroDivisionError("a rate of 0")
        return real(intent, *args, **kwargs)

    monkeypatch.setattr(spare, "evaluate", evaluate)
    bad, good = findings(fleet, plan, policy=POLICY)
    assert (bad.meets, bad.running_meets, bad.fewest) == (True, True, 4)
    assert bad.problem == "ZeroDivisionError: a rate of 0"
    assert (good.fewest, good.problem) == (3, "")


def _lasts(*, busy):
    """Return what is found about two threads that run where, this minute, one would be cheaper."""
    intent = an_intent(
        load=a_load(0.5), busy_load=a_load(busy), objective="TargetLatency", targets=TARGET,
        constraints=Constraints(max_replicas=1),
    )  # fmt: skip
    pools = tuple(a_pool(f"n{n}", threads=2, gib=8) for n in range(3))
    both = tuple(
        a_fingerprint(
            key=a_key(threads=t), layer_us=700 / t, fixed_us=5000 / t, us_per_token=20 / t
        )
        for t in (1, 2)
    )
    held = Assignment(
        intent_uid=intent.uid, config=TWO, replicas=1, nodes=(("n0", 1),), generation=1
    )
    bare = a_fleet(intent, pools=pools, fingerprints=both)
    plan = plan_fleet(bare, POLICY)
    assert plan.intents[0].option.config == ONE
    return findings(replace(bare, assignments=(held,)), plan, policy=POLICY)[0].lasts


def test_what_is_cheaper_this_minute_must_carry_the_busy_part_too():
    """It lasts at a load that it carries, and at one that what runs does not carry either; not between."""
    found = [_lasts(busy=rate) for rate in (0.5, 3, 4, 5, 6, 60)]
    assert (found[0], found[-1]) == (True, True)
    assert not all(found)
