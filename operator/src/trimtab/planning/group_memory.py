"""How much memory one worker needs that serves several models (engine.md §4, planner.md §5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.planning.memory import ArenaShape
from trimtab.planning.policy import PlannerPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What one model asks of a shared worker.

    Attributes:
        uid: Of its intent.
        shape: Of its weights and KV blocks.
        host_bytes: Host copy from which lent weights are read again.
        home_tokens: Longest request: the KV cache that it must have whatever others hold.
        reach_tokens: KV tokens of a worker of its own; reached by lending others' idle weights.
        overhead_bytes: What a worker of its own needs beside arena and host copy.
    """

    uid: str
    shape: ArenaShape
    host_bytes: int
    home_tokens: int
    reach_tokens: int
    overhead_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """Memory of one worker with several models, bytes.

    Attributes:
        arena: The engine's ``memory_bytes``.
        total: The pod's memory request.
        least_arena: The arena without room for models that may join.
        least_total: The request without that room.
        host: Host copies, which are files on the node's disk, with room for models that may join.
        least_host: Host copies without that room.
        waste: Share of a model's weight slabs that holds nothing, beyond what it would waste in an
            arena of its own; of the model that loses most.
    """

    arena: int
    total: int
    least_arena: int
    least_total: int
    host: int
    least_host: int
    waste: float

    def arena_within(self, total: int) -> int:
        """Return the arena that a pod of this memory has room for: the part for joiners shrinks."""
        if total >= self.total:
            return self.arena
        spare = max(0, total - self.least_total)
        room = self.arena - self.least_arena
        return self.least_arena + room * spare // (self.total - self.least_total or 1)


def group_memory(
    members: Sequence[Member],
    *,
    headroom_models: int,
    min_resident_units: int,
    block_tokens: int,
    policy: PlannerPolicy,
) -> GroupMemory:
    """Return the memory of a worker of these models, with room for more of the largest kind.

    The engine gives every model an equal share of the slabs that hold no weights, so the largest
    home decides all of them. A model whose own worker would hold more KV than that reaches it by
    lending the others' idle units; where those do not suffice, slabs are added.

    Raises:
        ValueError: There is no member.
    """
    if not members:
        raise ValueError("group_memory: members is empty. Give at least one model.")
    slab = choose_slab([member.shape for member in members])
    weights = [_weight_slabs(member.shape, slab) for member in members]
    homes = [_kv_slabs(m.shape, slab, m.home_tokens, block_tokens) for m in members]
    reaches = [_kv_slabs(m.shape, slab, m.reach_tokens, block_tokens) for m in members]
    kv = len(members) * max(homes)
    lendable = [
        _lendable_slabs(member.shape, slab, min_resident_units=min_resident_units)
        for member in members
    ]
    kv += max(0, *(r - kv - sum(lendable) + own for r, own in zip(reaches, lendable, strict=True)))
    least_arena = sum(m.shape.fixed for m in members) + (sum(weights) + kv) * slab
    largest = max(
        (-(-m.shape.fixed // slab) + w + max(homes)) * slab
        for m, w in zip(members, weights, strict=True)
    )
    host = sum(m.host_bytes for m in members)
    room = headroom_models * largest
    room_host = headroom_models * max(m.host_bytes for m in members)
    overhead = max(m.overhead_bytes for m in members)
    return GroupMemory(
        arena=least_arena + room,
        total=_with_reserve(least_arena + room + host + room_host + overhead, policy),
        least_arena=least_arena,
        least_total=_with_reserve(least_arena + host + overhead, policy),
        host=host + room_host,
        least_host=host,
        waste=max(
            _waste([m.shape], slab) - _waste([m.shape], choose_slab([m.shape])) for m in members
        ),
    )


def choose_slab(shapes: Sequence[ArenaShape]) -> int:
    """Return the engine's slab size for these models, bytes.

    The size with the least waste over {b, b/2, b/4} of the models' layers, a multiple of a page
    and of every model's block, and never less than one block of every layer (engine.md §4).
    """
    align = math.lcm(ArenaShape.PAGE_BYTES, *(shape.block for shape in shapes))
    floor = max(shape.depth * shape.block for shape in shapes)
    sizes = {
        -(-max(shape.layer // part, floor) // align) * align
        for shape in shapes
        for part in (1, 2, 4)
    }
    return min(sizes, key=lambda size: (round(_waste(shapes, size), 4), -size))


def _waste(shapes: Sequence[ArenaShape], slab: int) -> float:
    used = sum(shape.layer * shape.depth for shape in shapes)
    return 1.0 - used / sum(_weight_slabs(shape, slab) * slab for shape in shapes)


def _weight_slabs(shape: ArenaShape, slab: int) -> int:
    if shape.layer <= slab:
        return -(-shape.depth // (slab // shape.layer))
    return shape.depth * -(-shape.layer // slab)


def _lendable_slabs(shape: ArenaShape, slab: int, *, min_resident_units: int) -> int:
    """Return the slabs that a model gives up while it is idle; a unit is what one home holds."""
    units = -(-shape.depth // max(1, slab // shape.layer))
    per_unit = _weight_slabs(shape, slab) // units
    return max(0, units - min_resident_units) * per_unit


def _kv_slabs(shape: ArenaShape, slab: int, tokens: int, block_tokens: int) -> int:
    """Return the slabs whose blocks hold these tokens beside zero block and watermark."""
    blocks = -(-tokens // block_tokens)
    return -(-shape.kept_blocks(blocks) // (slab // shape.block // shape.depth))


def _with_reserve(total: int, policy: PlannerPolicy) -> int:
    return total + -(-total * policy.memory_reserve_permille // 1000)
