"""From rows to verdicts: predictions, raw and anchored, beside what requests saw."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.open_loop import UNFINISHED, percentile
from trimtab.bench.road.anchoring import PREEMPTIONS, anchors
from trimtab.bench.road.choices import Seen, compare, wishes
from trimtab.bench.road.figures import (
    ANCHORED,
    RAW,
    SHARES,
    expected,
    figure,
    machine_spread,
    off_by,
    pooled,
    spread,
)
from trimtab.bench.road.forecast import POLICY, Forecast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.road.forecast import Replay
    from trimtab.bench.road.ledger import Ledger, Opening, Row
    from trimtab.bench.road.matrix import Way
    from trimtab.planning.plan import Option
    from trimtab.planning.queue_sim import Metric

JSON = dict[str, Any]  # any: a document
_RIGHT_PERCENT: Final = 80.0
_ALONE: Final = 0.05
_SHARED_CORES: Final = "replicas share cores with gateway and client: order only"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """A ledger with its predictions, raw and with the first repeat's anchors."""

    opening: Opening
    rows: tuple[Row, ...]
    ways: dict[str, Way]
    raw: Forecast
    anchored: Forecast | None
    anchors: int

    @property
    def planned_rate(self) -> float:
        """The rate that served caches were planned for."""
        return self.opening.shape.loads[-1] * self.opening.rates.base

    def of(self, way: str, kind: str, share: float | None = None) -> list[Row]:
        found = [r for r in self.rows if r.run.way == way and r.run.kind == kind]
        return [r for r in found if share is None or r.run.share == share]

    def option(self, forecast: Forecast, way: str, share: float) -> Option:
        return forecast.option(self.ways[way], share * self.opening.rates.base)

    def replays(
        self, way: Way, rows: Sequence[Row], *, forecast: Forecast | None = None
    ) -> list[Replay]:
        planned = 0.0 if way.small else self.planned_rate
        by = forecast or self.raw
        return [by.replay(row.run, way, planned_rate=planned) for row in rows]

    def judged(self, way: Way) -> bool:
        """Return whether each replica has a core, with one left for gateway and client."""
        cpus = self.opening.conditions.get("cpus") or 0
        return way.replicas < cpus


def report(ledger: Ledger) -> JSON:
    """Return the benchmark's document.

    Raises:
        ValueError: The ledger holds no opening: nothing was measured.
    """
    bench = _bench(ledger)
    shape = bench.opening.shape
    tried = [_cell(bench, way, share) for way in shape.ways() for share in shape.loads]
    cells = [cell for cell in tried if cell is not None]
    apart = [way for way in shape.ways() if bench.judged(way)]
    choices = {
        "choices": _choices(bench, shape.ways()),
        "choices_anchored": _choices(bench, shape.ways(), anchored=True),
        "choices_with_a_core_each": _choices(bench, apart),
        "choices_with_a_core_each_anchored": _choices(bench, apart, anchored=True),
    }
    preempted = _preempted(bench)
    return {
        "benchmark": "planner-cpu",
        "label": "measured",
        "model": bench.opening.model,
        "policy": POLICY.digest(),
        "conditions": bench.opening.conditions
        | {
            "shape": shape.to_dict(),
            "base_requests_per_second": round(bench.opening.rates.base, 4),
        },
        "counts": _counts(bench, ledger),
        "cells": cells,
        "capacity": [c for way in shape.ways() if (c := _capacity(bench, way)) is not None],
        "preemption": preempted,
        **choices,
        "targets": _targets([*cells, *([preempted] if preempted else [])], choices),
    }


def _bench(ledger: Ledger) -> _Bench:
    opening = ledger.opening
    if opening is None:
        raise ValueError("Nothing was measured yet: the file of results is empty.")
    shape, known = opening.shape, opening.known()
    ways = {way.name: way for way in (*shape.ways(), shape.small_way())}
    rows = tuple(sorted(ledger.rows.values(), key=lambda r: r.run.key))
    raw = Forecast(known, prompt=shape.prompt, output=shape.output)
    compared = {way.name: way for way in shape.ways()}
    found = anchors(rows, compared, raw)
    used = [a for a in found if a.steps >= POLICY.anchor_steps]
    anchored = (
        Forecast(known, prompt=shape.prompt, output=shape.output, anchors=used) if used else None
    )
    return _Bench(
        opening=opening, rows=rows, ways=ways, raw=raw, anchored=anchored, anchors=len(used)
    )


def _counts(bench: _Bench, ledger: Ledger) -> JSON:
    errors: dict[str, int] = {}
    for row in bench.rows:
        if row.run.kind != "capacity":
            for kind, count in row.errors.items():
                errors[kind] = errors.get(kind, 0) + count
    return {
        "runs": len(bench.rows),
        "requests": sum(row.requests for row in bench.rows),
        "errors": errors,
        "anchors": bench.anchors,
        "skipped_ways": {s.way: s.why for s in ledger.skipped.values()},
        "client_lag_ms_p99": max((r.lag_ms_p99 or 0.0 for r in bench.rows), default=None),
        "load_average": [
            min((min(r.load_average) for r in bench.rows), default=None),
            max((max(r.load_average) for r in bench.rows), default=None),
        ],
    }


def _cell(bench: _Bench, way: Way, share: float) -> JSON | None:
    rows = bench.of(way.name, "load", share)
    if not rows:
        return None
    raw = bench.option(bench.raw, way.name, share)
    anchored = None if bench.anchored is None else bench.option(bench.anchored, way.name, share)
    return {
        "way": way.name,
        "load": share,
        "requests_per_second": round(rows[0].run.rate, 4),
        "repeats": len(rows),
        "requests": sum(row.requests for row in rows),
        "unfinished": sum(row.errors.get(UNFINISHED, 0) for row in rows),
        "confidence": raw.confidence.level,
        **_figures(
            bench,
            way,
            rows,
            bench.replays(way, rows),
            predicted=_foretold(raw),
            anchored={} if anchored is None else _foretold(anchored),
        ),
        **({} if bench.judged(way) else {"note": _SHARED_CORES}),
    }


