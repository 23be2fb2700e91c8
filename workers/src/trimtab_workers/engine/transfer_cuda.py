"""Copies between host and device beside the compute stream: loads, streamed layers, swaps.

Order is the whole content: a load waits for the last kernel that read its slab, kernels wait for
the load; blocks that leave are packed before anybody may reuse them. Nothing here blocks the host:
`wait` makes the *stream* wait, and what that cost is read from events once they are done. So
stalls are reported one or more steps late, and never lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from trimtab_workers.engine.device import upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.device import Device, Event
    from trimtab_workers.engine.kv import KvLayout

# Below about half a megabyte a copy is bound by its launch (engine.md §5, "Swap").
STAGING_BYTES = 2 << 20
_COMPACT_BYTES = 64 << 20
_RATE_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaTicket:
    """A copy on its way.

    Attributes:
        size_bytes: Over the link, or within the device for `d2d`.
        direction: `h2d`, `d2h` or `d2d`.
        started: On the copy's stream, when it may begin.
        done: On the copy's stream, after it.
        ready_seconds: Not known before it is done; 0.
    """

    size_bytes: int
    reason: str
    direction: str
    started: Event
    done: Event
    ready_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Wait:
    reason: str
    before: Event
    after: Event


class HostUnits(Protocol):
    """A model's host copy, pinned."""

    def unit(self, unit: int) -> torch.Tensor:
        """Return a unit's bytes, uint8."""
        ...


class HostBlocks(Protocol):
    """Host memory for swapped blocks, pinned."""

    @property
    def data(self) -> torch.Tensor:
        """The bytes, uint8, shape [places, layers, block_bytes]."""
        ...


