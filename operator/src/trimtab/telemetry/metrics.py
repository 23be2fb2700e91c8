"""The operator's metrics (operator.md §7, joints.md §15); no object name labels a reconcile metric."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry()

_STEP_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)

RECONCILE_TOTAL: Final = Counter(
    "trimtab_reconcile_total",
    "Steps of objects' loops by kind and result (ok, failed).",
    ["kind", "result"],
    registry=REGISTRY,
)
RECONCILE_SECONDS: Final = Histogram(
    "trimtab_reconcile_duration_seconds",
    "How long a step took.",
    ["kind"],
    buckets=_STEP_BUCKETS,
    registry=REGISTRY,
)
API_WRITES: Final = Counter(
    "trimtab_api_writes_total",
    "Mutating requests by kind, verb (apply, create, delete) and result (ok or the fault).",
    ["kind", "verb", "result"],
    registry=REGISTRY,
)
MISSING_PERMISSION: Final = Counter(
    "trimtab_api_missing_permission",
    "Requests that failed because the operator's role lacks a verb on a resource.",
    ["verb", "resource"],
    registry=REGISTRY,
)
LOOP_LAG: Final = Gauge(
    "trimtab_event_loop_lag_seconds",
    "Largest lateness of a 50 ms tick of the event loop in the last 10 s.",
    registry=REGISTRY,
)
OLDEST_TICK: Final = Gauge(
    "trimtab_loop_oldest_tick_seconds",
    "Age of the oldest last step among the loops of a kind.",
    ["kind"],
    registry=REGISTRY,
)
UNSATISFIED: Final = Gauge(
    "trimtab_unsatisfied_intents",
    "Intents that are not Ready, by the reason of Ready.",
    ["reason"],
    registry=REGISTRY,
)
LEADER: Final = Gauge(
    "trimtab_leader", "1 on the replica that leads, 0 on standbys.", registry=REGISTRY
)
COLD_START: Final = Gauge(
    "trimtab_cold_start_seconds",
    "From the process's start until the barrier opened and every object was stepped once.",
    registry=REGISTRY,
)
PLAN_SECONDS: Final = Histogram(
    "trimtab_plan_seconds",
    "How long the fleet's plan took.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30),
    registry=REGISTRY,
)
UNFOUND: Final = Gauge(
    "trimtab_intents_without_findings",
    "Running intents of which the last plan could not find out whether fewer replicas would do: "
    "nothing of them is taken away. Not 0 is a bug; the log names intent and error.",
    registry=REGISTRY,
)
PLAN_WAITING: Final = Gauge(
    "trimtab_plan_waiting_seconds",
    "Age of the oldest change that no plan takes into account yet; 0 without any.",
    registry=REGISTRY,
)
PLAN_FAILURES: Final = Counter(
    "trimtab_plan_failures_total",
    "Plans that could not be made: the planner's process died, hung or raised.",
    registry=REGISTRY,
)
PLAN_CHANGES: Final = Counter(
    "trimtab_plan_changes_total",
    "Intents whose plan became another, by change (placed, unplaced, configuration, replicas).",
    ["change"],
    registry=REGISTRY,
)
PLAN_MARGIN: Final = Gauge(
    "trimtab_plan_margin_ratio",
    "Margin added to a prediction before it is held against a target, median of the planned intents.",
    ["metric"],
    registry=REGISTRY,
)
CONFIDENCE: Final = Gauge(
    "trimtab_intents_by_confidence",
    "Planned intents by the confidence in their prediction (High, Medium, Low).",
    ["level"],
    registry=REGISTRY,
)
OUTSIDE_MARGIN: Final = Gauge(
    "trimtab_intents_outside_margin",
    "Intents observed slower, or faster, than predicted by more than the margin.",
    ["metric", "direction"],
    registry=REGISTRY,
)
LOAD: Final = Gauge(
    "trimtab_load_requests_per_second",
    "Requests per second of all intents together: declared by them, planned for, observed.",
    ["load"],
    registry=REGISTRY,
)
COST_PER_MILLION: Final = Gauge(
    "trimtab_cost_per_million_output_tokens",
    "Cost per hour of the intents that have a price and this load, over their output tokens.",
    ["load"],
    registry=REGISTRY,
)
INVALID_FINGERPRINTS: Final = Gauge(
    "trimtab_invalid_fingerprints",
    "Fingerprint documents that cannot be used as they are; events FingerprintInvalid name them.",
    registry=REGISTRY,
)
UNUSED_DELETED: Final = Counter(
    "trimtab_unused_measurements_deleted_total",
    "Measurements that nothing had used for 30 days and that were deleted (fingerprint, accuracy).",
    ["kind"],
    registry=REGISTRY,
)
PREDICTION_RATIO: Final = Gauge(
    "trimtab_prediction_ratio",
    "Observed over predicted, median of the intents that have both.",
    ["metric"],
    registry=REGISTRY,
)
CACHE_DIFFERENCES: Final = Counter(
    "trimtab_cache_differences_total",
    "Objects whose cached state differed from the API server's for over a minute.",
    ["kind"],
    registry=REGISTRY,
)
PREDICTED: Final = Gauge(
    "trimtab_intent_predicted_seconds",
    "Predicted latency of the chosen option (ttft, tpot), at the percentile of the intent.",
    ["namespace", "intent", "metric", "percentile"],
    registry=REGISTRY,
)
OBSERVED: Final = Gauge(
    "trimtab_intent_observed_seconds",
    "Latency as the gateway saw it in five minutes (ttft, tpot), at the percentile of the intent.",
    ["namespace", "intent", "metric", "percentile"],
    registry=REGISTRY,
)
COST: Final = Gauge(
    "trimtab_intent_cost_per_hour",
    "Cost per hour of the devices that an intent reserves, in the price book's currency.",
    ["namespace", "intent"],
    registry=REGISTRY,
)


class WriteMetrics:
    """Counts what `kube` writes."""

    def wrote(self, *, kind: str, verb: str, result: str) -> None:
        """Count one write."""
        API_WRITES.labels(kind=kind, verb=verb, result=result).inc()

    def forbidden(self, *, verb: str, resource: str) -> None:
        """Count one missing right."""
        MISSING_PERMISSION.labels(verb=verb, resource=resource).inc()
