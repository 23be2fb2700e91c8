"""From a configuration to what it delivers: the fingerprint that fits it, memory, latencies, cost."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from trimtab.planning.anchors import correction_for
from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.calibration import Correction
from trimtab.planning.confidence import assess, lowered, margin_permille, ttft_margin_permille
from trimtab.planning.curves import Curve
from trimtab.planning.fingerprint import Fingerprint, FingerprintInvalidError, FingerprintKey
from trimtab.planning.gpus import GpuMemory, gpu_bytes, gpu_memory, known_peak
from trimtab.planning.memory import MemoryPlan, memory_plan
from trimtab.planning.plan import Anchoring, Latency, Option, Prediction
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import PriceBook, price_for
from trimtab.planning.roofline import roofline
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.slots import Nodes
from trimtab.planning.slowdown import slowdown, slowed
from trimtab.planning.snapshot import (
    Config,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    ModelView,
)
from trimtab.planning.steady import ReplicaLimits, Replicas, States
from trimtab.planning.step_arrays import Bools, Floats
from trimtab.planning.step_model import StepModel, fit
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_UNBOUND_TOKENS = 1 << 40
# What a replica that cannot carry its load is shown with: just below its capacity.
_FULL = 0.98
# The company that memory is planned for: what one request in twenty exceeds.
_BUSY = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The step model of a configuration and where it comes from.

    ``correction`` is what live replicas say about it, and applied; None if they say nothing.
    """

    fingerprint: Fingerprint
    model: StepModel
    correction: Correction | None = None


def key_for(
    model: ModelView, config: Config, *, capabilities: EngineCapabilities
) -> FingerprintKey:
    """Return the key of the fingerprint that a configuration needs: of one of its stages."""
    return FingerprintKey(
        architecture=architecture_hash(model.architecture),
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads // config.pipeline_parallel_size,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        engine=capabilities.engine,
        engine_version=capabilities.version,
        flags=tuple(sorted(capabilities.flags)),
    )


def best_for(key: FingerprintKey, fingerprints: Iterable[Fingerprint]) -> Fingerprint | None:
    """Return the fingerprint to use for a key, or None.

    Times of another engine, as a catalogue's or an imported profile's, or of another version serve
    until there are better ones (they lower the confidence), those of this engine first;
    one of another product, CPU model or thread count never does (AIBrix #507), nor one of shapes
    for a group that leaves its all-reduces out: on PCIe that is the largest single error.
    """
    order = {"Measured": 0, "Catalogue": 1, "Roofline": 2}
    fitting = [f for f in fingerprints if _serves(f.key, key) and _counts_exchange(f)]
    exact = [f for f in fitting if f.key == key] or fitting
    return min(
        exact,
        key=lambda f: (
            f.key.engine != key.engine,
            order[f.source],
            _newest(f.taken),
            f.key.digest(),
        ),
        default=None,
    )


def find_source(
    model: ModelView,
    config: Config,
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    nodes: Nodes = (),
) -> Source:
    """Return the best source for a configuration; the roofline where nothing usable is measured.

    Step times are of the GPUs that a replica gets, as far as scores tell: of those on ``nodes`` where
    it runs, else of what a group may expect. With pipeline stages a step passes through all of them
    in turn, as the engine runs it.
    """
    key = key_for(model, config, capabilities=snapshot.capabilities)
    slow = slowdown(config, snapshot.scores, nodes=nodes)

    def source(fingerprint: Fingerprint) -> Source:
        known = correction_for(
            fingerprint,
            fingerprints=snapshot.fingerprints,
            anchors=snapshot.anchors,
            policy=policy,
        )
        fitted = slowed(_calibrated(fingerprint, model.depth, known), slow)
        return Source(
            fingerprint=fingerprint, model=_staged(fitted, config, policy), correction=known
        )

    found = best_for(key, snapshot.fingerprints)
    if found is not None:
        try:
            return source(found)
        except FingerprintInvalidError:
            # The operator refuses such documents when they arrive and says so; a plan goes on.
            pass
    return source(_estimated(model.architecture, key, policy))


