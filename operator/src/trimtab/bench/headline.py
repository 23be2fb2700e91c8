"""iServe's headline ratios, measured here the same way: against a poor static choice.

The paper's sizes appear only against a static choice that does not fit the load; beside them stands
the same against the best static choice of each group, which is the harder comparison.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from trimtab.bench.report import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.choices import Outcome
    from trimtab.bench.report import JSON

Compared = tuple["Sequence[Outcome]", "Sequence[Sequence[Outcome]]", float]
"""Ours, the static choices on the same cells with the best first, and the profiling ratio."""


def headline(groups: Sequence[Compared]) -> list[JSON]:
    """Return one line per ratio: the paper's, ours against the poor and the best static choice."""
    poor = [
        pair for ours, static, _ in groups if static for pair in zip(ours, static[-1], strict=True)
    ]
    best = [
        pair for ours, static, _ in groups if static for pair in zip(ours, static[0], strict=True)
    ]
    profiling = [ratio for _, _, ratio in groups]
    return [
        _line("latency", "-77.62 %", _change(poor, "e2e_ms"), _change(best, "e2e_ms")),
        _line("cost per token", "-86.70 %", _change(poor, "cost"), _change(best, "cost")),
        _line("SLO violations, static : ours", "7.09 : 1", _violations(poor), _violations(best)),
        _line(
            "throughput per GPU",
            "4.72 times",
            _throughput(poor),
            _throughput(best),
        ),
        _line(
            "profiling, full model : fingerprint (expected, decode step)",
            "6.05 times",
            f"{statistics.fmean(profiling):.2f} times" if profiling else "-",
            "-",
        ),
    ]


def _line(name: str, paper: str, poor: str, best: str) -> JSON:
    return {
        "ratio": name,
        "paper": paper,
        "against the poorest static": poor,
        "against the best static": best,
    }


def _change(pairs: Sequence[tuple[Outcome, Outcome]], field: str) -> str:
    """Return the mean change in latency over MinLatency cells, in cost over MinCost cells."""
    objective = "MinLatency" if field == "e2e_ms" else "MinCost"
    changes = [
        getattr(ours.pick.measured, field) / getattr(static.pick.measured, field) - 1
        for ours, static in pairs
        if ours.cell.objective == objective
    ]
    return f"{percent(statistics.fmean(changes)):+.2f} %" if changes else "-"


def _violations(pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    targets = [p for p in pairs if p[0].cell.objective == "TargetLatency"]
    ours = sum(p[0].violates for p in targets)
    return f"{sum(p[1].violates for p in targets)} : {ours} of {len(targets)}"


def _throughput(pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    """Return the mean ratio over latency targets that both meet."""
    ratios = [
        ours.pick.measured.tokens_per_gpu / static.pick.measured.tokens_per_gpu
        for ours, static in pairs
        if ours.cell.objective == "TargetLatency" and not ours.violates and not static.violates
    ]
    return f"{statistics.fmean(ratios):.2f} times, {len(ratios)} cells" if ratios else "-"
