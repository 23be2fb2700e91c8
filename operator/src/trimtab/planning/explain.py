"""Decisions in sentences: what was chosen and why, and why every other option lost."""

from collections.abc import Callable, Sequence

from trimtab.planning.objectives import Judged, tpot_with_margin, ttft_with_margin
from trimtab.planning.plan import Alternative, Binding, Lost, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.replan import uncalibrated
from trimtab.planning.snapshot import Config, IntentView
from trimtab.planning.workload import PlannedLoad


def describe_config(config: Config, *, replicas: int) -> str:
    """Return a configuration in words."""
    count = f"{replicas} replica{'s' if replicas != 1 else ''}"
    where = f"{config.product} ({config.cpu_model})" if config.cpu_model else config.product
    split = [
        f"{kind} parallel {size}"
        for kind, size in (
            ("tensor", config.tensor_parallel_size),
            ("pipeline", config.pipeline_parallel_size),
        )
        if size > 1
    ]
    ranks = f" ({', '.join(split)})" if split else ""
    return f"{count} of {devices_of(config, replicas=1)}{ranks} on {where} in {config.precision}"


def devices_of(config: Config, *, replicas: int) -> str:
    """Return what replicas take in words: ``3 threads``, ``1 GPU``."""
    return counted(config.product, replicas * config.devices)


def counted(product: str, count: int) -> str:
    """Return a number of a product's devices in words; on ``cpu`` they are threads."""
    word = "thread" if product == "cpu" else "GPU"
    return f"{count} {word}{'' if count == 1 else 's'}"


def chosen(intent: IntentView, judged: Judged, load: PlannedLoad) -> str:
    """Return the sentences of a plan: what runs, what it delivers, how sure that is."""
    option = judged.option
    predicted = option.predicted
    tail = intent.objective == "TargetLatency"
    at = f"p{intent.targets.percentile}" if tail else "mean"
    ttft, tpot = (
        latency.percentile_us if tail else latency.mean_us
        for latency in (predicted.ttft, predicted.tpot)
    )
    cost = option.cost_per_hour_micro_usd
    return (
        f"{describe_config(option.config, replicas=option.replicas)}: predicted {at} time to first "
        f"token {milliseconds(ttft)}, time per output token "
        f"{milliseconds(tpot)}, mean end to end "
        f"{milliseconds(predicted.e2e.mean_us)} for {load.prompt} prompt and {load.output} output "
        f"tokens at {_rate(load, option)}; "
        f"{'cost ' + dollars(cost) + ' per hour' if cost is not None else 'cost unknown'}; "
        f"confidence {option.confidence.level} ({', '.join(option.confidence.reasons)}), margin "
        f"{option.margin_permille / 10:g} %."
    )


def alternatives(
    intent: IntentView,
    *,
    best: Judged | None,
    others: Sequence[Judged],
    has_room: Callable[[Judged], bool],
    kept: bool,
    refused: Sequence[Alternative],
    policy: PlannerPolicy,
) -> tuple[Alternative, ...]:
    """Return the best few options that lost, each with its sentence, other configurations first.

    Args:
        intent: For its targets.
        best: The chosen option, None if nothing runs.
        others: Options in order of preference, the chosen one among them.
        has_room: Whether the nodes have room for an option; asked for those that are shown.
        kept: The chosen option was kept although another would be slightly better.
        refused: Configurations that cannot run at all.
        policy: How many are shown.
    """
    seen = {best.option.config} if best else set()
    first: list[Judged] = []
    later: list[Judged] = []
    for judged in others:
        if best is not None and judged.option == best.option:
            continue
        (later if judged.option.config in seen else first).append(judged)
        seen.add(judged.option.config)
    every, few = [*first, *later], policy.shown_alternatives
    # A precision that a bound keeps out is always told: they are few, and figures answer the bound.
    lossy = [one for one in refused if one.reason == "AccuracyLoss"]
    unable = [one for one in refused if one.reason != "AccuracyLoss"][: max(1, few - len(every))]
    shown: list[Alternative] = []
    for judged in every[: few - len(unable)]:
        room = has_room(judged)
        reason, why = _why_not(intent, judged, best, no_room=not room, kept=kept)
        shown.append(
            Alternative(
                config=judged.option.config, option=judged.option, reason=reason, why_not=why
            )
        )
    return (*shown, *unable, *lossy)


def binding(judged: Judged, intent: IntentView) -> Binding:
    """Return what decided: a requirement that is missed or nearly, else what is optimised."""
    worst = judged.worst
    if worst is not None and (worst.value > 1 or intent.objective.startswith("Target")):
        return worst.name
    return "Latency" if intent.objective == "MinLatency" else "Cost"


