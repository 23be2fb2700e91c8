"""From a configuration to what it delivers: the fingerprint that fits it, memory, latencies, cost."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from trimtab.planning.gpu_memory import GpuMemory, gpu_memory
from trimtab.planning.gpus import gpu_bytes, known_peak
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
from trimtab.planning.steady import ReplicaKind, Replicas, States
from trimtab.planning.step_arrays import Bools, Floats, Ints
from trimtab.planning.step_model import StepModel, fit
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_UNBOUND_TOKENS = 1 << 40
# What a replica that cannot carry its load is shown with: just below its capacity.
_FULL = 0.98
# Shares of the capacity between which replicas are predicted together.
_USES = (0.4, 0.7, 0.9)
# The company that memory is planned for: what one request in twenty exceeds.
_BUSY = 0.95
_SHOWN = (0.5, 0.95, 0.99)


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
    found = best_for(key, snapshot.fingerprints)
    return _source(model, config, key, found, snapshot=snapshot, policy=policy, nodes=nodes)


def _source(
    model: ModelView,
    config: Config,
    key: FingerprintKey,
    found: Fingerprint | None,
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    nodes: Nodes,
) -> Source:
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
class Subject:
    """An intent with its model, the configurations it allows and the load that it is planned for.

    ``nodes`` is where it runs, if it does.
    """

    intent: IntentView
    model: ModelView
    configs: tuple[Config, ...]
    load: PlannedLoad
    nodes: Nodes = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration of one subject.

    Attributes:
        key: Of the fingerprint that would serve it best.
        source: What it is predicted from.
        fingerprint: How an option names that.
        token_budget: Most tokens that the engine is let compute in one step.
        max_sequences: Most sequences that it is let decode at once.
        longest: Longest prompt + output that is served.
    """

    subject: Subject
    config: Config
    key: FingerprintKey
    source: Source
    fingerprint: str
    token_budget: int
    max_sequences: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How many replicas of a candidate are asked about, and at which rate over all of them."""

    number: int
    replicas: int
    rate: float


class _Figures(NamedTuple):
    """What one replica delivers, times in µs; lists hold all quantiles that anybody asks for."""

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
    """Predicts options of several intents, many at once.

    Attributes:
        candidates: Every configuration of every subject, in order; asked about by number.
    """

    def __init__(
        self, subjects: Sequence[Subject], *, snapshot: FleetSnapshot, policy: PlannerPolicy
    ) -> None:
        self._snapshot, self._policy = snapshot, policy
        self.candidates = tuple(c for one in subjects for c in self._candidates(one))
        self._replicas = Replicas(
            [
                ReplicaKind(
                    model=one.source.model,
                    prompt=one.subject.load.prompt,
                    output=one.subject.load.output,
                    token_budget=one.token_budget,
                    max_sequences=one.max_sequences,
                    window=one.subject.model.architecture.sliding_window,
                )
                for one in self.candidates
            ]
        )
        self._sequences = np.array([self._most_sequences(n) for n in range(len(self.candidates))])
        self._unloaded = self._replicas.unloaded_us.tolist()
        percentiles = {one.intent.targets.percentile / 100 for one in subjects}
        self._quantiles = sorted({*_SHOWN, *percentiles})

    def _candidates(self, subject: Subject) -> Iterator[Candidate]:
        model, snapshot, policy = subject.model, self._snapshot, self._policy
        family = architecture_hash(model.architecture)
        known = [one for one in snapshot.fingerprints if one.key.architecture == family]
        for config in subject.configs:
            key = key_for(model, config, capabilities=snapshot.capabilities)
            source = _source(
                model,
                config,
                key,
                best_for(key, known),
                snapshot=snapshot,
                policy=policy,
                nodes=subject.nodes,
            )
            taken, cpu = source.fingerprint, config.product == "cpu"
            yield Candidate(
                subject=subject,
                config=config,
                key=key,
                source=source,
                fingerprint="Roofline" if taken.source == "Roofline" else taken.key.digest(),
                token_budget=policy.cpu_max_batch_tokens if cpu else policy.gpu_max_batch_tokens,
                max_sequences=policy.cpu_max_sequences if cpu else policy.gpu_max_sequences,
                longest=longest_request(model, subject.load, policy),
            )

    def options(self, asks: Sequence[Ask]) -> list[Callable[[], Option]]:
        """Return each option, with prediction and cost, to be called for if it is looked at."""
        replicas, which = self._replicas, np.array([ask.number for ask in asks])
        rates = np.array([ask.rate / ask.replicas for ask in asks])
        sequences = self._sequences[which]
        memories = self._memories(asks, which, rates)
        # What runs holds one long request, whatever the figures of its GPUs say.
        kv_tokens = np.array(
            [
                max(self.candidates[ask.number].longest, memory.kv_tokens)
                for ask, memory in zip(asks, memories, strict=True)
            ]
        )
        slots = replicas.slots(which, kv_tokens=kv_tokens, sequences=sequences)
        capacity = replicas.capacity(which, slots)
        overloaded = rates > capacity
        shown = np.where(overloaded, _FULL * capacity, rates)
        found: dict[int, _Figures] = {}
        for rows in _alike(shown / capacity):
            states = replicas.steady(which[rows], slots=slots[rows], rate=shown[rows])
            figures = self._figures(states, capacity[rows], overloaded[rows])
            found.update(zip(rows.tolist(), figures, strict=True))
        return [
            partial(self._option, ask, memory, found[row])
            for row, (ask, memory) in enumerate(zip(asks, memories, strict=True))
        ]

    def _memories(
        self, asks: Sequence[Ask], which: Ints, rates: Floats
    ) -> list[MemoryPlan | GpuMemory]:
        """Return replicas' memory, with KV for the company that a request finds when it is busy."""
        replicas = self._replicas
        unbound = np.full(len(asks), _UNBOUND_TOKENS)
        slots = replicas.slots(which, kv_tokens=unbound, sequences=self._sequences[which])
        others = np.zeros(len(asks))
        for rows in _alike(rates / replicas.capacity(which, slots)):
            states = replicas.steady(which[rows], slots=slots[rows], rate=rates[rows])
            others[rows] = states.others([_BUSY])[:, 0]
        return [
            self._memory(ask.number, found)
            for ask, found in zip(asks, others.tolist(), strict=True)
        ]

    def _figures(self, states: States, capacity: Floats, overloaded: Bools) -> list[_Figures]:
        replicas, waits = self._replicas, self._replicas.waits(states)
        columns = (
            states.slots,
            capacity,
            overloaded,
            replicas.extrapolates(states),
            states.running,
            states.step_us,
            waits.mean(),
            waits.exceeded([1 - quantile for quantile in self._quantiles]),
            replicas.tpot_us(states, self._quantiles),
        )
        return [_Figures(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def _option(self, ask: Ask, memory: MemoryPlan | GpuMemory, figures: _Figures) -> Option:
        one, policy = self.candidates[ask.number], self._policy
        load = one.subject.load
        capacity = figures.capacity * ask.replicas
        prediction = self._prediction(ask, figures, capacity=capacity)
        anchoring = _anchoring(one.source, batch=max(1.0, figures.running))
        confidence = assess(
            one.source.fingerprint,
            one.source.model,
            anchoring=anchoring,
            engine_version=self._snapshot.capabilities.version,
            extrapolated=figures.extrapolated,
            utilisation_permille=prediction.utilisation_permille,
            policy=policy,
        )
        if one.config.pipeline_parallel_size > 1:
            confidence = lowered(confidence, "pipeline stages predicted from one")
        margin = margin_permille(confidence.level, policy=policy)
        cost = hourly(
            one.config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            prices=self._snapshot.prices,
        )
        served = ask.rate if ask.rate > 0 else 1e6 / self._unloaded[ask.number]
        return Option(
            config=one.config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            arena_bytes=memory.arena,
            kv_tokens=memory.kv_tokens,
            max_model_len=one.longest,
            max_seqs=figures.slots,
            max_batch_tokens=one.token_budget,
            predicted=prediction,
            margin_permille=margin,
            ttft_margin_permille=ttft_margin_permille(margin, anchoring, policy=policy),
            confidence=confidence,
            cost_per_hour_micro_usd=cost,
            cost_per_million_output_tokens_micro_usd=_per_million(
                cost, min(served, capacity), load
            ),
            cost_per_million_at_capacity_micro_usd=_per_million(cost, capacity, load),
            fingerprint=one.fingerprint,
            anchoring=anchoring,
        )

    def _prediction(self, ask: Ask, figures: _Figures, *, capacity: float) -> Prediction:
        subject = self.candidates[ask.number].subject
        tokens, overhead = subject.load.output - 1, self._snapshot.gateway_overhead_us
        percentile = subject.intent.targets.percentile
        places = [self._quantiles.index(q) for q in (*_SHOWN, percentile / 100)]
        ttft_mean = figures.ttft_us + overhead
        ttfts = [figures.ttfts[place] + overhead for place in places]
        tpot_mean = figures.step_us if tokens else 0.0
        tpots = [figures.tpots[place] if tokens else 0.0 for place in places]
        # Percentiles of the two add up only if slow prompts meet slow decodes; they do, under load.
        e2es = [first + tokens * each for first, each in zip(ttfts, tpots, strict=True)]
        return Prediction(
            ttft=_latency(ttft_mean, ttfts, percentile),
            tpot=_latency(tpot_mean, tpots, percentile),
            e2e=_latency(ttft_mean + tokens * tpot_mean, e2es, percentile),
            unloaded_e2e_us=round(self._unloaded[ask.number]) + overhead,
            capacity_milli_rps=math.floor(capacity * 1000),
            utilisation_permille=math.ceil(1000 * ask.rate / capacity),
            mean_batch_milli=round(1000 * figures.running),
            overloaded=figures.overloaded,
        )

    def _memory(self, number: int, others: float) -> MemoryPlan | GpuMemory:
        """Return a replica's memory: on ``cpu`` KV for the company that a request finds when it is busy.

        The longest request has room beside it: without that it keeps everybody else waiting. On GPUs
        the cache is all that is left.
        """
        one, policy, snapshot = self.candidates[number], self._policy, self._snapshot
        config, model, load = one.config, one.subject.model, one.subject.load
        if config.product != "cpu":
            return gpu_memory(
                model.architecture,
                config,
                depth=model.depth,
                gpu_bytes=gpu_bytes(snapshot.gpu_pools, config.product),
                kv_precision=compute_precision(config.precision),
                block_tokens=snapshot.capabilities.block_tokens,
                rows=one.source.fingerprint.memory,
                policy=policy,
            )
        busy = math.ceil((1 + others) * (load.prompt + load.output))
        return memory_plan(
            model.architecture,
            depth=model.depth,
            precision=config.precision,
            kv_precision=compute_precision(config.precision),
            kv_tokens=max(one.longest + busy, math.ceil(busy * policy.kv_headroom_permille / 1000)),
            block_tokens=snapshot.capabilities.block_tokens,
            fingerprint=one.source.fingerprint,
            policy=policy,
            processes=config.tensor_parallel_size * config.pipeline_parallel_size,
            stages=config.pipeline_parallel_size,
        )

    def _most_sequences(self, number: int) -> int:
        """Return the cap on sequences: what the TPOT target allows; the engine's where it allows none."""
        one = self.candidates[number]
        target = one.subject.intent.targets.tpot_us
        aims = one.subject.intent.objective == "TargetLatency" and one.subject.load.output > 1
        if not aims or target is None:
            return one.max_sequences
        within = target * 1000 / (1000 + self._policy.margin_high_permille)
        return self._replicas.max_running(number, within) or one.max_sequences


def _alike(use: Floats) -> Iterator[Ints]:
    """Yield the rows of replicas that are about equally used: full ones have many more states.

    It changes nothing but the time that predictions take.
    """
    kinds = np.digitize(use, _USES)
    for kind in range(len(_USES) + 1):
        rows = np.nonzero(kinds == kind)[0]
        if len(rows):
            yield rows


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
    subject = Subject(intent=intent, model=model, configs=(config,), load=load, nodes=nodes)
    estimator = Estimator([subject], snapshot=snapshot, policy=policy)
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
