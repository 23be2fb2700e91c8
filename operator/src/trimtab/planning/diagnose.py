"""Why an intent cannot have what it asks for: the first reason that applies, what would help."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.planning.capacity import Ledger
from trimtab.planning.explain import (
    counted,
    describe_config,
    devices_of,
    dollars,
    milliseconds,
    missed,
)
from trimtab.planning.objectives import Judged
from trimtab.planning.plan import Reason
from trimtab.planning.snapshot import FleetSnapshot, IntentView
from trimtab.planning.workload import PlannedLoad

_SHOWN_HOLDERS = 3
_ABOUT_ROOM = frozenset({"ConstraintsExcludeAll", "NoFit", "TargetNeedsMoreGPUs", "NoCapacity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What blocks an intent, for the condition ``Planned``."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """Who else has a share of the fleet.

    Attributes:
        names: Intents of the same namespace.
        elsewhere: How many intents of other namespaces, which are not named to this one.
        all_serve: Whether each of them serves already, so that priority changes nothing.
        held: What each of `names` has, in words; members of a group have its worker's together.
    """

    names: tuple[str, ...] = ()
    elsewhere: int = 0
    all_serve: bool = False
    held: tuple[str, ...] = ()

    def shares(self) -> str:
        """Return who has how much as a sentence with a space before it; empty if nobody is named."""
        shown = [f"{name} has {held}" for name, held in zip(self.names, self.held, strict=False)][
            :_SHOWN_HOLDERS
        ]
        return f" {', '.join(shown)}." if shown else ""

    def described(self) -> str:
        """Return them as the end of a sentence."""
        shown = ", ".join(self.names[:_SHOWN_HOLDERS])
        unnamed = len(self.names[_SHOWN_HOLDERS:])
        parts = [shown] if shown else []
        if unnamed:
            parts.append(f"{unnamed} more of this namespace")
        if self.elsewhere or not parts:
            parts.append(f"{self.elsewhere} of other namespaces")
        return " and ".join(parts)


def no_fit(intent: IntentView, judged: Sequence[Judged], fleet: Ledger) -> Problem | None:
    """Return ``NoFit`` if one replica of nothing fits into any node's memory."""
    singles = [j for j in judged if fleet.largest_memory(j.option.config) > 0]
    if any(j.option.memory_bytes <= fleet.largest_memory(j.option.config) for j in singles):
        return None
    least = min(judged, key=lambda j: (j.option.memory_bytes, j.order))
    had = max((fleet.largest_memory(j.option.config) for j in judged), default=0)
    return Problem(
        reason="NoFit",
        message=(
            f"{_name(intent)}: one replica needs {_gib(least.option.memory_bytes)} GiB of memory "
            f"({least.option.config.precision}, host copy of the weights included), but the largest "
            f"node has {_gib(had)} GiB free of other use. Use a smaller model, a precision of fewer "
            "bytes in spec.constraints.precisions, or a larger node."
        ),
    )


def price_unknown(intent: IntentView, judged: Sequence[Judged]) -> Problem | None:
    """Return ``PriceUnknown`` if the objective is about money and no option has a price."""
    if intent.objective not in ("MinCost", "TargetCost"):
        return None
    if any(j.option.cost_per_hour_micro_usd is not None for j in judged):
        return None
    gpus = ", ".join(sorted({j.option.config.product for j in judged} - {"cpu"}))
    models = ", ".join(
        sorted({j.option.config.cpu_model for j in judged if j.option.config.product == "cpu"})
    )
    if gpus:
        return Problem(
            reason="PriceUnknown",
            message=(
                f"{_name(intent)}: spec.objective is {intent.objective}, but ConfigMap "
                f"trimtab-prices has no gpuHour that matches {gpus}. Add the key to prices.yaml, for "
                'example gpuHour: {"*H100*": "4.50"}.'
            ),
        )
    return Problem(
        reason="PriceUnknown",
        message=(
            f"{_name(intent)}: spec.objective is {intent.objective}, but ConfigMap trimtab-prices "
            f"has no cpuHour that matches {models or 'cpu'!r}, or no memoryGiBHour. Add both keys "
            'to prices.yaml, for example cpuHour: {"*": "0.04"} and memoryGiBHour: "0.005".'
        ),
    )


