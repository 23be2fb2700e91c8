"""Which options an intent that runs can change to: beside what runs, or one replica after another.

A plan may give away only what will be given up. A lone replica that has no room for another beside
it stays until its intent is edited or its machine is lost (planner.md §9, order), and its place with
it: a newcomer that is planned there would wait for ever and be told that it is planned.
"""

from collections.abc import Sequence
from dataclasses import replace

from trimtab.planning.beside import Beside
from trimtab.planning.case import Case
from trimtab.planning.objectives import prune
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import was_edited
from trimtab.planning.snapshot import FleetSnapshot


def reachable(cases: Sequence[Case], snapshot: FleetSnapshot, policy: PlannerPolicy) -> list[Case]:
    """Return the cases with the options that each can change to; the others are ``beyond``.

    An edit is followed through an outage, and so is the loss of all machines: then nothing is kept.
    What does not serve can have no outage: it may change to anything.
    """
    if not snapshot.assignments:
        return list(cases)
    beside = Beside(snapshot)
    return [_reached(case, beside, policy) for case in cases]


def _reached(case: Case, beside: Beside, policy: PlannerPolicy) -> Case:
    running = case.assignment
    if running is None or running.group or was_edited(case.intent, running):
        return case
    if running.ready == 0 or not beside.places(running):
        return case
    options = [j for j in case.options if beside.reaches(j.option, running)]
    if len(options) == len(case.options):
        return case
    able = {id(judged) for judged in options}
    beyond = tuple(j for j in case.options if id(j) not in able)
    if not options:
        # Of what runs there may be more, though alone it was not worth its place among the options.
        here = [j for j in case.every if j.option.config == running.config]
        options = prune(here, policy=policy)
    return replace(case, options=tuple(options), beyond=beyond)
