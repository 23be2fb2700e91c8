"""From a configuration to what it delivers: memory, latencies, confidence and cost, many at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from trimtab.planning.confidence import assess, lowered, margin_permille, ttft_margin_permille
from trimtab.planning.fingerprint import FingerprintKey
from trimtab.planning.gpu_memory import GpuMemory, gpu_memory
from trimtab.planning.gpus import gpu_bytes
from trimtab.planning.memory import MemoryPlan, ReplicaMemory
from trimtab.planning.plan import Anchoring, Confidence, Latency, Option, Prediction
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import PriceBook, price_for
from trimtab.planning.slots import Nodes
from trimtab.planning.snapshot import Config, FleetSnapshot, IntentView, ModelView
from trimtab.planning.sources import Source, Sources
from trimtab.planning.steady import ReplicaKind, Replicas, States
from trimtab.planning.step_arrays import Bools, Floats, Ints, pick
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_UNBOUND_TOKENS = 1 << 40
# What a replica that cannot carry its load is shown with: just below its capacity.
_FULL = 0.98
# Shares of the capacity between which replicas are predicted together, if they are more than a few.
_USES = (0.4, 0.7, 0.9)
_FEW = 48
# The company that memory is planned for: what one request in twenty exceeds.
_BUSY = 0.95
_SHOWN = (0.5, 0.95, 0.99)


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


class _Figures:
    """What replicas deliver, a row each, times in µs; a column per quantile that anybody asks for."""

    __slots__ = ("extrapolated", "running", "step_us", "tpots", "ttft_us", "ttfts")

    def __init__(self, count: int, quantiles: int) -> None:
        self.extrapolated: Bools = np.zeros(count, dtype=bool)
        self.running, self.step_us, self.ttft_us = np.zeros((3, count))
        self.ttfts, self.tpots = np.zeros((2, count, quantiles))

    def fill(
        self, rows: Ints, replicas: Replicas, states: States, quantiles: Sequence[float]
    ) -> None:
        """Note what some rows deliver in their states."""
        self.extrapolated[rows] = replicas.extrapolates(states)
        self.running[rows] = states.running
        self.step_us[rows] = states.step_us
        for places, some in states.alike():
            mine, waits = rows[places], replicas.waits(some)
            self.ttft_us[mine] = waits.mean()
            self.ttfts[mine] = waits.exceeded([1 - quantile for quantile in quantiles])
            self.tpots[mine] = replicas.tpot_us(some, quantiles)


class _Row(NamedTuple):
    """What one option is made from.

    Attributes:
        memory: Of one replica.
        slots: Sequences that it decodes at once.
        capacity: Of all replicas, requests per second.
        overloaded: They cannot carry the rate.
        extrapolated: Their steps lie outside the measured grid.
        running: Sequences that one of them decodes on average.
        whole: Mean, p50, p95, p99 and the intent's percentile of TTFT, of TPOT and of E2E in µs, then
            capacity, utilisation and batch, as a `Prediction` holds them.
    """

    memory: MemoryPlan | GpuMemory
    slots: int
    capacity: float
    overloaded: bool
    extrapolated: bool
    running: float
    whole: list[float]


class Estimator:
    """Predicts options of several intents, many at once.

    Attributes:
        candidates: Every configuration of every subject, in order; asked about by number.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        snapshot: FleetSnapshot,
        policy: PlannerPolicy,
        sources: Sources | None = None,
    ) -> None:
        self._snapshot, self._policy = snapshot, policy
        known = sources if sources is not None else Sources(snapshot, policy=policy)
        self.candidates = tuple(c for one in subjects for c in self._candidates(one, known))
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
        self._places = np.array([self._shown(one) for one in self.candidates])
        self._tokens = np.array([one.subject.load.output - 1.0 for one in self.candidates])
        self._memories = [self._memory(one) for one in self.candidates]
        # A replica on GPUs has what they have, whatever company a request finds there.
        self._fixed = np.array([isinstance(one, GpuMemory) for one in self._memories])
        self._assessed: dict[tuple[int, bool, bool], tuple[Confidence, int, int]] = {}

    def _shown(self, one: Candidate) -> list[int]:
        """Return where the quantiles that a prediction shows are among all that are asked for."""
        percentile = one.subject.intent.targets.percentile
        return [self._quantiles.index(q) for q in (*_SHOWN, percentile / 100)]

    def _candidates(self, subject: Subject, sources: Sources) -> Iterator[Candidate]:
        policy = self._policy
        for config in subject.configs:
            found, cpu = sources.of(subject.model, config, nodes=subject.nodes), _on_cpu(config)
            yield Candidate(
                subject=subject,
                config=config,
                key=found.key,
                source=found.source,
                fingerprint=found.name,
                token_budget=policy.cpu_max_batch_tokens if cpu else policy.gpu_max_batch_tokens,
                max_sequences=policy.cpu_max_sequences if cpu else policy.gpu_max_sequences,
                longest=longest_request(subject.model, subject.load, policy),
            )

    def options(self, asks: Sequence[Ask]) -> list[Callable[[], Option]]:
        """Return each option, with prediction and cost, to be called for if it is looked at."""
        replicas, which = self._replicas, np.array([ask.number for ask in asks])
        counts = np.array([float(ask.replicas) for ask in asks])
        rate = np.array([ask.rate for ask in asks])
        rates, sequences = rate / counts, self._sequences[which]
        screened = self._screened(which, rates)
        memories = self._held(asks, screened)
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
        figures = _Figures(len(asks), len(self._quantiles))
        known = np.zeros(len(asks), dtype=bool)
        for rows, states in screened:
            # Where the KV cache holds all sequences, that was the state itself.
            same = ~overloaded[rows] & (states.slots == slots[rows])
            known[rows] = same
            if same.any():
                figures.fill(rows[same], replicas, states.only(same), self._quantiles)
        shown = np.where(overloaded, _FULL * capacity, rates)
        for rows in _alike(np.nonzero(~known)[0], shown / capacity):
            states = replicas.steady(which[rows], slots=slots[rows], rate=shown[rows])
            figures.fill(rows, replicas, states, self._quantiles)
        total = capacity * counts
        table = zip(
            memories,
            slots.tolist(),
            total.tolist(),
            overloaded.tolist(),
            figures.extrapolated.tolist(),
            figures.running.tolist(),
            self._whole(which, figures, rate=rate, capacity=total),
            strict=True,
        )
        return [
            partial(self._option, ask, _Row(*row)) for ask, row in zip(asks, table, strict=True)
        ]

    def _screened(self, which: Ints, rates: Floats) -> list[tuple[Ints, States]]:
        """Return the states of replicas whose KV cache holds whatever company there is."""
        replicas = self._replicas
        unbound = np.full(len(which), _UNBOUND_TOKENS)
        slots = replicas.slots(which, kv_tokens=unbound, sequences=self._sequences[which])
        asked = np.nonzero(~self._fixed[which])[0]
        use = rates / replicas.capacity(which, slots)
        return [
            (rows, replicas.steady(which[rows], slots=slots[rows], rate=rates[rows]))
            for rows in _alike(asked, use)
        ]

    def _held(
        self, asks: Sequence[Ask], screened: Sequence[tuple[Ints, States]]
    ) -> list[MemoryPlan | GpuMemory]:
        """Return replicas' memory, with KV for the company that a request finds when it is busy."""
        others = np.zeros(len(asks))
        for rows, states in screened:
            others[rows] = states.others([_BUSY])[:, 0]
        found: list[MemoryPlan | GpuMemory] = []
        for ask, company in zip(asks, others.tolist(), strict=True):
            memory = self._memories[ask.number]
            if isinstance(memory, ReplicaMemory):
                found.append(memory.holding(self._kv_tokens(ask.number, company)))
            else:
                found.append(memory)
        return found

    def _kv_tokens(self, number: int, others: float) -> int:
        """Return what a replica's KV cache is to hold: for its company, and the longest request.

        The longest request has room beside the others: without that it keeps them waiting.
        """
        one, load = self.candidates[number], self.candidates[number].subject.load
        busy = math.ceil((1 + others) * (load.prompt + load.output))
        headroom = self._policy.kv_headroom_permille
        return max(one.longest + busy, math.ceil(busy * headroom / 1000))

    def _whole(
        self, which: Ints, figures: _Figures, *, rate: Floats, capacity: Floats
    ) -> list[list[float]]:
        """Return the figures of predictions in whole numbers, as `_Row` lists them."""
        places, tokens = self._places[which], self._tokens[which][:, None]
        overhead = self._snapshot.gateway_overhead_us
        ttft = np.concatenate([figures.ttft_us[:, None], pick(figures.ttfts, places)], axis=1)
        ttft += overhead
        tpot = np.concatenate([figures.step_us[:, None], pick(figures.tpots, places)], axis=1)
        tpot = np.where(tokens > 0, tpot, 0.0)
        # Percentiles of the two add up only if slow prompts meet slow decodes; they do, under load.
        e2e = ttft + tokens * tpot
        whole = np.concatenate(
            [
                np.rint(ttft),
                np.rint(tpot),
                np.rint(e2e),
                np.floor(capacity * 1000)[:, None],
                np.ceil(1000 * rate / capacity)[:, None],
                np.rint(1000 * figures.running)[:, None],
            ],
            axis=1,
        )
        found: list[list[float]] = whole.tolist()
        return found

    def _option(self, ask: Ask, row: _Row) -> Option:
        one, memory = self.candidates[ask.number], row.memory
        load, unloaded = one.subject.load, self._unloaded[ask.number]
        percentile = one.subject.intent.targets.percentile
        whole = [int(figure) for figure in row.whole]
        capacity_milli, utilisation, batch = whole[15:]
        anchoring = _anchoring(one.source, batch=max(1.0, row.running))
        confidence, margin, ttft_margin = self._confidence(
            ask.number, anchoring, extrapolated=row.extrapolated, utilisation=utilisation
        )
        cost = hourly(
            one.config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            prices=self._snapshot.prices,
        )
        served = ask.rate if ask.rate > 0 else 1e6 / unloaded
        return Option(
            config=one.config,
            replicas=ask.replicas,
            memory_bytes=memory.total,
            arena_bytes=memory.arena,
            kv_tokens=memory.kv_tokens,
            max_model_len=one.longest,
            max_seqs=row.slots,
            max_batch_tokens=one.token_budget,
            predicted=Prediction(
                ttft=_latency(whole[:5], percentile),
                tpot=_latency(whole[5:10], percentile),
                e2e=_latency(whole[10:15], percentile),
                unloaded_e2e_us=round(unloaded) + self._snapshot.gateway_overhead_us,
                capacity_milli_rps=capacity_milli,
                utilisation_permille=utilisation,
                mean_batch_milli=batch,
                overloaded=row.overloaded,
            ),
            margin_permille=margin,
            ttft_margin_permille=ttft_margin,
            confidence=confidence,
            cost_per_hour_micro_usd=cost,
            cost_per_million_output_tokens_micro_usd=_per_million(
                cost, min(served, row.capacity), load
            ),
            cost_per_million_at_capacity_micro_usd=_per_million(cost, row.capacity, load),
            fingerprint=one.fingerprint,
            anchoring=anchoring,
        )

    def _confidence(
        self, number: int, anchoring: Anchoring | None, *, extrapolated: bool, utilisation: int
    ) -> tuple[Confidence, int, int]:
        """Return the confidence in an option of a candidate, and the margins of TPOT and TTFT.

        Options of one candidate differ in little of what it is made from, so each is found once.
        """
        policy = self._policy
        asked = (number, extrapolated, utilisation > policy.screened_utilisation_permille)
        found = self._assessed.get(asked)
        if found is None:
            one = self.candidates[number]
            confidence = assess(
                one.source.fingerprint,
                one.source.model,
                anchoring=anchoring,
                engine_version=self._snapshot.capabilities.version,
                extrapolated=extrapolated,
                utilisation_permille=utilisation,
                policy=policy,
            )
            if one.config.pipeline_parallel_size > 1:
                confidence = lowered(confidence, "pipeline stages predicted from one")
            margin = margin_permille(confidence.level, policy=policy)
            later = ttft_margin_permille(margin, anchoring, policy=policy)
            found = self._assessed[asked] = (confidence, margin, later)
        return found

    def _memory(self, one: Candidate) -> ReplicaMemory | GpuMemory:
        """Return what a candidate's memory is found from; on GPUs the cache is all that is left."""
        policy, snapshot = self._policy, self._snapshot
        config, model = one.config, one.subject.model
        if not _on_cpu(config):
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
        return ReplicaMemory(
            model.architecture,
            depth=model.depth,
            precision=config.precision,
            kv_precision=compute_precision(config.precision),
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


def _alike(rows: Ints, use: Floats) -> Iterator[Ints]:
    """Yield rows of replicas that are about equally used: full ones have many more states.

    It changes nothing but the time that predictions take, and few rows take least together.
    """
    if len(rows) <= _FEW:
        if len(rows):
            yield rows
        return
    kinds = np.digitize(use[rows], _USES)
    for kind in range(len(_USES) + 1):
        mine: Ints = rows[kinds == kind]
        if len(mine):
            yield mine


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
    sources: Sources | None = None,
) -> Option:
    """Return the option of running ``replicas`` of ``config``, with its prediction and cost.

    ``nodes`` is where they run, if they do; ``sources`` are the plan's.
    """
    subject = Subject(intent=intent, model=model, configs=(config,), load=load, nodes=nodes)
    estimator = Estimator([subject], snapshot=snapshot, policy=policy, sources=sources)
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


def _on_cpu(config: Config) -> bool:
    return config.product == "cpu"


def _latency(figures: Sequence[int], percentile: int) -> Latency:
    mean, p50, p95, p99, chosen = figures
    return Latency(
        mean_us=mean,
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