def _foretold(option: Option) -> dict[tuple[Metric, str], float]:
    ttft, tpot = option.predicted.ttft, option.predicted.tpot
    return {
        ("TPOT", "p50"): tpot.p50_us,
        ("TPOT", "p95"): tpot.p95_us,
        ("TTFT", "p50"): ttft.p50_us,
    }


def _figures(
    bench: _Bench,
    way: Way,
    rows: Sequence[Row],
    replays: Sequence[Replay],
    *,
    predicted: Mapping[tuple[Metric, str], float | None],
    anchored: Mapping[tuple[Metric, str], float | None],
) -> JSON:
    found: JSON = {}
    for metric, name in RAW:
        found.setdefault(metric, {})[name] = figure(
            rows,
            replays,
            metric=metric,
            name=name,
            predicted_us=predicted[metric, name],
            anchored_us=anchored.get((metric, name)),
            judged=bench.judged(way),
        )
    return found


def _capacity(bench: _Bench, way: Way) -> JSON | None:
    rows = bench.of(way.name, "capacity")
    if not rows:
        return None
    rates = [row.requests_per_second for row in rows]
    predicted = bench.raw.capacity(way, planned_rate=bench.planned_rate)
    anchored = (
        None
        if bench.anchored is None
        else bench.anchored.capacity(way, planned_rate=bench.planned_rate)
    )
    fresh = [row.requests_per_second for row in rows if row.run.repeat > 0]
    return {
        "way": way.name,
        "repeats": len(rows),
        "predicted_requests_per_second": round(predicted, 4),
        "observed_requests_per_second": round(statistics.median(rates), 4),
        "error_percent": off_by(predicted, statistics.median(rates)),
        "spread_percent": spread(rates),
        "anchored_requests_per_second": None if anchored is None else round(anchored, 4),
        "anchored_error_percent": off_by(anchored, statistics.median(fresh) if fresh else None),
        **({} if bench.judged(way) else {"note": _SHARED_CORES}),
    }


def _preempted(bench: _Bench) -> JSON | None:
    """Return the run on a cache that is too small; the closed form knows no preemption."""
    way = bench.opening.shape.small_way()
    rows = bench.of(way.name, "preempt")
    if not rows:
        return None
    replays = bench.replays(way, rows)
    again = [] if bench.anchored is None else bench.replays(way, rows, forecast=bench.anchored)
    counted = [row.counters[PREEMPTIONS] for row in rows if row.counters]
    return {
        "way": way.name,
        "label": "predicted by the simulated queue from the requests that were sent",
        "requests_per_second": round(rows[0].run.rate, 4),
        "requests": sum(row.requests for row in rows),
        "kv_tokens": {
            "planned": bench.raw.option(way, 0.0).kv_tokens,
            "engine": rows[0].kv_tokens,
        },
        "preemptions": {
            "predicted": sum(replay.preemptions for replay in replays),
            "observed": round(sum(counted)) if counted else None,
        },
        **_figures(
            bench,
            way,
            rows,
            replays,
            predicted={(m, n): expected(replays, m, SHARES[n]) for m, n in RAW},
            anchored={(m, n): expected(again, m, SHARES[n]) for m, n in RAW},
        ),
    }


def _choices(bench: _Bench, ways: Sequence[Way], *, anchored: bool = False) -> list[JSON]:
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
    bench: _Bench, ways: Sequence[Way], share: float, *, forecast: Forecast, fresh: bool
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


def _seen(bench: _Bench, way: Way, share: float, *, fresh: bool) -> Seen | None:
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


def _targets(cells: Sequence[JSON], choices: Mapping[str, Sequence[JSON]]) -> JSON:
    found: JSON = {}
    for metric, name in RAW:
        found[f"{metric} {name} within {RAW[metric, name]:g} %"] = _tally(
            [cell[metric][name] for cell in cells], "verdict", "error_percent"
        )
    for metric, name in ANCHORED:
        found[f"{metric} {name} within {ANCHORED[metric, name]:g} % with anchors"] = _tally(
            [cell[metric][name] for cell in cells], "anchored_verdict", "anchored_error_percent"
        )
    for title, made in choices.items():
        found[f"pick is the observed best in {_RIGHT_PERCENT:g} % of {title}"] = _picks(made)
    return found


def _tally(figures: Sequence[JSON], verdict_key: str, error_key: str) -> JSON:
    verdicts = [figure[verdict_key] for figure in figures]
    judged = [f for f in figures if f[verdict_key] in ("met", "missed")]
    return {
        "cells": len(figures),
        "met": verdicts.count("met"),
        "missed": verdicts.count("missed"),
        "machine_too_noisy": verdicts.count("machine too noisy"),
        "not_judged": verdicts.count("not judged"),
        "worst_error_percent": max((f[error_key] for f in judged), key=abs, default=None),
    }


def _picks(choices: Sequence[JSON]) -> JSON:
    counted = [choice for choice in choices if choice["counted"]]
    right = [choice for choice in counted if choice["outcome"] == "best"]
    return {
        "cells": len(choices),
        "options_differ_by_more_than_the_spread": len(counted),
        "right": len(right),
        "worse": sum(choice["outcome"] == "worse" for choice in choices),
        "percent": round(100 * len(right) / len(counted), 1) if counted else None,
    }
