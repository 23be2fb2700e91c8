"""Which option an intent wants: the four objectives, targets with margin, and the order of options."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trimtab.planning.options import config_key
from trimtab.planning.plan import Binding, Lost, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import IntentView
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_MOST_LOSS = 5.0
_GPU_THREADS = 100
"""Threads that cost as much as a GPU, where neither has a price: 4 USD an hour beside 4 cents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """What an option delivers against one requirement: above 1 it is missed."""

    name: Binding
    value: float
    lost: Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An option with its score under the intent's objective (lower is better) and requirements.

    Attributes:
        worst: The requirement that is nearest to being missed, or missed most.
        meets: No requirement is missed.
        order: A total order among options of equal merit.
    """

    option: Option
    score: float
    resources: float
    ratios: tuple[Ratio, ...]
    worst: Ratio | None = field(init=False, compare=False)
    meets: bool = field(init=False, compare=False)
    order: tuple[object, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Find out once what every comparison asks for."""
        worst = max(self.ratios, key=lambda r: (r.value, r.name), default=None)
        order = (self.resources, self.option.replicas, config_key(self.option.config))
        object.__setattr__(self, "worst", worst)
        object.__setattr__(self, "meets", worst is None or worst.value <= 1)
        object.__setattr__(self, "order", order)


def judge(
    intent: IntentView, option: Option, *, load: PlannedLoad, priced: bool, policy: PlannerPolicy
) -> Judged:
    """Return an option's score and requirements.

    Args:
        intent: Whose objective counts.
        option: What is judged.
        load: What is planned for.
        priced: Compare costs in money; otherwise by reserved devices and memory.
        policy: Headroom and usability limits.
    """
    requirements = {
        "MinLatency": _carries,
        "MinCost": _usable,
        "TargetLatency": _latency,
        "TargetCost": _budget,
    }[intent.objective](intent, option, load, policy)
    resources = resource_score(option, priced=priced)
    by_latency = intent.objective in ("MinLatency", "TargetCost")
    return Judged(
        option=option,
        score=float(option.predicted.e2e.mean_us) if by_latency else resources,
        resources=resources,
        ratios=tuple(requirements),
    )


def resource_score(option: Option, *, priced: bool) -> float:
    """Return micro-USD per hour, or reserved devices and memory in their usual ratio of prices."""
    if priced and option.cost_per_hour_micro_usd is not None:
        return float(option.cost_per_hour_micro_usd)
    if option.config.product != "cpu":
        # Whole GPUs are what is reserved; their nodes' memory comes with them.
        return float(option.replicas * option.config.devices * _GPU_THREADS)
    per_replica = option.config.threads + option.memory_bytes / _GIB / 8
    return option.replicas * per_replica


def rank(intent: IntentView, judged: Iterable[Judged], *, policy: PlannerPolicy) -> list[Judged]:
    """Return options in the order of preference: those that meet the objective, then the nearest."""
    every = list(judged)
    good = [j for j in every if j.meets]
    best = min((j.score for j in good), default=0.0)
    tie = best * (1 + policy.latency_tie_permille / 1000)
    ties = intent.objective in ("MinLatency", "TargetCost")

    def preference(j: Judged) -> tuple[object, ...]:
        if ties and j.score <= tie:
            return (0, 0.0, *j.order)
        return (1, j.score, *j.order)

    missing = [j for j in every if not j.meets]
    nearest = min((_distance(j) for j in missing), default=0.0)
    near = nearest * (1 + policy.latency_tie_permille / 1000)

    def nearness(j: Judged) -> tuple[object, ...]:
        if _distance(j) <= near:
            return (0, 0.0, *j.order)
        return (1, _distance(j), *j.order)

    return sorted(good, key=preference) + sorted(missing, key=nearness)


def prune(ranked: Sequence[Judged], *, policy: PlannerPolicy) -> list[Judged]:
    """Drop options that another beats or equals in everything; keep the best few."""
    kept: list[Judged] = []
    for candidate in ranked:
        if not any(_dominates(other, candidate) for other in kept):
            kept.append(candidate)
    if len(kept) <= policy.kept_options:
        return kept
    # The smallest stays: it may be all that is left when others have taken theirs.
    smallest = min(kept, key=footprint)
    best = [k for k in kept if k is not smallest][: policy.kept_options - 1]
    return [k for k in kept if k is smallest or k in best]


