"""Gauges of intents and of their plans, from what statuses show.

Series of single intents are a closed list (joints.md §15); the rest are sums and counts over all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from trimtab.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from trimtab.observe.records import IntentRecord

_FIELDS: Final = {"ttft": "timeToFirstTokenMilliseconds", "tpot": "timePerOutputTokenMilliseconds"}
_MARGINS: Final = {"ttft": "timeToFirstTokenPercent", "tpot": "timePerOutputTokenPercent"}
_LEVELS: Final = ("High", "Medium", "Low")
_LOADS: Final = ("declared", "planned", "observed")


def publish(records: Iterable[IntentRecord]) -> None:
    """Set every gauge that statuses decide; intents that are gone vanish."""
    intents = tuple(records)
    _latencies(intents)
    _unsatisfied(intents)
    _trust(intents)
    _loads(intents)


def _latencies(records: Sequence[IntentRecord]) -> None:
    for gauge in (metrics.PREDICTED, metrics.OBSERVED, metrics.PREDICTION_RATIO):
        gauge.clear()
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        predicted, observed = _plan(record).get("predicted") or {}, _observed(record)
        _set(metrics.PREDICTED, record, predicted)
        _set(metrics.OBSERVED, record, observed)
        for name, ratio in _ratios(predicted, observed):
            ratios[name].append(ratio)
    for name, values in ratios.items():
        metrics.PREDICTION_RATIO.labels(metric=name).set(median(values))


def _unsatisfied(records: Sequence[IntentRecord]) -> None:
    metrics.UNSATISFIED.clear()
    found: Counter[str] = Counter()
    for record in records:
        for condition in record.status.get("conditions") or ():
            if condition.get("type") == "Ready" and condition.get("status") != "True":
                found[str(condition.get("reason"))] += 1
    for reason, count in found.items():
        metrics.UNSATISFIED.labels(reason=reason).set(count)


def _trust(records: Sequence[IntentRecord]) -> None:
    """Set how sure plans are, and how many intents are outside of what they promised."""
    metrics.PLAN_MARGIN.clear()
    levels: Counter[str] = Counter()
    margins: defaultdict[str, list[float]] = defaultdict(list)
    outside: Counter[tuple[str, str]] = Counter()
    for record in records:
        plan = _plan(record)
        level = (plan.get("confidence") or {}).get("level")
        if level:
            levels[str(level)] += 1
        kept = {
            name: float(plan["margin"][field]) / 100
            for name, field in _MARGINS.items()
            if field in (plan.get("margin") or {})
        }
        for name, margin in kept.items():
            margins[name].append(margin)
        for name, ratio in _ratios(plan.get("predicted") or {}, _observed(record)):
            allowed = 1 + kept.get(name, 0.0)
            outside[name, "slower"] += ratio > allowed
            outside[name, "faster"] += ratio * allowed < 1
    for known in _LEVELS:
        metrics.CONFIDENCE.labels(level=known).set(levels[known])
    for name in _FIELDS:
        for direction in ("slower", "faster"):
            metrics.OUTSIDE_MARGIN.labels(metric=name, direction=direction).set(
                outside[name, direction]
            )
    for name, values in margins.items():
        metrics.PLAN_MARGIN.labels(metric=name).set(median(values))


def _loads(records: Sequence[IntentRecord]) -> None:
    """Set loads, cost per hour, and what a million output tokens cost at each load."""
    metrics.COST.clear()
    metrics.COST_PER_MILLION.clear()
    rates: defaultdict[str, float] = defaultdict(float)
    costs: defaultdict[str, float] = defaultdict(float)
    tokens: defaultdict[str, float] = defaultdict(float)
    for record in records:
        plan = _plan(record)
        cost = float(plan["costPerHour"]) if "costPerHour" in plan else None
        if cost is not None:
            metrics.COST.labels(namespace=record.namespace, intent=record.name).set(cost)
        found = (record.spec.get("load") or {}, plan.get("load") or {}, _observed(record))
        for name, load in zip(_LOADS, found, strict=True):
            rate = float(load.get("requestsPerSecond") or 0)
            rates[name] += rate
            if cost is not None and rate and load.get("outputTokens"):
                costs[name] += cost
                tokens[name] += rate * 3600 * float(load["outputTokens"])
    for name in _LOADS:
        metrics.LOAD.labels(load=name).set(rates[name])
    for name in ("planned", "observed"):
        if tokens[name]:
            metrics.COST_PER_MILLION.labels(load=name).set(costs[name] * 1e6 / tokens[name])


def _plan(record: IntentRecord) -> Mapping[str, Any]:
    return record.status.get("plan") or {}


def _observed(record: IntentRecord) -> Mapping[str, Any]:
    return record.status.get("observed") or {}


def _ratios(
    predicted: Mapping[str, Any], observed: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """Yield observed over predicted of the metrics that have both."""
    for name, field in _FIELDS.items():
        if field in predicted and field in observed and float(predicted[field]) > 0:
            yield name, float(observed[field]) / float(predicted[field])


def _set(gauge: Any, record: IntentRecord, figures: Mapping[str, Any]) -> None:
    percentile = str(figures.get("percentile") or "mean")
    for name, field in _FIELDS.items():
        if field in figures:
            gauge.labels(
                namespace=record.namespace,
                intent=record.name,
                metric=name,
                percentile=percentile,
            ).set(float(figures[field]) / 1000)
