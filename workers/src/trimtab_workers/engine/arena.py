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
    from collections.abc import Iterator, Sequence

SlabState = Literal["free", "kv", "draining", "loading", "weight", "slot"]
Owner = Literal["weights", "kv_home", "kv_borrowed", "slot", "loading", "free"]

OWNERS: tuple[Owner, ...] = ("weights", "kv_home", "kv_borrowed", "slot", "loading", "free")
FIXED = -1
_LEGAL: frozenset[tuple[SlabState, SlabState]] = frozenset(
    {
        ("free", "kv"),
        ("kv", "draining"),
        ("draining", "free"),
        ("free", "loading"),
        ("loading", "weight"),
        ("weight", "kv"),
        ("weight", "slot"),
        ("slot", "weight"),
    }
)


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


@dataclass(frozen=True, slots=True)
class Homes:
    """How a model's layers lie: `layers_per_unit` in each of `units` homes."""

    units: int
    layers_per_unit: int
    slabs_per_home: int


def homes_of(shape: UnitShape, slab_bytes: int) -> Homes:
    """Cut a model into units: several small layers in a slab, or a big one over adjacent slabs."""
    per_unit = max(1, slab_bytes // shape.layer_bytes)
    return Homes(
        units=-(-shape.layers // per_unit),
        layers_per_unit=per_unit,
        slabs_per_home=-(-shape.layer_bytes // slab_bytes),
    )


@dataclass(slots=True)
class Slab:
    """One slab.

    Attributes:
        model: Whose bytes lie here now; None while free.
        home: The model and unit whose place this is for as long as the model is served; None for
            slabs of the home KV pool. A fixed region that was added live has unit FIXED.
    """

    index: int
    state: SlabState = "free"
    model: str | None = None
    home: tuple[str, int] | None = None


class Arena:
    """Who owns each slab; refuses every change that engine.md §4 does not list."""

    __slots__ = ("_slabs", "slab_bytes")

    def __init__(self, *, slab_bytes: int, slabs: int) -> None:
        self.slab_bytes = slab_bytes
        self._slabs = [Slab(index) for index in range(slabs)]

    def __len__(self) -> int:
        return len(self._slabs)

    def __getitem__(self, index: int) -> Slab:
        return self._slabs[index]

    def __iter__(self) -> Iterator[Slab]:
        return iter(self._slabs)

    @property
    def free(self) -> int:
        """Number of free slabs."""
        return sum(slab.state == "free" for slab in self._slabs)

    def free_slabs(self) -> list[int]:
        """Free slabs, those of the home KV pool first: lent ones are the first to be asked back."""
        free = [slab for slab in self._slabs if slab.state == "free"]
        return [slab.index for slab in sorted(free, key=lambda slab: slab.home is not None)]

    def pool(self) -> int:
        """Slabs that are no model's home: the KV cache that is always there."""
        return sum(slab.home is None for slab in self._slabs)

    def change(self, index: int, state: SlabState, *, model: str | None = None) -> None:
        """Move a slab to another state.

        Args:
            index: Its number.
            state: The state after.
            model: Who holds it then; None for `free`, and to keep the holder.

        Raises:
            ValueError: No legal change; a bug in the caller.
        """
        slab = self._slabs[index]
        if (slab.state, state) not in _LEGAL:
            raise ValueError(
                f"Slab {index} of {slab.model} cannot go from {slab.state} to {state}; this is a "
                "bug, please report it with your model set."
            )
        slab.state = state
        slab.model = None if state == "free" else model or slab.model

    def claim_homes(
        self, model: str, *, homes: int, slabs_per_home: int, at: Sequence[int] | None = None
    ) -> list[int]:
        """Make free slabs of the pool the homes of a model's units; they stay free.

        Args:
            model: Its name.
            homes: Number of homes; home i is unit i.
            slabs_per_home: Adjacent slabs that make one home.
            at: First slab of each home; the first ones that are free if it is left out.

        Returns:
            The first slab of each home.

        Raises:
            OutOfMemoryError: Too few free slabs, or too few adjacent ones; nothing was taken.
        """
        if at is None:
            starts = self._runs(homes, slabs_per_home)
        else:
            starts = [start for start in at if self._vacant(start, slabs_per_home)]
        if len(starts) < homes:
            need = homes * slabs_per_home
            free = sum(slab.state == "free" and slab.home is None for slab in self._slabs)
            raise OutOfMemoryError(
                f"Model {model}: its layers need {need * self.slab_bytes} bytes ({need} slabs), but "
                f"{free * self.slab_bytes} bytes ({free} slabs) are free. Raise memory_bytes."
            )
        for unit, start in enumerate(starts):
            for slab in self._slabs[start : start + slabs_per_home]:
                slab.home = model, unit
        return starts

    def _runs(self, count: int, length: int) -> list[int]:
        starts: list[int] = []
        index = 0
        while len(starts) < count and index + length <= len(self._slabs):
            if self._vacant(index, length):
                starts.append(index)
                index += length
            else:
                index += 1
        return starts

    def _vacant(self, start: int, length: int) -> bool:
        run = self._slabs[start : start + length]
        return all(slab.state == "free" and slab.home is None for slab in run)

    def claim_fixed(self, model: str, *, slabs: int, at: int) -> None:
        """Take adjacent free slabs of the pool, from `at` on, for a fixed region.

        Raises:
            OutOfMemoryError: They are not free; nothing was taken.
        """
        if not self._vacant(at, slabs):
            raise OutOfMemoryError(
                f"Model {model}: its embedding and norms need {slabs * self.slab_bytes} bytes ({slabs} "
                f"adjacent slabs), but those from {at} on could not be emptied. Raise memory_bytes."
            )
        for slab in self._slabs[at : at + slabs]:
            slab.home, slab.state, slab.model = (model, FIXED), "weight", model

    def release(self, model: str) -> None:
        """Free all that a model holds; its homes join the pool, whoever has KV there keeps it."""
        for slab in self._slabs:
            if slab.model == model:
                slab.state, slab.model = "free", None
            if slab.home is not None and slab.home[0] == model:
                slab.home = None

    def counts(self) -> dict[str, int]:
        """Return slabs as free, weights (slots and loads too) and kv; they sum to the arena."""
        counted = Counter(slab.state for slab in self._slabs)
        kv = counted["kv"] + counted["draining"]
        return {
            "free": counted["free"],
            "weights": len(self._slabs) - kv - counted["free"],
            "kv": kv,
        }

    def owners(self) -> dict[Owner, int]:
        """Return slabs by what they are used for; they sum to the arena."""
        owners: dict[Owner, int] = dict.fromkeys(OWNERS, 0)
        for slab in self._slabs:
            owners[_owner(slab)] += 1
        return owners


def _owner(slab: Slab) -> Owner:
    if slab.state in {"kv", "draining"}:
        return "kv_home" if slab.home is None else "kv_borrowed"
    if slab.state == "weight":
        return "weights"
    if slab.state == "slot":
        return "slot"
    return "loading" if slab.state == "loading" else "free"
