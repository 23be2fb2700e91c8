"""What the planner says about each way before it is tried: from a fingerprint, raw or with anchors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.bench.road.matrix import (
    PREEMPT_OUTPUT,
    PREEMPT_PROMPT,
    SATURATION,
    Rates,
    Run,
    Shape,
    Way,
    preempting,
)
from trimtab.cli.output import CommandError
from trimtab.observe.capabilities import ASSUMED
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.queue_sim import simulate
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.snapshot import (
    Config,
    Constraints,
    CpuPool,
    FleetSnapshot,
    IntentView,
    Load,
)
from trimtab.planning.sources import find_source
from trimtab.planning.workload import Arrival, PlannedLoad

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.observe.inspections import ModelFacts
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.plan import Option
    from trimtab.planning.prices import PriceBook
    from trimtab.planning.queue_sim import Metric
    from trimtab.planning.snapshot import Anchor
    from trimtab.planning.sources import Source

POLICY: Final = PlannerPolicy(thread_counts=(1,))

LEAST_LOAD: Final = PlannedLoad(rate=0.01, prompt=16, output=16, assumed=False)
"""What a small cache is planned for: the least that the planner gives any model."""

# The cache grows with the load and the capacity with the cache; it settles at once.
_LEAST_RATE: Final = 1e-3
_ROUNDS: Final = 4
_PREEMPT_TRIES: Final = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_ENOUGH_PREEMPTED: Final = 0.1
_WATERMARK_PERMILLE: Final = 20
_ROOMY_NODES, _ROOMY_BYTES = 16, 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What predictions are made from; nothing of it was measured under load.

    Attributes:
        facts: The model, as inspected in the cluster.
        fingerprints: As Jobs of the cluster measured them.
        prices: The cluster's price book.
        overhead_us: The gateway's own time per request.
    """

    facts: ModelFacts
    fingerprints: tuple[Fingerprint, ...]
    prices: PriceBook
    overhead_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a simulated queue makes of a run's requests: µs of those that count, gateway included."""

    values: Mapping[Metric, tuple[float, ...]]
    preemptions: int
    served: int


