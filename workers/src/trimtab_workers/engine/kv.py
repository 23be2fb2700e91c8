"""Paged KV cache: which block holds which tokens, and where blocks lie inside slabs.

A block is 16 tokens of all layers. Pure bookkeeping, apart from `KvLayout.view`, which only
narrows a tensor it is given.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab_workers.engine.config import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch


@dataclass(slots=True, eq=False)
class KvSlab:
    """A slab of KV cache: how many of its blocks have holders, and how many are cached without.

    Attributes:
        borrowed: Whether it is a model's home, so that it will be asked back.
    """

    index: int
    borrowed: bool
    blocks: list[Block] = field(default_factory=list)
    used: int = 0
    cached: int = 0


@dataclass(slots=True, eq=False)
class Block:
    """One block; `slot` is its row in layer 0's view, `key` its content once full.

    Compaction moves a block between two steps, so nobody keeps a slot beyond a step without
    asking `DeviceBlockManager.version`.
    """

    slot: int
    slab: KvSlab
    refs: int = 0
    key: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Where the blocks of one model lie (engine.md §4, "KV in a slab").

    Slab bytes are a multiple of the block's, so a row of the arena is one block of one layer:
    layer l of block k in slab s is row s·rows_per_slab + l·blocks_per_slab + k.
    """

    slab_bytes: int
    block_bytes: int
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def rows_per_slab(self) -> int:
        """Blocks of one layer that fill a slab."""
        return self.slab_bytes // self.block_bytes

    @property
    def blocks_per_slab(self) -> int:
        """All-layer blocks in a slab."""
        return self.rows_per_slab // self.layers

    def slots(self, slab: int) -> range:
        """Return the slots of a slab's blocks, in layer 0's numbering."""
        first = slab * self.rows_per_slab
        return range(first, first + self.blocks_per_slab)

    def view(self, arena: torch.Tensor, layer: int) -> torch.Tensor:
        """Return one layer's rows, shape [rows, 2, 16, kv_heads, head_dim]; index 0 is keys.

        Args:
            arena: The whole arena in the KV dtype, one dimension.
            layer: 0 … layers - 1. A slot indexes the result directly.
        """
        row = 2 * BLOCK_TOKENS * self.kv_heads * self.head_dim
        rows = arena.view(-1, 2, BLOCK_TOKENS, self.kv_heads, self.head_dim)
        if rows[0].numel() != row:
            raise ValueError("KvLayout.view: this is a bug; please report it with your model set.")
        return rows[layer * self.blocks_per_slab :]