def footprint(judged: Judged) -> tuple[object, ...]:
    """Return a sort key that puts the option with the fewest devices, then least memory, first."""
    option = judged.option
    return (
        option.replicas * option.config.devices,
        option.replicas * option.memory_bytes,
        *judged.order,
    )


def loss(judged: Judged, best: Judged) -> float:
    """Return the regret of an option against the intent's best, relative, at most 5."""
    if not judged.meets and best.meets:
        return _MOST_LOSS
    if not judged.meets and judged.worst and best.worst:
        return min(_MOST_LOSS, judged.worst.value / max(1e-9, best.worst.value) - 1)
    return min(_MOST_LOSS, max(0.0, judged.score / max(1e-9, best.score) - 1))


def ttft_with_margin(option: Option) -> float:
    """Return the TTFT at the intent's percentile that a target is compared with, µs."""
    return option.predicted.ttft.percentile_us * (1 + option.ttft_margin_permille / 1000)


def tpot_with_margin(option: Option) -> float:
    """Return the TPOT at the intent's percentile that a target is compared with, µs."""
    return option.predicted.tpot.percentile_us * (1 + option.margin_permille / 1000)


def _distance(judged: Judged) -> float:
    return judged.worst.value if judged.worst else 0.0


def _carries(
    _intent: IntentView, option: Option, load: PlannedLoad, _policy: PlannerPolicy
) -> list[Ratio]:
    return [_capacity(option, load, headroom=1.0)]


def _usable(
    _intent: IntentView, option: Option, load: PlannedLoad, policy: PlannerPolicy
) -> list[Ratio]:
    slow = option.predicted.unloaded_e2e_us * policy.usable_slowdown_permille / 1000
    return [
        _capacity(option, load, headroom=policy.headroom_permille / 1000),
        Ratio(name="Latency", value=option.predicted.e2e.p95_us / slow, lost="Slower"),
    ]


def _latency(
    intent: IntentView, option: Option, load: PlannedLoad, _policy: PlannerPolicy
) -> list[Ratio]:
    targets = intent.targets
    ratios = [_capacity(option, load, headroom=1.0)]
    if targets.ttft_us is not None:
        value = ttft_with_margin(option) / targets.ttft_us
        ratios.append(Ratio(name="TimeToFirstToken", value=value, lost="MissesTarget"))
    if targets.tpot_us is not None and load.output > 1:
        value = tpot_with_margin(option) / targets.tpot_us
        ratios.append(Ratio(name="TimePerOutputToken", value=value, lost="MissesTarget"))
    return ratios


def _budget(
    intent: IntentView, option: Option, load: PlannedLoad, _policy: PlannerPolicy
) -> list[Ratio]:
    targets = intent.targets
    ratios = [_capacity(option, load, headroom=1 + option.margin_permille / 1000)]
    pairs = (
        (targets.cost_per_hour_micro_usd, option.cost_per_hour_micro_usd),
        (
            targets.cost_per_million_output_tokens_micro_usd,
            option.cost_per_million_output_tokens_micro_usd,
        ),
    )
    for target, cost in pairs:
        if target is not None:
            value = _MOST_LOSS * 1e6 if cost is None else cost / max(1, target)
            ratios.append(Ratio(name="Cost", value=value, lost="OverBudget"))
    return ratios


def _capacity(option: Option, load: PlannedLoad, *, headroom: float) -> Ratio:
    if load.rate <= 0:
        return Ratio(name="Capacity", value=0.0, lost="Overloaded")
    value = load.rate * headroom * 1000 / max(1, option.predicted.capacity_milli_rps)
    return Ratio(name="Capacity", value=value, lost="Overloaded")


def _dominates(a: Judged, b: Judged) -> bool:
    one, two = a.option.predicted, b.option.predicted
    mine, yours = a.option, b.option
    return (
        a.resources <= b.resources
        # Where one product is scarce, another is what is left.
        and mine.config.product == yours.config.product
        # What is cheaper may still be larger, and in the way where machines are scarce.
        and mine.replicas * mine.config.devices <= yours.replicas * yours.config.devices
        and mine.replicas * mine.memory_bytes <= yours.replicas * yours.memory_bytes
        and one.ttft.percentile_us <= two.ttft.percentile_us
        and one.tpot.percentile_us <= two.tpot.percentile_us
        and one.e2e.mean_us <= two.e2e.mean_us
        and one.capacity_milli_rps >= two.capacity_milli_rps
        and a.meets >= b.meets
    )
