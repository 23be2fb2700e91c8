"""A replay as an SVG picture, without a plotting library: queue over time, and shares below a latency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from trimtab.planning.queue_sim import METRICS, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.planning.queue_sim import Event, SimResult

Points = list[tuple[float, float]]

_WIDTH: Final = 900
_PANEL: Final = 220
_LEFT: Final = 70
_RIGHT: Final = 20
_TOP: Final = 50
_GAP: Final = 70
_TICKS: Final = 5
_MOST_POINTS: Final = 1000
_COLOURS: Final = ("#0b6e4f", "#c1440e", "#3b5bdb")


class Recorder:
    """Keeps what a replay's events say about its queue, of all replicas together."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self.running: Points = []
        self.waiting: Points = []

    def __call__(self, replica: int, event: Event) -> None:
        """Note one event of a replica."""
        self._running[replica], self._waiting[replica] = event.running, event.waiting
        at = event.start_us / 1e6
        self.running.append((at, float(sum(self._running.values()))))
        self.waiting.append((at, float(sum(self._waiting.values()))))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    title: str
    x_label: str
    lines: tuple[tuple[str, Points], ...]
    top: int
    log_x: bool = False


def picture(result: SimResult, recorder: Recorder, *, title: str) -> str:
    """Return the SVG document."""
    panels = (
        _Panel(
            title="requests",
            x_label="seconds",
            lines=(
                ("running", _thinned(sorted(recorder.running))),
                ("waiting", _thinned(sorted(recorder.waiting))),
            ),
            top=_TOP,
        ),
        _Panel(
            title="share of requests below",
            x_label="milliseconds",
            lines=tuple(
                (metric, _shares(result.values(metric, warm_up=False))) for metric in METRICS
            ),
            top=_TOP + _PANEL + _GAP,
            log_x=True,
        ),
    )
    height = _TOP + 2 * (_PANEL + _GAP)
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
    parts = [
        f'{begin} font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for panel in panels:
        parts += _draw(panel)
    return "\n".join([*parts, "</svg>", ""])


def _shares(values: Sequence[float]) -> Points:
    if not values:
        return []
    return [(quantile(values, n / 200) / 1000, n / 200) for n in range(201)]


def _thinned(points: Points) -> Points:
    every = max(1, len(points) // _MOST_POINTS)
    return points[::every]


def _draw(panel: _Panel) -> list[str]:
    xs = [x for _, line in panel.lines for x, _ in line if x > 0 or not panel.log_x]
    ys = [y for _, line in panel.lines for _, y in line]
    low, high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if panel.log_x:
        low, high = max(low, 1e-3), max(high, low * 1.01, 2e-3)
    else:
        low, high = 0.0, max(high, 1e-9)
    most = max([1.0, *ys])
    bottom = panel.top + _PANEL

    def place(x: float, y: float) -> tuple[float, float]:
        return _across(x, low=low, high=high, log=panel.log_x), bottom - y / most * _PANEL

    parts = [
        f'<text x="{_LEFT}" y="{panel.top - 8}">{escape(panel.title)}</text>',
        f'<path d="M{_LEFT},{panel.top}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#444"/>',
        f'<text x="{_WIDTH - _RIGHT}" y="{bottom + 34}" text-anchor="end">{panel.x_label}</text>',
    ]
    for value in log_ticks(low, high) if panel.log_x else ticks(low, high):
        x, _ = place(value, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    for value in ticks(0.0, most):
        _, y = place(low, value)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for number, (name, line) in enumerate(panel.lines):
        colour = _COLOURS[number]
        drawn = (place(max(x, low), y) for x, y in line)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        parts.append(
            f'<text x="{_LEFT + 140 + 90 * number}" y="{panel.top - 8}" fill="{colour}">{name}</text>'
        )
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Return round values of a linear axis, at most six, both ends allowed."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten within a logarithmic axis, one per power if it is long."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= _TICKS + 1 else (1,)
    found = [round(m * 10.0**power, 12) for power in powers for m in factors]
    # An axis too short for any of them shows its ends.
    return [v for v in found if low <= v <= high] or [float(f"{v:.3g}") for v in (low, high)]


def _across(x: float, *, low: float, high: float, log: bool) -> float:
    share = math.log(x / low) / math.log(high / low) if log else (x - low) / (high - low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
