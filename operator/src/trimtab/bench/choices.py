"""Questions that measured rows can answer, and how good a chooser's answers are.

A node of 8 GPUs runs 8/TP replicas. A candidate is a tensor-parallel size at a concurrency per
replica; a chooser sees predictions, the oracle sees what was measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from trimtab.bench.closed_loop import Times
    from trimtab.planning.policy import PlannerPolicy

GPUS: Final = 8
TPOT_TARGETS_MS: Final = (10, 15, 20, 30, 50)
BUDGETS: Final = (1.25, 1.5, 2.0)
"""Budgets per token as multiples of the cheapest measured one, so that every cell has an answer."""

Objective = Literal["MinLatency", "MinCost", "TargetLatency", "TargetCost"]
OBJECTIVES: Final[tuple[Objective, ...]] = (
    "MinLatency",
    "MinCost",
    "TargetLatency",
    "TargetCost",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a candidate delivers, predicted or measured."""

    e2e_ms: float
    tpot_ms: float
    tokens_per_gpu: float

    @classmethod
    def of(cls, times: Times, *, output: int, concurrency: int, size: int) -> Figures:
        """Return the figures of mean times; output tokens per second and GPU."""
        e2e = times.e2e_ms(output)
        return cls(
            e2e_ms=e2e,
            tpot_ms=times.tpot_ms,
            tokens_per_gpu=concurrency * output / e2e * 1000 / size,
        )

    @property
    def cost(self) -> float:
        """GPU seconds per output token: money follows from it at any price."""
        return 1 / self.tokens_per_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration with its figures; ``margin`` lengthens predictions before a target."""

    size: int
    concurrency: int
    predicted: Figures
    measured: Figures
    margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One question: an objective over candidates of equal lengths.

    Attributes:
        objective: What is asked for.
        prompt: Prompt tokens.
        output: Output tokens.
        limit: Concurrency of the whole node, target in ms, or budget in GPU seconds per token.
        candidates: What can be chosen.
    """

    objective: Objective
    prompt: int
    output: int
    limit: float
    candidates: tuple[Candidate, ...]


View = Callable[[Candidate], Figures]


def predicted(candidate: Candidate) -> Figures:
    """Return what a chooser sees."""
    return candidate.predicted


def measured(candidate: Candidate) -> Figures:
    """Return what the oracle sees."""
    return candidate.measured


