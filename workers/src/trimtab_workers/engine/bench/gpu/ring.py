"""Streams layers of a running model through slots: what `exact`, `active` and `c2c` time.

The engine's own controller decides when to stream; this is only the mechanism, for a fixed level.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

import torch

from trimtab.planning.remap import streamed_layers

if TYPE_CHECKING:
    from trimtab_workers.engine.bench.gpu.rig import Rig
    from trimtab_workers.engine.device import Event
    from trimtab_workers.engine.models.llama import Layer
    from trimtab_workers.engine.transfer_cuda import CudaTicket


class Ring:
    """alpha + slots layers rotate through slots; the others stay.

    Slots are taken in turn, so a layer may come to another slot in the next step. Use it as a
    context: it leaves the model as it was.

    Args:
        rig: With at least `slots` spare slabs.
        alpha: Freed layers, 0 to depth - slots.
        slots: 1 or 2.
        host: Bytes of every layer, shape [depth, layer bytes]; pinned on a GPU.
        poison: Fill a slot with NaN before each load.
        suppress: Move nothing: a test that does not notice tests nothing.

    Attributes:
        streamed: Layers that rotate, none at alpha = 0.
    """

    def __init__(
        self,
        rig: Rig,
        *,
        alpha: int,
        slots: int,
        host: torch.Tensor,
        poison: bool = False,
        suppress: bool = False,
    ) -> None:
        self._rig, self._host = rig, host
        self.slots = slots
        self._poison, self._suppress = poison, suppress
        self.streamed = streamed_layers(rig.shape.layers, alpha + slots) if alpha else ()
        self._slabs = rig.slots[:slots]
        self._resident = list(rig.model.layers)
        self._in_slot: dict[int, Layer] = {slab: rig.layer_at(slab) for slab in self._slabs}
        self._coming: deque[tuple[int, int, CudaTicket]] = deque()
        self._taken: dict[int, int] = {}
        self._next = 0

    def __enter__(self) -> Self:
        self._rig.runner.gate = self if self.streamed else None
        if self.streamed:
            for slab in self._slabs:
                self._load(slab, after=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._rig.runner.gate = None
        self._rig.model.layers[:] = self._resident

    def cuts(self, layer: int) -> bool:
        """Whether a layer streams."""
        return layer in self.streamed

    def enter(self, layer: int) -> None:
        """Let the compute stream wait for a streamed layer, and point the model at its slot."""
        if layer in self.streamed:
            expected, slab, ticket = self._coming.popleft()
            if expected != layer:
                raise RuntimeError(
                    f"Ring: layer {expected} is in the slot that layer {layer} needs; this is a bug "
                    "of the benchmark, please report it with its command."
                )
            self._rig.transfer.wait(ticket)
            self._rig.model.layers[layer] = self._in_slot[slab]
            self._taken[layer] = slab

    def leave(self, layer: int) -> None:
        """Start the next load into the slot that a layer leaves."""
        if layer in self.streamed:
            self._load(self._taken.pop(layer), after=self._rig.transfer.mark())

    def _load(self, slab: int, *, after: Event | None) -> None:
        layer = self.streamed[self._next]
        self._next = (self._next + 1) % len(self.streamed)
        if self._poison:
            self._rig.home(slab).fill_(torch.nan)
        ticket = self._rig.transfer.load(
            self._host[layer][:0] if self._suppress else self._host[layer],
            slab=slab,
            reason="stream",
            after=None if self._poison else after,
        )
        self._coming.append((layer, slab, ticket))
