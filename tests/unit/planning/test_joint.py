"""The joint choice: levels of the score, the three rounds, and what happens without a solver."""

import sys

import pytest

from tests.unit.planning.fleet_builders import a_column, a_member, a_node, ids, used
from trimtab.planning import milp
from trimtab.planning.columns import Board
from trimtab.planning.greedy import solve_greedy
from trimtab.planning.joint import ChoiceLimits, choose
from trimtab.planning.layout import Layout
from trimtab.planning.milp import SolverLimits, solve_milp
from trimtab.planning.moves import pack_moving
from trimtab.planning.slots import Rack, rows

MOVES = ChoiceLimits(moves=True)


def _every(*names, **fields):
    """Return one column per name."""
    return [a_column(name, **fields) for name in names]


# The levels of the score.


def test_as_few_as_possible_stay_out_whatever_it_costs():
    """Two small places that lose much are better than one large place that loses nothing."""
    columns = [
        a_column("a", "large", group=8),
        a_column("a", "small", group=4, loss=4.0, missed=2.0),
        a_column("b", "small", group=4, loss=4.0, missed=2.0),
    ]
    assert ids(choose(columns, [a_node()])) == {"a/small", "b/small"}


def test_priority_comes_before_loss_and_loss_before_age():
    """The last slot goes to the higher priority, then to the smaller loss, then to the older."""
    one = [a_node(devices=1)]
    young, old = a_member("young", age=1), a_member("old", age=9)
    urgent = a_member("urgent", priority=1)
    equal = [a_column(young), a_column(old)]
    assert ids(choose(equal, one)) == {"old/0"}
    assert ids(choose([a_column(young), a_column(old, loss=0.5)], one)) == {"young/0"}
    assert ids(choose([*equal, a_column(urgent, loss=4.0)], one)) == {"urgent/0"}


def test_a_higher_priority_meets_its_target_first():
    """Both find a place either way; who has priority gets the one that meets its target."""
    urgent, other = a_member("urgent", priority=1), a_member("other")
    columns = [
        column
        for member in (urgent, other)
        for column in (
            a_column(member, "good", group=4),
            a_column(member, "bad", group=2, loss=5.0, missed=1.1),
        )
    ]
    assert ids(choose(columns, [a_node(devices=6)])) == {"urgent/good", "other/bad"}


def test_what_serves_keeps_a_place_whoever_comes():
    """No priority takes the last slot from an intent that serves."""
    serving = a_member("old", serves=True)
    columns = [
        a_column(serving, nodes=(("n0", 1),)),
        a_column(a_member("new", priority=100)),
    ]
    assert ids(choose(columns, [a_node(devices=1)])) == {"old/0"}


def test_losses_count_beside_an_intent_that_cannot_be_placed():
    """The gap of losses is absolute: an unplaceable intent does not hide a loss of 0.1 (joints.md §14)."""
    columns = [
        a_column("never", group=16),
        *(c for n in range(30) for c in _two(f"i{n:02d}", better=0.1)),
    ]
    choice = choose(columns, [a_node(f"n{n}", devices=8) for n in range(4)])
    assert choice.score.unplaced == (1,)
    assert choice.score.losses[0] < 0.05 + 30 * 0.001


def _two(name, *, better):
    return [a_column(name, "worse", loss=better), a_column(name, "better")]


def test_devices_only_break_ties():
    """Of equal losses the smaller place wins, and what exceeds the gap outweighs any size."""
    columns = [
        a_column("a", "large", group=8, count=100, largest=800),
        a_column("a", "small", largest=800),
    ]
    nodes = [a_node(f"n{n:03d}") for n in range(100)]
    assert ids(choose(columns, nodes)) == {"a/small"}
    columns[1] = a_column("a", "small", loss=0.06, largest=800)
    assert ids(choose(columns, nodes)) == {"a/large"}


def test_a_sharing_group_is_one_column():
    """Two intents that share a device are placed where two of their own would not fit."""
    both = (a_member("a"), a_member("b"))
    columns = [*_every("a", "b"), a_column(name="shared", members=both, loss=0.4)]
    scarce, roomy = choose(columns, [a_node(devices=1)]), choose(columns, [a_node(devices=2)])
    assert ids(scarce) == {"a/shared"}
    assert ids(roomy) == {"a/0", "b/0"}


def test_a_column_exists_once():
    """Two columns of one id would be one variable: that is a bug, and says so."""
    with pytest.raises(ValueError, match="a/0 exist more than once"):
        Board([a_column("a"), a_column("a")])


