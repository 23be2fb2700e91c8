"""One figure of a cell: what was predicted, raw and anchored, beside what requests saw."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final, Literal

from trimtab.bench.open_loop import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.road.forecast import Replay
    from trimtab.bench.road.ledger import Row
    from trimtab.planning.queue_sim import Metric

JSON = dict[str, Any]  # any: a document
Verdict = Literal["met", "missed", "machine too noisy", "not judged"]

A_A_PERCENT: Final = 5.0
"""Repeats that differ by less are taken as equal."""

RAW: Final[Mapping[tuple[Metric, str], float]] = {
    ("TPOT", "p50"): 15.0,
    ("TPOT", "p95"): 15.0,
    ("TTFT", "p50"): 25.0,
}
"""Most percent that predictions may be off without anchors (planner.md §11)."""

ANCHORED: Final[Mapping[tuple[Metric, str], float]] = {("TPOT", "p50"): 8.0, ("TPOT", "p95"): 8.0}
"""The same with anchors."""

SHARES: Final = {"p50": 0.5, "p95": 0.95}


def verdict(error: float | None, *, target: float, noise: float | None, judged: bool) -> Verdict:
    """Return whether an error keeps within a target; all in percent.

    Noise is an answer only where it is shown to be larger than both the error and what is allowed.
    """
    if error is None or not judged:
        return "not judged"
    if noise is not None and noise > max(A_A_PERCENT, abs(error), target):
        return "machine too noisy"
    return "met" if abs(error) <= target else "missed"


def figure(
    rows: Sequence[Row],
    replays: Sequence[Replay],
    *,
    metric: Metric,
    name: str,
    predicted_us: float | None,
    anchored_us: float | None,
    judged: bool,
) -> JSON:
    """Return one figure with its errors, spreads and verdicts.

    Args:
        rows: The repeats of one cell.
        replays: What the simulated queue makes of each one's requests.
        metric: Of requests.
        name: Which percentile.
        predicted_us: By the fingerprint alone.
        anchored_us: With the first repeat's anchors; None without any.
        judged: Whether the cell can be judged at all.
    """
    share = SHARES[name]
    seen = percentile(pooled(rows, metric), share)
    # Anchors are of the first repeat, so it is not scored with them.
    fresh = percentile(pooled([row for row in rows if row.run.repeat > 0], metric), share)
    simulated = expected(replays, metric, share)
    noise = machine_spread(rows, replays, metric, share)
    error, again = off_by(predicted_us, seen), off_by(anchored_us, fresh)
    found = {
        "predicted_ms": milliseconds(predicted_us),
        "replayed_ms": milliseconds(simulated),
        "observed_ms": milliseconds(seen),
        "error_percent": error,
        "replay_error_percent": off_by(simulated, seen),
        "spread_percent": spread([percentile(samples(row, metric), share) for row in rows]),
        "machine_spread_percent": noise,
        "verdict": verdict(error, target=RAW[metric, name], noise=noise, judged=judged),
        "anchored_ms": milliseconds(anchored_us),
        "observed_after_first_repeat_ms": milliseconds(fresh),
        "anchored_error_percent": again,
    }
    target = ANCHORED.get((metric, name))
    if target is not None:
        found["anchored_verdict"] = verdict(again, target=target, noise=noise, judged=judged)
    return found


def machine_spread(
    rows: Sequence[Row], replays: Sequence[Replay], metric: Metric, share: float
) -> float | None:
    """Return how much repeats differ beyond what their different requests explain, in percent.

    Each repeat's figure is divided by what the simulated queue makes of the same requests: what is
    left between repeats is the machine's.
    """
    ratios = []
    for row, replay in zip(rows, replays, strict=True):
        seen = percentile(samples(row, metric), share)
        foretold = expected([replay], metric, share)
        ratios.append(seen / foretold if seen and foretold else None)
    return spread(ratios)


def expected(replays: Sequence[Replay], metric: Metric, share: float) -> float | None:
    """Return a percentile over the requests of all replays, µs."""
    return percentile([value for replay in replays for value in replay.values[metric]], share)


def samples(row: Row, metric: Metric) -> tuple[int, ...]:
    """Return a metric of a run's requests, µs."""
    return {"TTFT": row.ttft_us, "TPOT": row.tpot_us, "E2E": row.e2e_us}[metric]


def pooled(rows: Sequence[Row], metric: Metric) -> list[int]:
    """Return a metric of all runs' requests, µs."""
    return [sample for row in rows for sample in samples(row, metric)]


def off_by(predicted: float | None, seen: float | None) -> float | None:
    """Return how far a prediction is off, in percent of what was seen; None without either."""
    return round(100 * (predicted / seen - 1), 2) if predicted and seen else None


def spread(values: Sequence[float | None]) -> float | None:
    """Return (largest - smallest)/median of repeats in percent; None of fewer than two."""
    known = [value for value in values if value]
    if len(known) < 2:
        return None
    return round(100 * (max(known) - min(known)) / statistics.median(known), 2)


def milliseconds(us: float | None) -> float | None:
    """Return µs as ms with three digits; None of None."""
    return None if us is None else round(us / 1000, 3)
