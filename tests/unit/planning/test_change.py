"""Fleets that live through simulated hours, with a planner that is exact."""

import itertools
from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY, a_pool
from tests.unit.planning.change_builders import CARRIES, ONE, SECOND, TWO, Ideal, a_world, changes
from trimtab.bench.change.report import measures
from trimtab.bench.change.simulate import without_hysteresis
from trimtab.bench.change.values import Event
from trimtab.planning.snapshot import Constraints

HOUR = 3600
REPLICA = CARRIES / 1.2
"""What a replica is planned for: its capacity less the margin."""


@pytest.mark.parametrize("seed", [0, 1])
def test_load_for_nearly_two_replicas_changes_at_most_once_and_a_real_fall_exactly_once(seed):
    """Dynamo #9294 went 2, 1, 2, 1: 1.9 replicas' load is steady, a fall to 0.5 is one step."""

    def rate(second):
        return REPLICA * (1.9 if second < HOUR else 0.5)

    life = a_world({"chat": rate}, seconds=2 * HOUR, seed=seed).run()
    early = [t for t in life.taken if t.at_seconds <= HOUR and t.step.kind != "Create"]
    late = [(t.step.kind, t.step.replicas) for t in life.taken if t.at_seconds > HOUR]
    assert len(early) <= 1
    assert late == [("Scale", 1)]


def test_without_the_rules_the_same_load_goes_to_and_fro():
    """The rules are what keeps it: a planner that follows the last minute does not."""

    def turns(*, rules):
        policy = POLICY if rules else without_hysteresis(POLICY)
        rates = {"chat": REPLICA * 1.9}
        life = a_world(rates, seconds=HOUR, policy=policy, hysteresis=rules, seed=1).run()
        return measures(life, policy=POLICY)["reversals"]

    assert turns(rules=True) == 0
    assert turns(rules=False) > 2


def test_three_times_the_load_is_followed_step_by_step_and_back():
    """Up by a quarter of what is ready, each step after the last is ready; down only much later."""

    def rate(second):
        return REPLICA * (11.7 if 600 <= second < 3000 else 3.9)

    life = a_world({"chat": rate}, seconds=3 * HOUR).run()
    steps = [(t.at_seconds, t.step.replicas) for t in life.taken if t.step.kind == "Scale"]
    ups = [s for s in steps if s[0] < 3000]
    assert [r for _, r in ups][:5] == [5, 6, 7, 8, 10]
    assert 600 < ups[0][0] <= 680
    assert all(b - a >= 120 for (a, _), (b, _) in itertools.pairwise(ups))
    downs = [s for s in steps if s[0] >= 3000]
    assert downs
    assert downs[0][0] >= 3000 + 1800
    assert all(b - a >= 600 for (a, _), (b, _) in itertools.pairwise(downs))
    assert downs[-1][1] in (4, 5, 6)


def test_a_pin_holds_whatever_the_load_does():
    """KAITO #1956: count was overridden. Neither much nor no load moves it."""
    pins = Constraints(min_replicas=3, max_replicas=3)
    rates = {"chat": lambda second: 9 * REPLICA if second < 1800 else 0.0}
    life = a_world(rates, seconds=2 * HOUR, constraints=pins).run()
    assert changes(life) == []
    assert life.taken[0].step.replicas == 3


def test_a_missed_target_with_an_edit_is_one_change():
    """An edit to what is wanted anyway is made once."""

    def edit(fleet):
        intents = [
            replace(i, generation=2, constraints=Constraints(min_replicas=5)) for i in fleet.intents
        ]
        return replace(fleet, intents=tuple(intents))

    events = [Event(at_seconds=300, name="edit", change=edit)]
    life = a_world({"chat": 1.9 * REPLICA}, seconds=HOUR, events=events).run()
    assert changes(life) == [("Scale", 5)]


def _losing(*nodes, at=600, back=None):
    pools = tuple(a_pool(f"n{i}", threads=4, gib=64) for i in range(4))
    kept = tuple(p for p in pools if p.node not in nodes)
    events = [Event(at_seconds=at, name="lost", change=lambda f: replace(f, pools=kept))]
    if back:
        events.append(Event(at_seconds=back, name="b", change=lambda f: replace(f, pools=pools)))
    return pools, events


def test_lost_nodes_cost_no_more_than_what_was_on_them():
    """Replicas come back where there is room, and nobody else is moved when the nodes do."""
    pools, events = _losing("n0", "n1", back=1800)
    rates = {"chat": 3.9 * REPLICA, "other": 0.9 * REPLICA}
    world = a_world(rates, seconds=HOUR, pools=pools, events=events)
    life = world.run()
    assert changes(life) == []
    assert changes(life, "other") == []
    assert world.plant.ready("uid-chat", now_us=HOUR * SECOND) == 4


def _better_after(config, *, policy=POLICY):
    """A planner that prefers another configuration once the prices carry a date of 2027."""

    def choose(snapshot):
        return config if snapshot.prices.dated.startswith("2027") else ONE

    return Ideal(config=choose, policy=policy)


def _new_prices(at):
    def change(fleet):
        return replace(fleet, prices=replace(fleet.prices, dated="2027-01-01"))

    return Event(at_seconds=at, name="prices", change=change)


def test_moves_take_turns_and_serve_all_the_while():
    """Four intents that would all rather run elsewhere: one or a tenth of the fleet at a time."""
    rates = {f"i{n}": 1.9 * REPLICA for n in range(4)}
    world = a_world(rates, seconds=3000, events=[_new_prices(900)], planner=_better_after(TWO))
    life = world.run()
    moves = [t for t in life.taken if t.step.kind == "Move"]
    assert len(moves) == 4
    assert life.least_ready >= 2
    assert life.most_in_transition <= 0.1 + 1e-9
    assert len({t.at_seconds for t in moves}) > 1
    assert life.within > 0.99 * life.arrived


def test_without_room_a_lone_replica_stays_and_others_go_one_by_one():
    """Where nothing fits beside it, a lone replica is not broken for a better score."""
    full = (a_pool("n0", threads=3, gib=64),)
    rates = {"two": 1.8 * REPLICA, "lone": 0.5 * REPLICA}
    other = replace(ONE, precision="fp32")
    world = a_world(
        rates, seconds=HOUR, pools=full, events=[_new_prices(1200)], planner=_better_after(other)
    )
    life = world.run()
    assert changes(life, "two") == [("Move", 2)]
    assert changes(life, "lone") == []
    assert life.least_ready == 1
    assert world.plant.ready_by_config("uid-two", now_us=HOUR * SECOND) == {other: 2}


def test_a_plan_is_due_within_ten_seconds_of_what_asked_for_it():
    """Debounce is part of the world."""
    life = a_world({"chat": REPLICA}, seconds=1800, events=[_new_prices(600)]).run()
    prices = [p for p in life.plans if "Prices" in p[1]]
    assert len(prices) == 1
    assert prices[0][2] <= 10
