"""Which Shared intents of a namespace run in one worker (planner.md §9, the rule without simulation).

They share if their own best options run on equal configurations with one replica each, if together
they keep the threads busy for less than 70 % of the time, if every objective that is met alone is
met beside the others, if their memory is no more than that of workers of their own, and if
`plan_remap` lends the weights of those that are idle. Everybody else gets a worker alone, and is
told why. What runs in a group stays in it, and a running group keeps its id.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from trimtab.planning.case import Case
from trimtab.planning.objectives import Judged, resource_score
from trimtab.planning.plan import GroupPlan, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import keeps, switching_cost, was_edited
from trimtab.planning.shared_worker import beside, split_cost
from trimtab.planning.sharing_rule import Candidate, Rule, SharedWorker
from trimtab.planning.snapshot import Assignment, Config, FleetSnapshot, IntentView

_Key = tuple[str, Config]
"""Namespace and configuration without precision: each model of a worker has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """The groups, and why others are alone: a sentence by uid."""

    workers: tuple[SharedWorker, ...] = ()
    apart: Mapping[str, str]


def share(
    cases: Sequence[Case],
    *,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    closed: AbstractSet[str] = frozenset(),
) -> Sharing:
    """Return who shares a worker; independent of the order of the cases.

    Groups that are `closed` take no newcomer in: no node has room for what they would become.
    """
    apart: dict[str, str] = {}
    found: dict[_Key, list[Candidate]] = {}
    for case in sorted(cases, key=lambda c: (c.intent.created_seconds, c.intent.uid)):
        if case.intent.sharing != "Shared" or case.problem is not None:
            continue
        judged = _preferred(case, snapshot=snapshot, policy=policy)
        if judged is None:
            continue
        if (why := _alone(judged.option)) is not None:
            apart[case.intent.uid] = why
            continue
        key: _Key = (case.intent.namespace, replace(judged.option.config, precision=""))
        found.setdefault(key, []).append(Candidate(case=case, judged=judged))
    workers: list[SharedWorker] = []
    homes = _homes(found)
    rule = Rule(snapshot=snapshot, policy=policy)
    for key in sorted(found, key=str):
        here = {name for name, home in homes.items() if home == key}
        groups = _grouped(
            found[key], rule, here=here, taken=homes.keys(), closed=closed, apart=apart
        )
        for name in sorted(groups):
            members = sorted(
                groups[name], key=lambda c: (c.case.intent.created_seconds, c.case.intent.uid)
            )
            workers.append(rule.worker(name, tuple(members)))
    for key, candidates in found.items():
        others = [k[1] for k in sorted(found, key=str) if k[0] == key[0] and k != key]
        for candidate in candidates if others else ():
            apart.setdefault(candidate.uid, _differ(key[1], others[0]))
    together = {m.uid for w in workers if len(w.members) > 1 for m in w.members}
    apart = {uid: why for uid, why in apart.items() if uid not in together}
    return Sharing(workers=tuple(workers), apart=apart)


def _alone(option: Option) -> str | None:
    """Return why an option is of a worker that shares with nobody, None if it may share."""
    config = option.config
    if option.replicas != 1:
        return f"SeveralReplicas: its load needs {option.replicas} replicas, and a shared worker is one."
    ranks = config.tensor_parallel_size * config.pipeline_parallel_size
    if ranks > 1:
        return (
            f"TensorParallel: its best option has {ranks} ranks, between which no weights are lent."
        )
    if config.product != "cpu":
        return (
            f"OnGPU: its best option runs on {config.product}, and workers on GPUs are not shared "
            "yet."
        )
    return None


def _differ(mine: Config, theirs: Config) -> str:
    return (
        f"ConfigurationsDiffer: its best option is {_told(mine)}, that of other Shared intents of the "
        f"namespace {_told(theirs)}."
    )


def _told(config: Config) -> str:
    threads = f"{config.threads} thread{'s' if config.threads > 1 else ''} on "
    return f"{threads if config.threads else ''}{config.cpu_model or config.product}"