def an_outage(better: Judged, *, gain: str) -> str:
    """Return as a sentence what would be gained by an option that what runs cannot change to."""
    config, replicas = better.option.config, better.option.replicas
    return (
        f"{describe_config(config, replicas=replicas)} would {gain}, but no node has room for a "
        "replica of it beside what runs, and changing without that would be an outage. Any edit of "
        "the spec makes it change all the same; so does a node more, without the outage."
    )


def outage(intent: IntentView, better: Judged) -> Problem:
    """Return ``NoCapacity`` for what runs, misses the objective, and has no room to change."""
    said = an_outage(better, gain="meet the objective")
    return Problem(reason="NoCapacity", message=f"{_name(intent)}: {said}")


def unmet(
    intent: IntentView,
    *,
    load: PlannedLoad,
    judged: Sequence[Judged],
    unloaded: Sequence[Judged],
    fleet: Ledger,
    holders: Holders,
) -> Problem:
    """Return why no option that meets the objective can be placed.

    Args:
        intent: Whose objective it is.
        load: What is planned for.
        judged: Every option, in order of preference, placeable or not.
        unloaded: The options as one request alone would see them.
        fleet: Nodes before any intent took its share.
        holders: Which other intents hold a share.
    """
    good = [j for j in judged if j.meets]
    if good and any(fleet.fits(j.option) for j in good):
        return _no_capacity(intent, good, fleet, holders)
    if intent.objective == "TargetLatency" and not any(j.meets for j in unloaded):
        return _below_floor(intent, unloaded, load)
    if intent.objective == "TargetCost" and not good:
        return _budget(intent, judged)
    return _more_devices(intent, judged, good, fleet, load=load, holders=holders)


def _no_capacity(
    intent: IntentView, good: Sequence[Judged], fleet: Ledger, holders: Holders
) -> Problem:
    fitting = [j for j in good if fleet.fits(j.option)]
    least = min(fitting, key=lambda j: (j.option.replicas * j.option.config.devices, j.order))
    config, replicas = least.option.config, least.option.replicas
    had = counted(config.product, fleet.devices(config))
    where = "" if config.product == "cpu" else f" of {config.product}"
    remedy = (
        "All of them serve, and priority takes nothing from what serves. Add a node, or lower what "
        "they ask for."
        if holders.all_serve
        else "Add a node, raise spec.priority, or lower what the others ask for."
    )
    return Problem(
        reason="NoCapacity",
        message=(
            f"{_name(intent)}: the objective needs at least "
            f"{describe_config(config, replicas=replicas)}, {devices_of(config, replicas=replicas)}, "
            f"but the fleet's {had}{where} are held by intents that serve or "
            f"come first ({holders.described()}).{holders.shares()} {remedy}"
        ),
    )


