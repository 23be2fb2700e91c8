"""One intent prepared for the fleet's plan: its options judged, what runs now, what to measure."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from trimtab.planning.capacity import Ledger
from trimtab.planning.diagnose import Problem, no_fit, price_unknown
from trimtab.planning.estimate import Subject
from trimtab.planning.machines import Machines
from trimtab.planning.objectives import Judged, judge, prune, rank
from trimtab.planning.options import pin_problem, running_option, space
from trimtab.planning.plan import Alternative, FingerprintNeed
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.short_list import short_list
from trimtab.planning.snapshot import Assignment, FleetSnapshot, IntentView
from trimtab.planning.survey import Survey, Surveys, is_priced
from trimtab.planning.workload import PlannedLoad, planned_load

# A roofline is about twofold off (planner.md §4); two of them overlap within a factor of four.
_ESTIMATE_OVERLAP = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the fleet's search needs to know about one intent.

    Attributes:
        intent: The intent.
        load: What is planned for; None before the model is inspected.
        every: All options in order of preference, whether or not the fleet has room.
        options: Those that fit an empty fleet, pruned, in order of preference.
        unloaded: One replica of each configuration as one request alone sees it.
        refused: Configurations that cannot run.
        problem: What blocks it whatever others take; None if something could be chosen.
        assignment: What runs now.
        running: What runs now, judged under the present spec and load.
        needs: Fingerprints that could change the decision.
        settled: The options are sizes of one decision that was weighed before: the first that
            finds room is taken.
        waits: The plan's budget of events was used up before the best option was simulated.
        beyond: Options that what runs cannot change to while it serves, in order of preference.
    """

    intent: IntentView
    load: PlannedLoad | None = None
    every: tuple[Judged, ...] = ()
    options: tuple[Judged, ...] = ()
    unloaded: tuple[Judged, ...] = ()
    refused: tuple[Alternative, ...] = ()
    problem: Problem | None = None
    assignment: Assignment | None = None
    running: Judged | None = None
    needs: tuple[FingerprintNeed, ...] = ()
    settled: bool = False
    waits: bool = False
    beyond: tuple[Judged, ...] = ()


def acceptable(case: Case) -> list[Judged]:
    """Return the options that may be created: with Refuse only those that meet the objective."""
    if case.problem is not None:
        return []
    refuse = case.intent.infeasible == "Refuse"
    return [j for j in case.options if j.meets or not refuse]


def allowed(case: Case, running: Judged) -> bool:
    """Tell whether what runs is among the options that the spec allows."""
    option, pins = running.option, case.intent.constraints
    least, most = pins.min_replicas or 1, pins.max_replicas or option.replicas
    configs = {j.option.config for j in case.every}
    return option.config in configs and least <= option.replicas <= most


def prepare(
    intent: IntentView,
    *,
    snapshot: FleetSnapshot,
    fleet: Ledger,
    surveys: Surveys,
    policy: PlannerPolicy,
) -> Case:
    """Return an intent's case against the empty fleet."""
    assignment = next((a for a in snapshot.assignments if a.intent_uid == intent.uid), None)
    model = intent.model
    if model is None:
        unknown = Problem(
            reason="NoEstimate",
            message=(
                f"InferenceIntent {intent.namespace}/{intent.name}: the model has not been "
                "inspected, so nothing can be estimated. See the condition Fingerprinted."
            ),
        )
        return Case(intent=intent, problem=unknown, assignment=assignment)
    load = planned_load(intent.load, context_length=model.context_length, policy=policy)
    found = space(intent, model, machines=surveys.machines, snapshot=snapshot, policy=policy)
    contradiction = pin_problem(intent, model, load)
    pinned = contradiction or found.problem
    problem = None
    if pinned:
        reason = "ConstraintsExcludeAll" if contradiction else found.reason
        problem = Problem(reason=reason, message=pinned)
    if problem is None and not found.configs:
        problem = _no_threads(intent)
    survey = None
    if problem is None:
        subject = Subject(intent=intent, model=model, configs=found.configs, load=load)
        survey = surveys.of(subject)
    running = None
    if assignment is not None:
        running = _surveyed(assignment, survey, snapshot)
        if running is None:
            option = running_option(
                intent,
                model,
                assignment,
                load=load,
                snapshot=snapshot,
                policy=policy,
                sources=surveys.sources,
            )
            running = judge(intent, option, load=load, priced=is_priced(snapshot), policy=policy)
    case = Case(
        intent=intent,
        load=load,
        refused=found.refused,
        problem=problem,
        assignment=assignment,
        running=running,
    )
    if survey is None:
        return case
    every = list(survey.every)
    if intent.objective == "TargetLatency" and not any(j.meets for j in survey.unloaded):
        every = _fewest_replicas(every)
    listed = short_list(
        intent,
        model,
        every,
        running=running,
        load=load,
        fits=fleet.fits,
        simulations=surveys.simulations,
        sources=surveys.sources,
        snapshot=snapshot,
        policy=policy,
    )
    case = replace(case, running=listed.running, waits=listed.waits)
    return _with_options(case, survey, listed.ranked, fleet=fleet, policy=policy)


