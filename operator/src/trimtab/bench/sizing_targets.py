"""The right-sizer's targets (rightsizer.md §11) beside what a run of the benchmark showed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.report import JSON

_BAND_POINTS: Final = 0.5
_VCPU_SHARE: Final = 0.5
_MEMORY_SAVED_PERCENT: Final = 50.0


def targets(document: JSON, *, ours: str, best: str, peers: Sequence[str]) -> list[JSON]:
    """Return one line per target and per peer; a target whose policies were not run is left out."""
    everything: Mapping[str, JSON] = document["all"]["policies"]
    if ours not in everything:
        return []
    found = []
    if best in everything:
        if document["options"]["regime"] == "B":
            found += _cpu(everything[ours], everything[best])
        for name, function in document["functions"].items():
            found += _function(name, function["policies"][ours], function["policies"][best])
    for peer in peers:
        if peer in everything:
            found += _peer(peer, everything[ours], everything[peer])
    return found


def _cpu(ours: JSON, best: JSON) -> list[JSON]:
    return [
        _line(
            "B1: late, % (best constant's + 0.5 points)",
            ours["violations_percent"],
            at_most=best["violations_percent"] + _BAND_POINTS,
        ),
        _line(
            "B1: mean vCPU (half of the best constant's)",
            ours["mean_vcpu"],
            at_most=_VCPU_SHARE * best["mean_vcpu"],
        ),
    ]


def _function(name: str, ours: JSON, best: JSON) -> list[JSON]:
    found = [
        _line(
            f"{name}: late in invocations 51 to 250, % (best constant's + 0.5 points)",
            ours["violations_51_250_percent"],
            at_most=_plus(best["violations_51_250_percent"], _BAND_POINTS),
        )
    ]
    if ours["wasted_memory_mib"] is not None:
        found += [
            _line(
                f"{name}: kills for memory after invocation 50",
                ours["ooms_after_50"],
                at_most=0,
            ),
            _line(
                f"{name}: wasted MiB (half of the best constant's)",
                ours["wasted_memory_mib"],
                at_most=best["wasted_memory_mib"] * (1 - _MEMORY_SAVED_PERCENT / 100),
            ),
        ]
    return found


def _peer(name: str, ours: JSON, peer: JSON) -> list[JSON]:
    """Return medians of wasted vCPU, and wasted memory as a ratio, beside a peer's."""
    lines = [
        _line(
            f"against {name}: wasted vCPU at the median, 0 wanted (its own: "
            f"{peer['wasted_vcpu_p50']}, late {peer['violations_percent']} %)",
            ours["wasted_vcpu_p50"],
            at_most=0,
        )
    ]
    own, other = ours["wasted_memory_mib"], peer["wasted_memory_mib"]
    if own is not None and other:
        lines.append(
            _line(
                f"against {name}: wasted memory, % less (its own: {other} MiB, OOM "
                f"{peer['oom_percent']} %)",
                round(100 * (1 - own / other), 1),
                at_most=None,
            )
        )
    return lines


def _plus(value: float | None, more: float) -> float | None:
    return None if value is None else value + more


def _line(target: str, measured: float | None, *, at_most: float | None) -> JSON:
    met = None if measured is None or at_most is None else measured <= at_most
    return {
        "target": target,
        "measured": measured,
        "at_most": None if at_most is None else round(at_most, 4),
        "met": met,
    }
