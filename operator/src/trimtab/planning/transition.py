"""How much of a fleet may change at once: one intent's change, or 10 % of a product's devices.

Steps that restore service are never held: what is lost or new disturbs nobody who serves. What is
already under way counts first, so a budget in use is no reason to stop half-way (planner.md §9). It
counts for a bounded time: replicas that never become ready must not hold up others for ever.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import Cause, Running, Step
from trimtab.planning.snapshot import Config, CpuPool, GpuPool

_SECOND_US = 1_000_000

# The most urgent first; what a target misses comes before what is merely better.
_URGENCY: Mapping[Cause, int] = {
    "Lost": 0,
    "New": 0,
    "Pins": 1,
    "Edit": 1,
    "Needed": 1,
    "Missed": 2,
    "Better": 3,
    "Spare": 4,
    "None": 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One intent's step, before the fleet's budget is looked at.

    Attributes:
        uid: Of the intent.
        priority: Higher first.
        created_seconds: Of the intent, Unix time; the older first.
        running: What exists; None for what is created.
        step: What it wants to do next.
    """

    uid: str
    priority: int
    created_seconds: int
    running: Running | None
    step: Step


def devices(config: Config) -> int:
    """Return how many devices one replica takes: GPUs, on ``cpu`` threads."""
    return config.devices


def devices_by_product(pools: Iterable[CpuPool], gpus: Iterable[GpuPool] = ()) -> dict[str, int]:
    """Return how many whole devices the fleet has, by product."""
    found: dict[str, int] = {}
    for pool in pools:
        found[pool.product] = found.get(pool.product, 0) + pool.millicores // 1000
    for node in gpus:
        found[node.product] = found.get(node.product, 0) + node.gpus
    return found


def in_transition(running: Running, *, now_us: int, policy: PlannerPolicy) -> int:
    """Return the devices of an intent whose replicas are not ready yet, or on their way out.

    None of one that neither changed nor got further for ``change_seconds``: it is broken, not moving.
    """
    last = max(running.changed_us or 0, running.progressed_us or 0)
    if not last or now_us >= last + policy.change_seconds * _SECOND_US:
        return 0
    if running.rolling:
        return running.replicas * devices(running.config)
    return max(0, running.replicas - running.ready) * devices(running.config)


def changed(candidate: Candidate, *, now_us: int, policy: PlannerPolicy) -> int:
    """Return the devices that a step puts in transition beyond those that are already."""
    step, running = candidate.step, candidate.running
    each = devices(step.config)
    if running is None or step.kind == "Create":
        return step.replicas * each
    if step.kind == "Move":
        return max(0, step.replicas * each - _own(candidate, now_us=now_us, policy=policy))
    return abs(step.replicas - running.replicas) * each


def admit(
    candidates: Iterable[Candidate],
    *,
    totals: Mapping[str, int],
    now_us: int,
    policy: PlannerPolicy,
) -> dict[str, Step]:
    """Return every intent's step, those beyond the budget turned into ``Keep``.

    Args:
        candidates: One per intent.
        totals: Devices of the fleet by product.
        now_us: What changed long ago is not under way any more.
        policy: The share that may be in transition.
    """
    every = list(candidates)
    moving: dict[str, int] = {}
    for candidate in every:
        if candidate.running is not None:
            product = candidate.running.config.product
            moving[product] = moving.get(product, 0) + _own(candidate, now_us=now_us, policy=policy)
    steps: dict[str, Step] = {}
    for candidate in sorted(every, key=_order):
        steps[candidate.uid] = step = candidate.step
        if step.kind == "Keep":
            continue
        product = step.config.product
        more = changed(candidate, now_us=now_us, policy=policy)
        now = moving.get(product, 0)
        limit = totals.get(product, 0) * policy.transition_permille // 1000
        free = step.cause in ("Lost", "New", "Pins")
        own = _own(candidate, now_us=now_us, policy=policy)
        # If all that is in transition is its own change, it may go on with it.
        goes_on = _same_product(candidate) and own > 0 and own == now
        if not free and now and now + more > limit and not goes_on:
            steps[candidate.uid] = _held(candidate)
            continue
        moving[product] = now + more
    return steps


def _order(candidate: Candidate) -> tuple[int, int, int, str]:
    return (
        _URGENCY[candidate.step.cause],
        -candidate.priority,
        candidate.created_seconds,
        candidate.uid,
    )


def _own(candidate: Candidate, *, now_us: int, policy: PlannerPolicy) -> int:
    if candidate.running is None:
        return 0
    return in_transition(candidate.running, now_us=now_us, policy=policy)


def _same_product(candidate: Candidate) -> bool:
    running = candidate.running
    return running is not None and running.config.product == candidate.step.config.product


def _held(candidate: Candidate) -> Step:
    running = candidate.running
    if running is None:
        raise RuntimeError("A creation is never held; this is a bug, please report it.")
    return replace(
        candidate.step,
        kind="Keep",
        config=running.config,
        replicas=running.replicas,
        cause="None",
        held="Transition",
        mode="None",
    )
