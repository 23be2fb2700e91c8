"""Tables and the plot of `sim-remap`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLUMNS: Final = (
    "tokens_per_second",
    "goodput",
    "ttft_p50",
    "ttft_p99",
    "tbt_p50",
    "tbt_p99",
)
_NOT_BUSY: Final = "none"


def markdown(result: Mapping[str, Any]) -> str:
    """Return situations, predictions and curve as tables."""
    lines = ["**Simulation**: virtual clock, costs as stated in engine/bench/sim_cost.py.", ""]
    for name, found in result["scenarios"].items():
        lines += [f"### {name}", "", found["what"], ""]
        lines += ["| policy | " + " | ".join(_COLUMNS) + " | counted |"]
        lines += ["|---" * (len(_COLUMNS) + 2) + "|"]
        for policy, run in found["policies"].items():
            cells = [f"{run['figures'][column]:.4g}" for column in _COLUMNS]
            lines.append(f"| {policy} | " + " | ".join(cells) + f" | {_counted(run['counted'])} |")
        lines.append("")
    lines += _predictions(result["predictions"])
    lines += _curve(result["curve"])
    return "\n".join(lines)


def _counted(counted: Mapping[str, float]) -> str:
    shown = [
        f"{key.removeprefix('trimtab_engine_').removeprefix('vllm:')} {value:.4g}"
        for key, value in counted.items()
    ]
    return ", ".join(shown) or _NOT_BUSY


def _predictions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "### Registered predictions",
        "",
        "| situation | subject ÷ against | predicted | throughput | P99 TTFT | P99 TBT | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [
            "-" if row["ratios"][name] is None else f"{row['ratios'][name]:.2f}"
            for name in ("tokens_per_second", "ttft_p99", "tbt_p99")
        ]
        holds = "holds" if row["holds"] else "**does not hold**"
        lines.append(
            f"| {row['scenario']} | {row['subject']} ÷ {row['against']} | {row['predicted']} | "
            + " | ".join(ratios)
            + f" | {row['verdict']}: {holds} |"
        )
    return [*lines, ""]


def _curve(points: Sequence[Mapping[str, Any]]) -> list[str]:
    if not points:
        return []
    lines = [
        "### Crossover: one active 8B model, a backlog",
        "",
        "| KV pool GB (share) | r | remap ÷ recompute | remap ÷ swap | alpha planned | formula |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {point['pool_gb']:g} ({point['kv_share']:.0%}) | {point['r']:g} | "
        f"{point['remap_over_recompute']:.3f} | {point['remap_over_swap']:.3f} | "
        f"{point['alpha']} | {point['planned_ratio']:.3f} |"
        for point in points
    ]
    return lines


def draw(points: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the curve: a line for each r, throughput ratios over the KV share.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only for the plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, key, title in (
        (axes[0], "remap_over_recompute", "remap ÷ recompute"),
        (axes[1], "remap_over_swap", "remap ÷ swap"),
    ):
        for slowness in sorted({point["r"] for point in points}):
            line = [point for point in points if point["r"] == slowness]
            shares = [100 * point["kv_share"] for point in line]
            axis.plot(shares, [point[key] for point in line], marker="o", label=f"r = {slowness:g}")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("KV pool, % of the memory")
        axis.set_xscale("log")
        ticks = sorted({100 * point["kv_share"] for point in points})
        axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("throughput ratio (simulated)")
    axes[0].legend(title="memory ÷ link rate", fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
