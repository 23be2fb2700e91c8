"""Draw how one plan came about: what was asked, which options there were, what decided.

`python -m tools.plan_picture --output docs/concepts/plan.png`: from files, with the planner of
`trimtab plan`; every figure of the picture is what that command prints.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from trimtab.cli import offline, why_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

mpl.use("Agg")

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLES: Final = ROOT / "examples" / "offline"
CHOSEN, LOST, TARGET, GREY = "#0b6e4f", "#8a8f98", "#c1440e", "#444444"
METRICS: Final = (
    ("timePerOutputToken", "time per output token"),
    ("timeToFirstToken", "time to first token"),
)
MOST_CHARACTERS: Final = 44
MILLISECONDS_SHOWN: Final = 10_000
ABOVE_INCHES, ROW_INCHES, BELOW_INCHES = 2.75, 0.62, 1.05

JSON = dict[str, Any]  # any: an object as `trimtab plan` shows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One option's figure: predicted, and with its margin, milliseconds."""

    predicted: float
    with_margin: float


def bar(option: JSON, metric: str) -> Bar | None:
    """Return the figure of an option, None where it cannot run."""
    value = (option.get("predicted") or {}).get(f"{metric}Milliseconds")
    if value is None:
        return None
    percent = (option.get("margin") or {}).get(f"{metric}Percent", 0)
    return Bar(predicted=float(value), with_margin=float(value) * (1 + percent / 100))


def options_of(body: JSON) -> list[JSON]:
    """Return the chosen option and those that lost, the cheapest first, what cannot run last."""
    status = body["status"]
    found = [status["plan"] | {"chosen": True}, *status.get("alternatives", ())]
    return sorted(
        found, key=lambda o: (not o.get("predicted"), float(o.get("costPerHour") or "inf"))
    )


def draw(body: JSON, *, inputs: str, output: Path) -> None:
    """Draw the plan of one intent.

    Args:
        body: The intent with its status, as `offline.shown` returns it.
        inputs: What was planned from, for the heading.
        output: The picture, .png or .svg.
    """
    options = options_of(body)
    inches = ABOVE_INCHES + ROW_INCHES * len(options) + BELOW_INCHES
    figure = Figure(figsize=(15, inches))
    _heading(figure, body, inputs=inputs)
    height, bottom = ROW_INCHES * len(options) / inches, BELOW_INCHES / inches
    above = bottom + height + 0.3 / inches
    figure.text(
        0.012, above, "options: replicas, product, TP, precision", fontsize=9.5, va="bottom"
    )
    figure.text(0.805, above, "outcome", fontsize=9.5, va="bottom")
    axes: Axes | None = None
    for number, (metric, title) in enumerate(METRICS):
        axes = figure.add_axes((0.255 + 0.225 * number, bottom, 0.2, height))
        _latencies(axes, options, metric=metric, title=title, body=body, labelled=number == 0)
    money = figure.add_axes((0.705, bottom, 0.09, height))
    _costs(money, options)
    for place, option in enumerate(reversed(options)):
        y = bottom + height * (place + 0.5) / len(options)
        figure.text(0.805, y, _verdict(option), fontsize=8.5, va="center", color=_colour(option))
    figure.text(
        0.012,
        0.012,
        _legend(body),
        fontsize=9,
        color=GREY,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80, metadata={"Software": None})


def _heading(figure: Any, body: JSON, *, inputs: str) -> None:
    model, plan = body["status"]["model"], body["status"]["plan"]
    boxes = (
        ("goal", why_view.objective_line(body)),
        (
            "model",
            (
                f"{model['family']}, {model['parameters'] / 1e9:.3g} G parameters in {model['depth']} "
                f"layers, context {model['contextLength']:,}, {model.get('precision', '')}"
            ),
        ),
        ("load", why_view.load_line(body)),
        ("machines, prices, measurements", inputs),
    )
    top = figure.get_figheight()
    for number, (title, text) in enumerate(boxes):
        x = 0.012 + 0.249 * number
        figure.text(x, 1 - 0.3 / top, title, fontsize=11, weight="bold", va="top")
        figure.text(
            x,
            1 - 0.62 / top,
            "\n".join(textwrap.wrap(text, MOST_CHARACTERS)),
            fontsize=9,
            va="top",
            color=GREY,
        )
    said = textwrap.wrap(f"Plan: {plan['message']}", 150)[:3]
    figure.text(
        0.012, 1 - 1.4 / top, "\n".join(said), fontsize=10.5, va="top", color=CHOSEN, weight="bold"
    )


