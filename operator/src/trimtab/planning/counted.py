"""Whose replicas somebody else counts: such a count is not the plan's to choose (planner.md §9)."""

from dataclasses import replace

from trimtab.planning.snapshot import FleetSnapshot


def as_counted(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Return the fleet with the count of who is scaled by somebody else as the only one to plan.

    A plan of fewer would give devices away that nobody gives up; one of more would hold them for
    replicas that nobody asks for. Pins that contradict each other are left to be told.
    """
    counts = {
        one.intent_uid: one.replicas
        for one in snapshot.assignments
        if one.counted and one.replicas > 0 and not one.group
    }
    if not counts:
        return snapshot
    intents = []
    for intent in snapshot.intents:
        count, pins = counts.get(intent.uid), intent.constraints
        contradict = (pins.min_replicas or 1) > (pins.max_replicas or pins.min_replicas or 1)
        if count is not None and not contradict:
            pins = replace(pins, min_replicas=count, max_replicas=count, counted=True)
        intents.append(replace(intent, constraints=pins))
    return replace(snapshot, intents=tuple(intents))
