"""An exporter of made-up figures for every metric of the allow-list: it proves queries and drawing, nothing else."""

from __future__ import annotations

import contextlib
import http.server
import math
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from e2e.monitoring.prometheus import Target
from tools.dashboards import registered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Move = Callable[[float], None]

_INTENT = {"namespace": "team-a", "intent": "chat"}
_LATENCIES = [{**_INTENT, "metric": metric, "percentile": "95"} for metric in ("ttft", "tpot")]
_KIND = {"kind": "InferenceIntent"}
_MODEL = {"model_name": "team-a/chat", "engine": "0"}
LABELS: dict[str, list[dict[str, str]]] = {
    "trimtab_intent_predicted_seconds": _LATENCIES,
    "trimtab_intent_observed_seconds": _LATENCIES,
    "trimtab_intent_cost_per_hour": [_INTENT],
    "trimtab_reconcile": [{**_KIND, "result": "ok"}, {**_KIND, "result": "failed"}],
    "trimtab_reconcile_duration_seconds": [_KIND],
    "trimtab_loop_oldest_tick_seconds": [_KIND],
    "trimtab_api_writes": [{"kind": "Deployment", "verb": "apply", "result": "ok"}],
    "trimtab_api_missing_permission": [{"verb": "patch", "resource": "deployments"}],
    "trimtab_unsatisfied_intents": [{"reason": "NoCapacity"}, {"reason": "Loading"}],
    "trimtab_prediction_ratio": [{"metric": "ttft"}, {"metric": "tpot"}],
    "trimtab_plan_margin_ratio": [{"metric": "ttft"}, {"metric": "tpot"}],
    "trimtab_plan_changes": [{"change": "configuration"}, {"change": "replicas"}],
    "trimtab_intents_by_confidence": [{"level": "High"}, {"level": "Low"}],
    "trimtab_intents_outside_margin": [{"metric": "tpot", "direction": "slower"}],
    "trimtab_load_requests_per_second": [
        {"load": load} for load in ("declared", "planned", "observed")
    ],
    "trimtab_cost_per_million_output_tokens": [{"load": "planned"}, {"load": "observed"}],
    "trimtab_gateway_requests": [{"code": "200"}, {"code": "503"}],
    "trimtab_gateway_retries": [{"reason": "connect"}],
    "trimtab_gateway_upstream_errors": [{"reason": "connect"}],
    "trimtab_engine_arena_bytes": [
        {"owner": owner} for owner in ("weights", "kv_home", "kv_borrowed", "free")
    ],
    "trimtab_engine_model_state": [
        {**_MODEL, "state": state} for state in ("Resident", "Lent", "Failed")
    ],
    "trimtab_engine_layers": [{**_MODEL, "state": state} for state in ("resident", "lent")],
    "trimtab_engine_kv_capacity_tokens": [_MODEL],
    "trimtab_engine_kv_reachable_tokens": [_MODEL],
    "trimtab_engine_recomputed_tokens": [_MODEL],
    "trimtab_engine_thrash_holds": [_MODEL],
    "trimtab_engine_remap_verdict": [{"verdict": "IdleOnly"}],
    "trimtab_engine_remaps": [{"kind": "lend"}],
    "trimtab_engine_reverts": [{"reason": "wake"}, {"reason": "idle"}],
    "trimtab_engine_link_bytes": [
        {"direction": "h2d", "reason": reason} for reason in ("load", "wake")
    ],
    "trimtab_engine_link_stall_seconds": [{"reason": "wake"}],
    "trimtab_engine_swaps": [{"direction": "out"}, {"direction": "in"}],
    "trimtab_engine_step_seconds": [{"phase": "decode"}, {"phase": "prefill"}],
    "vllm:num_requests_waiting_by_reason": [{"reason": "capacity"}, {"reason": "wake"}],
    "vllm:request_success": [{"finished_reason": "stop"}, {"finished_reason": "length"}],
}
SCALES = {"trimtab_engine_arena_bytes": 2.0**28, "vllm:kv_cache_usage_perc": 0.3}


def _labels(name: str) -> list[dict[str, str]]:
    engine = _MODEL if name.startswith("vllm:") else {}
    return [{**engine, **labels} for labels in LABELS.get(name, [{}])]


def _move(metric: Counter | Gauge | Histogram, *, phase: float, scale: float) -> Move:
    if isinstance(metric, Counter):
        return lambda t: metric.inc(2 + math.sin(t / 5 + phase))
    if isinstance(metric, Histogram):
        return lambda t: metric.observe(0.05 + 0.03 * math.sin(t / 7 + phase))
    return lambda t: metric.set(scale * (1.5 + math.sin(t / 9 + phase)))


def _families() -> dict[str, type[Counter | Gauge | Histogram]]:
    names = registered.sample_names()
    found: dict[str, type[Counter | Gauge | Histogram]] = {
        name.removesuffix("_bucket"): Histogram for name in names if name.endswith("_bucket")
    }
    rest = names - {f"{name}{part}" for name in found for part in ("_bucket", "_sum", "_count")}
    for name in rest:
        found[name.removesuffix("_total")] = Counter if name.endswith("_total") else Gauge
    return found


def _moves(registry: CollectorRegistry, *, without: frozenset[str]) -> Iterator[Move]:
    for number, (name, kind) in enumerate(sorted(_families().items())):
        if name not in without:
            sets = _labels(name)
            metric = kind(name, "Synthetic.", list(sets[0]), registry=registry)
            for offset, labels in enumerate(sets):
                child = metric.labels(**labels) if labels else metric
                yield _move(child, phase=number + offset, scale=SCALES.get(name, 1.0))


@contextlib.contextmanager
def exporter(
    *, without: frozenset[str] = frozenset()
) -> Iterator[tuple[Target, Callable[[], None]]]:
    """Serve made-up metrics on loopback; the second value moves them on by one tick."""
    registry = CollectorRegistry()
    moves = list(_moves(registry, without=without))

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # As the worker does: OpenMetrics would turn `vllm:` into `vllm_`.
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
            self.end_headers()
            self.wfile.write(generate_latest(registry))

        def log_message(self, *_: object) -> None:
            pass

    def tick() -> None:
        now = time.time()
        for move in moves:
            move(now)

    tick()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Target(job="trimtab-worker", address=f"127.0.0.1:{server.server_port}"), tick
        finally:
            server.shutdown()
            thread.join(timeout=10)