class CudaTransfer:
    """Moves slabs and blocks of one arena; the calls are those of docs/design/20261123-remap.md §4.

    Args:
        arena: All of it, uint8.
        slab_bytes: Of one slab.
        assumed_link_rate: Bytes per second, until a load was timed.

    Attributes:
        latency_seconds: Part of the measured rate, so 0.
        moved_bytes: By (direction, reason), of everything that was started.
    """

    def __init__(
        self, device: Device, *, arena: torch.Tensor, slab_bytes: int, assumed_link_rate: float
    ) -> None:
        self.latency_seconds = 0.0
        self._device, self._arena, self._slab_bytes = device, arena, slab_bytes
        self._inward, self._outward = device.new_stream(), device.new_stream()
        self._staging = {
            direction: torch.empty(0, dtype=torch.uint8, device=device.place)
            for direction in ("h2d", "d2h")
        }
        self._waits: deque[_Wait] = deque()
        self._loads: deque[CudaTicket] = deque()
        self._rates: deque[float] = deque([assumed_link_rate], maxlen=_RATE_SAMPLES)
        self.moved_bytes: dict[tuple[str, str], int] = {}

    @property
    def link_rate(self) -> float:
        """Bytes per second of the fastest of the last loads: others may have shared the link."""
        while self._loads and self._loads[0].done.query():
            ticket = self._loads.popleft()
            milliseconds = ticket.started.elapsed_time(ticket.done)
            if milliseconds > 0:
                self._rates.append(1e3 * ticket.size_bytes / milliseconds)
        return max(self._rates)

    def load_unit(
        self, copy: HostUnits, unit: int, *, slab: int, slabs: int, reason: str
    ) -> CudaTicket:
        """Bring a unit into the slabs from `slab` on, after every kernel launched until now."""
        del slabs
        return self.load(copy.unit(unit), slab=slab, reason=reason)

    def zero(self, slab: int) -> None:
        """Clear a slab, in order with the kernels; attention does not need it."""
        self._arena[slab * self._slab_bytes :][: self._slab_bytes].zero_()

    def load(
        self, host: torch.Tensor, *, slab: int, reason: str, after: Event | None = None
    ) -> CudaTicket:
        """Copy a unit's bytes to its slab (or slot).

        Args:
            host: Pinned uint8; an unpinned buffer would make the copy synchronous.
            slab: The first slab of the unit's home, or the slot.
            reason: `load`, `wake`, `revert` or `stream`.
            after: Its last reader; None means every kernel that was launched until now.
        """
        target = self._arena[slab * self._slab_bytes :][: host.numel()]
        self._inward.wait_event(after if after is not None else self.mark())
        with self._device.on(self._inward):
            started = self._inward.record_event(self._device.new_event())
            self.copy_in(target, host)
            done = self._inward.record_event(self._device.new_event())
        ticket = self._ticket(host.numel(), reason, "h2d", started, done)
        self._loads.append(ticket)
        return ticket

    def copy_in(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Launch one load's bytes; a benchmark throttles them."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> Event:
        """Return an event after every kernel that was launched until now."""
        return self._device.current_stream().record_event(self._device.new_event())

    def copy_blocks(self, layout: KvLayout, pairs: Items[tuple[int, int]]) -> CudaTicket:
        """Copy whole blocks (from slot, to slot) within the arena, in order with the kernels.

        Targets are free blocks: no pair's target may be another pair's source.

        Costs 2 bytes of memory traffic per byte twice, since rows pass through a buffer; 208 blocks
        of Llama-3-8B are 436 MB, about 0.6 ms at 3 TB/s.
        """
        compute = self._device.current_stream()
        rows = self._rows(layout)
        started = compute.record_event(self._device.new_event())
        for part in self._groups(layout, pairs, _COMPACT_BYTES):
            sources = self._index(layout, [source for source, _ in part])
            rows.index_copy_(
                0, self._index(layout, [to for _, to in part]), rows.index_select(0, sources)
            )
        done = compute.record_event(self._device.new_event())
        size = len(pairs) * layout.layers * layout.block_bytes
        return self._ticket(size, "compact", "d2d", started, done)

    def swap_out(
        self, layout: KvLayout, host: HostBlocks, pairs: Items[tuple[int, int]]
    ) -> CudaTicket:
        """Copy blocks (slot, place) to the host; kernels launched later may reuse the slots.

        Args:
            layout: Where blocks lie.
            host: Where they go.
            pairs: What goes where. Adjacent places are written by one copy.
        """
        places = host.data.flatten(1)
        compute, rows = self._device.current_stream(), self._rows(layout)
        self._outward.wait_event(self.mark())
        with self._device.on(self._outward):
            started = self._outward.record_event(self._device.new_event())
            packed = started
            for part in self._groups(layout, pairs, STAGING_BYTES):
                staging = self._staged("d2h", layout, len(part))
                torch.index_select(
                    rows, 0, self._index(layout, [slot for slot, _ in part]), out=staging
                )
                packed = self._outward.record_event(self._device.new_event())
                self._runs(staging, places, [row for _, row in part], inward=False)
            done = self._outward.record_event(self._device.new_event())
        compute.wait_event(packed)
        return self._ticket(places.shape[1] * len(pairs), "swap", "d2h", started, done)

    def swap_in(
        self, layout: KvLayout, host: HostBlocks, pairs: Items[tuple[int, int]]
    ) -> CudaTicket:
        """Copy blocks (place, slot) to the device; `wait` for the ticket before reading them."""
        places = host.data.flatten(1)
        rows = self._rows(layout)
        self._inward.wait_event(self.mark())
        with self._device.on(self._inward):
            started = self._inward.record_event(self._device.new_event())
            for part in self._groups(layout, pairs, STAGING_BYTES):
                staging = self._staged("h2d", layout, len(part))
                self._runs(staging, places, [row for row, _ in part], inward=True)
                rows.index_copy_(0, self._index(layout, [slot for _, slot in part]), staging)
            done = self._inward.record_event(self._device.new_event())
        return self._ticket(places.shape[1] * len(pairs), "swap", "h2d", started, done)

    def wait(self, ticket: CudaTicket) -> float:
        """Make kernels that are launched from now on wait for a copy.

        Returns:
            Seconds that earlier waits of the same reason stalled the compute stream, as far as
            their events are done; each is reported once.
        """
        compute = self._device.current_stream()
        before = compute.record_event(self._device.new_event())
        compute.wait_event(ticket.done)
        after = compute.record_event(self._device.new_event())
        self._waits.append(_Wait(ticket.reason, before, after))
        return self.stalled(ticket.reason)

    def stalled(self, reason: str) -> float:
        """Return seconds of finished, unreported waits of a reason."""
        done = [wait for wait in self._waits if wait.reason == reason and wait.after.query()]
        self._waits = deque(wait for wait in self._waits if wait not in done)
        return sum(wait.before.elapsed_time(wait.after) for wait in done) / 1e3

    def _ticket(
        self, size: int, reason: str, direction: str, started: Event, done: Event
    ) -> CudaTicket:
        key = (direction, reason)
        self.moved_bytes[key] = self.moved_bytes.get(key, 0) + size
        return CudaTicket(
            size_bytes=size, reason=reason, direction=direction, started=started, done=done
        )

    def _rows(self, layout: KvLayout) -> torch.Tensor:
        """The arena as rows of one block of one layer, shape [rows, block_bytes]."""
        whole = self._arena.numel() // layout.block_bytes
        return self._arena[: whole * layout.block_bytes].view(whole, layout.block_bytes)

    def _index(self, layout: KvLayout, slots: Items[int]) -> torch.Tensor:
        """Rows of blocks, layer by layer within each block."""
        step = layout.blocks_per_slab
        rows = [slot + layer * step for slot in slots for layer in range(layout.layers)]
        return upload(rows, self._device.place)

    def _groups(
        self, layout: KvLayout, pairs: Items[tuple[int, int]], size: int
    ) -> Iterator[Items[tuple[int, int]]]:
        """Split pairs into groups of about `size` bytes, at least one pair each."""
        count = max(1, size // (layout.layers * layout.block_bytes))
        for first in range(0, len(pairs), count):
            yield pairs[first : first + count]

    def _staged(self, direction: str, layout: KvLayout, blocks: int) -> torch.Tensor:
        """Contiguous device rows for so many blocks; their stream's order protects them."""
        size = blocks * layout.layers * layout.block_bytes
        if self._staging[direction].numel() < size:
            self._staging[direction] = torch.empty(
                size, dtype=torch.uint8, device=self._device.place
            )
        return self._staging[direction][:size].view(-1, layout.block_bytes)

    def _runs(
        self, staging: torch.Tensor, host: torch.Tensor, rows: Items[int], *, inward: bool
    ) -> None:
        """Copy staged blocks from or to host rows, one copy per run of adjacent rows."""
        blocks = staging.view(len(rows), -1)
        first = 0
        for index in range(1, len(rows) + 1):
            if index < len(rows) and rows[index] == rows[index - 1] + 1:
                continue
            on_host = host[rows[first] : rows[first] + index - first]
            source, target = (
                (on_host, blocks[first:index]) if inward else (blocks[first:index], on_host)
            )
            target.copy_(source, non_blocking=True)
            first = index
