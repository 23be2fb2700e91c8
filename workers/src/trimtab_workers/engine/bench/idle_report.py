"""What `cpu-idle` concludes from its runs; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.bench.figures import equal_answers
from trimtab_workers.engine.bench.paired import paired_ratio, spread
from trimtab_workers.engine.bench.replay import total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab_workers.engine.bench.figures import Figures
    from trimtab_workers.engine.bench.replay import Answer

SUBJECT: Final = "remap-idle"
TARGET: Final = 0.90
_RATIOS: Final = ("ttft_p99", "tbt_p99", "tokens_per_second", "goodput", "ttft_p50", "tbt_p50")
_COUNTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "preemptions": ("vllm:num_preemptions", ("",)),
    "recomputed_tokens": ("trimtab_engine_recomputed_tokens", ("",)),
    "swapped_bytes": ("trimtab_engine_link_bytes", ("/swap",)),
    "woken_bytes": ("trimtab_engine_link_bytes", ("/wake", "/revert", "/load")),
    "stall_seconds": ("trimtab_engine_link_stall_seconds", ("",)),
    "switches": ("trimtab_engine_model_switches", ("",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy in one round."""

    policy: str
    round: int
    figures: Figures
    counted: Mapping[str, float]
    answers: Sequence[Answer]


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return medians with ranges for each policy, and the subject against each other policy."""
    by_policy: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.round):
        by_policy.setdefault(run.policy, []).append(run)
    subject = by_policy.get(SUBJECT, [])
    return {
        "policies": {name: _policy(found) for name, found in by_policy.items()},
        "against": {
            name: _against(subject, found)
            for name, found in by_policy.items()
            if subject and name != SUBJECT
        },
        "runs": [
            {
                "policy": run.policy,
                "round": run.round,
                "figures": run.figures.to_dict(),
                "counted": dict(run.counted),
            }
            for run in runs
        ],
    }


def counts(run: Run) -> dict[str, float]:
    """Return what a run's policy cost, under plain names."""
    return {
        name: total(run.counted, metric, ending=ending)
        for name, (metric, ending) in _COUNTS.items()
    }


def _policy(runs: Sequence[Run]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in runs[0].figures.to_dict():
        found = spread([float(getattr(run.figures, name)) for run in runs])
        shown[name] = {"median": found.median, "range": found.to_list()}
    for name in _COUNTS:
        found = spread([counts(run)[name] for run in runs])
        shown[name] = {"median": found.median, "range": found.to_list()}
    return shown


def _against(subject: Sequence[Run], other: Sequence[Run]) -> dict[str, Any]:
    """Compare round by round; a reduction is None where the other had nothing to reduce.

    Reductions are of sums over all rounds: a median of few events is 0 as soon as most rounds had none.
    """
    result: dict[str, Any] = {"reductions": {}, "ratios": {}}
    for name in ("preemptions", "recomputed_tokens", "swapped_bytes"):
        mine, theirs = (sum(counts(run)[name] for run in runs) for runs in (subject, other))
        result["reductions"][name] = None if not theirs else 1 - mine / theirs
    for name in _RATIOS:
        pairs = [
            (float(getattr(a.figures, name)), float(getattr(b.figures, name)))
            for a, b in zip(subject, other, strict=True)
        ]
        if all(theirs for _, theirs in pairs):
            found = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
            result["ratios"][name] = {"median": found.median, "range": found.to_list()}
        else:
            result["ratios"][name] = None
    result["equal_answers"] = [
        equal_answers(a.answers, b.answers) for a, b in zip(subject, other, strict=True)
    ]
    result["requests"] = len(subject[0].answers)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as tables with its conditions."""
    task, load, budget = result["task"], result["load"], result["budget"]
    conditions = result["conditions"]
    lines = [_conditions(result["model"], task, load, budget, conditions), ""]
    columns = (
        "tokens_per_second",
        "goodput",
        "ttft_p50",
        "ttft_p99",
        "tbt_p50",
        "tbt_p99",
        *_COUNTS,
    )
    lines += ["| policy | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, shown in result["policies"].items():
        cells = [_cell(shown[column]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, against in result["against"].items():
        lines += ["", f"{SUBJECT} against {name}:"]
        lines += [f"- {what}: {_reduction(value)}" for what, value in against["reductions"].items()]
        lines += [f"- {what}: {_ratio(value)}" for what, value in against["ratios"].items()]
        equal = against["equal_answers"]
        lines.append(
            f"- requests answered with the same tokens: {min(equal)} of {against['requests']}"
        )
    return "\n".join(lines)


def _conditions(
    model: str,
    task: Mapping[str, Any],
    load: Mapping[str, Any],
    budget: Mapping[str, Any],
    conditions: Mapping[str, Any],
) -> str:
    return (
        f"{len(task['tenants'])} x {model}, {task['dtype']}, {task['threads']} threads, "
        f"{budget['memory_bytes']} bytes with {budget['weight_slabs']} slabs of weights and "
        f"{budget['kv_slabs']} of KV cache ({budget['kv_tokens']} tokens); {load['lengths']} lengths "
        f"÷ {load['divisor']:g}, bursts of {load['burst_seconds']:g} s every "
        f"{load['burst_seconds'] + load['pause_seconds']:g} s at {load['burst_rate']:g} requests/s, "
        f"{load['seconds']:g} s; median (range) of {task['repeats']} rounds; {conditions['cpu']}, "
        f"{conditions['cpus']} CPUs, load average before {conditions['load_average']}"
    )


def _cell(shown: Mapping[str, Any]) -> str:
    low, high = shown["range"]
    return f"{_short(shown['median'])} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _reduction(value: float | None) -> str:
    if value is None:
        return "nothing to reduce"
    return f"{-100 * value:+.1f} %" + (
        "" if value >= TARGET else f" (target {-100 * TARGET:.0f} %)"
    )


def _ratio(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "no ratio: the other side is 0"
    low, high = value["range"]
    return f"{value['median']:.2f} times ({low:.2f} to {high:.2f})"
