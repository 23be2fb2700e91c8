"""The planner's picks on a ledger: per load and objective, beside what requests saw."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.open_loop import percentile
from trimtab.bench.road.choices import Seen, compare, wishes
from trimtab.bench.road.figures import machine_spread, pooled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.road.evidence import Evidence
    from trimtab.bench.road.forecast import Forecast
    from trimtab.bench.road.matrix import Way

JSON = dict[str, Any]  # any: a document
_ALONE: Final = 0.05


def choices(bench: Evidence, ways: Sequence[Way], *, anchored: bool = False) -> list[JSON]:
    """Return a comparison per load and objective, of those ways that were measured."""
    forecast = bench.anchored if anchored else bench.raw
    if forecast is None:
        return []
    return [
        {"load": share} | choice
        for share in bench.opening.shape.loads
        for choice in _chosen(bench, ways, share, forecast=forecast, fresh=anchored)
    ]


def _chosen(
    bench: Evidence, ways: Sequence[Way], share: float, *, forecast: Forecast, fresh: bool
) -> list[JSON]:
    seen = {
        way.name: found
        for way in ways
        if (found := _seen(bench, way, share, fresh=fresh)) is not None
    }
    if len(seen) < 2:
        return []
    raw = {name: bench.option(bench.raw, name, share) for name in seen}
    options = {name: bench.option(forecast, name, share) for name in seen}
    load = forecast.load(share * bench.opening.rates.base)
    # Both are put to the same targets.
    wanted = wishes(forecast.intent, raw, load=load)
    return [compare(wish, options, seen, load=load) for wish in wanted]


def _seen(bench: Evidence, way: Way, share: float, *, fresh: bool) -> Seen | None:
    rows = [r for r in bench.of(way.name, "load", share) if r.run.repeat > 0 or not fresh]
    if not any(row.e2e_us for row in rows):
        return None
    replays = bench.replays(way, rows)
    capacity = [row.requests_per_second for row in bench.of(way.name, "capacity")]
    noise = [
        machine_spread(rows, replays, "E2E", 0.5),
        machine_spread(rows, replays, "TPOT", 0.95),
    ]
    known = [n for n in noise if n is not None]
    return Seen(
        ttft_us=tuple(pooled(rows, "TTFT")),
        tpot_us=tuple(pooled(rows, "TPOT")),
        e2e_us=tuple(pooled(rows, "E2E")),
        capacity=statistics.median(capacity) if capacity else None,
        alone=(
            percentile(pooled(bench.of(way.name, "load"), "TTFT"), _ALONE) or 0.0,
            percentile(pooled(bench.of(way.name, "load"), "TPOT"), _ALONE) or 0.0,
        ),
        spread=None if len(known) < len(noise) else max(known) / 100,
    )


def tally(made: Sequence[JSON]) -> JSON:
    """Return how many picks were right among those that measurement can tell apart."""
    counted = [choice for choice in made if choice["counted"]]
    right = [choice for choice in counted if choice["outcome"] == "best"]
    return {
        "cells": len(made),
        "options_differ_by_more_than_the_spread": len(counted),
        "right": len(right),
        "worse": sum(choice["outcome"] == "worse" for choice in made),
        "percent": round(100 * len(right) / len(counted), 1) if counted else None,
    }
