"""From a configuration to what it delivers: the fingerprint that fits it, memory, latencies, cost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.confidence import assess, margin_permille
from trimtab.planning.fingerprint import Fingerprint, FingerprintInvalidError, FingerprintKey
from trimtab.planning.memory import memory_plan
from trimtab.planning.plan import Latency, Option, Prediction
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import PriceBook, price_for
from trimtab.planning.roofline import roofline
from trimtab.planning.snapshot import (
    Config,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    ModelView,
)
from trimtab.planning.steady import Replica, ReplicaLimits, Steady, StepTimes
from trimtab.planning.step_model import StepModel, fit
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_UNBOUND_TOKENS = 1 << 40
# What a replica that cannot carry its load is shown with: just below its capacity.
_FULL = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The step model of a configuration and where it comes from.

    ``memo`` holds step times once computed: every load and replica count asks for the same ones.
    """

    fingerprint: Fingerprint
    model: StepModel
    memo: StepTimes = field(default_factory=dict, compare=False, repr=False)


def key_for(
    model: ModelView, config: Config, *, capabilities: EngineCapabilities
) -> FingerprintKey:
    """Return the key of the fingerprint that a configuration needs."""
    return FingerprintKey(
        architecture=architecture_hash(model.architecture),
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        engine=capabilities.engine,
        engine_version=capabilities.version,
        flags=tuple(sorted(capabilities.flags)),
    )


def best_for(key: FingerprintKey, fingerprints: Iterable[Fingerprint]) -> Fingerprint | None:
    """Return the fingerprint to use for a key, or None.

    A measurement of another engine version serves until it is repeated (it lowers the confidence);
    one of another product, CPU model or thread count never does (AIBrix #507), nor one of shapes
    for a group that leaves its all-reduces out: on PCIe that is the largest single error.
    """
    order = {"Measured": 0, "Catalogue": 1, "Roofline": 2}
    fitting = [f for f in fingerprints if _serves(f.key, key) and _counts_exchange(f)]
    exact = [f for f in fitting if f.key == key] or fitting
    return min(
        exact, key=lambda f: (order[f.source], _newest(f.taken), f.key.digest()), default=None
    )