def block_key(model: str, parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the content key of a full block: 16 bytes of blake2b(model, parent, tokens)."""
    digest = hashlib.blake2b(parent, digest_size=16, person=model.encode()[-16:])
    digest.update(b",".join(b"%d" % token for token in tokens))
    return digest.digest()


@dataclass(slots=True)
class PrefixIndex:
    """Full blocks by content; those without holders in least-recently-used order."""

    by_key: dict[bytes, Block] = field(default_factory=dict)
    idle: OrderedDict[bytes, Block] = field(default_factory=OrderedDict)


class DeviceBlockManager:
    """Hands out blocks; each is in exactly one of free, used (refs > 0) and cached (refs = 0).

    Slabs come and go. One block is set aside for zeros, which padding reads; it moves like others.

    Attributes:
        version: Changes whenever a block's slot may have changed.
        on_evict: Told of a cached block just before its content is given up.
    """

    __slots__ = (
        "_borrowed",
        "_home",
        "_prefix",
        "_slabs",
        "_total",
        "_used",
        "caching",
        "on_evict",
        "version",
        "zero",
    )

    def __init__(self, *, caching: bool) -> None:
        self._slabs: dict[int, KvSlab] = {}
        self._home: list[Block] = []
        self._borrowed: list[Block] = []
        self._prefix = PrefixIndex()
        self._total = self._used = 0
        self.caching = caching
        self.version = 0
        self.zero: Block | None = None
        self.on_evict: Callable[[Block], None] | None = None

    @property
    def capacity(self) -> int:
        """All blocks, without the one of zeros."""
        return self._total - (self.zero is not None)

    @property
    def available(self) -> int:
        """Blocks that an allocation may take: free ones and cached ones without holders."""
        return len(self._home) + len(self._borrowed) + len(self._prefix.idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self._used - (self.zero is not None)

    @property
    def slabs(self) -> Mapping[int, KvSlab]:
        """Slabs by index; read only."""
        return self._slabs

    def blocks(self) -> Iterator[Block]:
        """All blocks, the one of zeros included."""
        for slab in self._slabs.values():
            yield from slab.blocks

    # -- slabs ---------------------------------------------------------------------------------

    def grow(self, index: int, slots: Iterable[int], *, borrowed: bool = False) -> None:
        """Add a zeroed slab; the first one gives the block of zeros.

        Args:
            index: The slab's number in the arena.
            slots: Its blocks.
            borrowed: Whether it is a model's home; blocks elsewhere are handed out before its own.
        """
        slab = self._slabs[index] = KvSlab(index, borrowed)
        slab.blocks = [Block(slot, slab) for slot in slots]
        self._total += len(slab.blocks)
        self._free_list(slab).extend(reversed(slab.blocks))
        self.version += 1
        if self.zero is None and slab.blocks:
            self.zero = self._take_free()

    def vacate(self, index: int) -> list[tuple[int, int]] | None:
        """Give a slab up: forget what is cached in it, move what is held into other slabs.

        Returns:
            (from, to) slots to copy before the slab's bytes are used, or None (and nothing has
            changed but for cached blocks) if the other slabs have too few blocks for them.
        """
        slab = self._slabs[index]
        last = len(self._slabs) == 1 and self.zero is not None and self._used == 1
        for block in [b for b in slab.blocks if b.refs == 0 and b.key is not None]:
            self._forget(block)
        held = [] if last else [block for block in slab.blocks if block.refs]
        if len(held) > self.available - (len(slab.blocks) - slab.used):
            return None
        free = self._free_list(slab)
        free[:] = [block for block in free if block.slab is not slab]
        moves = [self._move(block) for block in held]
        del self._slabs[index]
        self._total -= len(slab.blocks)
        if last:
            self.zero = None
            self._used = 0
        self.version += 1
        return moves

    def own(self, index: int) -> None:
        """Note that a borrowed slab is nobody's home any more."""
        slab = self._slabs[index]
        if slab.borrowed:
            mine = [block for block in self._borrowed if block.slab is slab]
            self._borrowed = [block for block in self._borrowed if block.slab is not slab]
            slab.borrowed = False
            self._home += mine

    def _move(self, block: Block) -> tuple[int, int]:
        """Exchange places with a free block elsewhere, which then lies in the slab that goes."""
        other = self._take_free() if self._home or self._borrowed else self._evict()
        pair = block.slot, other.slot
        # `other` has taken a holder in its slab and gives it back in this one.
        other.refs = 0
        self._used -= 1
        old, new = block.slab, other.slab
        old.used -= 1
        old.blocks[old.blocks.index(block)], new.blocks[new.blocks.index(other)] = other, block
        block.slot, other.slot, block.slab, other.slab = other.slot, block.slot, new, old
        return pair

    def _free_list(self, slab: KvSlab) -> list[Block]:
        return self._borrowed if slab.borrowed else self._home

    # -- blocks --------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[Block] | None:
        """Take blocks, evicting cached ones last used longest ago; None if there are too few."""
        if count > self.available:
            return None
        return [
            self._take_free() if self._home or self._borrowed else self._evict()
            for _ in range(count)
        ]

    def _take_free(self) -> Block:
        block = self._home.pop() if self._home else self._borrowed.pop()
        self._hold(block)
        return block

    def _evict(self) -> Block:
        key, block = next(iter(self._prefix.idle.items()))
        if self.on_evict is not None:
            self.on_evict(block)
        del self._prefix.idle[key], self._prefix.by_key[key]
        block.key = None
        block.slab.cached -= 1
        self._hold(block)
        return block

    def _hold(self, block: Block) -> None:
        block.refs = 1
        block.slab.used += 1
        self._used += 1

    def _forget(self, block: Block) -> None:
        if block.key is None:
            raise ValueError(
                "A block without content is forgotten; this is a bug, please report it."
            )
        if self.on_evict is not None:
            self.on_evict(block)
        del self._prefix.idle[block.key], self._prefix.by_key[block.key]
        block.key = None
        block.slab.cached -= 1
        self._free_list(block.slab).append(block)

    def release(self, blocks: Sequence[Block]) -> None:
        """Drop one holder of each block; the last token's block is forgotten first.

        Raises:
            ValueError: A block has no holder; a bug in the caller.
        """
        for block in reversed(blocks):
            if block.refs < 1:
                raise ValueError(
                    f"KV block {block.slot} is released without a holder; this is a bug, "
                    "please report it with your model set."
                )
            block.refs -= 1
            if block.refs == 0:
                block.slab.used -= 1
                self._used -= 1
                if block.key is None:
                    self._free_list(block.slab).append(block)
                else:
                    block.slab.cached += 1
                    self._prefix.idle[block.key] = block

    def match(self, keys: Iterable[bytes]) -> list[Block]:
        """Hold and return the longest run of cached blocks for these keys, from the first."""
        found: list[Block] = []
        if not self.caching:
            return found
        for key in keys:
            block = self._prefix.by_key.get(key)
            if block is None:
                break
            if block.refs == 0:
                del self._prefix.idle[key]
                block.slab.cached -= 1
                self._hold(block)
            else:
                block.refs += 1
            found.append(block)
        return found

    def peek(self, keys: Iterable[bytes]) -> tuple[int, int]:
        """Return (blocks that `match` would give, those of them without holders)."""
        found = idle = 0
        if self.caching:
            for key in keys:
                block = self._prefix.by_key.get(key)
                if block is None:
                    break
                found += 1
                idle += block.refs == 0
        return found, idle

    def remember(self, block: Block, key: bytes) -> None:
        """Make a full block findable; the first block with a content wins."""
        if self.caching and block.key is None and key not in self._prefix.by_key:
            block.key = key
            self._prefix.by_key[key] = block

    def forget_all(self) -> None:
        """Drop every cached block, so that suspect contents are never reused."""
        for block in self._prefix.idle.values():
            block.key = None
            block.slab.cached -= 1
            self._free_list(block.slab).append(block)
        for block in self._prefix.by_key.values():
            block.key = None
        self._prefix = PrefixIndex()

    def check(self) -> None:
        """Verify the invariants (tests, and after a failed batch).

        Raises:
            ValueError: A block is in no set or in two, or a count is wrong; a bug.
        """
        free = {id(b) for b in (*self._home, *self._borrowed)}
        idle = {id(b) for b in self._prefix.idle.values()}
        used = {id(b) for b in self.blocks() if b.refs > 0}
        keyed = all(b.key == key for key, b in self._prefix.by_key.items())
        apart = not (free & idle or free & used or idle & used)
        total = sum(len(slab.blocks) for slab in self._slabs.values())
        counted = all(
            slab.used == sum(b.refs > 0 for b in slab.blocks)
            and slab.cached == sum(b.refs == 0 and b.key is not None for b in slab.blocks)
            and all(b.slab is slab for b in slab.blocks)
            for slab in self._slabs.values()
        )
        sums = total == self._total == len(free) + len(idle) + len(used)
        if not (keyed and apart and counted and sums and len(used) == self._used):
            raise ValueError(
                f"KV blocks do not add up: {len(free)} free, {len(idle)} cached, {len(used)} used "
                f"of {total}; this is a bug, please report it with your model set."
            )