def cells(candidates: Sequence[Candidate], *, prompt: int, output: int) -> list[Cell]:
    """Return the questions about candidates of equal lengths.

    ``MinLatency`` asks at every concurrency of the node at which all sizes were measured; the others
    ask over all candidates. A latency target that no measurement meets is no question.
    """
    sizes = {c.size for c in candidates}
    if len(sizes) < 2:
        return []
    found = []
    by_node: dict[int, list[Candidate]] = {}
    for c in candidates:
        by_node.setdefault(c.concurrency * GPUS // c.size, []).append(c)
    for concurrency, here in sorted(by_node.items()):
        if {c.size for c in here} == sizes:
            found.append(_cell("MinLatency", prompt, output, concurrency, here))
    found.append(_cell("MinCost", prompt, output, 0, candidates))
    fastest = min(c.measured.tpot_ms for c in candidates)
    found += [
        _cell("TargetLatency", prompt, output, target, candidates)
        for target in TPOT_TARGETS_MS
        if fastest <= target
    ]
    cheapest = min(c.measured.cost for c in candidates)
    found += [_cell("TargetCost", prompt, output, m * cheapest, candidates) for m in BUDGETS]
    return found


def _cell(
    objective: Objective, prompt: int, output: int, limit: float, candidates: Sequence[Candidate]
) -> Cell:
    return Cell(
        objective=objective,
        prompt=prompt,
        output=output,
        limit=limit,
        candidates=tuple(sorted(candidates, key=lambda c: (c.size, c.concurrency))),
    )


def choose(
    cell: Cell, candidates: Sequence[Candidate], view: View, *, policy: PlannerPolicy
) -> Candidate:
    """Return what an objective takes among candidates, as far as ``view`` shows them (planner.md §8).

    Where nothing meets a target with its margin, the nearest is taken, as ``ServeNearest`` does.
    """
    if cell.objective == "MinLatency":
        return min(candidates, key=lambda c: view(c).e2e_ms)
    if cell.objective == "MinCost":
        usable = [c for c in candidates if _usable(cell, c, view, policy)]
        return min(usable, key=lambda c: view(c).cost)
    if cell.objective == "TargetLatency":
        meeting = [c for c in candidates if view(c).tpot_ms * _margin(c, view) <= cell.limit]
        if meeting:
            return max(meeting, key=lambda c: view(c).tokens_per_gpu)
        return min(candidates, key=lambda c: view(c).tpot_ms)
    within = [c for c in candidates if view(c).cost * _margin(c, view) <= cell.limit]
    if within:
        return min(within, key=lambda c: view(c).e2e_ms)
    return min(candidates, key=lambda c: view(c).cost)


def _margin(candidate: Candidate, view: View) -> float:
    return 1.0 if view is measured else 1.0 + candidate.margin


def _usable(cell: Cell, candidate: Candidate, view: View, policy: PlannerPolicy) -> bool:
    """Whether a candidate is not slow beyond use: 3 times the least loaded one of its size."""
    least = min(view(c).e2e_ms for c in cell.candidates if c.size == candidate.size)
    return view(candidate).e2e_ms <= least * policy.usable_slowdown_permille / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a choice turned out to be worth.

    Attributes:
        cell: The question.
        pick: What was chosen.
        oracle: The best by measurement.
        violates: The pick measurably misses the target, the budget or the bound of use.
        regret: Share by which the pick is worse than the oracle in what the objective minimises;
            None where the pick violates, because then the two are not comparable.
    """

    cell: Cell
    pick: Candidate
    oracle: Candidate
    violates: bool
    regret: float | None


def judge(cell: Cell, pick: Candidate, *, policy: PlannerPolicy) -> Outcome:
    """Return what a pick is worth by measurement."""
    oracle = choose(cell, cell.candidates, measured, policy=policy)
    real, best = pick.measured, oracle.measured
    violates = {
        "MinLatency": False,
        "MinCost": not _usable(cell, pick, measured, policy),
        "TargetLatency": real.tpot_ms > cell.limit,
        "TargetCost": real.cost > cell.limit,
    }[cell.objective]
    by_time = cell.objective in {"MinLatency", "TargetCost"}
    ratio = real.e2e_ms / best.e2e_ms if by_time else real.cost / best.cost
    return Outcome(
        cell=cell,
        pick=pick,
        oracle=oracle,
        violates=violates,
        regret=None if violates else ratio - 1,
    )


def answer(cell: Cell, *, policy: PlannerPolicy, size: int | None = None) -> Outcome:
    """Return the outcome of choosing by predictions, among one tensor-parallel size if it is given."""
    open_ = [c for c in cell.candidates if size in {None, c.size}]
    return judge(cell, choose(cell, open_, predicted, policy=policy), policy=policy)


def with_margin(cell: Cell, margin: float) -> Cell:
    """Return a cell whose predictions are held against targets with another margin."""
    return replace(cell, candidates=tuple(replace(c, margin=margin) for c in cell.candidates))


def kendall_tau(cell: Cell) -> float:
    """Return the rank correlation of predicted and measured latencies of a cell's candidates."""
    agree = 0
    pairs = list(itertools.combinations(cell.candidates, 2))
    for a, b in pairs:
        said = a.predicted.e2e_ms - b.predicted.e2e_ms
        was = a.measured.e2e_ms - b.measured.e2e_ms
        agree += (said * was > 0) - (said * was < 0)
    return agree / len(pairs) if pairs else 1.0
