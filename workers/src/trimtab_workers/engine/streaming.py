"""A running model's weights on their way: streamed units, and units that are being loaded.

Streamed unit j always takes slot j mod s, so that addresses never change while a level lasts. When
a unit was read, its slot's next one is fetched at once: that is the earliest moment, and the last
reader is done by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab_workers.engine.transfer import Ticket


@dataclass(slots=True)
class Ring:
    """Which streamed unit is in which slot, and which comes next.

    Attributes:
        units: Streamed units in layer order.
        slots: First slabs of the homes that serve as slots.
        holds: Unit that each slot holds or is being given.
    """

    units: tuple[int, ...]
    slots: tuple[int, ...]
    holds: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.holds:
            self.holds = [None] * len(self.slots)

    def slot_of(self, unit: int) -> int:
        """Index of the slot that a streamed unit takes."""
        return self.units.index(unit) % len(self.slots)

    def after(self, unit: int) -> int:
        """The unit that takes the same slot next, around the cycle."""
        j, step = self.units.index(unit), len(self.slots)
        following = j + step
        return self.units[following if following < len(self.units) else j % step]


class UnitGate:
    """Makes a forward pass wait for units that are not there yet (`gate.LayerGate`).

    Args:
        layers: Depth of the model.
        layers_per_unit: Layers in one home.
        fetch: Begins to stream a unit into a slab.
        settle: Waits for a ticket and counts its stall.
    """

    def __init__(
        self,
        *,
        layers: int,
        layers_per_unit: int,
        fetch: Callable[[int, int], Ticket],
        settle: Callable[[Ticket], None],
    ) -> None:
        self._layers, self._per_unit = layers, layers_per_unit
        self._fetch, self._settle = fetch, settle
        self.ring: Ring | None = None
        self.tickets: dict[int, Ticket] = {}

    @property
    def open(self) -> bool:
        """Whether nothing needs waiting for."""
        return self.ring is None and not self.tickets

    def cuts(self, layer: int) -> bool:
        """See `LayerGate.cuts`."""
        unit = layer // self._per_unit
        return unit in self.tickets or (self.ring is not None and unit in self.ring.units)

    def enter(self, layer: int) -> None:
        """See `LayerGate.enter`."""
        unit = layer // self._per_unit
        ring = self.ring
        if ring is not None and unit in ring.units:
            slot = ring.slot_of(unit)
            if ring.holds[slot] != unit:
                self._begin(ring, slot, unit)
        ticket = self.tickets.pop(unit, None)
        if ticket is not None:
            self._settle(ticket)

    def leave(self, layer: int) -> None:
        """See `LayerGate.leave`."""
        unit = layer // self._per_unit
        ring = self.ring
        last = (layer + 1) % self._per_unit == 0 or layer + 1 == self._layers
        if ring is None or unit not in ring.units or not last:
            return
        following = ring.after(unit)
        if following != unit:
            self._begin(ring, ring.slot_of(unit), following)

    def _begin(self, ring: Ring, slot: int, unit: int) -> None:
        before = ring.holds[slot]
        if before is not None:
            late = self.tickets.pop(before, None)
            if late is not None:
                self._settle(late)
        ring.holds[slot] = unit
        self.tickets[unit] = self._fetch(unit, ring.slots[slot])

    def finish(self) -> None:
        """Wait for everything that is on its way."""
        for ticket in self.tickets.values():
            self._settle(ticket)
        self.tickets.clear()


def choose_slots(units: Sequence[int], *, count: int, before: Sequence[int]) -> tuple[int, ...]:
    """Choose whose homes serve as slots: one that is a slot already need not be emptied."""
    kept = [unit for unit in units if unit in before]
    others = [unit for unit in units if unit not in before]
    return tuple((kept + others)[:count])
