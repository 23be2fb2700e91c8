"""A ledger beside what the planner foretold, raw and with the first repeat's anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.bench.road.anchoring import anchors
from trimtab.bench.road.forecast import POLICY, Forecast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.road.forecast import Replay
    from trimtab.bench.road.ledger import Ledger, Opening, Row
    from trimtab.bench.road.matrix import Kind, Way
    from trimtab.planning.plan import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured, and the forecasts to hold beside it.

    Attributes:
        opening: What was fixed before.
        rows: The runs, in the order of their keys.
        ways: By name.
        raw: From the fingerprints alone.
        anchored: With anchors; None without any.
        anchors: How many there are.
    """

    opening: Opening
    rows: tuple[Row, ...]
    ways: dict[str, Way]
    raw: Forecast
    anchored: Forecast | None
    anchors: int

    @property
    def planned_rate(self) -> float:
        """The rate that served caches were planned for."""
        return self.opening.shape.loads[-1] * self.opening.rates.base

    def of(self, way: str, kind: Kind, share: float | None = None) -> list[Row]:
        """Return the repeats of one cell, or all runs of a kind."""
        found = [r for r in self.rows if r.run.way == way and r.run.kind == kind]
        return [r for r in found if share is None or r.run.share == share]

    def option(self, forecast: Forecast, way: str, share: float) -> Option:
        """Return a way as a forecast sees it at a load."""
        return forecast.option(self.ways[way], share * self.opening.rates.base)

    def replays(
        self, way: Way, rows: Sequence[Row], *, forecast: Forecast | None = None
    ) -> list[Replay]:
        """Return what the simulated queue makes of each run's requests; by default raw."""
        planned = 0.0 if way.small else self.planned_rate
        by = forecast or self.raw
        return [by.replay(row.run, way, planned_rate=planned) for row in rows]

    def judged(self, way: Way) -> bool:
        """Return whether each replica has a core, with one left for gateway and client."""
        cpus = self.opening.conditions.get("cpus") or 0
        return way.replicas < cpus


def gather(ledger: Ledger) -> Evidence:
    """Return a ledger's evidence.

    Raises:
        ValueError: It holds no opening: nothing was measured.
    """
    opening = ledger.opening
    if opening is None:
        raise ValueError("Nothing was measured yet: the file of results is empty.")
    shape, known = opening.shape, opening.known()
    ways = {way.name: way for way in (*shape.ways(), shape.small_way())}
    rows = tuple(sorted(ledger.rows.values(), key=lambda r: r.run.key))
    raw = Forecast(known, prompt=shape.prompt, output=shape.output)
    compared = {way.name: way for way in shape.ways()}
    found = anchors(rows, compared, raw)
    used = [a for a in found if a.steps >= POLICY.anchor_steps]
    anchored = (
        Forecast(known, prompt=shape.prompt, output=shape.output, anchors=used) if used else None
    )
    return Evidence(
        opening=opening, rows=rows, ways=ways, raw=raw, anchored=anchored, anchors=len(used)
    )
