"""The plan of the whole fleet: one decision per intent, pure and independent of input order."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from trimtab.planning.capacity import Ledger, located, one_per_place, place_of
from trimtab.planning.case import Case, acceptable, allowed, prepare, subjects
from trimtab.planning.counted import as_counted
from trimtab.planning.diagnose import (
    Holders,
    Problem,
    an_outage,
    missing,
    outage,
    price_unknown,
    unmet,
)
from trimtab.planning.explain import (
    alternatives,
    binding,
    chosen,
    counted,
    devices_of,
)
from trimtab.planning.objectives import Judged, footprint
from trimtab.planning.options import unmeasured
from trimtab.planning.plan import FleetPlan, GroupPlan, IntentPlan, Reason, Verdict
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import loses_accuracy
from trimtab.planning.reach import reachable
from trimtab.planning.replan import keeps, switching_cost, was_edited
from trimtab.planning.scarcity import Pick, Unit, share_out
from trimtab.planning.sharing import (
    Sharing,
    dissolved,
    group_plan,
    leader,
    member_options,
    outgrown,
    remapping,
    share,
    size_of,
    unit,
)
from trimtab.planning.snapshot import Assignment, FleetSnapshot, IntentView
from trimtab.planning.survey import Surveys
from trimtab.planning.uncollected import uncollected


@uncollected()
def plan_fleet(
    snapshot: FleetSnapshot, policy: PlannerPolicy, *, surveys: Surveys | None = None
) -> FleetPlan:
    """Return the plan of every intent.

    By priority, then age: first every intent gets room for the least that serves it, so that as
    few as possible stay unplaced; then each in turn takes its best option that still fits. Where
    that leaves anybody without its first choice, the fleet is shared out jointly. Threads
    and memory are never promised twice: a prediction on an oversubscribed node would be wrong. So
    what runs holds its place until its own intent moves: priority decides about what is free.
    What runs for an intent that nobody may touch now is a constant, whatever the intent asks for.

    Args:
        snapshot: What is planned for.
        policy: Every constant.
        surveys: What the last plan found out about intents that may not have changed; the plan is
            the same without it, and takes longer.
    """
    snapshot = as_counted(snapshot)
    fleet = _fleet(snapshot)
    known = surveys if surveys is not None else Surveys()
    known.begin(snapshot, policy)
    known.ahead(subjects(snapshot, policy, machines=known.machines))
    cases = [
        _prepared(intent, snapshot=snapshot, fleet=fleet, surveys=known, policy=policy)
        # Who comes first has its queues simulated if the budget is not enough for all.
        for intent in sorted(snapshot.intents, key=_order)
    ]
    fixed = _fixed(snapshot)
    open_ = [case for case in cases if case.intent.uid not in fixed]
    sharing = share(open_, snapshot=snapshot, policy=policy)
    alone = {c.intent.uid: c for c in reachable(cases, snapshot, policy)}
    gone: set[str] = set()
    closed: set[str] = set()
    while True:
        units = _units(open_, sharing, snapshot, alone=alone)
        ledger, picks = _search(units, snapshot=snapshot, policy=policy)
        places = {w.id: picks.get(leader(w).intent.uid) for w in sharing.workers}
        homeless = {id_ for id_, place in places.items() if place is None}
        # What runs keeps its place, and who would need a larger one does not join.
        full = {
            w.id for w in sharing.workers if (p := places[w.id]) and outgrown(w, p.judged)
        } - closed
        if full:
            closed |= full
            sharing = dissolved(share(open_, snapshot=snapshot, policy=policy, closed=closed), gone)
        elif homeless:
            # No place for all of them in one worker; each for itself may still find one.
            gone |= homeless
            sharing = dissolved(sharing, homeless)
        else:
            break
    picks, solver = share_out(
        units, picks=picks, fleet=_fleet(snapshot, fixed), snapshot=snapshot, policy=policy
    )
    if solver != "Direct":
        ledger = _left(units, picks, snapshot)
    shared = _members(sharing, picks, snapshot=snapshot)
    picks |= _constant(cases, fixed, snapshot)
    plans = [
        replace(
            _told(
                case if case.intent.uid in shared else alone[case.intent.uid],
                picks,
                ledger,
                fleet=fleet,
                snapshot=snapshot,
                policy=policy,
            ),
            **remapping(case.intent, sharing, shared.get(case.intent.uid)),
            fixed=case.intent.uid in fixed,
        )
        for case in cases
    ]
    plans.sort(key=lambda p: (p.namespace, p.name, p.uid))
    return FleetPlan(
        intents=tuple(plans),
        policy=policy.digest(),
        solver=solver,
        waiting=sum(case.waits for case in cases),
    )


def _order(intent: IntentView) -> tuple[int, int, str]:
    return (-intent.priority, intent.created_seconds, intent.uid)


def _units(
    cases: Sequence[Case],
    sharing: Sharing,
    snapshot: FleetSnapshot,
    *,
    alone: Mapping[str, Case],
) -> list[Unit]:
    """Return who takes one place or none, by priority and age.

    ``alone`` are the cases, by uid, as they are for an intent that has a worker of its own.
    """
    members = {member.uid for worker in sharing.workers for member in worker.members}
    others = [alone[case.intent.uid] for case in cases if case.intent.uid not in members]
    running = _running(cases, sharing, snapshot)
    units = [
        Unit(case=case, worker=worker, runs=running.get(case.intent.uid, ()))
        for case, worker in (
            *((unit(worker), worker) for worker in sharing.workers),
            *((case, None) for case in others),
        )
    ]
    return sorted(units, key=lambda u: _order(u.case.intent))


def _search(
    units: Sequence[Unit], *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> tuple[Ledger, dict[str, Pick]]:
    """Return what is left of the fleet, and the place of every intent or group, by its leader's uid."""
    ledger = _fleet(snapshot, _fixed(snapshot))
    for one in units:
        _hold(ledger, one.runs)
    picks = _floors(units, ledger)
    for one in units:
        floor = picks.pop(one.uid, None)
        if floor is not None:
            ledger.release(floor.judged.option, floor.nodes)
        else:
            _let_go(ledger, one.runs)
        pick = _choose(one.case, ledger, snapshot=snapshot, policy=policy)
        if pick is not None:
            ledger.take(pick.judged.option, pick.nodes)
            picks[one.uid] = pick
        else:
            _hold(ledger, one.runs)
    return ledger, picks


