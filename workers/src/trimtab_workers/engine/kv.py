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
    from collections.abc import Iterable, Sequence

    import torch


@dataclass(slots=True, eq=False)
class Block:
    """One block; `slot` is its row in layer 0's view, `key` its content once full."""

    slot: int
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
    """Hands out blocks; each is in exactly one of free, used (refs > 0) and cached (refs = 0)."""

    __slots__ = ("_blocks", "_free", "_prefix", "caching")

    def __init__(self, slots: Iterable[int], *, caching: bool) -> None:
        self._blocks = [Block(slot) for slot in slots]
        self._free = list(reversed(self._blocks))
        self._prefix = PrefixIndex()
        self.caching = caching

    @property
    def capacity(self) -> int:
        """All blocks."""
        return len(self._blocks)

    @property
    def available(self) -> int:
        """Blocks that an allocation may take: free ones and cached ones without holders."""
        return len(self._free) + len(self._prefix.idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.capacity - self.available

    def allocate(self, count: int) -> list[Block] | None:
        """Take blocks, evicting cached ones last used longest ago; None if there are too few."""
        if count > self.available:
            return None
        taken: list[Block] = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            block.refs = 1
            taken.append(block)
        return taken

    def _evict(self) -> Block:
        key, block = self._prefix.idle.popitem(last=False)
        del self._prefix.by_key[key]
        block.key = None
        return block

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
                if block.key is None:
                    self._free.append(block)
                else:
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
            self._free.append(block)
        for block in self._prefix.by_key.values():
            block.key = None
        self._prefix = PrefixIndex()

    def check(self) -> None:
        """Verify the invariants (tests, and after a failed batch).

        Raises:
            ValueError: A block is in no set or in two; a bug.
        """
        free, idle = {id(b) for b in self._free}, {id(b) for b in self._prefix.idle.values()}
        used = {id(b) for b in self._blocks if b.refs > 0}
        keyed = all(b.key == key for key, b in self._prefix.by_key.items())
        partition = len(free) + len(idle) + len(used) == len(self._blocks)
        if not keyed or not partition or free & idle or free & used or idle & used:
            raise ValueError(
                f"KV blocks do not add up: {len(free)} free, {len(idle)} cached, {len(used)} used "
                f"of {len(self._blocks)}; this is a bug, please report it with your model set."
            )