def missed(intent: IntentView, judged: Judged, load: PlannedLoad) -> str:
    """Return which requirement an option misses most, with figures; no full stop."""
    option, worst = judged.option, judged.worst
    percentile, targets = intent.targets.percentile, intent.targets
    if worst is None or worst.value <= 1:
        return "nothing is missed"
    if worst.name == "TimeToFirstToken" and targets.ttft_us is not None:
        return (
            f"p{percentile} time to first token {milliseconds(option.predicted.ttft.percentile_us)}"
            f" (with margin {milliseconds(ttft_with_margin(option))}) against a target of "
            f"{milliseconds(targets.ttft_us)}"
        )
    if worst.name == "TimePerOutputToken" and targets.tpot_us is not None:
        return (
            f"p{percentile} time per output token "
            f"{milliseconds(option.predicted.tpot.percentile_us)} (with margin "
            f"{milliseconds(tpot_with_margin(option))}) against a target of "
            f"{milliseconds(targets.tpot_us)}"
        )
    if worst.name == "Cost":
        return _missed_cost(intent, option)
    if worst.name == "Capacity":
        return (
            f"a capacity of {option.predicted.capacity_milli_rps / 1000:.3g} requests per second "
            f"against a load of {load.rate:.3g} with headroom"
        )
    return (
        f"p95 end to end {milliseconds(option.predicted.e2e.p95_us)}, more than three times the "
        f"{milliseconds(option.predicted.unloaded_e2e_us)} of a request alone"
    )


def milliseconds(microseconds: float) -> str:
    """Return a time in ms or s with three digits."""
    if microseconds >= 10_000_000:
        return f"{microseconds / 1e6:.3g} s"
    shown = microseconds / 1000
    return f"{shown:.0f} ms" if shown >= 100 else f"{shown:.3g} ms"


def dollars(micro_usd: int) -> str:
    """Return micro-USD as USD, trailing zeros cut after the cents."""
    whole, rest = divmod(micro_usd, 1_000_000)
    return f"USD {whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def _why_not(
    intent: IntentView, judged: Judged, best: Judged | None, *, no_room: bool, kept: bool
) -> tuple[Lost, str]:
    option = judged.option
    name = describe_config(option.config, replicas=option.replicas)
    if best is not None and best.option.simulated and not option.simulated:
        name += " (not simulated)"
    if no_room or (best is None and judged.meets):
        need = devices_of(option.config, replicas=option.replicas)
        return "NoCapacity", f"{name}: the nodes do not have {need} and the memory free."
    if best is None or not judged.meets:
        return _missing(intent, judged, name)
    if kept and (judged.score, judged.resources) < (best.score, best.resources):
        return _kept(name, judged, best)
    if best.option.simulated and not option.simulated and judged.score <= best.score:
        return (
            "NotSimulated",
            (
                f"{name}: looks better in closed form, which is optimistic about queues; the options "
                "that looked best were simulated, and the chosen one came out best."
            ),
        )
    faster = judged.option.predicted.e2e.mean_us, best.option.predicted.e2e.mean_us
    if judged.resources > best.resources:
        return "Costlier", _costlier(name, option, best.option, faster)
    return (
        "Slower",
        f"{name}: mean end to end {milliseconds(faster[0])} against {milliseconds(faster[1])}.",
    )


def _kept(name: str, judged: Judged, best: Judged) -> tuple[Lost, str]:
    if uncalibrated(best, judged) > 0:
        return (
            "Uncalibrated",
            (
                f"{name}: looks better, but by less than moving is worth together with what live "
                "replicas corrected in the prediction of what runs: nothing has corrected this one."
            ),
        )
    return "SwitchingCost", f"{name}: better, but by less than moving replicas is worth."


def _missing(intent: IntentView, judged: Judged, name: str) -> tuple[Lost, str]:
    option, worst = judged.option, judged.worst
    if worst is None or worst.name == "Capacity":
        capacity = option.predicted.capacity_milli_rps / 1000
        return "Overloaded", f"{name}: carries at most {capacity:.3g} requests per second."
    if worst.lost == "OverBudget" and option.cost_per_hour_micro_usd is None:
        return "PriceUnknown", f"{name}: the price book has no price for it."
    load = PlannedLoad(rate=0.0, prompt=1, output=1, assumed=True)
    return worst.lost, f"{name}: {missed(intent, judged, load)}."


def _costlier(name: str, option: Option, best: Option, e2e: tuple[int, int]) -> str:
    change = (e2e[1] - e2e[0]) / max(1, e2e[1])
    speed = f"{change:.0%} faster" if change > 0 else f"{-change:.0%} slower"
    mine, theirs = option.cost_per_hour_micro_usd, best.cost_per_hour_micro_usd
    if mine is not None and theirs is not None and mine != theirs:
        return f"{name}: {dollars(mine)} per hour against {dollars(theirs)}, {speed}."
    mine_words, theirs_words = (devices_of(o.config, replicas=o.replicas) for o in (option, best))
    return f"{name}: reserves {mine_words} against {theirs_words}, {speed}."


def _missed_cost(intent: IntentView, option: Option) -> str:
    targets = intent.targets
    hour, million = (
        option.cost_per_hour_micro_usd,
        option.cost_per_million_output_tokens_micro_usd,
    )
    parts = []
    if targets.cost_per_hour_micro_usd is not None and hour is not None:
        parts.append(
            f"{dollars(hour)} per hour against a budget of {dollars(targets.cost_per_hour_micro_usd)}"
        )
    limit = targets.cost_per_million_output_tokens_micro_usd
    if limit is not None and million is not None:
        parts.append(
            f"{dollars(million)} per million output tokens against a target of {dollars(limit)}"
        )
    return " and ".join(parts) or "its cost is unknown"


def _rate(load: PlannedLoad, option: Option) -> str:
    if load.rate <= 0:
        return "one request in flight"
    share = option.predicted.utilisation_permille / 10
    return f"{load.rate:.3g} requests per second ({share:.0f} % of capacity)"