# What runs.


def test_groups_that_run_stay_and_new_ones_go_around_them():
    """A kept group is found on its node, though the new one would have been placed there first."""
    columns = [
        a_column(a_member("old", serves=True), group=2, nodes=(("n1", 1),)),
        a_column("new", group=8),
    ]
    choice = choose(columns, [a_node("n0"), a_node("n1")])
    assert {c.id: nodes for c, nodes in choice.placed} == {
        "old/0": (("n1", 1),),
        "new/0": (("n0", 1),),
    }


def _fragmented(**moving):
    """Return two serving groups of 2 on two nodes of 4, and a newcomer that needs 4, or loses much with 2."""
    running = [
        a_column(a_member(name, serves=True), group=2, nodes=((node, 1),), **moving)
        for name, node in (("a", "n0"), ("b", "n1"))
    ]
    new = [a_column("new", "best", group=4), a_column("new", "less", group=2, loss=2.0)]
    return [*running, *new], [a_node("n0", devices=4), a_node("n1", devices=4)]


def test_where_kept_groups_are_in_the_way_a_newcomer_takes_what_is_left():
    """The slot rows allow the large group, the nodes do not: the second round solves around what runs."""
    columns, nodes = _fragmented()
    needs = [c.need for c in columns if c.id != "new/less"]
    assert all(sum(weight for _, weight in row.weights) <= row.limit for row in rows(needs, nodes))
    choice = choose(columns, nodes)
    assert ids(choice) == {"a/0", "b/0", "new/less"}
    assert choice.moved == ()
    assert {c.id: where for c, where in choice.placed}["b/0"] == (("n1", 1),)


def test_moves_are_named_and_paid_for():
    """Where moves are allowed one group makes way if that costs less than the newcomer gains."""
    columns, nodes = _fragmented(moving=0.3)
    choice = choose(columns, nodes, limits=MOVES)
    assert ids(choice) == {"a/0", "b/0", "new/best"}
    assert len(choice.moved) == 1
    assert 0.3 <= choice.score.losses[0] < 0.3 + 0.01
    columns, nodes = _fragmented(moving=3.0)
    choice = choose(columns, nodes, limits=MOVES)
    assert (ids(choice), choice.moved) == ({"a/0", "b/0", "new/less"}, ())


def test_a_move_never_oversubscribes():
    """Whoever makes way finds another node, and nobody's devices are promised twice."""
    columns = [a_column(f"k{n}", group=1, nodes=((f"n{n}", 1),), moving=0.1) for n in range(4)]
    columns += [a_column("big0", group=4), a_column("big1", group=4)]
    nodes = [a_node(f"n{n}", devices=4) for n in range(3)] + [a_node("n3", devices=2)]
    moved = pack_moving(columns, nodes)
    assert moved is not None
    assert moved.ids
    room = {node.name: node.devices for node in nodes}
    assert all(devices <= room[name] for name, (devices, _) in used(moved.placed).items())
    assert pack_moving([*columns, a_column("big2", group=8)], nodes) is None


def test_a_group_that_runs_is_not_chosen_where_its_node_is_taken():
    """Elsewhere it would be a move, which nobody named: there is room, and it is not taken."""
    running, new = a_column("a", group=4, nodes=(("n0", 1),)), a_column("new", group=4)
    layout = Layout(Board([running, new]), [a_node("n0", devices=4), a_node("n1", devices=4)])
    assert layout.put(new)
    assert layout.placed["new/0"][1] == (("n0", 1),)
    assert not layout.put(running)
    assert layout.exchange([new], [running, new])
    assert layout.placed["new/0"][1] == (("n1", 1),)


def test_more_replicas_leave_those_that_run_where_they_are():
    """A column that runs one group and wants three keeps the one and adds two."""
    column = a_column(a_member(serves=True), group=4, count=3, nodes=(("n1", 1),))
    choice = choose([column], [a_node("n0"), a_node("n1")])
    assert choice.placed == ((column, (("n0", 2), ("n1", 1))),)


def test_staying_is_the_least_that_comes_out():
    """The start is never left for a worse choice, even if no time is left for the solver."""
    columns = [
        a_column(a_member("a", serves=True), "now", group=4, nodes=(("n0", 1),)),
        a_column(a_member("a", serves=True), "worse", group=1, loss=3.0),
        a_column("b", group=4, loss=4.0),
    ]
    start = ["a/now"]
    stays = Board(columns).score([columns[0]])
    for seconds in (0.0, 3.0):
        limits = ChoiceLimits(solver=SolverLimits(seconds=seconds))
        choice = choose(columns, [a_node()], start=start, limits=limits)
        assert choice.score <= stays
        assert ids(choice) == {"a/now", "b/0"}


