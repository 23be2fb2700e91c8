"""Properties of slot rows, the integer programme, the greedy and the joint choice, over drawn fleets."""

import itertools
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.planning.fleet_builders import a_column, a_member, a_node, used
from trimtab.planning.columns import Board
from trimtab.planning.greedy import solve_greedy
from trimtab.planning.joint import ChoiceLimits, choose
from trimtab.planning.layout import Layout
from trimtab.planning.milp import SolverLimits, solve_milp
from trimtab.planning.slots import Need, rows

MANY = settings(max_examples=150, deadline=None)
SOME = settings(max_examples=80, deadline=None)
EXACT = SolverLimits(gap=1e-6)
POOLS = ("H100", "L4")

frees = st.lists(st.integers(0, 8), min_size=1, max_size=4)
powers = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3)), max_size=5)
sizes = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), max_size=5)


def _nodes(free):
    return [a_node(f"n{n}", devices=devices) for n, devices in enumerate(free)]


def _needs(groups):
    return [Need(pool="H100", group=size, count=count) for size, count in groups]


def _hold(needs, nodes):
    """Tell whether all rows hold when every need is chosen."""
    return all(sum(weight for _, weight in row.weights) <= row.limit for row in rows(needs, nodes))


def _packs(groups, free):
    """Tell by trying everything whether groups fit on nodes."""
    left = sorted((size for size, count in groups for _ in range(count)), reverse=True)

    def fits(index, room):
        if index == len(left):
            return True
        tried = set()
        for n, devices in enumerate(room):
            if devices >= left[index] and devices not in tried:
                tried.add(devices)
                if fits(index + 1, (*room[:n], devices - left[index], *room[n + 1 :])):
                    return True
        return False

    return fits(0, tuple(free))


def test_slot_rows_hold_if_and_only_if_groups_of_powers_of_two_fit():
    """Exact on up to four nodes, in both directions, and the largest groups first find the places."""
    seen = set()

    @MANY
    @example(free=[4, 4], groups=[(4, 2)])
    @example(free=[3, 5], groups=[(4, 2)])
    @given(free=frees, groups=powers)
    def check(free, groups):
        nodes = _nodes(free)
        holds = _hold(_needs(groups), nodes)
        assert holds == _packs(groups, free)
        columns = [
            a_column(f"i{n}", group=size, count=count) for n, (size, count) in enumerate(groups)
        ]
        assert (not Layout(Board(columns), nodes).pack(columns)) == holds
        seen.add(holds)

    check()
    assert seen == {True, False}


def test_slot_rows_are_safe_for_other_sizes():
    """If the rounded rows hold, groups of any size fit; that they may fit without is seen too."""
    seen = set()

    @MANY
    @example(free=[4], groups=[(3, 1)])
    @example(free=[3], groups=[(3, 1)])
    @example(free=[2], groups=[(3, 1)])
    @given(free=frees, groups=sizes)
    def check(free, groups):
        holds, fits = _hold(_needs(groups), _nodes(free)), _packs(groups, free)
        assert fits or not holds
        seen.add((holds, fits))

    check()
    assert {(True, True), (False, False), (False, True)} <= seen


options = st.lists(
    st.tuples(
        st.sampled_from(POOLS),
        st.sampled_from([1, 2, 4]),
        st.integers(1, 2),
        st.integers(0, 40).map(lambda n: n / 20),
        st.sampled_from([0.0, 0.0, 1.2]),
    ),
    min_size=1,
    max_size=3,
)
members = st.tuples(st.integers(0, 2), st.integers(0, 9))
asked = st.lists(st.tuples(members, options), min_size=1, max_size=5)
fleets = st.lists(st.tuples(st.sampled_from(POOLS), st.integers(0, 4)), min_size=1, max_size=4)


def _columns(asks, *, group):
    """Return single columns, and one that the first two intents share."""
    intents = [
        a_member(f"i{n}", priority=priority, age=age) for n, ((priority, age), _) in enumerate(asks)
    ]
    found = [
        a_column(
            member,
            str(k),
            pool=pool,
            group=size,
            count=count,
            loss=loss,
            missed=missed,
            largest=8,
        )
        for member, (_, own) in zip(intents, asks, strict=True)
        for k, (pool, size, count, loss, missed) in enumerate(own)
    ]
    if group and len(intents) > 1:
        found.append(a_column(name="both", members=tuple(intents[:2]), loss=0.3, largest=8))
    return found


