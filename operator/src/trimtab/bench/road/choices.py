"""What the planner picks under each objective, and what it ought to have picked by measurement.

Both sides go through the planner's own `judge` and `rank`: an observed option is the predicted one
with its figures replaced by what requests saw, and without a margin.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from trimtab.bench.open_loop import percentile
from trimtab.bench.road.forecast import POLICY
from trimtab.planning.objectives import Judged, judge, rank, tpot_with_margin
from trimtab.planning.plan import Latency, Option, Prediction
from trimtab.planning.snapshot import Targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.planning.snapshot import IntentView
    from trimtab.planning.workload import PlannedLoad

JSON = dict[str, Any]  # any: a document
Outcome = Literal["best", "as good within the spread", "worse"]
OBJECTIVES: Final = ("MinLatency", "MinCost", "TargetLatency", "TargetCost")
_JUDGED_PERCENTILE: Final = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What requests on one way saw at one load.

    Attributes:
        ttft_us, tpot_us, e2e_us: Of all repeats together.
        capacity: Requests per second at saturation, all replicas; None where it was not measured.
        alone: TTFT and TPOT of requests that met next to nobody, µs.
        spread: Relative, of figures between repeats, beyond what their requests explain; None of
            one repeat.
    """

    ttft_us: tuple[int, ...]
    tpot_us: tuple[int, ...]
    e2e_us: tuple[int, ...]
    capacity: float | None
    alone: tuple[float, float]
    spread: float | None


def wishes(
    intent: IntentView, options: Mapping[str, Option], *, load: PlannedLoad
) -> list[IntentView]:
    """Return the intent under the four objectives, with targets that split the options.

    The latency target is the geometric mean of the best and the worst prediction, margin included;
    the budget is half-way between the cheapest and the dearest.
    """
    tpots = [tpot_with_margin(option) for option in options.values()]
    costs = [o.cost_per_hour_micro_usd for o in options.values() if o.cost_per_hour_micro_usd]
    target = round(statistics.geometric_mean([min(tpots), max(tpots)]))
    found = [
        replace(intent, objective="MinLatency"),
        replace(intent, objective="MinCost"),
        replace(intent, objective="TargetLatency", targets=Targets(tpot_us=target)),
    ]
    if len(costs) == len(options) and load.rate > 0:
        budget = (min(costs) + max(costs)) // 2
        found.append(
            replace(intent, objective="TargetCost", targets=Targets(cost_per_hour_micro_usd=budget))
        )
    return found


def observed(option: Option, seen: Seen, *, load: PlannedLoad) -> Option:
    """Return an option with what was seen in place of what was predicted."""
    capacity = seen.capacity or option.predicted.capacity_milli_rps / 1000
    ttft, tpot = _latency(seen.ttft_us), _latency(seen.tpot_us)
    return replace(
        option,
        margin_permille=0,
        ttft_margin_permille=0,
        predicted=Prediction(
            ttft=ttft,
            tpot=tpot,
            e2e=_end_to_end(seen, ttft, tpot, output=load.output),
            unloaded_e2e_us=round(seen.alone[0] + (load.output - 1) * seen.alone[1]),
            capacity_milli_rps=round(1000 * capacity),
            utilisation_permille=round(1000 * load.rate / capacity),
            mean_batch_milli=option.predicted.mean_batch_milli,
            overloaded=load.rate > capacity,
        ),
    )


def compare(
    wish: IntentView,
    options: Mapping[str, Option],
    seen: Mapping[str, Seen],
    *,
    load: PlannedLoad,
) -> JSON:
    """Return what was picked under one objective, what was best, and whether the options differ."""
    names = {_identity(option): name for name, option in options.items()}
    priced = all(option.cost_per_hour_micro_usd is not None for option in options.values())

    def ranked(given: Sequence[Option]) -> list[Judged]:
        judged = [judge(wish, o, load=load, priced=priced, policy=POLICY) for o in given]
        return rank(wish, judged, policy=POLICY)

    pick = names[_identity(ranked(list(options.values()))[0].option)]
    by_sight = ranked([observed(o, seen[name], load=load) for name, o in options.items()])
    found = {names[_identity(j.option)]: j for j in by_sight}
    best = next(iter(found))
    worse = {
        name: _clearly_worse(found[name], found[best], seen[name], seen[best], wish)
        for name in found
        if name != best
    }
    outcome: Outcome = "best"
    if pick != best:
        outcome = "worse" if worse[pick] else "as good within the spread"
    both = found[pick].meets and found[best].meets
    return {
        "objective": wish.objective,
        "target": _target(wish),
        "pick": pick,
        "observed_best": best,
        "outcome": outcome,
        # Told apart by measurement, or shown to be wrong by it.
        "counted": all(worse.values()) or outcome == "worse",
        "regret_percent": (
            round(100 * (found[pick].score / found[best].score - 1), 2) if both else None
        ),
        "options": {
            name: {
                "meets": found[name].meets,
                "score": round(found[name].score),
                "worst_requirement": _worst(found[name]),
                "spread_percent": _percent(seen[name].spread),
            }
            for name in options
        },
    }


def _clearly_worse(
    other: Judged, best: Judged, seen: Seen, seen_best: Seen, wish: IntentView
) -> bool:
    """Return whether noise cannot explain that an option lost against the best."""
    if seen.spread is None or seen_best.spread is None:
        return False
    noise = max(seen.spread, seen_best.spread)
    ratio, best_ratio = _worst(other), _worst(best)
    if best.meets and not other.meets:
        return ratio - 1 > noise and 1 - best_ratio > noise
    if not best.meets:
        return ratio / best_ratio - 1 > noise
    by_latency = wish.objective in ("MinLatency", "TargetCost")
    gap = other.score / best.score - 1
    # Costs are exact; whether the cheaper one is good enough is not.
    return gap > noise if by_latency else gap > 0 and 1 - best_ratio > noise


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _worst(judged: Judged) -> float:
    return judged.worst.value if judged.worst else 0.0


def _target(wish: IntentView) -> JSON | None:
    if wish.objective == "TargetLatency":
        return {"tpot_ms": (wish.targets.tpot_us or 0) / 1000, "percentile": _JUDGED_PERCENTILE}
    if wish.objective == "TargetCost":
        return {"usd_per_hour": (wish.targets.cost_per_hour_micro_usd or 0) / 1e6}
    return None


def _identity(option: Option) -> tuple[str, int]:
    return option.config.precision, option.replicas


def _latency(samples: Sequence[int]) -> Latency:
    def at(share: float) -> int:
        return int(percentile(samples, share) or 0)

    return Latency(
        mean_us=round(statistics.fmean(samples)) if samples else 0,
        p50_us=at(0.5),
        p95_us=at(0.95),
        p99_us=at(0.99),
        percentile=_JUDGED_PERCENTILE,
        percentile_us=at(_JUDGED_PERCENTILE / 100),
    )


def _end_to_end(seen: Seen, ttft: Latency, tpot: Latency, *, output: int) -> Latency:
    """Return E2E as plans mean it: percentiles are of a request of mean length, not of long ones."""

    def at(first: int, each: int) -> int:
        return first + (output - 1) * each

    return Latency(
        mean_us=round(statistics.fmean(seen.e2e_us)) if seen.e2e_us else 0,
        p50_us=at(ttft.p50_us, tpot.p50_us),
        p95_us=at(ttft.p95_us, tpot.p95_us),
        p99_us=at(ttft.p99_us, tpot.p99_us),
        percentile=_JUDGED_PERCENTILE,
        percentile_us=at(ttft.percentile_us, tpot.percentile_us),
    )