def _left(units: Sequence[Unit], picks: Mapping[str, Pick], snapshot: FleetSnapshot) -> Ledger:
    """Return what a choice leaves of the fleet."""
    ledger = _fleet(snapshot, _fixed(snapshot))
    for one in units:
        pick = picks.get(one.uid)
        if pick is None:
            _hold(ledger, one.runs)
        else:
            ledger.take(pick.judged.option, pick.nodes)
    return ledger


def _members(
    sharing: Sharing, picks: dict[str, Pick], *, snapshot: FleetSnapshot
) -> dict[str, GroupPlan]:
    """Give every member of a group its group's place, and return the groups' plans by member."""
    plans: dict[str, GroupPlan] = {}
    for worker in sharing.workers:
        place = picks.pop(leader(worker).intent.uid)
        size = size_of(worker, place.judged)
        for uid, judged in member_options(worker, size=size, snapshot=snapshot).items():
            picks[uid] = Pick(judged, place.nodes, kept=place.kept)
            plans[uid] = group_plan(worker, size=size)
    return plans


def _prepared(
    intent: IntentView,
    *,
    snapshot: FleetSnapshot,
    fleet: Ledger,
    surveys: Surveys,
    policy: PlannerPolicy,
) -> Case:
    """Return an intent's case; what fails for one intent must not end everybody's plan."""
    try:
        return prepare(intent, snapshot=snapshot, fleet=fleet, surveys=surveys, policy=policy)
    except Exception as error:  # noqa: BLE001 - told in the intent's own condition
        message = (
            f"InferenceIntent {intent.namespace}/{intent.name}: the estimate failed with "
            f"{type(error).__name__}: {error}. This is a bug; please report it with the object. "
            "What serves stays as it is."
        )
        return Case(intent=intent, problem=Problem(reason="NoEstimate", message=message))


def _fixed(snapshot: FleetSnapshot) -> dict[str, Assignment]:
    """Return what runs, by uid, for intents that nobody may touch now and that share with nobody.

    A group's worker is its members' together: one of them that is paused holds up nobody.
    """
    shared = {a.intent_uid for a in snapshot.assignments if a.group}
    return {
        a.intent_uid: a
        for a in snapshot.assignments
        if a.fixed and a.replicas > 0 and a.intent_uid not in shared
    }


