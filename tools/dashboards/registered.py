"""Which samples Trimtab's processes export: the allow-list of dashboards and alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trimtab.telemetry import metrics as operator
from trimtab_workers.engine.metrics import EngineMetrics
from trimtab_workers.gateway.metrics import GatewayMetrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
    "summary": ("", "_count", "_sum"),
    "info": ("_info",),
}

VLLM: Final = frozenset(
    {
        "time_to_first_token_seconds", "inter_token_latency_seconds",
        "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens",
        "request_params_max_tokens", "request_params_n", "iteration_tokens_total",
        "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason",
        "kv_cache_usage_perc", "cache_config_info", "num_preemptions_total", "prompt_tokens_total",
        "generation_tokens_total", "request_success_total", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "external_prefix_cache_queries_total",
        "external_prefix_cache_hits_total",
    }
)  # fmt: skip
"""vLLM's names after the prefix `vllm:`, histograms without suffix (its `design/metrics`)."""


def exported(registry: CollectorRegistry) -> set[str]:
    """Return the sample names of a registry, also of metrics that have no sample yet."""
    return {
        f"{family.name}{suffix}"
        for family in registry.collect()
        for suffix in _SUFFIXES.get(family.type, ("",))
    }


def sample_names() -> set[str]:
    """Return every sample name that a process of Trimtab exports."""
    return {
        *exported(operator.REGISTRY),
        *exported(GatewayMetrics().registry),
        *exported(EngineMetrics().registry),
    }