def group_plan(worker: SharedWorker, *, size: int) -> GroupPlan:
    """Return a group's plan once its worker has found a place with one of its sizes."""
    chosen = worker.sizes[size]
    option, memory = chosen.option, chosen.memory
    options = [member.judged.option for member in chosen.members]
    return GroupPlan(
        id=worker.id,
        members=tuple(member.uid for member in worker.members),
        config=option.config,
        memory_bytes=option.memory_bytes,
        arena_bytes=option.arena_bytes,
        least_memory_bytes=memory.least_total,
        least_arena_bytes=memory.least_arena,
        max_model_len=option.max_model_len,
        max_seqs=option.max_seqs,
        max_batch_tokens=option.max_batch_tokens,
        slowest_tpot_us=max(o.predicted.tpot.mean_us for o in options),
        advice=chosen.advice,
        host_bytes=memory.host,
        least_host_bytes=memory.least_host,
    )


def member_options(
    worker: SharedWorker, *, size: int, snapshot: FleetSnapshot
) -> dict[str, Judged]:
    """Return each member's option as it runs in the group: its latencies, its share of the cost."""
    option, members = worker.sizes[size].option, worker.sizes[size].members
    shares = split_cost(members, option, prices=snapshot.prices)
    found = {}
    for member, cost in zip(members, shares, strict=True):
        own = replace(
            beside(member, members),
            memory_bytes=option.memory_bytes,
            arena_bytes=option.arena_bytes,
            cost_per_hour_micro_usd=cost,
        )
        priced = member.judged.resources == member.judged.option.cost_per_hour_micro_usd
        resources = (
            float(cost)
            if priced and cost is not None
            else resource_score(own, priced=False) / len(members)
        )
        by_latency = member.case.intent.objective in ("MinLatency", "TargetCost")
        found[member.uid] = replace(
            member.judged,
            option=own,
            resources=resources,
            score=float(own.predicted.e2e.mean_us) if by_latency else resources,
        )
    return found


def unit(worker: SharedWorker) -> Case:
    """Return a group as one case of the fleet's search: it takes one place or none."""
    options = tuple(
        Judged(
            option=s.option, score=n, resources=resource_score(s.option, priced=False), ratios=()
        )
        for n, s in enumerate(worker.sizes)
    )
    running = next((m.case.assignment for m in worker.members if m.group == worker.id), None)
    return replace(
        leader(worker),
        every=options,
        options=options,
        assignment=running,
        running=_running(options, running),
        settled=True,
    )


def leader(worker: SharedWorker) -> Case:
    """Return the member whose priority and age the group has in the fleet's search."""
    return min(
        (m.case for m in worker.members),
        key=lambda c: (-c.intent.priority, c.intent.created_seconds, c.intent.uid),
    )


def outgrown(worker: SharedWorker, place: Judged) -> bool:
    """Whether newcomers need more than the place that a running group keeps."""
    joins = any(member.group != worker.id for member in worker.members)
    return joins and all(place.option != size.option for size in worker.sizes)


def size_of(worker: SharedWorker, place: Judged) -> int:
    """Return which size a group got; one that keeps its place has the least of its configuration."""
    for n, one in enumerate(worker.sizes):
        if one.option == place.option:
            return n
    shape = replace(place.option.config, precision="")
    last = len(worker.sizes) - 1
    configs = [replace(one.option.config, precision="") for one in worker.sizes]
    return max((n for n, config in enumerate(configs) if config == shape), default=last)


def dissolved(sharing: Sharing, ids: AbstractSet[str]) -> Sharing:
    """Return the sharing without these groups: each member is planned alone."""
    gone = {
        m.uid: _no_place(min(size.memory.least_total for size in w.sizes))
        for w in sharing.workers
        if w.id in ids
        for m in w.members
    }
    return Sharing(
        workers=tuple(w for w in sharing.workers if w.id not in ids),
        apart={**sharing.apart, **gone},
    )


def remapping(intent: IntentView, sharing: Sharing, group: GroupPlan | None) -> dict[str, Any]:
    """Return the fields of an intent's plan about its group and its weights."""
    apart = sharing.apart.get(intent.uid, "")
    if group is None:
        alone = {
            "Shared": "SingleModel: its worker has no other model whose weights could be lent.",
            "Exclusive": "SingleModel: sharing is Exclusive, so its worker has no other model whose "
            "weights could be lent.",
        }[intent.sharing]
        return {"remap_verdict": "DoNotRemap", "remap_reasons": (apart or alone,)}
    reasons = tuple(reason for reason in (apart, *group.advice.reasons) if reason)
    return {"group": group, "remap_verdict": group.advice.verdict, "remap_reasons": reasons}