def _constant(
    cases: Sequence[Case], fixed: Mapping[str, Assignment], snapshot: FleetSnapshot
) -> dict[str, Pick]:
    """Return what runs for intents that nobody may touch, as it is."""
    known = {p.node for p in snapshot.pools} | {p.node for p in snapshot.gpu_pools}
    found: dict[str, Pick] = {}
    for case in cases:
        here = fixed.get(case.intent.uid)
        if here is not None and case.running is not None:
            nodes = tuple(place for place in located(here) if place[0] in known)
            found[case.intent.uid] = Pick(case.running, nodes, kept=True)
    return found


def _fleet(snapshot: FleetSnapshot, fixed: Collection[str] = ()) -> Ledger:
    """Return the nodes without what runs for intents that this round does not decide about."""
    ledger = Ledger(snapshot.pools, snapshot.gpu_pools)
    models = {intent.uid for intent in snapshot.intents if intent.model is not None}
    decided = models.difference(fixed)
    ours = {place_of(a) for a in snapshot.assignments if a.intent_uid in decided}
    others = [a for a in snapshot.assignments if place_of(a) not in ours]
    for assignment in one_per_place(others):
        ledger.hold(assignment.config, assignment.nodes, memory_bytes=assignment.memory_bytes)
    return ledger


def _running(
    cases: Sequence[Case], sharing: Sharing, snapshot: FleetSnapshot
) -> dict[str, tuple[Assignment, ...]]:
    """Return what runs for the units of this round, by the leader's uid, each place once.

    The place of a running group is its own as long as it goes on; what is left of one that ends
    is the place of its members.
    """
    decided = {case.intent.uid for case in cases if case.intent.model is not None}
    leaders = {
        member.uid: leader(worker).intent.uid
        for worker in sharing.workers
        for member in worker.members
    }
    groups = {worker.id: leader(worker).intent.uid for worker in sharing.workers}
    found: dict[str, tuple[Assignment, ...]] = {}
    for assignment in one_per_place(snapshot.assignments):
        uid = assignment.intent_uid
        if assignment.replicas < 1 or (uid not in decided and assignment.group not in groups):
            continue
        owner = groups.get(assignment.group) or leaders.get(uid, uid)
        found[owner] = (*found.get(owner, ()), assignment)
    return found


def _floors(units: Sequence[Unit], ledger: Ledger) -> dict[str, Pick]:
    """Take the least of every intent, what runs first: a newcomer never leaves it without a place."""
    floors: dict[str, Pick] = {}
    for one in sorted(units, key=lambda u: not u.runs):
        _let_go(ledger, one.runs)
        floor = _floor(one.case, ledger)
        if floor is not None:
            ledger.take(floor.judged.option, floor.nodes)
            floors[one.uid] = floor
        else:
            _hold(ledger, one.runs)
    return floors


def _hold(ledger: Ledger, assignments: Iterable[Assignment]) -> None:
    """Reserve what runs until its own intent is decided about, and if nothing is found for it."""
    for one in assignments:
        ledger.hold(one.config, located(one), memory_bytes=one.memory_bytes)


def _let_go(ledger: Ledger, assignments: Iterable[Assignment]) -> None:
    for one in assignments:
        ledger.let_go(one.config, located(one), memory_bytes=one.memory_bytes)


def _floor(case: Case, ledger: Ledger) -> Pick | None:
    """Return the smallest option that fits, one that meets the objective before one that does not."""
    options = sorted(acceptable(case), key=lambda j: (not j.meets, footprint(j)))
    return _first_fitting(case, options, ledger) or _stays(case, ledger)


