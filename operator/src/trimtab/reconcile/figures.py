"""Per-intent gauges, from what statuses show."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any

from trimtab.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from trimtab.observe.records import IntentRecord

_FIELDS = {"ttft": "timeToFirstTokenMilliseconds", "tpot": "timePerOutputTokenMilliseconds"}


def publish(records: Iterable[IntentRecord]) -> None:
    """Set predicted, observed, cost and unsatisfied gauges; intents that are gone vanish."""
    for gauge in (metrics.PREDICTED, metrics.OBSERVED, metrics.COST, metrics.UNSATISFIED):
        gauge.clear()
    unsatisfied: Counter[str] = Counter()
    ratios: dict[str, list[float]] = {name: [] for name in _FIELDS}
    for record in records:
        plan = record.status.get("plan") or {}
        predicted, observed = plan.get("predicted") or {}, record.status.get("observed") or {}
        _set(metrics.PREDICTED, record, predicted)
        _set(metrics.OBSERVED, record, observed)
        if "costPerHour" in plan:
            metrics.COST.labels(namespace=record.namespace, intent=record.name).set(
                float(plan["costPerHour"])
            )
        for name, ratio in _ratios(predicted, observed):
            ratios[name].append(ratio)
        for condition in record.status.get("conditions") or ():
            if condition.get("type") == "Ready" and condition.get("status") != "True":
                unsatisfied[str(condition.get("reason"))] += 1
    for reason, count in unsatisfied.items():
        metrics.UNSATISFIED.labels(reason=reason).set(count)
    for name, values in ratios.items():
        if values:
            metrics.PREDICTION_RATIO.labels(metric=name).set(median(values))


def _ratios(
    predicted: Mapping[str, Any], observed: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
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
