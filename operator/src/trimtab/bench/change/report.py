"""What became of a story: counts first, then what they cost and what was served meanwhile."""

from collections.abc import Sequence
from typing import Any

from trimtab.bench.change.values import Life, Taken
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import bound

_HOUR = 3600


def measures(life: Life, *, policy: PlannerPolicy) -> dict[str, Any]:
    """Return the figures of one life, the first plan's creations left out."""
    later = [t for t in life.taken if t.step.kind != "Create"]
    ups = [t for t in later if t.step.kind == "Scale" and _delta(t) > 0]
    downs = [t for t in later if t.step.kind == "Scale" and _delta(t) < 0]
    return {
        "changes": len(later),
        "scaled_up": len(ups),
        "scaled_down": len(downs),
        "moved": len(later) - len(ups) - len(downs),
        "reversals": max([0, *reversals(later).values()]),
        "steps_beyond_bound": sum(_beyond(t, policy) for t in later),
        "requests": life.arrived,
        "requests_within_target": life.within,
        "within_target_percent": round(100 * life.within / max(1, life.arrived), 2),
        "device_hours": round(life.device_seconds / _HOUR, 3),
        "starting_device_hours": round(life.starting_device_seconds / _HOUR, 3),
        "plans": len(life.plans),
        "debounced_seconds_most": max([0.0, *(waited for _, _, waited, _ in life.plans)]),
        "plan_seconds_most": round(max([0.0, *(took for _, _, _, took in life.plans)]), 3),
        "to_plan_seconds_most": round(max([0.0, *(w + took for _, _, w, took in life.plans)]), 3),
        "least_ready": life.least_ready,
        "several_in_transition_permille_most": round(1000 * life.most_in_transition),
    }


def reversals(taken: Sequence[Taken]) -> dict[str, int]:
    """Return per intent how often a change was taken back within an hour.

    Taken back is a replica added after one was removed or the reverse, and a configuration that was
    left and is returned to.
    """
    found: dict[str, int] = {}
    by_intent: dict[str, list[Taken]] = {}
    for one in taken:
        by_intent.setdefault(one.uid, []).append(one)
    for uid, steps in by_intent.items():
        found[uid] = sum(_takes_back(one, steps[:n]) for n, one in enumerate(steps))
    return found


def _takes_back(one: Taken, earlier: Sequence[Taken]) -> bool:
    recent = [t for t in earlier if one.at_seconds - t.at_seconds < _HOUR]
    if one.step.kind == "Move":
        return any(
            t.step.kind == "Move" and t.before and t.before.config == one.step.config
            for t in recent
        )
    scaled = [t for t in recent if t.step.kind == "Scale"]
    return bool(scaled) and _delta(scaled[-1]) * _delta(one) < 0


def _delta(taken: Taken) -> int:
    return taken.step.replicas - (taken.before.replicas if taken.before else 0)


def _beyond(taken: Taken, policy: PlannerPolicy) -> bool:
    free = taken.step.kind != "Scale" or taken.step.cause == "Pins"
    before = taken.before.replicas if taken.before else 0
    return not free and abs(_delta(taken)) > bound(before, policy=policy)
