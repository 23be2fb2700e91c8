"""When a running plan is kept although another would score better (planner.md §9)."""

from trimtab.planning.objectives import Judged, loss
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Assignment, FleetSnapshot, IntentView


def switching_cost(snapshot: FleetSnapshot, key: str, *, policy: PlannerPolicy) -> float:
    """Return the loss that a move must save: 0.05 + reconfiguration/1,800 s, doubled without anchors."""
    cost = (
        policy.switching_cost_permille / 1000
        + policy.reconfiguration_seconds / policy.reconfiguration_scale_seconds
    )
    return cost if any(anchor.key == key for anchor in snapshot.anchors) else 2 * cost


def was_edited(intent: IntentView, assignment: Assignment) -> bool:
    """Tell whether the intent changed since its running plan was made: then it is chosen anew."""
    return assignment.generation != intent.generation


def keeps(current: Judged, best: Judged, *, cost: float) -> bool:
    """Tell whether a running option stays.

    It does not stay if it misses what the best meets. A measured option is never left for an
    estimate: the estimate is measured first.
    """
    if best.meets and not current.meets:
        return False
    if best.option.fingerprint == "Roofline" and current.option.fingerprint != "Roofline":
        return True
    return loss(current, best) <= cost