def _choose(
    case: Case, ledger: Ledger, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> Pick | None:
    best = _first_fitting(case, acceptable(case), ledger)
    running = _stays(case, ledger)
    if best is None or running is None or case.settled:
        return best or running
    current = running.judged
    assignment = case.assignment
    if current.option.config == best.judged.option.config and (
        current.option.replicas == best.judged.option.replicas
    ):
        return Pick(best.judged, best.nodes, kept=True)
    if assignment is None or was_edited(case.intent, assignment) or not allowed(case, current):
        return best
    if case.waits:
        # What runs was chosen when more was known; the next plan knows it again.
        return running
    cost = switching_cost(snapshot, current.option.fingerprint, policy=policy)
    return running if keeps(current, best.judged, cost=cost) else best


def _first_fitting(case: Case, options: Sequence[Judged], ledger: Ledger) -> Pick | None:
    prefer = case.assignment.nodes if case.assignment else ()
    for judged in options:
        nodes = ledger.place(judged.option, prefer=prefer)
        if nodes is not None:
            return Pick(judged, nodes)
    return None


def _stays(case: Case, ledger: Ledger) -> Pick | None:
    """Return what runs, if there still is room: a prediction never takes serving pods away."""
    if case.running is None or case.assignment is None or case.assignment.replicas < 1:
        return None
    nodes = ledger.place(case.running.option, prefer=case.assignment.nodes)
    return None if nodes is None else Pick(case.running, nodes, kept=True)


def _told(
    case: Case,
    picks: dict[str, Pick],
    ledger: Ledger,
    *,
    fleet: Ledger,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> IntentPlan:
    """Return an intent's plan, explained; words that fail must not end everybody's plan."""
    try:
        return _explained(case, picks, ledger, fleet=fleet, snapshot=snapshot, policy=policy)
    except Exception as error:  # noqa: BLE001 - told in the intent's own condition
        intent, pick = case.intent, picks.get(case.intent.uid)
        return IntentPlan(
            uid=intent.uid,
            namespace=intent.namespace,
            name=intent.name,
            generation=intent.generation,
            verdict="Planned" if pick else "Unplanned",
            reason="Chosen" if pick else "NoEstimate",
            message=f"InferenceIntent {intent.namespace}/{intent.name}: explaining its plan failed "
            f"with {type(error).__name__}: {error}. This is a bug; please report it with the "
            f"object. {'The plan itself holds.' if pick else 'What serves stays as it is.'}",
            option=pick.judged.option if pick else None,
            nodes=pick.nodes if pick else (),
            keeps_assignment=pick.kept if pick else False,
            needs=case.needs,
        )


def _explained(
    case: Case,
    picks: dict[str, Pick],
    ledger: Ledger,
    *,
    fleet: Ledger,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> IntentPlan:
    intent, load = case.intent, case.load
    pick = picks.get(intent.uid)
    problem = _problem(case, picks, fleet=fleet, snapshot=snapshot)
    message = f"{problem.message}{missing(problem, snapshot)}" if problem else ""
    if pick is not None and load is not None:
        said = chosen(intent, pick.judged, load)
        message = f"{message} Served nearest: {said}" if message else said
    reason: Reason = problem.reason if problem else "Chosen"
    verdict: Verdict = "Planned"
    if pick is None:
        verdict = "Unplanned"
    elif problem is not None:
        verdict = "PlannedNearest"
    if pick is not None:
        ledger.release(pick.judged.option, pick.nodes)
    try:
        others = alternatives(
            intent,
            best=pick.judged if pick else None,
            others=[*case.options, *_best_of_others(case)],
            has_room=lambda judged: judged not in case.beyond and ledger.fits(judged.option),
            kept=pick.kept if pick else False,
            refused=case.refused,
            policy=policy,
        )
    finally:
        if pick is not None:
            ledger.take(pick.judged.option, pick.nodes)
    model, capabilities = intent.model, snapshot.capabilities
    return IntentPlan(
        uid=intent.uid,
        namespace=intent.namespace,
        name=intent.name,
        generation=intent.generation,
        verdict=verdict,
        reason=reason,
        message=message,
        option=pick.judged.option if pick else None,
        nodes=pick.nodes if pick else (),
        alternatives=others,
        binding=binding(pick.judged, intent) if pick else None,
        load_assumed=load.assumed if load else False,
        keeps_assignment=pick.kept if pick else False,
        needs=case.needs,
        notes=(*_notes(case, pick, snapshot), *_stuck(case, pick, snapshot, policy)),
        losses=model.losses if model else (),
        unmeasured=unmeasured(intent, model, capabilities=capabilities) if model else (),
    )


def _best_of_others(case: Case) -> list[Judged]:
    """Return the best option of every configuration of which none fits the fleet."""
    configs = {j.option.config for j in case.options}
    found: list[Judged] = []
    for judged in case.every:
        if judged.option.config not in configs:
            configs.add(judged.option.config)
            found.append(judged)
    return found


def _problem(
    case: Case, picks: Mapping[str, Pick], *, fleet: Ledger, snapshot: FleetSnapshot
) -> Problem | None:
    if case.problem is not None:
        return case.problem
    pick = picks.get(case.intent.uid)
    if pick is not None and pick.judged.meets:
        if case.intent.objective != "MinCost":
            return None
        return _unpriced(case)
    if case.load is None:
        return None
    better = next(iter(case.beyond), None)
    if pick is not None and better is not None and better.meets:
        return outage(case.intent, better)
    return unmet(
        case.intent,
        load=case.load,
        judged=case.every,
        unloaded=case.unloaded,
        fleet=fleet,
        holders=_holders(case.intent, picks, snapshot),
    )


def _holders(intent: IntentView, picks: Mapping[str, Pick], snapshot: FleetSnapshot) -> Holders:
    """Return who else has a share, by plan or by pods; other namespaces' names stay theirs."""
    serving = {a.intent_uid for a in snapshot.assignments if a.replicas > 0}
    others = [
        other
        for other in snapshot.intents
        if other.uid != intent.uid and (other.uid in picks or other.uid in serving)
    ]
    mine = sorted((o.name, o.uid) for o in others if o.namespace == intent.namespace)
    return Holders(
        names=tuple(name for name, _ in mine),
        held=tuple(_held(uid, picks, snapshot) for _, uid in mine),
        elsewhere=sum(o.namespace != intent.namespace for o in others),
        all_serve=all(o.uid in serving for o in others),
    )


def _held(uid: str, picks: Mapping[str, Pick], snapshot: FleetSnapshot) -> str:
    """Return the devices that an intent has by plan, else by its pods, in words."""
    if uid in picks:
        option = picks[uid].judged.option
        return devices_of(option.config, replicas=option.replicas)
    mine = [a for a in snapshot.assignments if a.intent_uid == uid]
    product = mine[0].config.product if mine else "cpu"
    return counted(product, sum(a.replicas * a.config.devices for a in mine))


def _unpriced(case: Case) -> Problem | None:
    """MinCost without a price is served with the fewest threads, and says so."""
    return price_unknown(case.intent, case.every)


def _stuck(
    case: Case, pick: Pick | None, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> tuple[str, ...]:
    """Return what would serve an intent better if changing to it were no outage, as a sentence."""
    running, better = case.running, next(iter(case.beyond), None)
    if pick is None or running is None or better is None or not pick.judged.meets:
        return ()
    cost = switching_cost(snapshot, running.option.fingerprint, policy=policy)
    here = pick.judged.option.config == running.option.config
    if not here or keeps(pick.judged, better, cost=cost):
        return ()
    return (an_outage(better, gain="serve it better"),)


def _notes(case: Case, pick: Pick | None, snapshot: FleetSnapshot) -> tuple[str, ...]:
    notes: list[str] = []
    if case.load is not None and case.load.assumed:
        notes.append(
            f"LoadAssumed: no load is declared or observed, so one request in flight of "
            f"{case.load.prompt} prompt and {case.load.output} output tokens is planned for."
        )
    if pick is not None and pick.judged.option.cost_per_hour_micro_usd is not None:
        dated = snapshot.prices.dated
        notes.append(f"Costs use prices dated {dated}." if dated else "The prices carry no date.")
    if pick is not None and pick.judged.option.cost_per_hour_micro_usd is None:
        on_cpu = pick.judged.option.config.product == "cpu"
        keys = "cpuHour and memoryGiBHour" if on_cpu else "gpuHour"
        notes.append(f"No cost is shown: add {keys} to prices.yaml in ConfigMap trimtab-prices.")
    model = case.intent.model
    if pick is not None and model is not None:
        precision = pick.judged.option.config.precision
        if loses_accuracy(precision, own=model.precision):
            loss = model.loss_at(precision)
            notes.append(
                f"{precision} {loss.described()}."
                if loss is not None
                else f"spec.constraints.precisions allows {precision}, which keeps fewer bits than "
                f"the checkpoint's {model.precision}: what it loses in accuracy is not measured yet."
            )
    return tuple(notes)