# Memory.


def test_memory_binds_where_it_is_counted():
    """Threads for three, memory for two: the third stays out, and nothing is oversubscribed."""
    columns = _every("a", "b", "c", memory=3)
    choice = choose(columns, [a_node(devices=8, memory=8)])
    assert choice.score.unplaced == (1,)
    assert used(choice.placed) == {"n0": (2, 6)}


def test_what_rows_allow_and_memory_forbids_is_found_out():
    """Two dimensions: rows over both hold, no packing does, and a smaller choice comes out."""
    nodes = [a_node("n0", devices=4, memory=2), a_node("n1", devices=1, memory=8)]
    columns = [
        a_column("a", group=4, memory=4),
        a_column("a", "small", group=1, memory=4, loss=1.0),
    ]
    choice = choose(columns, nodes)
    assert ids(choice) == {"a/small"}
    assert used(choice.placed) == {"n1": (1, 4)}


# Without a solver.


def test_without_highs_the_greedy_chooses(monkeypatch):
    """A missing package is no outage: the plan is made, and says by whom."""
    monkeypatch.setitem(sys.modules, "highspy", None)
    choice = choose(_every("a", "b"), [a_node(devices=2)])
    assert (choice.solver, ids(choice)) == ("Greedy", {"a/0", "b/0"})


def test_when_highs_fails_the_greedy_chooses(monkeypatch):
    """So is a solver that refuses its model."""
    monkeypatch.setattr(milp._Programme, "_run", lambda *_: (None, False))
    columns = [a_column("a", group=8), a_column("a", "small", loss=0.1), *_every("b")]
    choice = choose(columns, [a_node()])
    assert (choice.solver, ids(choice)) == ("Greedy", {"a/small", "b/0"})


def test_a_choice_that_is_not_proven_says_so():
    """Without time the start is returned, marked."""
    columns = [a_column("a", group=8), a_column("a", "small", loss=0.1), *_every("b")]
    limits = ChoiceLimits(solver=SolverLimits(seconds=0.0))
    assert choose(columns, [a_node()], limits=limits).solver == "HiGHSTimeLimit"
    assert choose(columns, [a_node()]).solver == "HiGHS"
    found = solve_milp(columns, [a_node()], start=["b/0"], limits=SolverLimits(seconds=0.0))
    assert found is not None
    assert ([c.id for c in found.columns], found.proven) == (["b/0"], False)


def test_nothing_to_choose_among_is_a_choice():
    """No column at all gives an empty choice, not an error."""
    choice = choose([], [a_node()])
    assert (choice.placed, choice.solver) == ((), "HiGHS")


def test_the_greedy_asks_others_to_make_room():
    """One intent takes its second column so that another has its first, if that saves loss."""
    columns = [
        a_column("a", "large", group=4),
        a_column("a", "small", group=2, loss=0.1),
        a_column("b", "large", group=4),
        a_column("b", "small", group=2, loss=3.0),
    ]
    found = solve_greedy(columns, [a_node(devices=6)])
    assert set(found.placed) == {"a/small", "b/large"}


# Slots.


def test_a_rack_spreads_new_groups_and_keeps_old_ones():
    """New groups go where most devices are free; a preferred node is used as far as it has room."""
    rack = Rack([a_node("n0", devices=4), a_node("n1", devices=8)])
    need = a_column(group=2, count=3).need
    assert rack.place(need) == (("n0", 1), ("n1", 2))
    assert rack.place(need, prefer=(("n0", 3),)) == (("n0", 2), ("n1", 1))
    assert rack.place(a_column(group=2, count=7).need) is None
    assert rack.place(a_column(group=2, pool="L4").need) is None


def test_sizes_between_powers_of_two_are_rounded_up():
    """A group of three counts as four in the rows, and takes three."""
    need = a_column(group=3, count=2).need
    assert (need.size, need.devices) == (4, 6)
    limits = {row.weights: row.limit for row in rows([need], [a_node(devices=6)])}
    assert limits == {((0, 8.0),): 6.0, ((0, 4.0),): 3.0, ((0, 2.0),): 1.0}
