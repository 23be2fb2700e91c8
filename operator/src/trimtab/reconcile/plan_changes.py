"""What a new plan of the fleet changes, counted by kind (joints.md §15: no object's name is a label)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.planning.plan import IntentPlan
    from trimtab.reconcile.fleet import Planned

KINDS: Final = ("placed", "unplaced", "configuration", "replicas")


def plan_changes(before: Planned, after: Planned) -> Mapping[str, int]:
    """Return how many intents have another plan than before, by kind; none in a process's first plan.

    ``placed`` had no option and has one, ``unplaced`` the reverse; ``configuration`` is another
    product, precision, thread count or parallelism, ``replicas`` only another count. New
    predictions for the same option are no change, nor is the end of an intent.
    """
    found: Counter[str] = Counter()
    if before.snapshot is None:
        return found
    for uid, plan in after.by_uid.items():
        kind = _change(before.by_uid.get(uid), plan)
        if kind:
            found[kind] += 1
    return found


def _change(before: IntentPlan | None, after: IntentPlan) -> str:
    old, new = before.option if before else None, after.option
    if old is None or new is None:
        return "" if old is new else "placed" if old is None else "unplaced"
    if old.config != new.config:
        return "configuration"
    return "replicas" if old.replicas != new.replicas else ""
