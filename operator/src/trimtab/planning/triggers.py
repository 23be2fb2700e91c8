"""What asks for a new plan, and when it is due: values and pure functions, time is an argument.

Times are µs of one monotonic clock. Everything here can be made anew from what is observed; a
restarted operator only has to be patient once more (planner.md §9, joints.md §4).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import FleetSnapshot

Trigger = Literal[
    "First", "Edit", "Capacity", "Prices", "Fingerprint", "Load", "Anchors", "Running", "Engine"
]
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Debounce:
    """When the next plan is due: 2 s after the last thing that asked, 10 s after the first.

    Attributes:
        first_us: When a plan was asked for first; None while nobody did.
        last_us: When it was asked for last.
    """

    first_us: int | None = None
    last_us: int = 0

    def ask(self, *, now_us: int) -> "Debounce":
        """Return the state after somebody asked."""
        first = now_us if self.first_us is None else self.first_us
        return Debounce(first, max(self.last_us, now_us))

    def due_us(self, *, policy: PlannerPolicy) -> int | None:
        """Return when to plan; None while nobody asks."""
        if self.first_us is None:
            return None
        quiet = self.last_us + policy.debounce_seconds * _SECOND_US
        return min(quiet, self.first_us + policy.debounce_most_seconds * _SECOND_US)


@dataclass(frozen=True, slots=True)
class MissWatch:
    """Since when an intent's target is missed at the gateway; None while it is not."""

    since_us: int | None = None

    def seen(self, *, within: bool | None, now_us: int) -> "MissWatch":
        """Return the state after a verdict; None (too few requests) decides nothing."""
        if within is None:
            return self
        if within:
            return MissWatch()
        return self if self.since_us is not None else MissWatch(now_us)

    def due(self, *, now_us: int, policy: PlannerPolicy) -> bool:
        """Tell whether it is missed for long enough to ask for a plan."""
        if self.since_us is None:
            return False
        return now_us - self.since_us >= policy.missed_seconds * _SECOND_US


@dataclass(frozen=True, slots=True)
class SpareWatch:
    """Since when how few replicas would do: pairs of a time and a count, counts falling.

    A pair says that no more than ``count`` replicas were needed since the time.
    """

    steps: tuple[tuple[int, int], ...] = ()

    def seen(self, fewest: int, *, now_us: int) -> "SpareWatch":
        """Return the state after it was found how many replicas the busy load needs."""
        since = now_us
        kept = list(self.steps)
        while kept and kept[-1][1] <= fewest:
            since = kept.pop()[0]
        # Who needed fewer before needed no more than this before.
        return SpareWatch((*kept, (since, fewest)))

    def fewest(self, *, now_us: int, policy: PlannerPolicy) -> int | None:
        """Return the most that was needed over the last 10 min; None before that is known."""
        patience = policy.spare_seconds * _SECOND_US
        known = [count for since, count in self.steps if now_us - since >= patience]
        return min(known, default=None)


def drifted(errors: Sequence[float], *, margin_permille: int, policy: PlannerPolicy) -> bool:
    """Tell whether a replica's steps have left their prediction for good.

    Args:
        errors: ln(measured/predicted) of its windows, oldest first (planner.md §7).
        margin_permille: The margin in force: what it absorbs is no drift.
        policy: Least error and number of windows.
    """
    last = errors[-policy.drift_windows :]
    if len(last) < policy.drift_windows:
        return False
    limit = max(policy.drift_permille, margin_permille) / 1000
    return all(e > limit for e in last) or all(e < -limit for e in last)


def triggers(before: FleetSnapshot | None, after: FleetSnapshot) -> tuple[Trigger, ...]:
    """Return which inputs of planning differ: why a new plan is made, for logs and tests.

    ``Running`` is what the operator itself did since: alone it is no reason for another plan.
    """
    if before is None:
        return ("First",)
    found: list[Trigger] = []
    if _specs(before) != _specs(after):
        found.append("Edit")
    if _differ(before.pools, after.pools):
        found.append("Capacity")
    if before.prices != after.prices:
        found.append("Prices")
    if _differ(before.fingerprints, after.fingerprints):
        found.append("Fingerprint")
    if _loads(before) != _loads(after):
        found.append("Load")
    if _differ(before.anchors, after.anchors):
        found.append("Anchors")
    if _differ(before.assignments, after.assignments):
        found.append("Running")
    if before.capabilities != after.capabilities:
        found.append("Engine")
    return tuple(found)


def _specs(snapshot: FleetSnapshot) -> dict[str, object]:
    return {i.uid: replace(i, load=None, busy_load=None) for i in snapshot.intents}


def _loads(snapshot: FleetSnapshot) -> dict[str, object]:
    return {i.uid: (i.load, i.busy_load) for i in snapshot.intents}


def _differ(before: Sequence[Hashable], after: Sequence[Hashable]) -> bool:
    """Tell whether two collections differ, whatever their order."""
    return before != after and frozenset(before) != frozenset(after)