def _below_floor(intent: IntentView, unloaded: Sequence[Judged], load: PlannedLoad) -> Problem:
    best = unloaded[0]
    option = best.option
    worst = best.worst
    reach = milliseconds(0)
    field = "timePerOutputTokenMilliseconds"
    if worst is not None:
        first = worst.name == "TimeToFirstToken"
        field = "timeToFirstTokenMilliseconds" if first else field
        target = intent.targets.ttft_us if first else intent.targets.tpot_us
        reach = str(-(-round((target or 0) * worst.value) // 1000))
    return Problem(
        reason="TargetBelowFloor",
        message=(
            f"{_name(intent)}: even one request alone has {missed(intent, best, load)} on the "
            f"fastest option that the constraints allow "
            f"({describe_config(option.config, replicas=1)}), so more replicas cannot help. Raise "
            f"spec.targets.{field} to at least {reach}, lower spec.load's token counts, or allow a "
            "faster product or precision in spec.constraints."
        ),
    )


def _budget(intent: IntentView, judged: Sequence[Judged]) -> Problem:
    carrying = [j for j in judged if all(r.value <= 1 for r in j.ratios if r.name == "Capacity")]
    priced = [j for j in carrying or judged if j.option.cost_per_hour_micro_usd is not None]
    least = min(priced, key=lambda j: (j.resources, j.order))
    option = least.option
    cost = option.cost_per_hour_micro_usd or 0
    million = option.cost_per_million_output_tokens_micro_usd or 0
    carries = "carries the load" if carrying else "is possible, though it does not carry the load,"
    return Problem(
        reason="BudgetTooSmall",
        message=(
            f"{_name(intent)}: the cheapest option that {carries} "
            f"({describe_config(option.config, replicas=option.replicas)}) costs {dollars(cost)} "
            f"per hour, {dollars(million)} per million output tokens at the planned load. Raise "
            "spec.targets.costPerHour or spec.targets.costPerMillionOutputTokens to that, or lower "
            "spec.load."
        ),
    )


def _more_devices(
    intent: IntentView,
    judged: Sequence[Judged],
    good: Sequence[Judged],
    fleet: Ledger,
    *,
    load: PlannedLoad,
    holders: Holders,
) -> Problem:
    """Return ``TargetNeedsMoreGPUs``; on product cpu the devices are threads."""
    if good:
        least = min(good, key=lambda j: (j.option.replicas * j.option.config.devices, j.order))
        config, replicas = least.option.config, least.option.replicas
        said = (
            f"{describe_config(config, replicas=replicas)}, "
            f"{devices_of(config, replicas=replicas)} in all, but the fleet has "
            f"{fleet.devices(config)}"
        )
        remedy = "Add nodes, lower spec.load, or relax the target"
    else:
        said = (
            f"more than {describe_config(judged[0].option.config, replicas=judged[0].option.replicas)}"
            f", which has {missed(intent, judged[0], load)}"
        )
        pinned = intent.constraints.max_replicas
        remedy = "Add nodes or lower spec.load"
        if pinned is not None:
            remedy = f"Raise spec.constraints.maxReplicas above {pinned}, or lower spec.load"
        if intent.constraints.counted:
            remedy = (
                f"Let whoever sets the Deployment's replicas set more than {pinned}, or annotate "
                "the InferenceIntent with trimtab.dev/replicas: Trimtab"
            )
    return Problem(
        reason="TargetNeedsMoreGPUs",
        message=f"{_name(intent)}: the objective needs {said}.{holders.shares()} {remedy}.",
    )


def missing(problem: Problem, snapshot: FleetSnapshot) -> str:
    """Return which GPUs would be there but are others' or not planned on, with a space before it.

    Only where room is what is missing; nodes are counted, and named by no one but the reason.
    """
    if problem.reason not in _ABOUT_ROOM:
        return ""
    return f"{_others(snapshot)}{_left_out(snapshot)}"


def _others(snapshot: FleetSnapshot) -> str:
    found: Counter[str] = Counter()
    for pool in snapshot.gpu_pools:
        found[pool.product] += pool.others
    parts = [f"{counted(name, count)} of {name}" for name, count in sorted(found.items()) if count]
    if not parts:
        return ""
    return f" Pods outside this plan request {', '.join(parts)}: as they end, there is room."


def _left_out(snapshot: FleetSnapshot) -> str:
    if not snapshot.left_out:
        return ""
    found = Counter(one.reason for one in snapshot.left_out)
    parts = [
        f"those of {count} node{'' if count == 1 else 's'} because {reason}"
        for reason, count in sorted(found.items())
    ]
    return f" GPUs are left out: {'; '.join(parts)}."


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


def _name(intent: IntentView) -> str:
    return f"InferenceIntent {intent.namespace}/{intent.name}"
