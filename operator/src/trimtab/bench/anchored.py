"""Measured rows beside their predictions, and what a few of them, as anchors, do for the others."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from trimtab.bench.closed_loop import closed_loop
from trimtab.bench.report import JSON, percent
from trimtab.planning.calibration import Correction, Residual

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.closed_loop import Times
    from trimtab.bench.silicon import Row
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.step_model import StepModel

Metric = Literal["TPOT", "TTFT"]
METRICS: Final[tuple[Metric, ...]] = ("TPOT", "TTFT")

LEAST_ROWS: Final = 12
"""A group with fewer rows has none to spare as anchors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured row and what was predicted for it."""

    row: Row
    predicted: Times

    def error(self, metric: Metric, correction: Correction | None = None) -> float | None:
        """Return the relative error of a prediction, corrected or raw; None if it was not measured.

        A correction lengthens or shortens every step, so it applies to both times alike.
        """
        said, was = self.predicted.tpot_ms, self.row.tpot_ms
        if metric == "TTFT":
            said, was = self.predicted.ttft_ms, self.row.ttft_ms
        if not (math.isfinite(was) and was > 0):
            return None
        row = self.row
        known = (
            correction.log_factor(row.tensor_parallel_size, row.concurrency) if correction else 0.0
        )
        return said / was * math.exp(known) - 1

    def residual(self) -> Residual:
        """Return the row as an anchor: its time per output token is its mean step."""
        return Residual(
            tensor_parallel_size=self.row.tensor_parallel_size,
            batch=self.row.concurrency,
            error=math.log(self.row.tpot_ms / self.predicted.tpot_ms),
        )


def errors(
    compared: Sequence[Compared], metric: Metric, correction: Correction | None = None
) -> list[float]:
    """Return the relative errors of the rows that were measured."""
    found = (c.error(metric, correction) for c in compared)
    return [error for error in found if error is not None]


def compare(rows: Sequence[Row], models: Mapping[int, StepModel]) -> list[Compared]:
    """Return rows with their predictions; rows of sizes without a model are left out."""
    return [
        Compared(
            row=row,
            predicted=closed_loop(
                models[row.tensor_parallel_size],
                prompt=row.prompt,
                output=row.output,
                concurrency=row.concurrency,
            ),
        )
        for row in rows
        if row.tensor_parallel_size in models
    ]


def anchors_of(compared: Sequence[Compared], *, count: int) -> list[Compared]:
    """Return the rows that serve as anchors, chosen by load alone, never by their error.

    Four: the smallest and the largest tensor-parallel size at their least and most concurrency,
    of the most usual lengths. One: the first of these. Two: both of the smallest size.
    """
    if not compared:
        return []
    sizes = sorted({c.row.tensor_parallel_size for c in compared})
    chosen: list[Compared] = []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        rows = [c for c in compared if c.row.tensor_parallel_size == size]
        levels = sorted({c.row.concurrency for c in rows})
        for level in dict.fromkeys((levels[0], levels[-1])):
            here = [c for c in rows if c.row.concurrency == level]
            here.sort(key=lambda c: (c.row.prompt, c.row.output))
            chosen.append(here[len(here) // 2])
    return chosen[:count]


def correction_from(
    anchors: Sequence[Compared], *, sizes: Sequence[int], policy: PlannerPolicy
) -> Correction:
    """Return the correction that anchors make."""
    return Correction(
        residuals=tuple(anchor.residual() for anchor in anchors),
        sizes=tuple(sizes),
        policy=policy,
    )


def anchored(
    compared: Sequence[Compared], metric: Metric, *, count: int, policy: PlannerPolicy
) -> tuple[list[float], list[float]]:
    """Return the unscored rows' errors without and with the correction; nothing for few rows."""
    if len(compared) < LEAST_ROWS:
        return [], []
    chosen = anchors_of(compared, count=count)
    sizes = sorted({c.row.tensor_parallel_size for c in compared})
    correction = correction_from(chosen, sizes=sizes, policy=policy)
    scored = [c for c in compared if not any(c is anchor for anchor in chosen)]
    return errors(scored, metric), errors(scored, metric, correction)


def two_at_one_size(compared: Sequence[Compared], *, policy: PlannerPolicy) -> JSON | None:
    """Return by how many points two anchors at the smallest size raise any other size's error.

    Beside it the naive way: one factor for all sizes.
    """
    sizes = sorted({c.row.tensor_parallel_size for c in compared})
    if len(sizes) < 2:
        return None
    anchors = anchors_of(compared, count=2)
    correction = correction_from(anchors, sizes=sizes, policy=policy)
    naive = math.exp(statistics.fmean(a.residual().error for a in anchors))
    ours: list[float] = []
    theirs: list[float] = []
    for size in sizes[1:]:
        rows = [c for c in compared if c.row.tensor_parallel_size == size]
        raw = errors(rows, "TPOT")
        before = statistics.fmean(map(abs, raw))
        ours.append(statistics.fmean(map(abs, errors(rows, "TPOT", correction))) - before)
        theirs.append(statistics.fmean(abs((1 + e) * naive - 1) for e in raw) - before)
    return {"raised_points": percent(max(ours)), "naive_raised_points": percent(max(theirs))}
