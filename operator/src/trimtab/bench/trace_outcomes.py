"""What choices on traces are worth: regret, violations, and the best static choice of each group."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench import choices
from trimtab.bench.report import interval, percent
from trimtab.bench.trace_cells import choose, shortfall

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trimtab.bench.trace_cells import Candidate, Objective, Targets, View
    from trimtab.bench.trace_loads import TraceLoad
    from trimtab.planning.policy import PlannerPolicy

JSON = dict[str, Any]  # any: JSON
TIE: Final = 0.03
"""Planner.md §11: a choice may be this much worse than the best static one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One question: an objective for a model on a product under a load."""

    objective: Objective
    model: str
    product: str
    load: TraceLoad
    candidates: tuple[Candidate, ...]

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Cells that differ in rate alone: a static choice is made once for all of them."""
        return (self.objective, self.model, self.product, self.load.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pick turned out to be worth.

    Attributes:
        cell: The question.
        pick: What was chosen.
        oracle: The best in truth.
        violates: The pick misses in truth what the objective asks for.
        regret: Share by which it is worse than the oracle in what the objective minimises; None if it
            violates.
    """

    cell: Cell
    pick: Candidate
    oracle: Candidate
    violates: bool
    regret: float | None

    def value(self) -> float:
        """Return what the objective minimises: ms, or GPUs."""
        return _value(self.cell.objective, self.pick)

    def as_choice(self) -> choices.Outcome:
        """Return the outcome as `planner-choice` has them, for the paper's ratios."""
        load = self.cell.load

        def candidate(of: Candidate) -> choices.Candidate:
            figures = choices.Figures(
                e2e_ms=of.views["truth"].e2e_ms,
                tpot_ms=of.views["truth"].tpot_p95_ms,
                tokens_per_gpu=load.output_tokens / len(load.arrivals) * load.rate / of.gpus,
            )
            return choices.Candidate(
                size=of.setup.size, concurrency=of.replicas, predicted=figures, measured=figures
            )

        return choices.Outcome(
            cell=choices.Cell(
                objective=self.cell.objective,
                prompt=load.load.prompt,
                output=load.load.output,
                limit=load.faster,
                candidates=(),
            ),
            pick=candidate(self.pick),
            oracle=candidate(self.oracle),
            violates=self.violates,
            regret=self.regret,
        )


class Judge:
    """Judges picks by truth, with the targets that were asked for."""

    def __init__(self, targets: Targets, *, policy: PlannerPolicy) -> None:
        self._targets = targets
        self._policy = policy

    def answer(self, cell: Cell, view: View = "planner") -> Outcome:
        """Return the outcome of choosing by a view."""
        return self.outcome(cell, self._choose(cell, view))

    def outcome(self, cell: Cell, pick: Candidate) -> Outcome:
        """Return what a pick is worth."""
        oracle = self._choose(cell, "truth")
        violates = not self._meets(cell, pick)
        regret = _value(cell.objective, pick) / _value(cell.objective, oracle) - 1
        return Outcome(
            cell=cell,
            pick=pick,
            oracle=oracle,
            violates=violates,
            regret=None if violates else regret,
        )

    def answerable(self, cell: Cell) -> bool:
        """Whether anything on the node meets the objective in truth."""
        return any(self._meets(cell, c) for c in cell.candidates)

    def _meets(self, cell: Cell, candidate: Candidate) -> bool:
        worst = shortfall(
            cell.objective, candidate, "truth", targets=self._targets, policy=self._policy
        )
        return worst <= 1

    def _choose(self, cell: Cell, view: View) -> Candidate:
        return choose(
            cell.objective, cell.candidates, view, targets=self._targets, policy=self._policy
        )

    def fewest(self, cell: Cell) -> Outcome:
        """Return the outcome of the least GPUs on which the model fits."""
        return self.outcome(cell, min(cell.candidates, key=lambda c: (c.gpus, c.setup.size)))

    def random_regret(self, cell: Cell) -> float | None:
        """Return the mean regret of all candidates that meet the objective."""
        regrets = [r for c in cell.candidates if (r := self.outcome(cell, c).regret) is not None]
        return statistics.fmean(regrets) if regrets else None

    def static(self, cells: Sequence[Cell]) -> list[tuple[str, tuple[Outcome, ...]]]:
        """Return every static choice for cells of one group, the best in hindsight first."""
        names = [c.name for c in cells[0].candidates]
        found = []
        for name in names:
            outcomes = tuple(
                self.outcome(cell, next(c for c in cell.candidates if c.name == name))
                for cell in cells
            )
            found.append((name, outcomes))
        return sorted(found, key=lambda pair: _badness(pair[1]))


def _badness(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return violations, then what is minimised: what makes a static choice good or poor."""
    return (
        sum(o.violates for o in outcomes),
        statistics.fmean(o.value() / _value(o.cell.objective, o.oracle) for o in outcomes),
    )


def _value(objective: Objective, candidate: Candidate) -> float:
    return candidate.views["truth"].e2e_ms if objective == "MinLatency" else float(candidate.gpus)


def loses(ours: Outcome, static: Outcome) -> bool:
    """Whether a pick is more than 3 % worse than a static one: it misses alone, or costs more."""
    if ours.violates != static.violates:
        return ours.violates
    return ours.value() > (1 + TIE) * static.value()


def quality(outcomes: Iterable[Outcome]) -> JSON:
    """Return counts first, then violations and regret with its interval."""
    found = list(outcomes)
    regrets = [o.regret for o in found if o.regret is not None]
    return {
        "cells": len(found),
        "violations": sum(o.violates for o in found),
        "mean_regret_percent": percent(statistics.fmean(regrets)) if regrets else None,
        "interval_percent": interval(regrets) if regrets else None,
        "max_regret_percent": percent(max(regrets)) if regrets else None,
    }
