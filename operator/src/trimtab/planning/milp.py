"""The fleet's choice as an integer programme, solved by HiGHS stage by stage (joints.md §14).

Per rank, highest first, the number of unplaced intents is minimised and fixed; then, in the same
order, the losses, each with an absolute gap: a relative gap on one sum of both would hide every
loss. One thread and a fixed seed; only the time limit can make two runs differ, and says so.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trimtab.planning.columns import Board, Column
from trimtab.planning.slots import Node, Row, rows

_TOLERANCE: Final = 1e-6
_WHOLE_GAP: Final = 0.999
"""Counts are whole: what is less than one away cannot be improved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverLimits:
    """Seconds for all stages together, and the absolute gap of each stage of losses."""

    seconds: float = 3.0
    gap: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Columns that obey the slot rows; `proven` unless the time ran out; seconds that are left."""

    columns: tuple[Column, ...]
    proven: bool
    left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    cost: Mapping[int, float]
    gap: float


def solve_milp(
    columns: Iterable[Column],
    slots: Sequence[Node],
    *,
    start: Collection[str] = (),
    limits: SolverLimits | None = None,
) -> Exact | None:
    """Return the best choice, None if HiGHS is missing or fails.

    Args:
        columns: What may be chosen.
        slots: What the nodes have free; what the columns run on now counts as free.
        start: Ids of a choice to start from.
        limits: On time and gap.
    """
    try:
        import highspy  # noqa: PLC0415 - may be missing, and takes 0.1 s
    except ImportError:
        return None
    board = Board(columns)
    bounds = limits or SolverLimits()
    if not board.columns:
        return Exact(columns=(), proven=True, left=bounds.seconds)
    return _Programme(highspy, board, slots, bounds).solve(frozenset(start))


class _Programme:
    """Variables: one per column, then one per member that stays unplaced."""

    def __init__(
        self,
        highs: Any,  # any: highspy has no types
        board: Board,
        slots: Sequence[Node],
        limits: SolverLimits,
    ) -> None:
        self._highs = highs
        self._board = board
        self._limits = limits
        self._count = len(board.columns) + len(board.members)
        self._unplaced = {m.uid: len(board.columns) + n for n, m in enumerate(board.members)}
        needs = [column.need for column in board.columns]
        self._rows = [(-highs.kHighsInf, row) for row in rows(needs, slots)]
        holds: dict[str, list[tuple[int, float]]] = {m.uid: [] for m in board.members}
        for n, column in enumerate(board.columns):
            for member in column.members:
                holds[member.uid].append((n, 1.0))
        for uid, weights in holds.items():
            self._rows.append((1.0, Row(weights=(*weights, (self._unplaced[uid], 1.0)), limit=1.0)))
        self._left = limits.seconds

    def solve(self, start: Collection[str]) -> Exact | None:
        """Run the stages; each starts from the solution of the last."""
        values = self._started(start)
        proven = True
        for stage in self._stages():
            ceiling = sum(cost * values[n] for n, cost in stage.cost.items()) if values else None
            if stage.gap == _WHOLE_GAP and ceiling == 0:
                found: list[float] | None = values
            elif self._left <= 0:
                return None if values is None else self._chosen(values, proven=False)
            else:
                found, optimal = self._run(stage, values)
                proven = proven and optimal
            if found is None:
                return None
            values = found
            best = sum(cost * values[n] for n, cost in stage.cost.items())
            row = Row(weights=tuple(stage.cost.items()), limit=best + _TOLERANCE)
            self._rows.append((-self._highs.kHighsInf, row))
        return None if values is None else self._chosen(values, proven=proven)

    def _stages(self) -> Iterable[_Stage]:
        board = self._board
        for rank in board.ranks:
            out = {self._unplaced[m.uid]: 1.0 for m in board.members if m.rank == rank}
            yield _Stage(cost=out, gap=_WHOLE_GAP)
        for priority in board.priorities:
            cost = {n: c.cost for n, c in enumerate(board.columns) if c.priority == priority}
            yield _Stage(cost=cost, gap=self._limits.gap)

    def _started(self, start: Collection[str]) -> list[float] | None:
        """Return the start as values, None if it breaks a row: rounded sizes ask for more than packing does."""
        columns = self._board.columns
        values = [1.0 if column.id in start else 0.0 for column in columns]
        served = {m.uid for column in columns if column.id in start for m in column.members}
        values += [0.0 if member.uid in served else 1.0 for member in self._board.members]
        for low, row in self._rows:
            used = sum(weight * values[n] for n, weight in row.weights)
            if used > row.limit + _TOLERANCE or used < low - _TOLERANCE:
                return None
        return values

    def _run(self, stage: _Stage, values: list[float] | None) -> tuple[list[float] | None, bool]:
        highs = self._highs
        solver = highs.Highs()
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            ("time_limit", self._left),
            ("mip_abs_gap", stage.gap),
            ("mip_rel_gap", 0.0),
        ):
            solver.setOptionValue(name, value)
        if solver.passModel(self._model(stage)) == highs.HighsStatus.kError:
            return None, False
        if values is not None:
            solution = highs.HighsSolution()
            solution.col_value = values
            solver.setSolution(solution)
        solver.run()
        self._left -= solver.getRunTime()
        status = solver.getModelStatus()
        found = [float(round(value)) for value in solver.getSolution().col_value]
        if status == highs.HighsModelStatus.kOptimal:
            return found, True
        feasible = highs.SolutionStatus.kSolutionStatusFeasible
        if status == highs.HighsModelStatus.kTimeLimit and (
            solver.getInfo().primal_solution_status == feasible
        ):
            return found, False
        return (values, False) if status == highs.HighsModelStatus.kTimeLimit else (None, False)

    def _model(self, stage: _Stage) -> Any:  # any: highspy has no types
        highs = self._highs
        lp = highs.HighsLp()
        lp.num_col_, lp.num_row_ = self._count, len(self._rows)
        cost = np.zeros(self._count)
        for n, value in stage.cost.items():
            cost[n] = value
        lp.col_cost_ = cost
        lp.col_lower_, lp.col_upper_ = np.zeros(self._count), np.ones(self._count)
        lp.row_lower_ = np.array([low for low, _ in self._rows])
        lp.row_upper_ = np.array([row.limit for _, row in self._rows])
        lp.integrality_ = [highs.HighsVarType.kInteger] * self._count
        entries = [entry for _, row in self._rows for entry in row.weights]
        lengths = [len(row.weights) for _, row in self._rows]
        matrix = lp.a_matrix_
        matrix.format_ = highs.MatrixFormat.kRowwise
        matrix.start_ = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        matrix.index_ = np.array([n for n, _ in entries], dtype=np.int32)
        matrix.value_ = np.array([weight for _, weight in entries])
        return lp

    def _chosen(self, values: Sequence[float], *, proven: bool) -> Exact:
        chosen = [c for c, value in zip(self._board.columns, values, strict=False) if value > 0.5]
        return Exact(columns=tuple(chosen), proven=proven, left=max(0.0, self._left))
