"""What a forward pass waits for while weights are on their way (docs/design/20261123-remap.md §2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class LayerGate(Protocol):
    """Stands between a forward pass and layers that are loaded while it runs."""

    def enter(self, layer: int) -> None:
        """Wait until a layer's weights are there."""
        ...

    def leave(self, layer: int) -> None:
        """Say that a layer's weights were read for the last time in this step."""
        ...

    def cuts(self, layer: int) -> bool:
        """Whether a layer needs waiting for; the others may be run without asking."""
        ...


def pieces(depth: int, gate: LayerGate | None) -> Iterator[tuple[int, int, bool]]:
    """Split layers 0 … depth - 1 into [first, last) runs; True for a single layer that waits."""
    first = 0
    for layer in range(depth if gate is not None else 0):
        if gate is not None and gate.cuts(layer):
            if layer > first:
                yield first, layer, False
            yield layer, layer + 1, True
            first = layer + 1
    if depth > first or not depth:
        yield first, depth, False
