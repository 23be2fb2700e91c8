"""From rows to verdicts: predictions, raw and anchored, beside what requests saw."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.open_loop import UNFINISHED
from trimtab.bench.road.anchoring import PREEMPTIONS
from trimtab.bench.road.evidence import gather
from trimtab.bench.road.figures import ANCHORED, RAW, SHARES, expected, figure, off_by, spread
from trimtab.bench.road.forecast import POLICY
from trimtab.bench.road.picks import choices, tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.road.evidence import Evidence
    from trimtab.bench.road.forecast import Replay
    from trimtab.bench.road.ledger import Ledger, Row
    from trimtab.bench.road.matrix import Way
    from trimtab.planning.plan import Option
    from trimtab.planning.queue_sim import Metric

JSON = dict[str, Any]  # any: a document
_RIGHT_PERCENT: Final = 80.0
_SHARED_CORES: Final = "replicas share cores with gateway and client: order only"


def report(ledger: Ledger) -> JSON:
    """Return the benchmark's document.

    Raises:
        ValueError: The ledger holds no opening: nothing was measured.
    """
    bench = gather(ledger)
    shape = bench.opening.shape
    tried = [_cell(bench, way, share) for way in shape.ways() for share in shape.loads]
    cells = [cell for cell in tried if cell is not None]
    apart = [way for way in shape.ways() if bench.judged(way)]
    made = {
        "choices": choices(bench, shape.ways()),
        "choices_anchored": choices(bench, shape.ways(), anchored=True),
        "choices_with_a_core_each": choices(bench, apart),
        "choices_with_a_core_each_anchored": choices(bench, apart, anchored=True),
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
        **made,
        "targets": _targets([*cells, *([preempted] if preempted else [])], made),
    }


def _counts(bench: Evidence, ledger: Ledger) -> JSON:
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


def _cell(bench: Evidence, way: Way, share: float) -> JSON | None:
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
    bench: Evidence,
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


def _capacity(bench: Evidence, way: Way) -> JSON | None:
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


def _preempted(bench: Evidence) -> JSON | None:
    """Return the run on a cache too small, judged by the replay: its plan is for next to no load."""
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
        found[f"pick is the observed best in {_RIGHT_PERCENT:g} % of {title}"] = tally(made)
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
