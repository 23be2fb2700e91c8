"""Draw every panel of a dashboard from `query_range` into one picture, placed as in Grafana."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import textwrap
import time
from typing import TYPE_CHECKING, Any

from e2e.monitoring.queries import replaced

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from e2e.monitoring.prometheus import Prometheus, Series

COLUMN_INCHES = 0.72
LINE_INCHES = 0.42
MOST_LEGENDS = 8
HEADER_INCHES = 1.1
UNITS = {
    "s": ("s", 1.0),
    "reqps": ("requests/s", 1.0),
    "cps": ("tokens/s", 1.0),
    "ops": ("1/s", 1.0),
    "Bps": ("MiB/s", 1 / 2**20),
    "percentunit": ("%", 100.0),
    "bytes": ("MiB", 1 / 2**20),
    "currencyUSD": ("USD", 1.0),
    "short": ("", 1.0),
    "none": ("", 1.0),
}


def legend(template: str, labels: dict[str, str]) -> str:
    """Return a series' name as Grafana writes it: `{{label}}` replaced by the label's value."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found.group(1), ""), template)


def _dashed(panel: dict[str, Any], name: str) -> bool:
    return any(
        re.search(override["matcher"]["options"].strip("/"), name)
        for override in panel["fieldConfig"].get("overrides", [])
        if override["matcher"]["id"] == "byRegexp"
    )


def _line(axes: Axes, panel: dict[str, Any], series: Series, name: str, scale: float) -> float:
    points = [
        (dt.datetime.fromtimestamp(t, tz=dt.UTC), v * scale)
        for t, v in series.points
        if math.isfinite(v)
    ]
    if not points:
        return 0.0
    times, values = zip(*points, strict=True)
    style = "--" if _dashed(panel, name) else "-"
    axes.plot(
        times, values, style, linewidth=1.2, label=name, marker="." if len(points) == 1 else ""
    )
    return max(values)


def _panel(
    axes: Axes, panel: dict[str, Any], server: Prometheus, *, start: float, end: float
) -> None:
    unit, scale = UNITS.get(panel["fieldConfig"]["defaults"].get("unit", "short"), ("", 1.0))
    step = max(2.0, (end - start) / 200)
    drawn, peak = 0, 0.0
    for target in panel["targets"]:
        expression = replaced(target["expr"])
        for series in server.over(expression, start=start, end=end, step_seconds=step):
            name = legend(target["legendFormat"], series.labels)
            peak = max(peak, _line(axes, panel, series, name, scale))
            drawn += any(math.isfinite(value) for _, value in series.points)
    axes.set_title(panel["title"] + (f" [{unit}]" if unit else ""), fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.3)
    axes.set_xlim(
        dt.datetime.fromtimestamp(start, tz=dt.UTC), dt.datetime.fromtimestamp(end, tz=dt.UTC)
    )
    axes.set_ylim(0, peak * 1.15 or 1)
    if drawn:
        shown = axes.get_lines()[:MOST_LEGENDS]
        names = [str(line.get_label()) for line in shown]
        axes.legend(shown, names, fontsize=6, loc="upper left", ncols=1 if drawn < 5 else 2)
    else:
        axes.text(
            0.5,
            0.5,
            "no data in this time",
            ha="center",
            va="center",
            fontsize=8,
            color="grey",
            transform=axes.transAxes,
        )


def dashboard(
    path: Path, server: Prometheus, *, output: Path, seconds: float, caption: str
) -> None:
    """Draw a dashboard's last `seconds` into `output` (PNG).

    Args:
        path: The dashboard's JSON.
        server: Where the samples are.
        output: The picture; its folder is created.
        seconds: Length of the time shown.
        caption: What was measured, on what; printed at the top.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.dates as mdates
    from matplotlib.figure import Figure
    from matplotlib.ticker import LinearLocator

    board = json.loads(path.read_text())
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    inches = height * LINE_INCHES + HEADER_INCHES
    figure = Figure(figsize=(24 * COLUMN_INCHES, inches))
    top = 1 - HEADER_INCHES / inches
    line = LINE_INCHES / inches
    end = time.time()
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, top - (place["y"] + place["h"]) * line
        if panel["type"] == "row":
            figure.text(0.01, bottom + 0.3 * line, panel["title"], fontsize=11, weight="bold")
            continue
        box = (left + 0.028, bottom + 0.9 * line, place["w"] / 24 - 0.04, (place["h"] - 2.0) * line)
        axes = figure.add_axes(box)
        _panel(axes, panel, server, start=end - seconds, end=end)
        axes.xaxis.set_major_locator(LinearLocator(2 if place["w"] < 6 else 5))
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    figure.text(0.01, 1 - 0.2 / inches, board["title"], fontsize=14, weight="bold", va="top")
    lines = "\n".join(textwrap.wrap(caption, 190))
    figure.text(0.01, 1 - 0.55 / inches, lines, fontsize=9, color="#444444", va="top")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=70, metadata={"Software": None})