def _surveyed(
    assignment: Assignment, survey: Survey | None, snapshot: FleetSnapshot
) -> Judged | None:
    """Return what runs where it is one of the options; None where it is to be predicted by itself."""
    # Scores tell of the GPUs where it runs; an option is of what a group may expect.
    if survey is None or snapshot.scores:
        return None
    wanted = (assignment.config, max(1, assignment.replicas))
    every = (one for one in survey.every if (one.option.config, one.option.replicas) == wanted)
    return next(every, None)


def subjects(
    snapshot: FleetSnapshot, policy: PlannerPolicy, *, machines: Machines
) -> Iterator[Subject]:
    """Yield what `prepare` will ask surveys for; what fails here fails there, and tells."""
    for intent in snapshot.intents:
        with suppress(Exception):
            if (subject := _subject(intent, snapshot, policy, machines)) is not None:
                yield subject


def _subject(
    intent: IntentView, snapshot: FleetSnapshot, policy: PlannerPolicy, machines: Machines
) -> Subject | None:
    model = intent.model
    if model is None:
        return None
    load = planned_load(intent.load, context_length=model.context_length, policy=policy)
    found = space(intent, model, machines=machines, snapshot=snapshot, policy=policy)
    if pin_problem(intent, model, load) or not found.configs:
        return None
    return Subject(intent=intent, model=model, configs=found.configs, load=load)


def _with_options(
    case: Case,
    found: Survey,
    ranked: Sequence[Judged],
    *,
    fleet: Ledger,
    policy: PlannerPolicy,
) -> Case:
    intent = case.intent
    fitting = [j for j in ranked if fleet.fits(j.option)]
    problem = no_fit(intent, found.unloaded, fleet) or (
        None
        if intent.objective == "MinCost" and intent.infeasible == "ServeNearest"
        else price_unknown(intent, ranked)
    )
    return replace(
        case,
        every=tuple(ranked),
        options=tuple(prune(fitting, policy=policy)),
        unloaded=tuple(rank(intent, found.unloaded, policy=policy)),
        problem=problem,
        needs=_urgent(found.needs, ranked, policy),
    )


def _fewest_replicas(every: list[Judged]) -> list[Judged]:
    """Return per configuration the least that carries the load: no replica makes one request faster."""
    kept: dict[object, Judged] = {}
    for judged in every:
        config = judged.option.config
        if config not in kept or kept[config].option.predicted.overloaded:
            kept[config] = judged
    return list(kept.values())


def _urgent(
    needs: Sequence[tuple[Judged, FingerprintNeed]],
    ranked: Sequence[Judged],
    policy: PlannerPolicy,
) -> tuple[FingerprintNeed, ...]:
    """Return the few fingerprints that can change the decision, the likeliest winner first."""
    order: dict[object, int] = {}
    for position, judged in enumerate(ranked):
        order.setdefault(judged.option.config, position)
    best = ranked[0]
    close = [
        (order[j.option.config], need)
        for j, need in needs
        if _overlaps(ranked[order[j.option.config]], best)
    ]
    close.sort(key=lambda pair: (pair[0], pair[1].key))
    return tuple(
        replace(need, priority=n) for n, (_, need) in enumerate(close[: policy.measured_at_once])
    )


def _overlaps(judged: Judged, best: Judged) -> bool:
    return not best.meets or judged.score <= _ESTIMATE_OVERLAP * best.score


def _no_threads(intent: IntentView) -> Problem:
    return Problem(
        reason="NoCapacity",
        message=(
            f"InferenceIntent {intent.namespace}/{intent.name}: no node has a whole CPU thread "
            "left beside its reserve and what other workloads request. Add a node, or lower "
            "TRIMTAB_CPU_RESERVE_MILLICORES."
        ),
    )
