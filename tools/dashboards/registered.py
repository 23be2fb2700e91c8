"""Which samples Trimtab's processes export: the allow-list of dashboards and alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trimtab.telemetry import metrics as operator
from trimtab_workers.gateway.metrics import GatewayMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

_SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
    "summary": ("", "_count", "_sum"),
    "info": ("_info",),
}

VLLM: Final = {
    "histogram": (
        "time_to_first_token_seconds", "inter_token_latency_seconds",
        "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens",
        "request_params_max_tokens", "request_params_n", "iteration_tokens_total",
    ),
    "gauge": (
        "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason",
        "kv_cache_usage_perc", "cache_config_info",
    ),
    "counter": (
        "num_preemptions", "prompt_tokens", "generation_tokens", "request_success",
        "prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
        "external_prefix_cache_hits",
    ),
}  # fmt: skip
"""vLLM's names without the prefix `vllm:` (its docs, `design/metrics`); dashboards may be used on either engine."""

ENGINE: Final = {
    "gauge": ("arena_bytes", "layers", "kv_capacity_tokens", "kv_reachable_tokens", "model_state"),
    "histogram": ("step_seconds",),
    "counter": (
        "decode_only_steps", "decode_only_seconds", "decode_only_sequences",
        "decode_only_context_tokens", "config_errors",
    ),
}  # fmt: skip
"""The engine's own names without the prefix `trimtab_engine_`."""


def _listed(prefix: str, kinds: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for kind, names in kinds.items():
        for name in names:
            yield from (f"{prefix}{name}{suffix}" for suffix in _SUFFIXES[kind])


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
        *_listed("vllm:", VLLM),
        *_listed("trimtab_engine_", ENGINE),
    }
