"""The fleet's choice without a solver: places for as many as possible, then regret, then swaps.

It is the solver's start, its fallback, and what its result is compared with (planner.md §9).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from trimtab.planning.columns import UNPLACED, Board, Column, Member
from trimtab.planning.layout import Layout
from trimtab.planning.slots import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapLimits:
    """How long improving goes on, counted in steps, so that equal inputs give equal choices.

    Attributes:
        swaps: Most swaps that are made (planner.md §9).
        tries: Most swaps that are tried in vain.
        depth: Most partners that one swap is tried with.
    """

    swaps: int = 1000
    tries: int = 2_000
    depth: int = 8


def solve_greedy(
    columns: Iterable[Column],
    slots: Sequence[Node],
    *,
    start: Collection[str] = (),
    limits: SwapLimits | None = None,
) -> Layout:
    """Return a choice: the better of going on from what runs and of starting anew.

    Args:
        columns: What may be chosen.
        slots: What the nodes have free, the places of what runs among them.
        start: Ids of the columns in force; those that still fit are never left for a worse choice.
        limits: On swaps.
    """
    board = Board(columns)
    bounds = limits or SwapLimits()
    ids = frozenset(start)
    begun = [column for column in board.columns if column.id in ids]
    going_on = Layout(board, slots)
    going_on.pack(begun)
    anew = Layout(board, slots)
    anew.pack(column for column in begun if any(m.serves for m in column.members))
    found: list[Layout] = []
    for layout, fresh in ((going_on, False), (anew, True)):
        _fill(layout)
        if fresh:
            _take_best(layout)
        improve(layout, limits=bounds)
        found.append(layout)
    return min(found, key=lambda layout: board.score(layout.chosen()))


def improve(layout: Layout, *, limits: SwapLimits) -> None:
    """Make swaps that improve the score until none is found, or the limit is reached."""
    left = _Budget(swaps=limits.swaps, tries=limits.tries)
    progress = True
    while progress and left.swaps > 0 and left.tries > 0:
        progress = False
        for member in _by_regret(layout):
            if _better(layout, member, left, depth=limits.depth):
                progress = True
                left.swaps -= 1
            if left.swaps <= 0 or left.tries <= 0:
                return


def settle_ages(layout: Layout) -> None:
    """Give the places of a choice that is best but for age to the older of equals."""
    board = layout.board
    unplaced = [member for member in board.members if layout.of(member.uid) is None]
    for member in sorted(unplaced, key=lambda m: (m.created_seconds, m.uid)):
        for column in board.of[member.uid]:
            if not layout.rivals(column) and _replaces(layout, column):
                break


def _replaces(layout: Layout, column: Column) -> bool:
    """Put a column in the place of another if that improves the score."""
    come = layout.board.change((), (column,))
    for other in sorted(layout.in_pool(column.need.pool), key=lambda c: c.id):
        gone = layout.board.leaving(other)
        both = tuple(a + b for a, b in zip(come, gone, strict=True))
        if _improves(both) and layout.exchange((other,), (column,)):
            return True
    return False


@dataclass(slots=True)
class _Budget:
    swaps: int
    tries: int


def _fill(layout: Layout) -> None:
    """Place whoever has no place with the least devices, by priority: as few as possible stay out."""

    def order(column: Column) -> tuple[object, ...]:
        rank = min(member.rank for member in column.members)
        oldest = min(member.created_seconds for member in column.members)
        devices = column.need.devices / len(column.members)
        return (rank, devices, column.need.memory_bytes, oldest, column.cost, column.id)

    for column in sorted(layout.board.columns, key=order):
        if not layout.rivals(column):
            layout.put(column)


def _take_best(layout: Layout) -> None:
    """Give each its best column that fits, by priority, who would lose most by its second first."""

    def order(member: Member) -> tuple[object, ...]:
        costs = [column.cost for column in layout.board.of[member.uid]]
        gap = (costs[1] if len(costs) > 1 else UNPLACED) - costs[0]
        return (member.rank, -gap, member.created_seconds, member.uid)

    for member in sorted(layout.board.members, key=order):
        for column in layout.board.of[member.uid]:
            rivals = layout.rivals(column)
            if column.id in layout.placed:
                break
            if _improves(layout.board.change(rivals, (column,))) and layout.exchange(
                rivals, (column,)
            ):
                break


def _by_regret(layout: Layout) -> Iterator[Member]:
    """Yield those that do not have their best column: who has none first, then the largest regret."""

    def order(member: Member) -> tuple[object, ...]:
        has = layout.of(member.uid)
        regret = UNPLACED if has is None else has.cost - layout.board.of[member.uid][0].cost
        return (has is not None, member.rank, -regret, member.created_seconds, member.uid)

    for member in sorted(layout.board.members, key=order):
        has = layout.of(member.uid)
        if has is None or has.id != layout.board.of[member.uid][0].id:
            yield member


def _better(layout: Layout, member: Member, left: _Budget, *, depth: int) -> bool:
    """Give one member a cheaper column, alone or by asking another column of the pool to change."""
    for column in layout.board.of[member.uid]:
        rivals = layout.rivals(column)
        if column.id in layout.placed:
            return False
        change = layout.board.change(rivals, (column,))
        left.tries -= 1
        if _improves(change) and layout.exchange(rivals, (column,)):
            return True
        partners = nsmallest(
            depth, _partners(layout, column, rivals, change), key=lambda p: (p[0], *p[1])
        )
        for _, _, gone, come in partners:
            left.tries -= 1
            if layout.exchange((*rivals, gone), (column, *come)):
                return True
        if left.tries <= 0:
            return False
    return False


_Partner = tuple[tuple[float, ...], tuple[str, str], Column, tuple[Column, ...]]
"""The change of the score, ids that break ties, who makes room, and what it takes instead."""


def _partners(
    layout: Layout, column: Column, rivals: Sequence[Column], change: tuple[float, ...]
) -> Iterator[_Partner]:
    """Yield who could make room in the pool, so that both changes together improve the score."""
    board = layout.board
    apart = {rival.id for rival in rivals}
    if all(abs(one) <= _NOTHING for one in change):
        return
    for other in layout.in_pool(column.need.pool):
        if other.id in apart:
            continue
        gone = board.leaving(other)
        both = tuple(a + b for a, b in zip(change, gone, strict=True))
        if _improves(both):
            yield both, (other.id, ""), other, ()
        yield from _instead(board, column, other, change)


def _instead(
    board: Board, column: Column, other: Column, change: tuple[float, ...]
) -> Iterator[_Partner]:
    """Yield what a partner could take instead, which costs it less than the change gains."""
    level = board.level(other)
    first = next(n for n, one in enumerate(change) if abs(one) > _NOTHING)
    if first > level:
        return
    # An improvement on a higher level is worth any loss on this one.
    bound = -change[level] if first == level else UNPLACED
    mine = {member.uid for member in column.members}
    for one in board.of[other.members[0].uid]:
        lost = one.cost - other.cost
        if lost >= bound:
            return
        same = one.members == other.members and mine.isdisjoint(m.uid for m in one.members)
        if one.id != other.id and same and _takes_less(one, other):
            both = tuple(a + (lost if n == level else 0.0) for n, a in enumerate(change))
            if _improves(both):
                yield both, (other.id, one.id), other, (one,)


def _takes_less(one: Column, other: Column) -> bool:
    """Tell whether a column leaves more of the other's pool."""
    if one.need.pool != other.need.pool or one.need.devices < other.need.devices:
        return True
    return one.need.memory_bytes * one.need.count < other.need.memory_bytes * other.need.count


def _improves(change: tuple[float, ...]) -> bool:
    """Tell whether the first level that changes gets smaller."""
    for one in change:
        if abs(one) > _NOTHING:
            return one < 0
    return False


_NOTHING = 1e-8
