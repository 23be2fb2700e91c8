"""The gateway's own metrics, one registry per gateway."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
_OVERHEAD_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip


class GatewayMetrics:
    """Prefix `trimtab_gateway_`; no object's name is a label (joints.md, section 15)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered, by HTTP status.", "code")
        self.retries = self._counter("retries", "Attempts on another pod, by reason.", "reason")
        self.upstream_errors = self._counter(
            "upstream_errors", "Attempts that a worker failed, by reason.", "reason"
        )
        self.auth_cache = self._counter(
            "auth_cache", "Questions about callers, by what the cache knew.", "result"
        )
        self.auth_unavailable = self._counter(
            "auth_unavailable", "Times the API server gave no verdict about a caller."
        )
        self.watch_restarts = self._counter(
            "watch_restarts", "Watches started again, by resource and reason.", "resource", "reason"
        )
        self.route_errors = self._counter(
            "route_errors", "Routing documents that could not be read and changed nothing."
        )
        self.duration = self._histogram(
            "request_duration_seconds", "From a request's arrival to its last byte.", _SECONDS
        )
        self.first_byte = self._histogram(
            "time_to_first_byte_seconds", "From a request's arrival to its first byte.", _SECONDS
        )
        self.overhead = self._histogram(
            "time_overhead_seconds",
            "The gateway's own time before a worker has the request, without holding.",
            _OVERHEAD_SECONDS,
        )
        self.in_flight = self._gauge("inflight", "Requests being served.")
        self.held = self._gauge("held", "Requests waiting for a ready pod.")
        self.revision = self._gauge("routes_revision", "Highest revision of a routing document.")
        self.models = self._gauge("routes_models", "Models in the routing table.")
        self.live = self._gauge(
            "routes_live", "1 if the routing table came from the API server, 0 if from disk."
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"trimtab_gateway_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"trimtab_gateway_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"trimtab_gateway_{name}", text, buckets=buckets, registry=self.registry)