class Forecast:
    """The planner's predictions for one model on one kind of CPU, one thread per replica."""

    def __init__(
        self, known: Known, *, prompt: int, output: int, anchors: Sequence[Anchor] = ()
    ) -> None:
        self._model = known.facts.model
        self._cpu_model = known.facts.cpu_model
        self._prompt, self._output = prompt, output
        self._options: dict[tuple[Way, PlannedLoad], Option] = {}
        self._replays: dict[tuple[Run, float], Replay] = {}
        self._snapshot = FleetSnapshot(
            intents=(),
            # Room for all: what fits is the operator's to say, when the way is served.
            pools=tuple(
                CpuPool(
                    node=f"n{n}",
                    cpu_model=self._cpu_model,
                    millicores=1000,
                    memory_bytes=_ROOMY_BYTES,
                )
                for n in range(_ROOMY_NODES)
            ),
            capabilities=ASSUMED,
            fingerprints=known.fingerprints,
            anchors=tuple(anchors),
            prices=known.prices,
            gateway_overhead_us=known.overhead_us,
        )
        self._intent = IntentView(
            uid="bench",
            namespace="trimtab-bench",
            name="bench",
            generation=1,
            created_seconds=0,
            model=self._model,
        )

    @property
    def intent(self) -> IntentView:
        """The model with no wish: what options are predicted for and objectives are put to."""
        return self._intent

    @property
    def depth(self) -> int:
        """Hidden layers of the model, which anchors are kept with."""
        return self._model.depth

    def load(self, rate: float) -> PlannedLoad:
        """Return the compared load at a rate."""
        return PlannedLoad(rate=rate, prompt=self._prompt, output=self._output, assumed=False)

    def option(self, way: Way, rate: float) -> Option:
        """Return a way as the planner sees it at a rate."""
        return self._option(way, LEAST_LOAD if way.small else self.load(rate))

    def capacity(self, way: Way, *, planned_rate: float) -> float:
        """Return the largest rate that a way sustains with the cache that a rate is planned with."""
        return self.option(way, planned_rate).predicted.capacity_milli_rps / 1000

    def key(self, precision: str) -> str:
        """Return the digest of the fingerprint that a precision is predicted from."""
        return self._source(precision).fingerprint.key.digest()

    def rates(self, shape: Shape) -> Rates:
        """Return how fast requests are to be sent."""
        most = shape.loads[-1]
        base = min(
            self._sustained(Way(precision=p, replicas=1), most=most) for p in shape.precisions
        )
        return Rates(
            base=base,
            saturating={
                way.name: SATURATION * self.capacity(way, planned_rate=most * base)
                for way in shape.ways()
            },
            preempt=self._preempting(shape),
        )

    def _sustained(self, way: Way, *, most: float) -> float:
        """Return the capacity of a way whose cache is planned for a share of it."""
        rate = _LEAST_RATE
        for _ in range(_ROUNDS):
            rate = self.capacity(way, planned_rate=most * rate)
        return rate

    def replay(self, run: Run, way: Way, *, planned_rate: float) -> Replay:
        """Return what the simulated queue makes of a run's very requests.

        Args:
            run: Whose requests are replayed.
            way: How they are served.
            planned_rate: The rate that the served replica's cache was planned for.
        """
        asked = (run, planned_rate)
        if asked not in self._replays:
            self._replays[asked] = self._replay(run, way, planned_rate=planned_rate)
        return self._replays[asked]

    def _replay(self, run: Run, way: Way, *, planned_rate: float) -> Replay:
        option = self.option(way, planned_rate)
        arrivals = [
            Arrival(at_us=a.at_seconds * 1e6, prompt=a.prompt_tokens, output=a.output_tokens)
            for a in run.arrivals("")
        ]
        found = simulate(
            self._source(way.precision).model,
            # A plan counts what can be used; the scheduler keeps the watermark free by itself.
            kv_tokens=option.kv_tokens * 1000 // (1000 - _WATERMARK_PERMILLE),
            limits=SchedulerLimits(
                token_budget=option.max_batch_tokens,
                max_running=option.max_seqs,
                block_tokens=ASSUMED.block_tokens,
                max_model_len=option.max_model_len,
                window=self._model.architecture.sliding_window,
            ),
            arrivals=arrivals,
            replicas=way.replicas,
        )
        begin, extra = run.warm_up_seconds * 1e6, self._snapshot.gateway_overhead_us
        counted = [s for s in found.served if s.arrival_us >= begin]
        return Replay(
            values={
                "TTFT": tuple(s.ttft_us + extra for s in counted),
                "TPOT": tuple(s.tpot_us for s in counted if s.output > 1),
                "E2E": tuple(s.e2e_us + extra for s in counted),
            },
            preemptions=found.preemptions,
            served=len(found.served),
        )

    def _preempting(self, shape: Shape) -> float:
        """Return the lowest rate at which a small cache preempts one request in ten, simulated."""
        way = shape.small_way()
        load = PlannedLoad(
            rate=_LEAST_RATE, prompt=PREEMPT_PROMPT, output=PREEMPT_OUTPUT, assumed=False
        )
        rate = capacity = self._option(way, load).predicted.capacity_milli_rps / 1000
        for share in _PREEMPT_TRIES:
            rate = share * capacity
            run = preempting(shape, rate=rate, repeat=0)
            found = self.replay(run, way, planned_rate=0.0)
            if found.preemptions >= _ENOUGH_PREEMPTED * found.served:
                break
        return rate

    def _option(self, way: Way, load: PlannedLoad) -> Option:
        """Return what the planner says of an intent that is pinned to a way."""
        if (way, load) not in self._options:
            pinned = replace(
                self._intent,
                load=Load(
                    requests_per_second=load.rate,
                    prompt_tokens=load.prompt,
                    output_tokens=load.output,
                ),
                constraints=Constraints(
                    precisions=(way.precision,),
                    min_replicas=way.replicas,
                    max_replicas=way.replicas,
                ),
            )
            plan = plan_fleet(replace(self._snapshot, intents=(pinned,)), POLICY).intents[0]
            if plan.option is None:
                raise CommandError(f"{way.name} cannot be predicted: {plan.message}")
            self._options[way, load] = plan.option
        return self._options[way, load]

    def _source(self, precision: str) -> Source:
        config = Config(product="cpu", cpu_model=self._cpu_model, precision=precision, threads=1)
        return find_source(self._model, config, snapshot=self._snapshot, policy=POLICY)
