"""One arena of equal slabs; a slab holds layers of weights or blocks of KV cache.

Pure bookkeeping: who owns which slab. Bytes live in `memory.ArenaMemory`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trimtab_workers.engine.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

SlabState = Literal["free", "weights", "kv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitShape:
    """What a model asks of a slab, in bytes.

    Attributes:
        layer_bytes: One layer's matrices.
        layers: Depth; a KV slab must hold at least one block of every layer.
        block_bytes: One KV block (16 tokens) in one layer.
    """

    layer_bytes: int
    layers: int
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabChoice:
    """A slab size and, per model in the given order, how layers lie in slabs.

    Attributes:
        layers_per_slab: 0 where a layer spans several slabs.
        slabs_per_layer: 1 where a slab holds one layer or more.
        waste: Bytes of weight slabs that hold nothing ÷ bytes of weight slabs.
    """

    slab_bytes: int
    layers_per_slab: tuple[int, ...]
    slabs_per_layer: tuple[int, ...]
    waste: float


def choose_slab(shapes: Sequence[UnitShape], *, align_bytes: int) -> SlabChoice:
    """Choose the slab size with the least waste over {b, b/2, b/4} of the models (engine.md §4).

    The size is a multiple of `align_bytes` and of every model's block, so that a block never
    crosses a slab border and block ids are plain row numbers.

    Raises:
        ValueError: No shapes, or a shape with a size below 1.
    """
    if not shapes or any(min(s.layer_bytes, s.layers, s.block_bytes) < 1 for s in shapes):
        raise ValueError(
            f"choose_slab: shapes is {shapes!r}. Give at least one model, all sizes positive."
        )
    align = math.lcm(align_bytes, *(shape.block_bytes for shape in shapes))
    floor = max(shape.layers * shape.block_bytes for shape in shapes)
    sizes = {
        -(-max(shape.layer_bytes // part, floor) // align) * align
        for shape in shapes
        for part in (1, 2, 4)
    }
    choices = [_choice(size, shapes) for size in sizes]
    return min(choices, key=lambda choice: (round(choice.waste, 4), -choice.slab_bytes))


def _choice(size: int, shapes: Sequence[UnitShape]) -> SlabChoice:
    used = total = 0
    for shape in shapes:
        used += shape.layer_bytes * shape.layers
        total += slabs_for_weights(shape, size) * size
    return SlabChoice(
        slab_bytes=size,
        layers_per_slab=tuple(size // shape.layer_bytes for shape in shapes),
        slabs_per_layer=tuple(-(-shape.layer_bytes // size) for shape in shapes),
        waste=1.0 - used / total,
    )


def slabs_for_weights(shape: UnitShape, slab_bytes: int) -> int:
    """Slabs that hold all layers of a model."""
    if shape.layer_bytes <= slab_bytes:
        return -(-shape.layers // (slab_bytes // shape.layer_bytes))
    return shape.layers * -(-shape.layer_bytes // slab_bytes)


@dataclass(slots=True)
class Slab:
    """One slab; `unit` numbers the home within its model's weights."""

    index: int
    state: SlabState = "free"
    model: str | None = None
    unit: int | None = None


class Arena:
    """Who owns each slab. Legal changes here: free → weights, free → kv, and back to free."""

    __slots__ = ("_slabs", "slab_bytes")

    def __init__(self, *, slab_bytes: int, slabs: int) -> None:
        self.slab_bytes = slab_bytes
        self._slabs = [Slab(index) for index in range(slabs)]

    def __len__(self) -> int:
        return len(self._slabs)

    def __getitem__(self, index: int) -> Slab:
        return self._slabs[index]

    @property
    def free(self) -> int:
        """Number of free slabs."""
        return sum(slab.state == "free" for slab in self._slabs)

    def claim_weights(self, model: str, *, homes: int, slabs_per_home: int) -> list[int]:
        """Take homes for a model's layers and return the first slab of each.

        Args:
            model: Its name.
            homes: Number of homes; home i is unit i.
            slabs_per_home: Adjacent slabs that make one home.

        Raises:
            OutOfMemoryError: Too few free slabs, or too few adjacent ones; nothing was taken.
        """
        starts: list[int] = []
        index = 0
        while len(starts) < homes and index + slabs_per_home <= len(self._slabs):
            run = self._slabs[index : index + slabs_per_home]
            if all(slab.state == "free" for slab in run):
                starts.append(index)
                index += slabs_per_home
            else:
                index += 1
        if len(starts) < homes:
            need, free = homes * slabs_per_home, self.free
            raise OutOfMemoryError(
                f"Model {model}: its layers need {need * self.slab_bytes} bytes ({need} slabs), but "
                f"{free * self.slab_bytes} bytes ({free} slabs) are free. Raise memory_bytes."
            )
        for unit, start in enumerate(starts):
            for slab in self._slabs[start : start + slabs_per_home]:
                slab.state, slab.model, slab.unit = "weights", model, unit
        return starts

    def claim_kv(self, model: str, *, slabs: int) -> list[int]:
        """Give up to `slabs` free slabs to a model's KV cache and return their indices."""
        taken = [slab for slab in self._slabs if slab.state == "free"][:slabs]
        for slab in taken:
            slab.state, slab.model = "kv", model
        return [slab.index for slab in taken]

    def release(self, model: str) -> None:
        """Free every slab of a model."""
        for slab in self._slabs:
            if slab.model == model:
                slab.state, slab.model, slab.unit = "free", None, None

    def counts(self) -> dict[SlabState, int]:
        """Return slabs by state; the numbers sum to the arena."""
        counted = Counter(slab.state for slab in self._slabs)
        return {"free": counted["free"], "weights": counted["weights"], "kv": counted["kv"]}