def _latencies(
    axes: Axes, options: Sequence[JSON], *, metric: str, title: str, body: JSON, labelled: bool
) -> None:
    rows = list(reversed(options))
    target = (body["spec"].get("targets") or {}).get(f"{metric}Milliseconds")
    ends = [b.with_margin for o in options if (b := bar(o, metric))]
    # One option that is hopelessly overloaded must not squeeze all others to a line.
    most = min(max([*ends, float(target or 0)], default=1.0), 2.0 * float(target or 1e9))
    for y, option in enumerate(rows):
        found = bar(option, metric)
        if found is None:
            place = axes.get_yaxis_transform()
            axes.text(0.02, y, "cannot run", va="center", fontsize=8, color=LOST, transform=place)
        else:
            _bar(axes, found, y=y, most=most, colour=_colour(option))
    if target is not None:
        axes.axvline(float(target), color=TARGET, linewidth=1.6)
        axes.text(float(target), len(rows) - 0.42, f" target {target}", color=TARGET, fontsize=8.5)
    axes.set_xlim(0, 1.2 * most)
    percentile = (body["status"]["plan"].get("predicted") or {}).get("percentile")
    axes.set_xlabel(f"{title}, {f'p{percentile}' if percentile else 'mean'}, ms", fontsize=9)
    _plain(axes, len(rows))
    if labelled:
        axes.set_yticks(range(len(rows)), [_label(o) for o in rows], fontsize=9)
        for text, option in zip(axes.get_yticklabels(), rows, strict=True):
            text.set_color(_colour(option))
    else:
        axes.set_yticks([])


def _bar(axes: Axes, found: Bar, *, y: int, most: float, colour: str) -> None:
    """Draw one figure and its margin, cut off at the axis' end."""
    shown, end = min(found.predicted, most), min(found.with_margin, most)
    axes.barh(y, shown, height=0.5, color=colour, alpha=0.85)
    axes.barh(
        y, end - shown, left=shown, height=0.5,
        color="white", edgecolor=colour, hatch="////", linewidth=0.8,
    )  # fmt: skip
    seconds = found.predicted >= MILLISECONDS_SHOWN
    text = f"{found.predicted / 1000:.3g} s" if seconds else f"{found.predicted:.3g}"
    cut = " →" if found.with_margin > most else ""
    axes.text(end, y, f" {text}{cut}", va="center", fontsize=8, color=colour)


def _costs(axes: Axes, options: Sequence[JSON]) -> None:
    rows = list(reversed(options))
    costs = [float(o["costPerHour"]) if "costPerHour" in o else None for o in rows]
    for y, (cost, option) in enumerate(zip(costs, rows, strict=True)):
        if cost is not None:
            axes.barh(y, cost, height=0.5, color=_colour(option), alpha=0.85)
            axes.text(cost, y, f" {cost:.3g}", va="center", fontsize=8, color=_colour(option))
    axes.set_xlim(0, 1.45 * max([c for c in costs if c is not None], default=1.0))
    axes.set_xlabel("USD per hour", fontsize=9)
    axes.set_yticks([])
    _plain(axes, len(rows))


def _plain(axes: Axes, rows: int) -> None:
    axes.set_ylim(-0.6, rows - 0.4)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(option: JSON) -> str:
    lines = why_view.option_lines({"status": {"plan": option}})
    return "\n".join(textwrap.wrap(lines[0].option, 32))


def _verdict(option: JSON) -> str:
    confidence = option.get("confidence") or {}
    if option.get("chosen"):
        trust = " ".join(str(confidence[key]) for key in ("level", "source") if confidence.get(key))
        return f"chosen\nconfidence: {trust}"
    said = str(option.get("message", "")).partition(": ")[2] or str(option.get("message", ""))
    return "\n".join([str(option.get("reason", "")), *textwrap.wrap(said, 40)[:2]])


def _colour(option: JSON) -> str:
    return CHOSEN if option.get("chosen") else LOST


def _legend(body: JSON) -> str:
    reasons = (body["status"]["plan"].get("confidence") or {}).get("reasons") or ()
    why = f" Confidence: {'; '.join(reasons)}." if reasons else ""
    return "\n".join(
        textwrap.wrap(
            "Solid: predicted. Hatched: margin; a target is met if the hatched end is left of it. "
            f"Options from the cheapest to the dearest.{why}",
            200,
        )[:2]
    )


def main() -> int:
    """Plan from files and draw."""
    parser = argparse.ArgumentParser(prog="python -m tools.plan_picture", description=__doc__)
    parser.add_argument("--filename", "-f", type=Path, default=EXAMPLES / "purchase.yaml")
    parser.add_argument("--inventory", type=Path, default=EXAMPLES / "purchase-fleet.yaml")
    parser.add_argument("--prices", type=Path, default=EXAMPLES / "prices.yaml")
    parser.add_argument("--fingerprints", type=Path, default=None)
    parser.add_argument("--intent", default="", help="NAME; default the first")
    parser.add_argument("--inputs", default="", help="what was planned from, for the heading")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "concepts" / "plan.png")
    given = parser.parse_args()
    decided = offline.decide(
        intents=[given.filename],
        inventory=given.inventory,
        prices=given.prices,
        fingerprints=given.fingerprints,
    )
    bodies = offline.shown(decided)
    body = next(b for b in bodies if given.intent in ("", b["metadata"]["name"]))
    draw(body, inputs=given.inputs, output=given.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