def _running(options: Sequence[Judged], assignment: Assignment | None) -> Judged | None:
    """Return what the group runs now, with the memory that it has."""
    if assignment is None:
        return None
    option = replace(
        options[-1].option,
        config=assignment.config,
        memory_bytes=assignment.memory_bytes,
        replicas=1,
    )
    return replace(options[-1], option=option)


def _preferred(case: Case, *, snapshot: FleetSnapshot, policy: PlannerPolicy) -> Judged | None:
    """Return the option that an intent would run alone: its best, or what runs if that stays."""
    refuse = case.intent.infeasible == "Refuse"
    allowed = [j for j in case.options if j.meets or not refuse]
    if not allowed:
        return None
    best, running, assignment = allowed[0], case.running, case.assignment
    if running is None or assignment is None or was_edited(case.intent, assignment):
        return best
    if running.option.config not in {j.option.config for j in case.every}:
        return best
    same = running.option.config == best.option.config
    # A group's one replica is not what this intent asked for, so replicas are weighed anew.
    if same and running.option.replicas != best.option.replicas and not running.meets:
        return best
    if case.waits:
        return running
    cost = switching_cost(snapshot, running.option.fingerprint, policy=policy)
    return running if same or keeps(running, best, cost=cost) else best


def _homes(found: Mapping[_Key, Sequence[Candidate]]) -> dict[str, _Key]:
    """Return where each running group goes on: as it runs now, else as its oldest member wants."""
    homes: dict[str, _Key] = {}
    running: dict[str, _Key] = {}
    for key in sorted(found, key=str):
        for candidate in found[key]:
            if candidate.group and candidate.case.assignment is not None:
                homes.setdefault(candidate.group, key)
                config = replace(candidate.case.assignment.config, precision="")
                if key == (candidate.case.intent.namespace, config):
                    running[candidate.group] = key
    return homes | running


def _grouped(
    candidates: Sequence[Candidate],
    rule: Rule,
    *,
    here: AbstractSet[str],
    taken: AbstractSet[str],
    closed: AbstractSet[str],
    apart: dict[str, str],
) -> dict[str, list[Candidate]]:
    """Return groups by id: running ones first, then newcomers one by one into the first that takes them.

    Args:
        candidates: Oldest first, all with one configuration.
        rule: Who may join whom.
        here: Running groups that go on with this configuration.
        taken: All running groups: nobody founds one of their names again.
        closed: Groups that take no newcomer in.
        apart: Filled with the reasons of those who joined nobody.
    """
    groups: dict[str, list[Candidate]] = {}
    rest: list[Candidate] = []
    for candidate in candidates:
        if candidate.group not in here:
            rest.append(candidate)
            continue
        members = groups.setdefault(candidate.group, [])
        refusal = rule.refusal(candidate, members)
        if refusal:
            apart[candidate.uid] = refusal
            rest.append(candidate)
        else:
            members.append(candidate)
    for candidate in rest:
        _settle(candidate, groups, rule, taken=taken, closed=closed, apart=apart)
    return groups


def _settle(
    candidate: Candidate,
    groups: dict[str, list[Candidate]],
    rule: Rule,
    *,
    taken: AbstractSet[str],
    closed: AbstractSet[str],
    apart: dict[str, str],
) -> None:
    """Let a newcomer join the oldest group that takes it, or found one of its own."""
    refusals: list[str] = []
    for name in sorted(groups, key=lambda n: (_age(groups[n]), n)):
        refusal = (
            _no_place(rule.least_memory((*groups[name], candidate)))
            if name in closed
            else rule.refusal(candidate, groups[name])
        )
        if not refusal:
            groups[name].append(candidate)
            apart.pop(candidate.uid, None)
            return
        refusals.append(refusal)
    if refusals:
        apart.setdefault(candidate.uid, refusals[0])
    own = candidate.case.intent.group_id
    if own and own not in taken and own not in groups:
        groups[own] = [candidate]


def _no_place(memory_bytes: int) -> str:
    return (
        f"NoPlace: no node has room for the group's worker, which needs {-(-memory_bytes >> 20)}Mi "
        "of free memory. Free it by scaling down other workloads, or add a node."
    )


def _age(members: Sequence[Candidate]) -> int:
    return min((m.case.intent.created_seconds for m in members), default=0)
