"""What no chooser can beat on measured rows: the price of a margin, and of errors that a target allows.

Rows are few concurrencies, mostly twofold apart. A prediction that its margin puts over a target costs a
step of that grid at once, however exact it is. So two chances are asked the same questions: one that knows
the rows and keeps the margin all the same, and one whose predictions are the rows with a given mean error.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trimtab.bench.choices import Figures, Outcome, answer, with_margin
from trimtab.bench.report import JSON, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.choices import Candidate, Cell
    from trimtab.planning.policy import PlannerPolicy

ERRORS_PERCENT: Final = (0, 2, 5, 10)
"""Mean absolute errors of predictions; 5 and 10 are the targets of `planner-error`."""
MOST_VIOLATIONS: Final = 0.05
_MARGINS_PERMILLE: Final = tuple(range(0, 525, 25))
_DRAWS: Final = 5
# Of a normal number's absolute value.
_MEAN_ABSOLUTE: Final = math.sqrt(2 / math.pi)
_ASKED: Final = ("TargetLatency", "TargetCost")


def foresight(cells: Sequence[Cell], *, margin: float, policy: PlannerPolicy) -> list[Outcome]:
    """Return the outcomes of a chooser that knows the rows, and keeps a margin."""
    exact = (
        replace(cell, candidates=tuple(replace(c, predicted=c.measured) for c in cell.candidates))
        for cell in cells
    )
    return [answer(with_margin(cell, margin), policy=policy) for cell in exact]


def bounds(cells: Sequence[Cell], *, policy: PlannerPolicy) -> JSON:
    """Return per objective with a target what exact and less exact predictions are worth at best.

    For every error it is the least margin, in steps of 2.5 points, at which at most 5 % of the targets
    are missed: a smaller one breaks that, a larger one costs more. Errors are lognormal, independent,
    without a bias, which real ones are not: so this is what a good model could do, not what ours would.
    """
    return {
        objective: [
            _bound([c for c in cells if c.objective == objective], error, policy=policy)
            for error in ERRORS_PERCENT
        ]
        for objective in _ASKED
        if any(c.objective == objective for c in cells)
    }


def _bound(cells: Sequence[Cell], error: int, *, policy: PlannerPolicy) -> JSON:
    draws = random.Random(error)  # noqa: S311 - a fixed seed
    rounds = _DRAWS if error else 1
    blurred = [_blurred(cell, error / 100, draws) for _ in range(rounds) for cell in cells]
    margin, outcomes = 0, list[Outcome]()
    for margin in _MARGINS_PERMILLE:
        asked = (with_margin(cell, margin / 1000) for cell in blurred)
        outcomes = [answer(cell, policy=policy) for cell in asked]
        if statistics.fmean(o.violates for o in outcomes) <= MOST_VIOLATIONS:
            break
    regrets = [o.regret for o in outcomes if o.regret is not None]
    tokens = [o.pick.measured.tokens_per_gpu / o.oracle.measured.tokens_per_gpu for o in outcomes]
    return {
        "mape_percent": error,
        "margin_percent": margin / 10,
        "violations_percent": percent(statistics.fmean(o.violates for o in outcomes)),
        "mean_regret_percent": percent(statistics.fmean(regrets)),
        "max_regret_percent": percent(max(regrets)),
        "tokens_per_gpu_of_oracle_percent": percent(statistics.fmean(tokens)),
    }


def _blurred(cell: Cell, error: float, draws: random.Random) -> Cell:
    """Return a cell whose predictions are its rows with a mean absolute error."""
    spread = error / _MEAN_ABSOLUTE

    def one(candidate: Candidate) -> Candidate:
        factor = math.exp(spread * draws.gauss(0, 1))
        was = candidate.measured
        said = Figures(
            e2e_ms=was.e2e_ms * factor,
            tpot_ms=was.tpot_ms * factor,
            tokens_per_gpu=was.tokens_per_gpu / factor,
        )
        return replace(candidate, predicted=said)

    return replace(cell, candidates=tuple(map(one, cell.candidates)))
