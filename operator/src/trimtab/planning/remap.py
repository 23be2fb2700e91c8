"""When does turning weights into KV cache pay, and how far (engine.md §3; MIRAGE, arXiv 2507.11507).

Idle models' weights cost nothing while they are away and one transfer to come back. A running
model's layers are read again in every step, so they are free only as far as the reading hides
behind the step. The engine imports this module, so it cannot disagree with the planner: standard
library only.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from trimtab.planning.remap_streaming import (
    Stream,
    hidden_bound,
    layer_share,
    slots_for,
    step_floor,
    streamed_layers,
    streaming_ratio,
)
from trimtab.planning.remap_values import (
    Hardware,
    Limits,
    ModelShape,
    RemapAdvice,
    Traffic,
    Verdict,
)

__all__ = [
    "Hardware",
    "Limits",
    "ModelShape",
    "RemapAdvice",
    "Traffic",
    "Verdict",
    "hidden_bound",
    "layer_share",
    "plan_remap",
    "slots_for",
    "step_floor",
    "streamed_layers",
    "streaming_ratio",
]

_SWITCH_MULTIPLE: Final = 4.0
_DEFAULT_LIMITS: Final = Limits()


def plan_remap(
    models: Mapping[str, ModelShape],
    active: AbstractSet[str],
    hw: Hardware,
    traffic: Traffic,
    limits: Limits = _DEFAULT_LIMITS,
) -> RemapAdvice:
    """Decide what idle models lend and how many layers active ones stream.

    Args:
        models: Every model of the process, on one rank.
        active: Those with work; several share the KV cache evenly and take turns.
        hw: The device.
        traffic: What the active models do.
        limits: Policy.

    Raises:
        ValueError: No model, an active one that is not among them, or more weights than memory
            even when everything that may be lent is; names both numbers.
    """
    _check_models(models, active)
    idle = {name: shape for name, shape in models.items() if name not in active}
    lend, switch_s, reasons = _lend(models, idle, hw=hw, traffic=traffic, limits=limits)
    before = hw.memory_bytes - sum(shape.weight_bytes for shape in models.values())
    pool = before + sum(units * models[name].layer_bytes for name, units in lend.items())
    if pool < 0:
        raise ValueError(
            f"Hardware: memory_bytes is {hw.memory_bytes}, but the weights need {-before} bytes more"
            f" and idle models can lend {pool - before} of them. Raise memory_bytes, or serve fewer models."
        )
    running = [shape for name, shape in models.items() if name in active]
    chosen = _choose_alpha(
        running,
        pool_bytes=pool,
        host_left=hw.host_bytes
        - sum(models[name].layers * models[name].layer_bytes for name in lend),
        hw=hw,
        traffic=traffic,
        limits=limits,
    )
    freed = chosen.alpha * sum(shape.layer_bytes for shape in running)
    token = max(shape.kv_bytes_per_token for shape in running or models.values())
    verdict: Verdict = "IdleOnly" if lend else "DoNotRemap"
    return RemapAdvice(
        verdict="IdleAndActive" if chosen.alpha else verdict,
        lend_units=lend,
        alpha=chosen.alpha,
        slots=chosen.slots,
        hidden_m=chosen.hidden_m,
        kv_tokens_before=max(0, before) // token,
        kv_tokens_after=(pool + freed) // token,
        switch_s=switch_s,
        ratio_if_forced=chosen.ratio,
        reasons=(*reasons, *chosen.reasons),
    )


def _lend(
    models: Mapping[str, ModelShape],
    idle: Mapping[str, ModelShape],
    *,
    hw: Hardware,
    traffic: Traffic,
    limits: Limits,
) -> tuple[dict[str, int], float, list[str]]:
    """Return units per idle model, seconds of the longest switch, and what was refused."""
    spare = {
        name: shape.layers - limits.min_resident_units
        for name, shape in idle.items()
        if shape.layers > limits.min_resident_units
    }
    if not spare:
        return {}, 0.0, [_single_model(models, idle, limits)]
    if not hw.link_rate:
        return {}, 0.0, ["LinkTooSlow: the link rate is 0, so nothing lent could be read again."]
    switch_s = max(n * idle[name].layer_bytes for name, n in spare.items()) / hw.link_rate
    least = _SWITCH_MULTIPLE * switch_s
    if traffic.switch_interval_s is not None and traffic.switch_interval_s < least:
        reason = (
            f"SwitchesTooOften: models alternate every {_time(traffic.switch_interval_s)}, reading "
            f"one again takes {_time(switch_s)}, and lending pays from {_time(least)} on."
        )
        return {}, switch_s, [reason]
    lend: dict[str, int] = {}
    reasons: list[str] = []
    left = hw.host_bytes
    for name, units in spare.items():
        need = idle[name].layers * idle[name].layer_bytes
        if need > left:
            reasons.append(
                f"HostMemoryShort: the host copy of {name} needs {_size(need)}, {_size(left)} are left of "
                f"{_size(hw.host_bytes)}."
            )
            continue
        left -= need
        lend[name] = units
    longest = max((n * idle[name].layer_bytes for name, n in lend.items()), default=0)
    return lend, longest / hw.link_rate, reasons


def _single_model(
    models: Mapping[str, ModelShape], idle: Mapping[str, ModelShape], limits: Limits
) -> str:
    if not idle:
        return (
            f"SingleModel: {len(models)} of {len(models)} models are active, none is idle to lend."
        )
    return (
        f"SingleModel: {len(idle)} idle models have no more than the {limits.min_resident_units} "
        "layers that each keeps."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alpha:
    alpha: int = 0
    slots: int = 0
    hidden_m: float = 0.0
    ratio: float = 1.0
    reasons: Sequence[str] = field(default=())


def _choose_alpha(
    running: Sequence[ModelShape],
    *,
    pool_bytes: int,
    host_left: int,
    hw: Hardware,
    traffic: Traffic,
    limits: Limits,
) -> _Alpha:
    """Return the largest level that hides in every active model's step and gains enough."""
    if not running:
        return _Alpha()
    sizes = {shape.layer_bytes for shape in running}
    if len(sizes) > 1:
        listed = ", ".join(str(size) for size in sorted(sizes))
        return _Alpha(reasons=[f"UnequalLayers: layers of the active models have {listed} bytes."])
    allowed = [
        alpha
        for alpha in limits.levels
        if 0 < alpha <= limits.active_cap * min(shape.layers for shape in running)
    ]
    share = pool_bytes / len(running)

    def worst(alpha: int) -> tuple[Stream, float]:
        """The model whose step hides least decides; Σ mᵢ·bᵢ ≤ T_cycle·BW_link follows."""
        each = [Stream.at(s, hw, traffic, pool_bytes=share, alpha=alpha) for s in running]
        ratios = [streaming_ratio(s, hw, traffic, pool_bytes=share, alpha=alpha) for s in running]
        return max(each, key=lambda stream: stream.load), min(ratios)

    most = worst(0)[0].hidden_m
    if not allowed:
        layers = min(shape.layers for shape in running)
        reason = (
            f"ActiveCapped: {limits.active_cap:.2f} of {layers} layers is below the lowest level."
        )
        return _Alpha(hidden_m=most, reasons=[reason])
    lowest, ratio = worst(allowed[0])
    need = sum(shape.layers * shape.layer_bytes for shape in running)
    if need > host_left:
        reason = (
            f"HostMemoryShort: the host copies of the active models need {_size(need)}, "
            f"{_size(max(0, host_left))} are left."
        )
        return _Alpha(hidden_m=most, ratio=ratio, reasons=[reason])
    best = None
    for stream, gain in map(worst, allowed):
        if stream.hidden and gain >= 1.0 + limits.min_gain:
            best = _Alpha(
                alpha=stream.alpha, slots=stream.slots, hidden_m=stream.hidden_m, ratio=gain
            )
    if best is not None:
        return best
    if not lowest.hidden:
        reason = (
            f"LinkTooSlow: reading a layer of {_size(running[0].layer_bytes)} takes "
            f"{_time(lowest.transfer_s)}, so a step of {_time(lowest.step_s)} hides "
            f"{lowest.hidden_m:.1f} of them, and freeing {lowest.alpha} streams "
            f"{lowest.alpha + lowest.slots}; forced, throughput would be {ratio:.2f} of what it is."
        )
    else:
        kv = share / (share + running[0].read_bytes)
        reason = (
            f"KvShareLarge: the KV cache is {kv:.0%} of what a step reads already, so freeing "
            f"{lowest.alpha} layers gives {ratio:.3f} of the throughput, less than the "
            f"{1 + limits.min_gain:.2f} that is worth it."
        )
    return _Alpha(hidden_m=most, ratio=ratio, reasons=[reason])


def _check_models(models: Mapping[str, ModelShape], active: AbstractSet[str]) -> None:
    if not models:
        raise ValueError("plan_remap: models is empty. Give at least one.")
    unknown = sorted(active - set(models))
    if unknown:
        raise ValueError(
            f"plan_remap: active names {', '.join(unknown)}, but models has {', '.join(models)}. "
            "Name models that are there."
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