class HostBlockManager:
    """Places for blocks in host memory: swapped sequences, and evicted prefixes while there is room.

    A place holds all layers of one block side by side, so that it leaves and comes in one piece.
    Free places that were written before are taken first: no more memory than need be is ever held.

    Attributes:
        places: All that were reserved.
        capacity: How many of them may be filled; fewer while models that joined have their share.
    """

    __slots__ = ("_cached", "_free", "_untouched", "capacity", "places", "used")

    def __init__(self, places: int) -> None:
        self.places = self.capacity = places
        self.used = 0
        self._free: list[int] = []
        self._untouched = list(range(places - 1, -1, -1))
        self._cached: OrderedDict[bytes, int] = OrderedDict()

    def resize(self, capacity: int) -> None:
        """Change how many places may be filled; sequences keep theirs, cached prefixes make way."""
        self.capacity = min(capacity, self.places)
        while self._cached and self.used + len(self._cached) > self.capacity:
            self._free.append(self._cached.popitem(last=False)[1])

    def take_surplus(self) -> list[int]:
        """Return the free places whose memory is beyond the capacity, once: their pages may go.

        Call it when no copy from or to a place is outstanding: a place is free as soon as the copy
        that empties it is ordered.
        """
        held = self.used + len(self._cached) + len(self._free)
        kept = max(0, len(self._free) - max(0, held - self.capacity))
        surplus, self._free = self._free[kept:], self._free[:kept]
        self._untouched += surplus
        return surplus

    @property
    def available(self) -> int:
        """Places for a sequence; cached prefixes make way."""
        return max(0, self.capacity - self.used)

    def allocate(self, count: int) -> list[int] | None:
        """Take places; None if there are too few."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            taken.append(self._next())
            self.used += 1
        return taken

    def _next(self) -> int:
        if self.used + len(self._cached) < self.capacity:
            return (self._free or self._untouched).pop()
        return self._cached.popitem(last=False)[1]

    def release(self, places: Sequence[int]) -> None:
        """Give a sequence's places back."""
        self._free.extend(places)
        self.used -= len(places)

    def remember(self, key: bytes) -> int | None:
        """Find a place for an evicted prefix block; None if it is there already or all are held."""
        if key in self._cached or not self.available:
            return None
        place = self._next()
        self._cached[key] = place
        return place

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the places of the longest run of these keys that is here, from the first."""
        found: list[int] = []
        for key in keys:
            place = self._cached.get(key)
            if place is None:
                break
            self._cached.move_to_end(key)
            found.append(place)
        return found

    def forget_all(self) -> None:
        """Drop every cached prefix, so that suspect contents are never reused."""
        self._free.extend(self._cached.values())
        self._cached.clear()
