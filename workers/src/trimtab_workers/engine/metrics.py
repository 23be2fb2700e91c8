"""Prometheus metrics under vLLM's names (engine.md §6), one registry per engine.

Existing vLLM dashboards and autoscalers work unchanged; what vLLM has no name for begins with
`trimtab_engine_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.sequence import Sequence

# fmt: off
TTFT_BUCKETS = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
TOKEN_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
STEP_BUCKETS = (.001, .002, .005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10)
# fmt: on
WaitingReason = Literal["capacity", "wake", "rotation"]
WAITING_REASONS: tuple[WaitingReason, ...] = ("capacity", "wake", "rotation")
FINISHED_REASONS = ("stop", "length", "abort", "error")
MODEL_STATES = ("Loading", "Resident", "Lent", "Waking", "Draining", "Failed")
VERDICTS = ("DoNotRemap", "IdleOnly", "IdleAndActive")
Lack = Literal["host_copy", "streaming", "swap"]
LACKS: tuple[Lack, ...] = ("host_copy", "streaming", "swap")
LAYER_STATES = ("resident", "streamed", "lent", "loading")
_LABELS = ("model_name", "engine")


class EngineMetrics:
    """All collectors of one engine; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.cache_labels: dict[str, tuple[str, ...]] = {}
        self._histograms = {
            name: self._histogram(name, text, buckets) for name, text, buckets in _HISTOGRAMS
        }
        self._gauges = {name: self._gauge(name, text) for name, text in _GAUGES}
        self._counters = {name: self._counter(name, text) for name, text in _COUNTERS}
        self.waiting_by_reason = self._gauge(
            "vllm:num_requests_waiting_by_reason", "Requests waiting, by reason.", "reason"
        )
        self.success = self._counter(
            "vllm:request_success", "Finished requests, by reason.", "finished_reason"
        )
        self.model_state = self._gauge(
            "trimtab_engine_model_state", "1 for the state a model is in.", "state"
        )
        self.layers = self._gauge("trimtab_engine_layers", "Layers of a model, by state.", "state")
        self.cache_config = self._gauge(
            "vllm:cache_config_info",
            "1; the KV cache's configuration as labels.",
            "block_size",
            "num_gpu_blocks",
            "slab_bytes",
            "pressure",
        )
        self.step_seconds = self._histogram(
            "trimtab_engine_step_seconds", "Seconds of one engine step.", STEP_BUCKETS, "phase"
        )
        self.policy_off = self._gauge(
            "trimtab_engine_policy_off", "1 for a part of `pressure` a model does without.", "what"
        )
        self.arena_bytes = Gauge(
            "trimtab_engine_arena_bytes",
            "Bytes of the arena, by owner.",
            ("owner",),
            registry=self.registry,
        )
        self.link_bytes = self._counter(
            "trimtab_engine_link_bytes",
            "Bytes that crossed the link between host and device, by way and reason.",
            "direction",
            "reason",
        )
        self.link_stall_seconds = self._counter(
            "trimtab_engine_link_stall_seconds", "Seconds that steps waited for copies.", "reason"
        )
        self.remaps = self._counter(
            "trimtab_engine_remaps", "Units lent, and changes of the streaming level.", "kind"
        )
        self.reverts = self._counter(
            "trimtab_engine_reverts", "Units that went back to their homes.", "reason"
        )
        self.swaps = self._counter(
            "trimtab_engine_swaps", "KV blocks swapped between device and host.", "direction"
        )
        self.remap_verdict = self._gauge(
            "trimtab_engine_remap_verdict", "1 for the verdict of the last advice.", "verdict"
        )
        self.switch_seconds = self._histogram(
            "trimtab_engine_switch_seconds", "Seconds that a wake took.", STEP_BUCKETS
        )
        self.thrash_holds = Counter(
            "trimtab_engine_thrash_holds",
            "Wakes that were held back because models alternate too fast.",
            registry=self.registry,
        )
        self.config_errors = Counter(
            "trimtab_engine_config_errors",
            "Model set files that were refused.",
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, buckets: Items[float], *labels: str) -> Histogram:
        return Histogram(name, text, (*_LABELS, *labels), buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, (*_LABELS, *labels), registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_LABELS, *labels), registry=self.registry)

    def for_model(self, name: str) -> ModelMetrics:
        """Return the series of one model, all of them created at zero."""
        return ModelMetrics(self, name)

    def forget_model(self, name: str) -> None:
        """Drop the gauges of a model that is gone; counters stay, as Prometheus expects."""
        for gauge in self._gauges.values():
            gauge.remove(name, "0")
        for reason in WAITING_REASONS:
            self.waiting_by_reason.remove(name, "0", reason)
        for verdict in VERDICTS:
            self.remap_verdict.labels(name, "0", verdict)
            self.remap_verdict.remove(name, "0", verdict)
        for what in LACKS:
            self.policy_off.remove(name, "0", what)
        for kind in LAYER_STATES:
            self.layers.labels(name, "0", kind)
            self.layers.remove(name, "0", kind)
        if name in self.cache_labels:
            self.cache_config.remove(*self.cache_labels.pop(name))
        for state in MODEL_STATES:
            self.model_state.labels(name, "0", state).set(0)


