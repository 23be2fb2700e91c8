"""Copies between host memory and the arena, and within the arena, behind one interface.

Three links: the CPU's own memory, where a copy is done when the call returns; a modelled one, where
the same bytes move but count as there only after latency + bytes ÷ rate; and one for simulations,
which moves nothing. A GPU's lies beside them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.errors import HostCopyError
from trimtab_workers.engine.memory import drop_pages
from trimtab_workers.engine.weights.hostcopy import HostCopy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.kv import KvLayout
    from trimtab_workers.engine.memory import ArenaMemory
    from trimtab_workers.engine.weights.hostcopy import UnitSource

Reason = Literal["load", "stream", "wake", "revert", "swap", "compact"]
Direction = Literal["h2d", "d2h", "d2d"]

_NAN_BYTE = 0xFF  # four of them are NaN in fp32, two in bf16


@dataclass(frozen=True, slots=True)
class Ticket:
    """A copy that was begun.

    Attributes:
        ready_seconds: When its bytes are there, on the engine's clock.
    """

    size_bytes: int
    reason: Reason
    direction: Direction
    ready_seconds: float


class HostBlocks:
    """Host memory for swapped blocks: place p holds all layers of one block side by side."""

    __slots__ = ("_data", "_shape")

    def __init__(self, *, places: int, layers: int, block_bytes: int) -> None:
        self._shape = places, layers, block_bytes
        self._data: torch.Tensor | None = None

    def reserve(self) -> torch.Tensor:
        """Take the address space now; the system gives pages as they are written.

        Raises:
            HostCopyError: The system refuses; names the size.
        """
        try:
            self._data = data = torch.empty(self._shape, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            places, layers, block_bytes = self._shape
            raise HostCopyError(
                f"The system refuses {places * layers * block_bytes} bytes of host memory for swapped "
                "blocks, so preempted requests are recomputed. Lower swap_bytes."
            ) from error
        return data

    @property
    def data(self) -> torch.Tensor:
        """The bytes, shape [places, layers, block_bytes]; taken from the system at first use."""
        return self.reserve() if self._data is None else self._data

    def drop(self, places: Iterable[int]) -> None:
        """Give the memory of places back to the system; what lay there is lost."""
        if self._data is not None:
            for place in places:
                drop_pages(self._data[place])


class TransferEngine(Protocol):
    """Begins copies; `pairs` are (from, to), slots of a layout or places of host blocks.

    Attributes:
        link_rate: Bytes per second beside compute; None where copies use the cores that compute, and
            are done when they return.
    """

    link_rate: float | None
    latency_seconds: float

    def load_unit(
        self, copy: UnitSource, unit: int, *, slab: int, slabs: int, reason: Reason
    ) -> Ticket:
        """Bring a unit into the slabs from `slab` on.

        Raises:
            HostCopyError: What arrived is not what was kept (wake and revert are checked).
        """
        ...

    def copy_blocks(self, layout: KvLayout, pairs: Sequence[tuple[int, int]]) -> Ticket:
        """Copy blocks, all layers, from slot to slot."""
        ...

    def swap_out(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """Copy blocks from slots to places."""
        ...

    def swap_in(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """Copy blocks from places to slots."""
        ...

    def zero(self, slab: int) -> None:
        """Clear a slab that becomes KV."""
        ...

    def wait(self, ticket: Ticket) -> float:
        """Return when its bytes are there; how many seconds that stalled."""
        ...


class Link:
    """When copies end: each direction is one queue; the clock moves when somebody waits."""

    __slots__ = ("_busy_until", "_clock", "latency_seconds", "rate")

    def __init__(
        self, clock: Clock, *, rate: float | None = None, latency_seconds: float = 0.0
    ) -> None:
        if rate is not None and not rate > 0:
            raise ValueError(
                f"Link: rate is {rate}. Give bytes per second above 0, or None for copies that are "
                "done when they return."
            )
        self._clock = clock
        self.rate = rate
        self.latency_seconds = latency_seconds
        self._busy_until = {"h2d": 0.0, "d2h": 0.0}

    def ticket(self, size_bytes: int, reason: Reason, direction: Direction) -> Ticket:
        """Queue a copy behind those of its direction."""
        now = self._clock.now()
        if self.rate is None or direction == "d2d":
            return Ticket(size_bytes, reason, direction, now)
        start = max(now, self._busy_until[direction])
        end = start + self.latency_seconds + size_bytes / self.rate
        self._busy_until[direction] = end
        return Ticket(size_bytes, reason, direction, end)

    def wait(self, ticket: Ticket) -> float:
        """Let time pass until a copy has ended; return the seconds."""
        rest = ticket.ready_seconds - self._clock.now()
        if rest <= 0:
            return 0.0
        if isinstance(self._clock, VirtualClock):
            self._clock.advance(rest)
        else:
            time.sleep(rest)
        return rest


class CpuTransfer:
    """Copies with the CPU; with a link rate they count as done only when that link would be.

    Args:
        memory: The arena.
        clock: The engine's.
        link_rate: Bytes per second of a modelled link; None for the plain CPU.
        latency_seconds: Of each copy over that link.
        poison: Fill every slab with NaN before a unit is loaded into it (tests).
        suppress: Count copies but make none (tests that a test would notice).
    """

    def __init__(
        self,
        memory: ArenaMemory,
        clock: Clock,
        *,
        link_rate: float | None = None,
        latency_seconds: float = 0.0,
        poison: bool = False,
        suppress: bool = False,
    ) -> None:
        self._memory = memory
        self._link = Link(clock, rate=link_rate, latency_seconds=latency_seconds)
        self.link_rate = link_rate
        self.latency_seconds = latency_seconds
        self._poison, self._suppress = poison, suppress

    def load_unit(
        self, copy: UnitSource, unit: int, *, slab: int, slabs: int, reason: Reason
    ) -> Ticket:
        """See `TransferEngine.load_unit`."""
        home = self._memory.bytes_from(slab, slabs * self._memory.slab_bytes)
        if self._poison:
            home.fill_(_NAN_BYTE)
        if not self._suppress and isinstance(copy, HostCopy):
            target = home[: copy.unit_bytes]
            target.copy_(copy.unit(unit))
            if reason != "stream":
                copy.check(unit, target)
        return self._link.ticket(copy.unit_bytes, reason, "h2d")

    def copy_blocks(self, layout: KvLayout, pairs: Sequence[tuple[int, int]]) -> Ticket:
        """See `TransferEngine.copy_blocks`; sources are read before any target is written."""
        rows = self._memory.rows(layout.block_bytes)
        if not self._suppress:
            sources = self._rows(layout, [pair[0] for pair in pairs])
            targets = self._rows(layout, [pair[1] for pair in pairs])
            rows.index_copy_(0, targets.flatten(), rows[sources.flatten()])
        return self._blocks_ticket(layout, pairs, "compact", "d2d")

    def swap_out(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """See `TransferEngine.swap_out`."""
        if not self._suppress:
            rows = self._memory.rows(layout.block_bytes)
            sources = self._rows(layout, [pair[0] for pair in pairs])
            host.data.index_copy_(0, torch.tensor([pair[1] for pair in pairs]), rows[sources])
        return self._blocks_ticket(layout, pairs, "swap", "d2h")

    def swap_in(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """See `TransferEngine.swap_in`."""
        if not self._suppress:
            rows = self._memory.rows(layout.block_bytes)
            targets = self._rows(layout, [pair[1] for pair in pairs])
            pieces = host.data[torch.tensor([pair[0] for pair in pairs])]
            rows.index_copy_(0, targets.flatten(), pieces.flatten(0, 1))
        return self._blocks_ticket(layout, pairs, "swap", "h2d")

    def zero(self, slab: int) -> None:
        """See `TransferEngine.zero`."""
        self._memory.zero([slab])

    def wait(self, ticket: Ticket) -> float:
        """See `TransferEngine.wait`."""
        return self._link.wait(ticket)

    def _rows(self, layout: KvLayout, slots: Sequence[int]) -> torch.Tensor:
        """Rows of the arena that blocks of all layers lie in, shape [blocks, layers]."""
        layers = torch.arange(layout.layers) * layout.blocks_per_slab
        return torch.tensor(slots, dtype=torch.int64)[:, None] + layers[None, :]

    def _blocks_ticket(
        self,
        layout: KvLayout,
        pairs: Sequence[tuple[int, int]],
        reason: Reason,
        direction: Direction,
    ) -> Ticket:
        return self._link.ticket(_size(layout, pairs), reason, direction)


class SimTransfer:
    """Prices copies and makes none."""

    def __init__(
        self, clock: Clock, *, link_rate: float | None, latency_seconds: float = 0.0
    ) -> None:
        self._link = Link(clock, rate=link_rate, latency_seconds=latency_seconds)
        self.link_rate = link_rate
        self.latency_seconds = latency_seconds

    def load_unit(
        self, copy: UnitSource, unit: int, *, slab: int, slabs: int, reason: Reason
    ) -> Ticket:
        """See `TransferEngine.load_unit`."""
        del unit, slab, slabs
        return self._link.ticket(copy.unit_bytes, reason, "h2d")

    def copy_blocks(self, layout: KvLayout, pairs: Sequence[tuple[int, int]]) -> Ticket:
        """See `TransferEngine.copy_blocks`."""
        return self._link.ticket(_size(layout, pairs), "compact", "d2d")

    def swap_out(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """See `TransferEngine.swap_out`."""
        del host
        return self._link.ticket(_size(layout, pairs), "swap", "d2h")

    def swap_in(
        self, layout: KvLayout, host: HostBlocks, pairs: Sequence[tuple[int, int]]
    ) -> Ticket:
        """See `TransferEngine.swap_in`."""
        del host
        return self._link.ticket(_size(layout, pairs), "swap", "h2d")

    def zero(self, slab: int) -> None:
        """See `TransferEngine.zero`."""

    def wait(self, ticket: Ticket) -> float:
        """See `TransferEngine.wait`."""
        return self._link.wait(ticket)


def _size(layout: KvLayout, pairs: Sequence[tuple[int, int]]) -> int:
    return len(pairs) * layout.layers * layout.block_bytes
