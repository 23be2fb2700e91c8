"""The joint choice for the whole fleet: solver, greedy, and what runs staying where it is.

Three rounds (planner.md §9): solve, and pack new groups around those that run; if that fails, solve
again with the places of what runs taken out; then, where moving is possible, allow named moves at
their cost. Whatever comes out is compared with the greedy's choice and with staying, and the best of
them is taken: never worse than staying, where staying is possible.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from trimtab.planning.columns import Board, Column, Score
from trimtab.planning.greedy import SwapLimits, improve, settle_ages, solve_greedy
from trimtab.planning.layout import Layout
from trimtab.planning.milp import Exact, SolverLimits, solve_milp
from trimtab.planning.moves import pack_moving
from trimtab.planning.plan import Solver
from trimtab.planning.slots import Node, Nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLimits:
    """How long is searched, and whether groups that run may be moved between nodes."""

    solver: SolverLimits = field(default_factory=SolverLimits)
    swaps: SwapLimits = field(default_factory=SwapLimits)
    moves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is chosen, sorted by id, and where it lies.

    Attributes:
        placed: Columns with their nodes.
        score: How good it is.
        solver: Who found it: ``HiGHSTimeLimit`` if the time ran out before it was proven best,
            ``Greedy`` if HiGHS is missing or failed.
        moved: Ids of columns of which groups leave their nodes.
    """

    placed: tuple[tuple[Column, Nodes], ...]
    score: Score
    solver: Solver
    moved: tuple[str, ...] = ()


def choose(
    columns: Iterable[Column],
    slots: Sequence[Node],
    *,
    start: Collection[str] = (),
    limits: ChoiceLimits | None = None,
) -> Choice:
    """Return the best choice that is found; independent of the order of its inputs.

    Args:
        columns: What may be chosen, at most once per intent.
        slots: What each node has free, the places of what the columns run on among it.
        start: Ids of the columns in force, from which the search starts.
        limits: On the search.
    """
    bounds = limits or ChoiceLimits()
    every = sorted(columns, key=lambda c: c.id)
    nodes = sorted(slots, key=lambda n: n.name)
    rough = solve_greedy(every, nodes, start=start, limits=replace(bounds.swaps, swaps=0))
    exact = solve_milp(every, nodes, start=tuple(rough.placed), limits=bounds.solver)
    if exact is None:
        improve(rough, limits=bounds.swaps)
        return _choice(rough, "Greedy")
    solver: Solver = "HiGHS" if exact.proven else "HiGHSTimeLimit"
    found = Layout(rough.board, nodes)
    whole = not found.pack(exact.columns)
    layouts = [rough, found]
    if whole and exact.proven:
        settle_ages(found)
    else:
        # What is not proven to be best is searched further.
        improve(found, limits=bounds.swaps)
    if not whole:
        layouts.append(_around(rough, exact, nodes, bounds))
    choices = [_choice(layout, solver) for layout in layouts]
    if not whole and bounds.moves:
        choices.extend(_moving(rough.board, exact, nodes, solver))
    return min(choices, key=lambda c: c.score)


def _around(rough: Layout, exact: Exact, nodes: Sequence[Node], bounds: ChoiceLimits) -> Layout:
    """Return the second round: what runs and is kept has its place, the others what that leaves."""
    layout = Layout(rough.board, nodes)
    layout.pack(column for column in exact.columns if column.nodes)
    rest = [
        column for column in rough.board.columns if not column.nodes and not layout.rivals(column)
    ]
    start = [id_ for id_ in rough.placed if any(id_ == column.id for column in rest)]
    left = replace(bounds.solver, seconds=exact.left)
    again = solve_milp(rest, layout.rack.nodes(), start=start, limits=left)
    layout.pack(again.columns if again is not None else ())
    improve(layout, limits=bounds.swaps)
    return layout


def _moving(board: Board, exact: Exact, nodes: Sequence[Node], solver: Solver) -> Iterable[Choice]:
    """Yield the third round: the first one's columns, with groups that run moved out of the way."""
    moved = pack_moving(exact.columns, nodes)
    if moved is not None:
        yield Choice(
            placed=moved.placed,
            score=board.score(column for column, _ in moved.placed),
            solver=solver,
            moved=moved.ids,
        )


def _choice(layout: Layout, solver: Solver) -> Choice:
    return Choice(
        placed=tuple(layout.placed[id_] for id_ in sorted(layout.placed)),
        score=layout.board.score(layout.chosen()),
        solver=solver,
    )