_HISTOGRAMS: tuple[tuple[str, str, Items[float]], ...] = (
    ("vllm:time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS),
    ("vllm:inter_token_latency_seconds", "Between two tokens of a request.", TOKEN_BUCKETS),
    ("vllm:time_per_output_token_seconds", "Old name of inter_token_latency.", TOKEN_BUCKETS),
    ("vllm:request_time_per_output_token_seconds", "Mean per request.", TOKEN_BUCKETS),
    ("vllm:e2e_request_latency_seconds", "From arrival to the end.", REQUEST_BUCKETS),
    ("vllm:request_queue_time_seconds", "From arrival to scheduling.", REQUEST_BUCKETS),
    ("vllm:request_prefill_time_seconds", "Scheduling to first token.", REQUEST_BUCKETS),
    ("vllm:request_decode_time_seconds", "First to last token.", REQUEST_BUCKETS),
    ("vllm:request_inference_time_seconds", "Scheduling to the end.", REQUEST_BUCKETS),
    ("vllm:request_prompt_tokens", "Prompt tokens per request.", COUNT_BUCKETS),
    ("vllm:request_generation_tokens", "Output tokens per request.", COUNT_BUCKETS),
    ("vllm:request_params_max_tokens", "max_tokens per request.", COUNT_BUCKETS),
    ("vllm:request_params_n", "n per request.", COUNT_BUCKETS),
    ("vllm:iteration_tokens_total", "Tokens computed per step.", COUNT_BUCKETS),
)
_GAUGES = (
    ("vllm:num_requests_running", "Requests in the running batch."),
    ("vllm:num_requests_waiting", "Requests waiting for a place."),
    ("vllm:kv_cache_usage_perc", "KV blocks in use ÷ capacity, 0 to 1."),
    ("vllm:gpu_cache_usage_perc", "Old name of kv_cache_usage_perc."),
    ("trimtab_engine_kv_capacity_tokens", "Tokens that the KV cache holds now."),
    ("trimtab_engine_kv_reachable_tokens", "Tokens it could hold after lending."),
    ("trimtab_engine_hidden_bound_layers", "Layers whose reading hides behind a decode step."),
    ("trimtab_engine_remap_alpha", "Layers of this running model that are KV cache."),
)
_COUNTERS = (
    ("vllm:num_preemptions", "Preemptions."),
    ("vllm:prompt_tokens", "Prompt tokens computed or found in the cache."),
    ("vllm:generation_tokens", "Output tokens."),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ("vllm:external_prefix_cache_queries", "The same for the host tier."),
    ("vllm:external_prefix_cache_hits", "The same for the host tier."),
    ("trimtab_engine_recomputed_tokens", "Tokens computed again after a preemption."),
    ("trimtab_engine_compacted_bytes", "Bytes of KV blocks moved inside the arena to free slabs."),
    ("trimtab_engine_model_switches", "Wakes of this model."),
    ("trimtab_engine_decode_only_steps", "Steps that only decoded."),
    ("trimtab_engine_decode_only_seconds", "Their seconds."),
    ("trimtab_engine_decode_only_sequences", "Their sequences, summed over steps."),
    ("trimtab_engine_decode_only_context_tokens", "Their context tokens, summed over steps."),
)


class ModelMetrics:
    """One model's series, labels bound once.

    Attributes:
        host_tier: Whether prefixes are looked for in host memory too.
    """

    def __init__(self, metrics: EngineMetrics, name: str) -> None:
        labels = (name, "0")
        self.host_tier = False
        self._all = metrics
        self._labels = labels
        self._h = {key: h.labels(*labels) for key, h in metrics._histograms.items()}  # noqa: SLF001 - one module
        self._g = {key: g.labels(*labels) for key, g in metrics._gauges.items()}  # noqa: SLF001 - one module
        self._c = {key: c.labels(*labels) for key, c in metrics._counters.items()}  # noqa: SLF001 - one module
        self._finished = {
            reason: metrics.success.labels(*labels, reason) for reason in FINISHED_REASONS
        }
        self._waiting = {
            reason: metrics.waiting_by_reason.labels(*labels, reason) for reason in WAITING_REASONS
        }
        for what in LACKS:
            metrics.policy_off.labels(*labels, what).set(0)
        self._steps = {
            phase: metrics.step_seconds.labels(*labels, phase)
            for phase in ("decode", "prefill", "mixed")
        }

    def state(self, state: str, *, layers: Mapping[str, int]) -> None:
        """Show which state the model is in, and where its layers are."""
        for known in MODEL_STATES:
            self._all.model_state.labels(*self._labels, known).set(known == state)
        for kind in LAYER_STATES:
            self._all.layers.labels(*self._labels, kind).set(layers.get(kind, 0))

    def lacks(self, what: Lack) -> None:
        """Show that a part of the policy is off."""
        self._all.policy_off.labels(*self._labels, what).set(1)

    def moved(self, direction: str, reason: str, size_bytes: int) -> None:
        """Count a copy over the link."""
        self._all.link_bytes.labels(*self._labels, direction, reason).inc(size_bytes)

    def compacted(self, size_bytes: int) -> None:
        """Count a copy inside the arena."""
        self._c["trimtab_engine_compacted_bytes"].inc(size_bytes)

    def stalled(self, reason: str, seconds: float) -> None:
        """Count what a step waited for a copy."""
        self._all.link_stall_seconds.labels(*self._labels, reason).inc(seconds)

    def swapped(self, direction: str, *, blocks: int) -> None:
        """Count blocks that went to host memory or came from it."""
        self._all.swaps.labels(*self._labels, direction).inc(blocks)

    def remapped(self, kind: str) -> None:
        """Count a unit lent (`lend`) or a change of the streaming level (`alpha`)."""
        self._all.remaps.labels(*self._labels, kind).inc()

    def reverted(self, reason: str) -> None:
        """Count a unit that went home because use was low (`idle`, `alpha`) or by a `wake`."""
        self._all.reverts.labels(*self._labels, reason).inc()

    def woke(self) -> None:
        """Count the beginning of a wake."""
        self._c["trimtab_engine_model_switches"].inc()

    def switched(self, seconds: float) -> None:
        """Record how long a wake took."""
        self._all.switch_seconds.labels(*self._labels).observe(seconds)

    def streams(self, alpha: int) -> None:
        """Show the streaming level."""
        self._g["trimtab_engine_remap_alpha"].set(alpha)
        self.remapped("alpha")

    def advice(self, *, verdict: str, hidden_layers: float, reachable_tokens: int) -> None:
        """Show the last advice."""
        for known in VERDICTS:
            self._all.remap_verdict.labels(*self._labels, known).set(known == verdict)
        self._g["trimtab_engine_hidden_bound_layers"].set(hidden_layers)
        self._g["trimtab_engine_kv_reachable_tokens"].set(reachable_tokens)

    def cache(self, *, blocks: int, block_tokens: int, slab_bytes: int, pressure: str) -> None:
        """Show the KV cache's configuration."""
        labels = (*self._labels, str(block_tokens), str(blocks), str(slab_bytes), pressure)
        self._all.cache_labels[self._labels[0]] = labels
        self._all.cache_config.labels(*labels).set(1)
        self._g["trimtab_engine_kv_capacity_tokens"].set(blocks * block_tokens)
        self._g["trimtab_engine_kv_reachable_tokens"].set(blocks * block_tokens)

    def load(
        self,
        *,
        running: int,
        waiting: int,
        reason: WaitingReason,
        usage: float,
        capacity_tokens: int,
    ) -> None:
        """Show queue lengths, what is waited for, and KV usage (0 to 1)."""
        self._g["vllm:num_requests_running"].set(running)
        self._g["vllm:num_requests_waiting"].set(waiting)
        for known, gauge in self._waiting.items():
            gauge.set(waiting if known == reason else 0)
        self._g["trimtab_engine_kv_capacity_tokens"].set(capacity_tokens)
        self._g["vllm:kv_cache_usage_perc"].set(usage)
        self._g["vllm:gpu_cache_usage_perc"].set(usage)

    def gone(self) -> None:
        """Show that the model holds nothing any more."""
        self.load(running=0, waiting=0, reason="capacity", usage=0.0, capacity_tokens=0)
        for name in ("kv_reachable_tokens", "hidden_bound_layers", "remap_alpha"):
            self._g[f"trimtab_engine_{name}"].set(0)

    def step(self, plan: StepPlan, *, seconds: float, context_tokens: int) -> None:
        """Count one step."""
        tokens = len(plan.decode) + sum(row.count for row in plan.prefill)
        self._h["vllm:iteration_tokens_total"].observe(tokens)
        self._steps[plan.phase].observe(seconds)
        if plan.phase == "decode":
            self._c["trimtab_engine_decode_only_steps"].inc()
            self._c["trimtab_engine_decode_only_seconds"].inc(seconds)
            self._c["trimtab_engine_decode_only_sequences"].inc(len(plan.decode))
            self._c["trimtab_engine_decode_only_context_tokens"].inc(context_tokens)

    def preempted(self, plan: StepPlan) -> None:
        """Count the sequences that lost their blocks before a plan, whether or not it has rows."""
        self._c["vllm:num_preemptions"].inc(len(plan.preempted))
        self._c["trimtab_engine_recomputed_tokens"].inc(plan.recomputed_tokens)

    def first_token(self, sequence: Sequence, *, now: float) -> None:
        """Count a request's first token."""
        self._h["vllm:time_to_first_token_seconds"].observe(now - sequence.arrival_seconds)
        self._c["vllm:prompt_tokens"].inc(sequence.prompt_length)
        self._c["vllm:prefix_cache_queries"].inc(sequence.prompt_length)
        self._c["vllm:prefix_cache_hits"].inc(sequence.cached_tokens - sequence.external_tokens)
        if self.host_tier:
            outside = sequence.prompt_length - sequence.cached_tokens + sequence.external_tokens
            self._c["vllm:external_prefix_cache_queries"].inc(outside)
            self._c["vllm:external_prefix_cache_hits"].inc(sequence.external_tokens)
        self._c["vllm:generation_tokens"].inc()

    def next_token(self, *, gap_seconds: float) -> None:
        """Count a later token."""
        self._h["vllm:inter_token_latency_seconds"].observe(gap_seconds)
        self._h["vllm:time_per_output_token_seconds"].observe(gap_seconds)
        self._c["vllm:generation_tokens"].inc()

    def finished(self, sequence: Sequence, *, reason: str, now: float) -> None:
        """Count a request's end; durations only of requests that produced tokens."""
        self._finished[reason].inc()
        self._h["vllm:request_prompt_tokens"].observe(sequence.prompt_length)
        self._h["vllm:request_generation_tokens"].observe(sequence.generated)
        if sequence.request.choices:
            self._h["vllm:request_params_n"].observe(sequence.request.choices)
        if sequence.params.max_tokens is not None:
            self._h["vllm:request_params_max_tokens"].observe(sequence.params.max_tokens)
        scheduled, first = sequence.scheduled_seconds, sequence.first_token_seconds
        self._h["vllm:e2e_request_latency_seconds"].observe(now - sequence.arrival_seconds)
        if scheduled is None or first is None:
            return
        self._h["vllm:request_queue_time_seconds"].observe(scheduled - sequence.arrival_seconds)
        self._h["vllm:request_prefill_time_seconds"].observe(first - scheduled)
        self._h["vllm:request_decode_time_seconds"].observe(now - first)
        self._h["vllm:request_inference_time_seconds"].observe(now - scheduled)
        if sequence.generated > 1:
            mean = (now - first) / (sequence.generated - 1)
            self._h["vllm:request_time_per_output_token_seconds"].observe(mean)