def _pooled(fleet):
    return [a_node(f"n{n}", pool=pool, devices=devices) for n, (pool, devices) in enumerate(fleet)]


def _best(columns, nodes):
    """Return the best score over every choice that obeys the rows."""
    board = Board(columns)
    limits = [
        (dict(row.weights), row.limit) for row in rows([c.need for c in board.columns], nodes)
    ]
    own = {}
    for n, column in enumerate(board.columns):
        own.setdefault(column.members[0].uid, [None]).append(n)
    best = None
    for each in itertools.product(*own.values()):
        ones = [n for n in each if n is not None]
        chosen = [board.columns[n] for n in ones]
        uids = [member.uid for column in chosen for member in column.members]
        fits = all(sum(w.get(n, 0.0) for n in ones) <= limit for w, limit in limits)
        if len(set(uids)) < len(uids) or not fits:
            continue
        score = board.score(chosen)
        best = score if best is None or score < best else best
    return best


def _near(one, other):
    return all(abs(a - b) < 1e-4 for a, b in zip(one.losses, other.losses, strict=True))


def test_the_programme_is_as_good_as_trying_everything_and_the_greedy_never_better():
    """Up to five intents with several priorities and a sharing group, against brute force."""
    seen = set()

    @SOME
    @example(asks=[((0, 0), [("L4", 1, 1, 0.0, 0.0)])], fleet=[("L4", 1)], group=False)
    @example(asks=[((0, 0), [("L4", 1, 1, 1.0, 0.0)])] * 2, fleet=[("L4", 1)], group=False)
    @given(asks=asked, fleet=fleets, group=st.booleans())
    def check(asks, fleet, group):
        columns, nodes = _columns(asks, group=group), _pooled(fleet)
        board, best = Board(columns), _best(columns, nodes)
        exact = solve_milp(columns, nodes, limits=EXACT)
        assert exact is not None
        assert exact.proven
        score = board.score(exact.columns)
        assert (score.unplaced, _near(score, best)) == (best.unplaced, True)
        greedy = solve_greedy(columns, nodes)
        worse = board.score(greedy.chosen())
        assert worse.unplaced >= best.unplaced
        assert worse.unplaced > best.unplaced or worse >= best
        usual = solve_milp(columns, nodes, start=list(greedy.placed))
        assert usual is not None
        assert board.score(usual.columns).unplaced == best.unplaced
        assert board.score(usual.columns).losses[0] <= best.losses[0] + 0.05 + 1e-4
        seen.add((sum(best.unplaced) > 0, best.losses[0] > 0.01))

    check()
    assert {out for out, _ in seen} == {True, False}
    assert {regret for _, regret in seen} == {True, False}


@SOME
@given(asks=asked, fleet=fleets, now=st.integers(0, 99), data=st.data())
def test_a_choice_is_sound_never_worse_than_staying_and_independent_of_order(
    asks, fleet, now, data
):
    """What runs keeps its nodes and its place, nothing is promised twice, equal bytes for any order."""
    columns, nodes = _columns(asks, group=True), _pooled(fleet)
    before = choose(columns, nodes)
    running = [placed for n, placed in enumerate(before.placed) if (now + n) % 3]
    where = {column.id: place for column, place in running}
    serving = {member.uid for column, _ in running for member in column.members}
    asked_now = [
        replace(
            column,
            members=tuple(replace(m, serves=m.uid in serving) for m in column.members),
            nodes=where.get(column.id, ()),
            switching=0.0 if column.id in where else 0.2,
        )
        for column in columns
    ]
    start = sorted(where)
    choice = choose(asked_now, nodes, start=start)
    board = Board(asked_now)
    assert choice.score <= board.score([c for c in asked_now if c.id in where])
    room = {node.name: node.devices for node in nodes}
    assert all(devices <= room[name] for name, (devices, _) in used(choice.placed).items())
    uids = [member.uid for column, _ in choice.placed for member in column.members]
    assert len(set(uids)) == len(uids)
    assert serving <= set(uids)
    for column, place in choice.placed:
        assert sum(count for _, count in place) == column.need.count
        assert column.id not in where or place == where[column.id]
    shuffled = choose(
        data.draw(st.permutations(asked_now)),
        data.draw(st.permutations(nodes)),
        start=data.draw(st.permutations(start)),
        limits=ChoiceLimits(),
    )
    assert repr(shuffled) == repr(choice)
