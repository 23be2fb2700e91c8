"""What a plan's change needs to know: whether what runs still does, and with how few replicas.

Made where plans are made, from the same snapshot; ``next_step`` adds time to it. Scale-down follows
a consolidation that was computed, not a rate that fell: r - 1 replicas take the whole load of the
busy part of the last half hour, and meet the target with 10 points more than the margin (planner.md
§9; Dynamo PR #9294 flapped between one and two replicas without that). A configuration that is merely
better is not moved to either before it carries that busy part: two that are cheap and strong enough in
turn would change places every ten minutes.
"""

from dataclasses import replace

from trimtab.planning.estimate import evaluate
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.plan import Findings, FleetPlan, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import bound
from trimtab.planning.short_list import Trials
from trimtab.planning.simulations import Simulations
from trimtab.planning.snapshot import (
    Assignment,
    Config,
    FleetSnapshot,
    IntentView,
    Load,
    ModelView,
)
from trimtab.planning.sources import Sources
from trimtab.planning.workload import PlannedLoad, planned_load


def findings(
    snapshot: FleetSnapshot,
    plan: FleetPlan,
    *,
    policy: PlannerPolicy,
    simulations: Simulations | None = None,
) -> tuple[Findings, ...]:
    """Return what was found about every intent of a plan that has a worker of its own.

    ``simulations`` are the plan's, with what it left of its budget; None begins with a plan's budget.
    One that cannot be predicted takes nobody else's findings away: it says so in ``problem``, and
    nothing of it is taken away or moved for being better.
    """
    if simulations is None:
        simulations = Simulations()
        simulations.begin(policy)
    wanted = {p.uid: p.option for p in plan.intents if p.group is None}
    intents = {i.uid: i for i in snapshot.intents}
    sources = Sources(snapshot, policy=policy)
    found = []
    for assignment in sorted(snapshot.assignments, key=lambda a: a.intent_uid):
        intent = intents.get(assignment.intent_uid)
        option = wanted.get(assignment.intent_uid)
        alone = not assignment.group and assignment.replicas > 0
        if alone and intent is not None and intent.model is not None and option is not None:
            try:
                one = _found(
                    intent,
                    model=intent.model,
                    assignment=assignment,
                    option=option,
                    simulations=simulations,
                    sources=sources,
                    snapshot=snapshot,
                    policy=policy,
                )
            except Exception as error:  # noqa: BLE001 - told in what is returned
                one = _needed(assignment, problem=f"{type(error).__name__}: {error}")
            found.append(one)
    return tuple(found)


def _found(
    intent: IntentView,
    *,
    model: ModelView,
    assignment: Assignment,
    option: Option,
    simulations: Simulations,
    sources: Sources,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Findings:
    if (option.config, option.replicas) == (assignment.config, assignment.replicas):
        # Nothing is to change, so nothing needs to be found out: predictions are not free.
        return _needed(assignment)
    load = planned_load(intent.load, context_length=model.context_length, policy=policy)
    busy = _busy(intent.busy_load, load)

    def judged(replicas: int, at: PlannedLoad, config: Config = assignment.config) -> Judged:
        one = evaluate(
            intent,
            model,
            config,
            replicas=replicas,
            load=at,
            snapshot=snapshot,
            policy=policy,
            sources=sources,
        )
        return judge(intent, one, load=at, priced=False, policy=policy)

    trials = Trials(
        intent,
        model,
        busy,
        simulations=simulations,
        sources=sources,
        snapshot=snapshot,
        policy=policy,
    )

    def roomy(one: Option, points: int) -> bool:
        more = replace(
            one,
            margin_permille=one.margin_permille + points,
            ttft_margin_permille=one.ttft_margin_permille + points,
        )
        found = judge(intent, more, load=busy, priced=False, policy=policy)
        return found.meets and _has_headroom(more, points, policy)

    def carries(replicas: int, config: Config, *, points: int) -> bool:
        one = judged(replicas, busy, config)
        if not roomy(one.option, points):
            return False
        followed = trials.simulated(one) if trials.open else None
        # Nothing is taken away on the closed form's word where the plan's budget is to blame.
        return roomy(followed.option, points) if followed is not None else not trials.waits

    def spares(replicas: int) -> bool:
        return carries(replicas, assignment.config, points=policy.spare_margin_permille)

    fewest = assignment.replicas
    least = max(1, assignment.replicas - bound(assignment.replicas, policy=policy))
    # Only fewer than run matter, and more than the plan wants: each costs a prediction.
    while fewest > max(least, min(option.replicas, assignment.replicas)) and spares(fewest - 1):
        fewest -= 1
    lasts = (
        option.config == assignment.config
        or carries(option.replicas, option.config, points=0)
        or not carries(assignment.replicas, assignment.config, points=0)
    )
    return Findings(
        uid=intent.uid,
        meets=judge(intent, option, load=load, priced=False, policy=policy).meets,
        running_meets=judged(assignment.replicas, load).meets,
        fewest=fewest,
        lasts=lasts,
        waits=trials.waits,
    )


def _needed(assignment: Assignment, *, problem: str = "") -> Findings:
    return Findings(
        uid=assignment.intent_uid,
        meets=True,
        running_meets=True,
        fewest=assignment.replicas,
        lasts=not problem,
        problem=problem,
    )


def _busy(busy: Load | None, planned: PlannedLoad) -> PlannedLoad:
    if busy is None:
        return planned
    return PlannedLoad(
        rate=busy.requests_per_second,
        prompt=busy.prompt_tokens,
        output=busy.output_tokens,
        assumed=False,
        variation=busy.variation,
    )


def _has_headroom(option: Option, points: int, policy: PlannerPolicy) -> bool:
    """Tell whether an option keeps margin and so many permille of its capacity, targets or none.

    Objectives without a target would scale down to a replica that is just not overloaded.
    """
    predicted = option.predicted
    most = 1000 * 1000 // (1000 + policy.margin_high_permille + points)
    return not predicted.overloaded and predicted.utilisation_permille <= most