def find_source(
    model: ModelView,
    config: Config,
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Source:
    """Return the best source for a configuration; the roofline where nothing usable is measured."""
    key = key_for(model, config, capabilities=snapshot.capabilities)
    found = best_for(key, snapshot.fingerprints)
    if found is not None:
        try:
            return Source(fingerprint=found, model=_fitted(found, model.depth))
        except FingerprintInvalidError:
            # The operator refuses such documents when they arrive and says so; a plan goes on.
            pass
    estimated = _estimated(model.architecture, key, policy)
    return Source(fingerprint=estimated, model=_fitted(estimated, model.depth))


@lru_cache(maxsize=2048)
def _fitted(fingerprint: Fingerprint, depth: int) -> StepModel:
    """Return `fit` once per document and depth: every intent of a family asks for it.

    Raises:
        FingerprintInvalidError: From `fit`.
    """
    return fit(fingerprint, depth=depth)


@lru_cache(maxsize=2048)
def _estimated(
    architecture: Architecture, key: FingerprintKey, policy: PlannerPolicy
) -> Fingerprint:
    return roofline(architecture, key=key, policy=policy)


def evaluate(
    intent: IntentView,
    model: ModelView,
    config: Config,
    *,
    replicas: int,
    load: PlannedLoad,
    source: Source,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Option:
    """Return the option of running ``replicas`` of ``config``, with its prediction and cost."""
    rate = load.rate / replicas
    window = model.architecture.sliding_window
    longest = _max_model_len(model, load, policy)
    sequences = _sequences(intent, load, source, window=window, policy=policy)

    def replica(kv_tokens: int) -> Replica:
        return Replica(
            source.model,
            prompt=load.prompt,
            output=load.output,
            limits=ReplicaLimits(
                token_budget=policy.cpu_max_batch_tokens,
                max_sequences=sequences,
                kv_tokens=kv_tokens,
                window=window,
            ),
            memo=source.memo,
        )

    roomy = replica(_UNBOUND_TOKENS)
    busy = roomy.steady(rate)
    memory = memory_plan(
        model.architecture,
        depth=model.depth,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        kv_tokens=max(longest, _kv_tokens(busy, load, policy)),
        block_tokens=snapshot.capabilities.block_tokens,
        fingerprint=source.fingerprint,
        policy=policy,
        processes=config.tensor_parallel_size * config.pipeline_parallel_size,
    )
    built = replica(memory.kv_tokens)
    if built.slots == roomy.slots:
        # The KV cache does not bind: it is the replica that was computed already.
        built = roomy
    capacity = built.capacity()
    overloaded = rate > capacity
    shown = _FULL * capacity if overloaded else rate
    state = busy if built is roomy and not overloaded else built.steady(shown)
    prediction = _predict(
        built,
        state,
        load,
        percentile=intent.targets.percentile,
        overhead_us=snapshot.gateway_overhead_us,
        capacity=capacity * replicas,
        overloaded=overloaded,
    )
    confidence = assess(
        source.fingerprint,
        source.model,
        engine_version=snapshot.capabilities.version,
        extrapolated=source.model.extrapolates(built.busiest(state)),
        utilisation_permille=prediction.utilisation_permille,
        policy=policy,
    )
    cost = hourly(config, replicas=replicas, memory_bytes=memory.total, prices=snapshot.prices)
    served = load.rate if load.rate > 0 else 1e6 / built.unloaded_us()
    return Option(
        config=config,
        replicas=replicas,
        memory_bytes=memory.total,
        arena_bytes=memory.arena,
        kv_tokens=memory.kv_tokens,
        max_model_len=longest,
        max_seqs=built.slots,
        max_batch_tokens=policy.cpu_max_batch_tokens,
        predicted=prediction,
        margin_permille=margin_permille(confidence.level, policy=policy),
        ttft_margin_permille=max(
            policy.margin_ttft_unanchored_permille,
            margin_permille(confidence.level, policy=policy),
        ),
        confidence=confidence,
        cost_per_hour_micro_usd=cost,
        cost_per_million_output_tokens_micro_usd=_per_million(
            cost, min(served, capacity * replicas), load
        ),
        cost_per_million_at_capacity_micro_usd=_per_million(cost, capacity * replicas, load),
        fingerprint=(
            "Roofline"
            if source.fingerprint.source == "Roofline"
            else source.fingerprint.key.digest()
        ),
    )


def hourly(config: Config, *, replicas: int, memory_bytes: int, prices: PriceBook) -> int | None:
    """Return micro-USD per hour of reserved devices, rounded up; None without a price.

    On ``cpu``: replicas·(threads·cpuHour + GiB requested·memoryGiBHour) (joints.md §9).
    """
    if config.product != "cpu":
        gpu = price_for(prices.gpu_hour, config.product)
        groups = replicas * config.tensor_parallel_size * config.pipeline_parallel_size
        return None if gpu is None else groups * gpu
    cpu = price_for(prices.cpu_hour, config.cpu_model)
    memory = prices.memory_gib_hour_micro_usd
    if cpu is None or memory is None:
        return None
    return replicas * (config.threads * cpu + -(-memory_bytes * memory // _GIB))


def _predict(
    replica: Replica,
    state: Steady,
    load: PlannedLoad,
    *,
    percentile: int,
    overhead_us: int,
    capacity: float,
    overloaded: bool,
) -> Prediction:
    ttft_mean = replica.ttft_us(state, quantile=None) + overhead_us
    tokens = load.output - 1
    quantiles = (0.5, 0.95, 0.99, percentile / 100)
    # The intent's own percentile is usually one of the others.
    waits = {q: replica.ttft_us(state, quantile=q) for q in quantiles}
    tpots = [replica.tpot_us(state, quantile=q) if tokens else 0.0 for q in quantiles]
    ttfts = [waits[q] + overhead_us for q in quantiles]
    tpot_mean = state.step_us if tokens else 0.0
    # Percentiles of the two add up only if slow prompts meet slow decodes; they do, under load.
    e2es = [first + tokens * each for first, each in zip(ttfts, tpots, strict=True)]
    return Prediction(
        ttft=_latency(ttft_mean, ttfts, percentile),
        tpot=_latency(tpot_mean, tpots, percentile),
        e2e=_latency(ttft_mean + tokens * tpot_mean, e2es, percentile),
        unloaded_e2e_us=round(replica.unloaded_us()) + overhead_us,
        capacity_milli_rps=math.floor(capacity * 1000),
        utilisation_permille=math.ceil(1000 * load.rate / capacity),
        mean_batch_milli=round(1000 * state.running),
        overloaded=overloaded,
    )


def _latency(mean: float, quantiles: list[float], percentile: int) -> Latency:
    p50, p95, p99, chosen = (round(q) for q in quantiles)
    return Latency(
        mean_us=round(mean),
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        percentile=percentile,
        percentile_us=chosen,
    )


def _max_model_len(model: ModelView, load: PlannedLoad, policy: PlannerPolicy) -> int:
    """Return the longest prompt + output to serve: the p99 request, in the model's context."""
    longest = policy.longest_request_permille * (load.prompt + load.output) // 1000
    return min(model.context_length, max(policy.least_model_len, longest))


def _sequences(
    intent: IntentView,
    load: PlannedLoad,
    source: Source,
    *,
    window: int,
    policy: PlannerPolicy,
) -> int:
    """Return the cap on sequences: what the TPOT target allows; the engine's where it allows none."""
    target = intent.targets.tpot_us
    if intent.objective != "TargetLatency" or target is None or load.output < 2:
        return policy.cpu_max_sequences
    limits = ReplicaLimits(
        token_budget=policy.cpu_max_batch_tokens,
        max_sequences=policy.cpu_max_sequences,
        kv_tokens=_UNBOUND_TOKENS,
        window=window,
    )
    replica = Replica(
        source.model, prompt=load.prompt, output=load.output, limits=limits, memo=source.memo
    )
    allowed = replica.max_running(target * 1000 / (1000 + policy.margin_high_permille))
    return allowed or policy.cpu_max_sequences


def _kv_tokens(state: Steady, load: PlannedLoad, policy: PlannerPolicy) -> int:
    """Return the KV tokens of the busy steady state, whole requests, with headroom."""
    busy = 1 + state.others(0.95)
    return math.ceil(busy * (load.prompt + load.output) * policy.kv_headroom_permille / 1000)


def _per_million(cost: int | None, rate: float, load: PlannedLoad) -> int | None:
    """Return micro-USD per million output tokens at a rate."""
    if cost is None:
        return None
    return math.ceil(cost * 1e6 / (3600 * rate * load.output))


def _serves(have: FingerprintKey, want: FingerprintKey) -> bool:
    if (have.architecture, have.cpu_model, have.threads) != (
        want.architecture,
        want.cpu_model,
        want.threads,
    ):
        return False
    return replace(have, engine_version="", flags=()) == replace(want, engine_version="", flags=())


def _counts_exchange(fingerprint: Fingerprint) -> bool:
    return (
        fingerprint.tp_mode == "Real"
        or fingerprint.key.tensor_parallel_size == 1
        or bool(fingerprint.collective)
    )


def _newest(taken: str) -> tuple[int, ...]:
    """Return a sort key that puts the latest RFC 3339 time first."""
    return tuple(-ord(c) for c in taken)
