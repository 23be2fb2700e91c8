"""One intent prepared for the fleet's plan: its options judged, what runs now, what to measure."""

from dataclasses import dataclass, replace

from trimtab.planning.capacity import Ledger
from trimtab.planning.diagnose import Problem, no_fit, price_unknown
from trimtab.planning.estimate import find_source, key_for
from trimtab.planning.objectives import Judged, judge, prune, rank
from trimtab.planning.options import Space, pin_problem, running_option, space, walk
from trimtab.planning.plan import Alternative, FingerprintNeed, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.prices import price_for
from trimtab.planning.snapshot import Assignment, FleetSnapshot, IntentView, ModelView
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


def prepare(
    intent: IntentView, *, snapshot: FleetSnapshot, fleet: Ledger, policy: PlannerPolicy
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
    found = space(intent, model, snapshot=snapshot, policy=policy)
    pinned = pin_problem(intent, model, load) or found.problem
    problem = Problem(reason="ConstraintsExcludeAll", message=pinned) if pinned else None
    if problem is None and not found.configs:
        problem = _no_threads(intent)
    case = Case(
        intent=intent, load=load, refused=found.refused, problem=problem, assignment=assignment
    )
    if problem is None:
        case = _with_options(
            case, model, load, found, snapshot=snapshot, fleet=fleet, policy=policy
        )
    if assignment is None:
        return case
    running = running_option(intent, model, assignment, load=load, snapshot=snapshot, policy=policy)
    return replace(case, running=_judge(case, running, load, snapshot, policy))


def _with_options(
    case: Case,
    model: ModelView,
    load: PlannedLoad,
    found: Space,
    *,
    snapshot: FleetSnapshot,
    fleet: Ledger,
    policy: PlannerPolicy,
) -> Case:
    intent = case.intent
    alone = PlannedLoad(rate=0.0, prompt=load.prompt, output=load.output, assumed=load.assumed)
    every: list[Judged] = []
    unloaded: list[Judged] = []
    needs: list[tuple[Judged, FingerprintNeed]] = []
    for config in found.configs:
        source = find_source(
            model,
            config,
            fingerprints=snapshot.fingerprints,
            capabilities=snapshot.capabilities,
            policy=policy,
        )
        first = next(
            walk(
                intent,
                model,
                config,
                load=alone,
                source=source,
                snapshot=snapshot,
                satisfied=lambda _: True,
                policy=policy,
            )
        )
        unloaded.append(_judge(case, first, alone, snapshot, policy))
        key = key_for(model, config, capabilities=snapshot.capabilities)
        if source.fingerprint.key != key or source.fingerprint.source == "Roofline":
            needs.append((unloaded[-1], _need(model, unloaded[-1].option, key.digest())))
        walked = walk(
            intent,
            model,
            config,
            load=load,
            source=source,
            snapshot=snapshot,
            satisfied=lambda o: _judge(case, o, load, snapshot, policy).meets,
            policy=policy,
        )
        every.extend(_judge(case, option, load, snapshot, policy) for option in walked)
    if intent.objective == "TargetLatency" and not any(j.meets for j in unloaded):
        every = _fewest_replicas(every)
    ranked = rank(intent, every, policy=policy)
    fitting = [j for j in ranked if fleet.place(j.option) is not None]
    problem = no_fit(intent, unloaded, fleet) or (
        None
        if intent.objective == "MinCost" and intent.infeasible == "ServeNearest"
        else price_unknown(intent, ranked)
    )
    return replace(
        case,
        every=tuple(ranked),
        options=tuple(prune(fitting, policy=policy)),
        unloaded=tuple(rank(intent, unloaded, policy=policy)),
        problem=problem,
        needs=_urgent(needs, ranked, policy),
    )


def _fewest_replicas(every: list[Judged]) -> list[Judged]:
    """Return per configuration the least that carries the load: no replica makes one request faster."""
    kept: dict[object, Judged] = {}
    for judged in every:
        config = judged.option.config
        if config not in kept or kept[config].option.predicted.overloaded:
            kept[config] = judged
    return list(kept.values())


def _judge(
    case: Case,
    option: Option,
    load: PlannedLoad,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Judged:
    # One unpriced CPU model makes money incomparable, unless money is what the objective is about.
    prices = snapshot.prices
    models = {pool.cpu_model for pool in snapshot.pools}
    priced = prices.memory_gib_hour_micro_usd is not None and all(
        price_for(prices.cpu_hour, m) is not None for m in models
    )
    return judge(case.intent, option, load=load, priced=priced, policy=policy)


def _need(model: ModelView, option: Option, key: str) -> FingerprintNeed:
    config = option.config
    return FingerprintNeed(
        key=key,
        architecture=model.architecture,
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        priority=0,
    )


def _urgent(
    needs: list[tuple[Judged, FingerprintNeed]], ranked: list[Judged], policy: PlannerPolicy
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
