"""Who gets what where the fleet has no room for everybody's first choice (planner.md §9).

Each intent or sharing group asks for columns: its options, and what it runs. Their losses are its
regret; a move costs what a move costs. The joint choice starts from what runs; what the search by
priority and age found stays in force unless that choice is better as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from trimtab.planning.capacity import Ledger, located, need_of
from trimtab.planning.case import Case, acceptable, allowed
from trimtab.planning.columns import Board, Column, Member
from trimtab.planning.greedy import SwapLimits
from trimtab.planning.joint import Choice, ChoiceLimits, choose
from trimtab.planning.milp import SolverLimits
from trimtab.planning.objectives import Judged, loss
from trimtab.planning.plan import Solver
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import keeps, switching_cost, uncalibrated, was_edited
from trimtab.planning.sharing_rule import SharedWorker
from trimtab.planning.slots import Nodes
from trimtab.planning.snapshot import Assignment, Config, FleetSnapshot

_MOST_LOSS = 5.0
_MOST_MISSED = 2.0
# Room for joiners is a wish, and so is the configuration that a group's founder prefers.
_SMALLER_SIZE = 0.01


@dataclass(frozen=True, slots=True)
class Pick:
    """What an intent or a group gets, and where."""

    judged: Judged
    nodes: Nodes
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What takes one place or none: an intent, or a group by its leader's case.

    Attributes:
        case: Of the intent or of the group's leader.
        worker: The group; None for an intent alone.
        runs: What runs for it, each place once.
    """

    case: Case
    worker: SharedWorker | None
    runs: tuple[Assignment, ...]

    @property
    def uid(self) -> str:
        """Of the intent or of the group's leader."""
        return self.case.intent.uid


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A column, the option that it is, whether that is what runs, and whether it stays where it runs."""

    column: Column
    judged: Judged
    kept: bool = False
    stays: bool = False


def share_out(
    units: Sequence[Unit],
    *,
    picks: Mapping[str, Pick],
    fleet: Ledger,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> tuple[dict[str, Pick], Solver]:
    """Return the picks that share the fleet out best, and who found them.

    Args:
        units: All intents and groups of this round.
        picks: What the search by priority and age gave them.
        fleet: Nodes without what runs for others; changed.
        snapshot: For the cost of a move.
        policy: Limits of the search.
    """
    if all(_content(u, picks.get(u.uid), snapshot=snapshot, policy=policy) for u in units):
        return dict(picks), "Direct"
    wishes: dict[str, list[_Wish]] = {}
    for unit in units:
        wishes[unit.uid] = [*_wishes(unit, snapshot=snapshot, policy=policy)]
        if not wishes[unit.uid]:
            _reserve(unit, picks.get(unit.uid), fleet)
    picked = [_matching(wishes[uid], pick) for uid, pick in picks.items() if wishes[uid]]
    present = [wish.column for wish in picked if wish is not None]
    if len(present) < len(picked):
        # What the search found is no column, so nothing can be told to be better.
        return dict(picks), "Greedy"
    every = [wish.column for found in wishes.values() for wish in found]
    choice = choose(
        every,
        fleet.free(),
        start=[w.column.id for found in wishes.values() for w in found if w.stays],
        limits=_limits(policy),
    )
    better = choice.score < Board(every).score(present)
    if not better or _abandons(units, wishes, choice):
        return dict(picks), choice.solver
    by_id = {w.column.id: (uid, w) for uid, found in wishes.items() for w in found}
    chosen = {uid: pick for uid, pick in picks.items() if not wishes[uid]}
    for column, nodes in choice.placed:
        uid, wish = by_id[column.id]
        chosen[uid] = Pick(wish.judged, nodes, kept=wish.kept)
    return chosen, choice.solver


def _limits(policy: PlannerPolicy) -> ChoiceLimits:
    """Return the limits; without moves: nothing takes a serving pod to another node yet."""
    return ChoiceLimits(
        solver=SolverLimits(
            seconds=policy.solver_milliseconds / 1000, gap=policy.loss_gap_permille / 1000
        ),
        swaps=SwapLimits(swaps=policy.improving_swaps),
    )


def _reserve(unit: Unit, pick: Pick | None, fleet: Ledger) -> None:
    """Take what a unit has that asks for nothing else."""
    if pick is not None:
        fleet.take(pick.judged.option, pick.nodes)
        return
    for one in unit.runs:
        fleet.hold(one.config, located(one), memory_bytes=one.memory_bytes)


def _abandons(units: Sequence[Unit], wishes: Mapping[str, Sequence[_Wish]], choice: Choice) -> bool:
    """Tell whether a choice leaves out what serves, whose pods would stay and be in the way, or a group.

    A group without a place is dissolved before, so that each member may find one of its own.
    """
    placed = {member.uid for column, _ in choice.placed for member in column.members}
    return any(
        (unit.runs or unit.worker is not None) and wishes[unit.uid] and unit.uid not in placed
        for unit in units
    )


def _content(
    unit: Unit, pick: Pick | None, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> bool:
    """Tell whether a unit has what it would take if the fleet were its own."""
    options = acceptable(unit.case)
    if not options:
        return True
    if pick is None:
        return False
    if pick.judged.option == options[0].option:
        return True
    running = unit.case.running
    if running is None or not pick.kept or unit.case.settled:
        return False
    cost = _switching(unit.case, running, snapshot=snapshot, policy=policy)
    return cost > 0 and keeps(running, options[0], cost=cost)


def _switching(
    case: Case, running: Judged | None, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> float:
    """Return the loss of leaving what runs; 0 if nothing runs, or what runs is planned anew."""
    if running is None or case.assignment is None:
        return 0.0
    edited = was_edited(case.intent, case.assignment) or not allowed(case, running)
    if edited and not case.settled:
        return 0.0
    if case.waits:
        return _MOST_LOSS
    return switching_cost(snapshot, running.option.fingerprint, policy=policy)


def _wishes(unit: Unit, *, snapshot: FleetSnapshot, policy: PlannerPolicy) -> Iterator[_Wish]:
    """Yield the columns of a unit, none if nothing may be created for it."""
    case = unit.case
    options = acceptable(case)
    if not options:
        return
    assignment = case.assignment
    runs = assignment is not None and assignment.replicas >= 1
    running = case.running if runs else None
    places = located(assignment) if runs and assignment is not None else ()
    cost = _switching(case, running, snapshot=snapshot, policy=policy)
    every = [*options, *([running] if running is not None else [])]
    base = Column(
        id="",
        members=_members(unit),
        need=need_of(options[0].option),
        largest=max(need_of(judged.option).devices for judged in every),
        moving=cost,
    )
    stays = False
    for n, judged in enumerate(options):
        regret, missed = _regret(unit, n, judged)
        same = running is not None and _shape(unit, judged) == _shape(unit, running)
        kept = same and running is not None and _replicas(judged) == _replicas(running)
        stays = stays or kept
        leaves = running if cost > 0 else None
        if leaves is not None and not same and _guesses(judged, leaves):
            regret += _MOST_LOSS
        doubt = uncalibrated(leaves, judged) if leaves is not None else 0.0
        column = replace(
            base,
            id=f"{unit.uid}/{n:03d}",
            need=need_of(judged.option),
            loss=regret,
            missed=missed,
            switching=0.0 if kept else cost + doubt,
            nodes=places if same else (),
        )
        yield _Wish(column=column, judged=judged, kept=kept, stays=kept)
        if same and places:
            yield _Wish(column=_elsewhere(column, cost), judged=judged, kept=kept)
    if running is not None and not stays and not _joined(unit):
        wish = _stay(unit, running, options, base, places)
        yield wish
        if places:
            yield replace(wish, column=_elsewhere(wish.column, cost), stays=False)


def _elsewhere(column: Column, cost: float) -> Column:
    """Return a column that runs with its replicas on other nodes, as a roll may place them."""
    return replace(column, id=f"{column.id}/elsewhere", nodes=(), switching=cost)


def _stay(
    unit: Unit, running: Judged, options: Sequence[Judged], base: Column, places: Nodes
) -> _Wish:
    """Return what runs and is no option any more: the last resort if the spec forbids it."""
    fine = unit.case.settled or allowed(unit.case, running)
    regret, missed = _MOST_LOSS, _MOST_MISSED
    if unit.case.settled:
        regret, missed = _regret(unit, len(options) - 1, options[-1])
        regret += _SMALLER_SIZE
    elif fine:
        regret, missed = loss(running, options[0]), _missed(running)
    column = replace(
        base,
        id=f"{unit.uid}/stays",
        need=need_of(running.option),
        loss=regret,
        missed=missed,
        nodes=places,
    )
    return _Wish(column=column, judged=running, kept=True, stays=True)


def _members(unit: Unit) -> tuple[Member, ...]:
    intents = [m.case.intent for m in unit.worker.members] if unit.worker else [unit.case.intent]
    return tuple(
        Member(
            uid=intent.uid,
            priority=intent.priority,
            created_seconds=intent.created_seconds,
            serves=bool(unit.runs),
        )
        for intent in sorted(intents, key=lambda i: i.uid)
    )


def _regret(unit: Unit, n: int, judged: Judged) -> tuple[float, float]:
    """Return the loss of a unit's n-th option and the ratio that it misses most."""
    if unit.worker is None:
        return loss(judged, acceptable(unit.case)[0]), _missed(judged)
    members = unit.worker.sizes[n].members
    bests = [(acceptable(m.case) or [m.judged])[0] for m in members]
    regret = sum(loss(m.judged, best) for m, best in zip(members, bests, strict=True))
    return regret + _SMALLER_SIZE * n, max(_missed(m.judged) for m in members)


def _missed(judged: Judged) -> float:
    return judged.worst.value if judged.worst is not None and not judged.meets else 0.0


def _guesses(judged: Judged, running: Judged) -> bool:
    """Tell whether an estimate would replace a measurement: it is measured first."""
    return judged.option.fingerprint == "Roofline" and running.option.fingerprint != "Roofline"


def _shape(unit: Unit, judged: Judged) -> Config:
    """Return the configuration; each model of a group's worker has a precision of its own."""
    config = judged.option.config
    return replace(config, precision="") if unit.worker is not None else config


def _replicas(judged: Judged) -> int:
    return judged.option.replicas


def _joined(unit: Unit) -> bool:
    """Tell whether somebody joins a running group, for whom its present place is too small."""
    worker = unit.worker
    return worker is not None and any(member.group != worker.id for member in worker.members)


def _matching(wishes: Sequence[_Wish], pick: Pick) -> _Wish | None:
    """Return the column that a pick is, the one that stays in place if it does."""
    here = dict(pick.nodes)
    for wish in wishes:
        stays = all(here.get(node, 0) >= count for node, count in wish.column.kept)
        if wish.judged.option == pick.judged.option and stays:
            return wish
    return None