def gpu_source(
    model: ModelView, config: Config, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> Fingerprint | None:
    """Return what a configuration on GPUs is predicted from, None where nothing is known of it."""
    key = key_for(model, config, capabilities=snapshot.capabilities)
    found = best_for(key, snapshot.fingerprints)
    if found is None and known_peak(config):
        return _estimated(model.architecture, key, policy)
    return found


def _staged(model: StepModel, config: Config, policy: PlannerPolicy) -> StepModel:
    """Return the step model of a pipeline: every boundary is crossed once, and the logits come back."""
    stages = config.pipeline_parallel_size
    if stages == 1:
        return model
    each = policy.cpu_stage_us if config.product == "cpu" else policy.gpu_stage_us
    fixed = model.fixed
    return replace(model, fixed=Curve(fixed.xs, tuple(y + stages * each for y in fixed.ys)))


@lru_cache(maxsize=2048)
def _fitted(fingerprint: Fingerprint, depth: int) -> StepModel:
    """Return `fit` once per document and depth: every intent of a family asks for it.

    Raises:
        FingerprintInvalidError: From `fit`.
    """
    return fit(fingerprint, depth=depth)


def _calibrated(fingerprint: Fingerprint, depth: int, correction: Correction | None) -> StepModel:
    """Return the fitted model, corrected where live replicas say something.

    Raises:
        FingerprintInvalidError: From `fit`.
    """
    model = _fitted(fingerprint, depth)
    if correction is None:
        return model
    return correction.apply(model, tensor_parallel_size=fingerprint.key.tensor_parallel_size)


def _anchoring(source: Source, *, batch: float) -> Anchoring | None:
    """Return what live replicas made of a prediction, at the batch that it is for."""
    known = source.correction
    if known is None:
        return None
    size = source.fingerprint.key.tensor_parallel_size
    return Anchoring(
        count=len(known.residuals),
        good=known.good,
        suspect=known.suspect,
        factor_permille=round(1000 * math.exp(known.log_factor(size, batch))),
        seen_permille=round(1000 * math.exp(known.seen(size, batch))),
    )


@lru_cache(maxsize=2048)
def _estimated(
    architecture: Architecture, key: FingerprintKey, policy: PlannerPolicy
) -> Fingerprint:
    if key.product == "cpu":
        return roofline(architecture, key=key, policy=policy)
    # What runs on a product that is no longer known is judged as the slowest that is.
    slowest = min(PEAKS.values(), key=lambda peak: peak.bytes_per_us)
    return gpu_roofline(architecture, key=key, peak=PEAKS.get(key.product, slowest), policy=policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How much of which configuration is asked about, and at which rate over all its replicas.

    ``number`` is the configuration's place among the estimator's.
    """

    number: int
    replicas: int
    rate: float


class _Figures(NamedTuple):
    """What one replica delivers, times in µs; lists hold p50, p95, p99 and the intent's percentile."""

    slots: int
    capacity: float
    overloaded: bool
    extrapolated: bool
    running: float
    step_us: float
    ttft_us: float
    ttfts: list[float]
    tpots: list[float]


class Estimator:
    """Predicts options of one intent for requests of given mean lengths, many at once.

    ``load`` gives the lengths; rates are asked for. `sources` are where the predictions come from, in
    the order of the configurations. ``nodes`` is where they run, if they do.
    """

    def __init__(
        self,
        intent: IntentView,
        model: ModelView,
        configs: Sequence[Config],
        *,
        load: PlannedLoad,
        snapshot: FleetSnapshot,
        policy: PlannerPolicy,
        nodes: Nodes = (),
    ) -> None:
        self.sources = tuple(
            find_source(model, config, snapshot=snapshot, policy=policy, nodes=nodes)
            for config in configs
        )
        self._intent, self._model, self._configs, self._load = intent, model, configs, load
        self._snapshot, self._policy = snapshot, policy
        self._limits = tuple(_engine_limits(config, policy) for config in configs)
        self._longest = longest_request(model, load, policy)
        self._replicas = Replicas(
            [source.model for source in self.sources],
            prompt=load.prompt,
            output=load.output,
            limits=self._limits,
            window=model.architecture.sliding_window,
        )
        self._sequences = np.array([self._most_sequences(n) for n in range(len(configs))])
        self._unloaded = self._replicas.unloaded_us.tolist()
        self._digests = tuple(
            "Roofline" if s.fingerprint.source == "Roofline" else s.fingerprint.key.digest()
            for s in self.sources
        )

    def options(self, asks: Sequence[Ask]) -> list[Callable[[], Option]]:
        """Return each option, with prediction and cost, to be called for if it is looked at."""
        which = np.array([ask.number for ask in asks])
        rates = np.array([ask.rate / ask.replicas for ask in asks])
        sequences, replicas = self._sequences[which], self._replicas
        unbound = np.full(len(asks), _UNBOUND_TOKENS)
        roomy = replicas.slots(which, kv_tokens=unbound, sequences=sequences)
        states = replicas.steady(which, slots=roomy, rate=rates)
        others = states.others([_BUSY])[:, 0].tolist()
        memories = [self._memory(a.number, found) for a, found in zip(asks, others, strict=True)]
        # What runs holds one long request, whatever the figures of its GPUs say.
        kv_tokens = np.array([max(self._longest, memory.kv_tokens) for memory in memories])
        slots = replicas.slots(which, kv_tokens=kv_tokens, sequences=sequences)
        capacity = replicas.capacity(which, slots)
        overloaded = rates > capacity
        if overloaded.any() or (slots != roomy).any():
            # Else no KV cache binds, and these are the states that were computed already.
            shown = np.where(overloaded, _FULL * capacity, rates)
            states = replicas.steady(which, slots=slots, rate=shown)
        figures = self._figures(states, capacity, overloaded)
        return [
            partial(self._option, ask, memory, one)
            for ask, memory, one in zip(asks, memories, figures, strict=True)
        ]

    def _figures(self, states: States, capacity: Floats, overloaded: Bools) -> list[_Figures]:
        replicas, waits = self._replicas, self._replicas.waits(states)
        quantiles = (0.5, 0.95, 0.99, self._intent.targets.percentile / 100)
        # The intent's own percentile is usually one of the others.
        distinct = sorted(set(quantiles))
        order = [distinct.index(quantile) for quantile in quantiles]
        tpots = replicas.tpot_us(states, distinct)[:, order]
        columns = (
            states.slots,
            capacity,
            overloaded,
            replicas.extrapolates(states),
            states.running,
            states.step_us,
            waits.mean(),
            waits.exceeded([1 - quantile for quantile in distinct])[:, order],
            tpots if self._load.output > 1 else np.zeros_like(tpots),
        )
        return [_Figures(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def _option(self, ask: Ask, memory: MemoryPlan | GpuMemory, figures: _Figures) -> Option:
        config, source, policy = self._configs[ask.number], self.sources[ask.number], self._policy
        unloaded = self._unloaded[ask.number]
        capacity = figures.capacity * ask.replicas
        prediction = _predict(
            figures,
            rate=ask.rate,
            output=self._load.output,
            percentile=self._intent.targets.percentile,
            unloaded_us=unloaded,
            overhead_us=self._snapshot.gateway_overhead_us,
            capacity=capacity,
        )
        anchoring = _anchoring(source, batch=max(1.0, figures.running))
        confidence = assess(
            source.fingerprint,
            source.model,
            anchoring=anchoring,
            engine_version=self._snapshot.capabilities.version,
            extrapolated=figures.extrapolated,
            utilisation_permille=prediction.utilisation_permille,
            policy=policy,
        )
        if config.pipeline_parallel_size > 1:
            confidence = lowered(confidence, "pipeline stages predicted from one")
        margin = margin_permille(confidence.level, policy=policy)
        cost = hourly(
            config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            prices=self._snapshot.prices,
        )
        served = ask.rate if ask.rate > 0 else 1e6 / unloaded
        return Option(
            config=config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            arena_bytes=memory.arena,
            kv_tokens=memory.kv_tokens,
            max_model_len=self._longest,
            max_seqs=figures.slots,
            max_batch_tokens=self._limits[ask.number].token_budget,
            predicted=prediction,
            margin_permille=margin,
            ttft_margin_permille=ttft_margin_permille(margin, anchoring, policy=policy),
            confidence=confidence,
            cost_per_hour_micro_usd=cost,
            cost_per_million_output_tokens_micro_usd=_per_million(
                cost, min(served, capacity), self._load
            ),
            cost_per_million_at_capacity_micro_usd=_per_million(cost, capacity, self._load),
            fingerprint=self._digests[ask.number],
            anchoring=anchoring,
        )

    def _memory(self, number: int, others: float) -> MemoryPlan | GpuMemory:
        """Return a replica's memory: on ``cpu`` KV for the company that a request finds when it is busy.

        The longest request has room beside it: without that it keeps everybody else waiting. On GPUs
        the cache is all that is left.
        """
        config, load, policy = self._configs[number], self._load, self._policy
        if config.product != "cpu":
            return gpu_memory(
                self._model.architecture,
                config,
                depth=self._model.depth,
                gpu_bytes=gpu_bytes(self._snapshot.gpu_pools, config.product),
                kv_precision=compute_precision(config.precision),
                block_tokens=self._snapshot.capabilities.block_tokens,
                fingerprint=self.sources[number].fingerprint,
                policy=policy,
            )
        busy = math.ceil((1 + others) * (load.prompt + load.output))
        return memory_plan(
            self._model.architecture,
            depth=self._model.depth,
            precision=config.precision,
            kv_precision=compute_precision(config.precision),
            kv_tokens=max(
                self._longest + busy, math.ceil(busy * policy.kv_headroom_permille / 1000)
            ),
            block_tokens=self._snapshot.capabilities.block_tokens,
            fingerprint=self.sources[number].fingerprint,
            policy=policy,
            processes=config.tensor_parallel_size * config.pipeline_parallel_size,
        )

    def _most_sequences(self, number: int) -> int:
        """Return the cap on sequences: what the TPOT target allows; the engine's where it allows none."""
        target, policy = self._intent.targets.tpot_us, self._policy
        most = self._limits[number].max_sequences
        if self._intent.objective != "TargetLatency" or target is None or self._load.output < 2:
            return most
        within = target * 1000 / (1000 + policy.margin_high_permille)
        return self._replicas.max_running(number, within) or most


def _engine_limits(config: Config, policy: PlannerPolicy) -> ReplicaLimits:
    """Return the most that the planner lets an engine do at once on a product."""
    cpu = config.product == "cpu"
    return ReplicaLimits(
        token_budget=policy.cpu_max_batch_tokens if cpu else policy.gpu_max_batch_tokens,
        max_sequences=policy.cpu_max_sequences if cpu else policy.gpu_max_sequences,
    )


def evaluate(
    intent: IntentView,
    model: ModelView,
    config: Config,
    *,
    replicas: int,
    load: PlannedLoad,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    nodes: Nodes = (),
) -> Option:
    """Return the option of running ``replicas`` of ``config``, with its prediction and cost.

    ``nodes`` is where they run, if they do.
    """
    estimator = Estimator(
        intent, model, [config], load=load, snapshot=snapshot, policy=policy, nodes=nodes
    )
    return estimator.options([Ask(number=0, replicas=replicas, rate=load.rate)])[0]()


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
    figures: _Figures,
    *,
    rate: float,
    output: int,
    percentile: int,
    unloaded_us: float,
    overhead_us: int,
    capacity: float,
) -> Prediction:
    tokens = output - 1
    ttft_mean = figures.ttft_us + overhead_us
    ttfts = [wait + overhead_us for wait in figures.ttfts]
    tpot_mean = figures.step_us if tokens else 0.0
    # Percentiles of the two add up only if slow prompts meet slow decodes; they do, under load.
    e2es = [first + tokens * each for first, each in zip(ttfts, figures.tpots, strict=True)]
    return Prediction(
        ttft=_latency(ttft_mean, ttfts, percentile),
        tpot=_latency(tpot_mean, figures.tpots, percentile),
        e2e=_latency(ttft_mean + tokens * tpot_mean, e2es, percentile),
        unloaded_e2e_us=round(unloaded_us) + overhead_us,
        capacity_milli_rps=math.floor(capacity * 1000),
        utilisation_permille=math.ceil(1000 * rate / capacity),
        mean_batch_milli=round(1000 * figures.running),
        overloaded=figures.overloaded,
    )


def _latency(mean: float, quantiles: list[float], percentile: int) -> Latency:
    p50, p95, p99, chosen = map(round, quantiles)
    return Latency(
        mean_us=round(mean),
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        percentile=percentile,
        percentile_us=chosen,
    )


def longest_request(model: ModelView, load: PlannedLoad, policy: PlannerPolicy) -> int:
    """Return the longest prompt + output to serve: the p99 request, in the model's context."""
    longest = policy.longest_request_permille * (load.prompt + load.output) // 1000
    return min(model.context_length, max(policy.least_model_len, longest))


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
    return _of_any_engine(have) == _of_any_engine(want)


def _of_any_engine(key: FingerprintKey) -> FingerprintKey:
    return replace(key, engine="", engine_version="", flags=())


def _counts_exchange(fingerprint: Fingerprint) -> bool:
    return (
        fingerprint.tp_mode == "Real"
        or fingerprint.key.tensor_parallel_size == 1
        or bool(fingerprint.collective)
    )


def _newest(taken: str) -> tuple[int, ...]:
    """Return a sort key that puts the latest RFC 3339 time first."""
    return tuple(-ord(c) for c in taken)
