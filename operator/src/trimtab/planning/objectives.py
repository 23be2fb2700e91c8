"""Which option an intent wants: the four objectives, targets with margin, and the order of options."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop
from typing import Final

import numpy as np

from trimtab.planning.options import config_key
from trimtab.planning.plan import Binding, Lost, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import IntentView
from trimtab.planning.step_arrays import Bools
from trimtab.planning.workload import PlannedLoad

_GIB = 2**30
_MOST_LOSS = 5.0
_Preference = tuple[int, float, tuple[object, ...]]
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
        ratios = self.ratios
        worst = ratios[0] if ratios else None
        if len(ratios) > 1:
            worst = max(ratios, key=lambda r: (r.value, r.name))
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
    requirements = _REQUIREMENTS[intent.objective](intent, option, load, policy)
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
    parts = _preferences(intent, judged, policy)
    return [some[n] for some, keys in parts for n in sorted(range(len(some)), key=keys.__getitem__)]


def first(
    intent: IntentView,
    judged: Iterable[Judged],
    *,
    fits: Callable[[Option], bool],
    policy: PlannerPolicy,
) -> Judged | None:
    """Return the first option of `rank` that fits, without putting the others in order."""
    for some, keys in _preferences(intent, judged, policy):
        left = list(zip(keys, range(len(some)), strict=True))
        heapify(left)
        while left:
            found = some[heappop(left)[1]]
            if fits(found.option):
                return found
    return None


def _preferences(
    intent: IntentView, judged: Iterable[Judged], policy: PlannerPolicy
) -> Iterator[tuple[list[Judged], list[_Preference]]]:
    """Yield the options that meet the objective and then the others, with the keys to sort them by."""
    good: list[Judged] = []
    missing: list[Judged] = []
    for one in judged:
        (good if one.meets else missing).append(one)
    near = 1 + policy.latency_tie_permille / 1000
    scores = [one.score for one in good]
    ties = intent.objective in ("MinLatency", "TargetCost")
    tie = min(scores, default=0.0) * near if ties else -math.inf
    yield good, _keys(good, scores, tie)
    distances = [_distance(one) for one in missing]
    yield missing, _keys(missing, distances, min(distances, default=0.0) * near)


def _keys(judged: Sequence[Judged], values: Sequence[float], tie: float) -> list[_Preference]:
    """Return sort keys by value, of which all up to ``tie`` are alike."""
    return [
        (0, 0.0, one.order) if value <= tie else (1, value, one.order)
        for one, value in zip(judged, values, strict=True)
    ]


def prune(ranked: Sequence[Judged], *, policy: PlannerPolicy) -> list[Judged]:
    """Drop options that another beats or equals in everything; keep the best few."""
    beaten = _dominated(ranked)
    kept = [candidate for n, candidate in enumerate(ranked) if not beaten[n]]
    if len(kept) <= policy.kept_options:
        return kept
    # The smallest stays: it may be all that is left when others have taken theirs.
    smallest = min(kept, key=footprint)
    best = [k for k in kept if k is not smallest][: policy.kept_options - 1]
    stays = {id(k) for k in (smallest, *best)}
    return [k for k in kept if id(k) in stays]


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


_REQUIREMENTS: Final = {
    "MinLatency": _carries,
    "MinCost": _usable,
    "TargetLatency": _latency,
    "TargetCost": _budget,
}


def _dominated(ranked: Sequence[Judged]) -> Bools:
    """Tell which options one before them beats or equals in everything."""
    products = {one.option.config.product: n for n, one in enumerate(ranked)}
    beats = np.triu(np.ones((len(ranked), len(ranked)), dtype=bool), 1)
    for column in zip(*map(_merits, ranked), strict=True):
        values = np.array(column)
        beats &= values[:, None] <= values
    kinds = np.array([products[one.option.config.product] for one in ranked])
    # Where one product is scarce, another is what is left.
    beats &= kinds[:, None] == kinds
    dominated: Bools = np.any(beats, axis=0)
    return dominated


def _merits(judged: Judged) -> tuple[float, ...]:
    """Return what options are compared by, less being better."""
    option, predicted = judged.option, judged.option.predicted
    return (
        judged.resources,
        # What is cheaper may still be larger, and in the way where machines are scarce.
        option.replicas * option.config.devices,
        option.replicas * option.memory_bytes,
        predicted.ttft.percentile_us,
        predicted.tpot.percentile_us,
        predicted.e2e.mean_us,
        -predicted.capacity_milli_rps,
        not judged.meets,
    )
