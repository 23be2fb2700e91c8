"""Mean latency over the trace's rate: every static size, and what was picked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from trimtab.bench.planner_traces import Answered

_COLOURS: Final[Mapping[int, str]] = {1: "C3", 2: "C2", 4: "C1", 8: "C0"}


def plot(answered: Sequence[Answered], path: Path) -> None:
    """Draw one panel per product, one row per model and trace, for ``MinLatency``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only for the plot

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    groups = [a for a in answered if a.cells[0].objective == "MinLatency"]
    rows = sorted({(a.cells[0].model, a.cells[0].load.name) for a in groups})
    products = list(dict.fromkeys(a.cells[0].product for a in groups))
    figure, axes = plt.subplots(
        len(rows), len(products), figsize=(3.4 * len(products), 2.6 * len(rows)), squeeze=False
    )
    for a in groups:
        cell = a.cells[0]
        axis = axes[rows.index((cell.model, cell.load.name))][products.index(cell.product)]
        rates = [c.load.faster for c in a.cells]
        for name, outcomes in sorted(a.static):
            axis.plot(
                rates,
                [o.pick.views["truth"].e2e_ms / 1000 for o in outcomes],
                label=name,
                color=_COLOURS[outcomes[0].pick.setup.size],
                lw=1,
            )
        axis.plot(
            rates, [o.pick.views["truth"].e2e_ms / 1000 for o in a.ours], "k.", ms=9, label="picked"
        )
        axis.set_title(
            f"{cell.model}, {cell.load.name.removeprefix('azure-llm-2023-')}, {cell.product}"
        )
        axis.title.set_fontsize(8)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("multiple of the trace's rate", fontsize=8)
    for line in axes:
        line[0].set_ylabel("mean E2E, s", fontsize=8)
    figure.suptitle("simulation: 8 GPUs, every static size and what was picked", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
