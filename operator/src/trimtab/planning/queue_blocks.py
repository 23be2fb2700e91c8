"""KV blocks of a simulated replica: counts only, with the engine's order of reuse.

The engine's manager hands out free blocks first and then those that were cached longest ago, the end of
a sequence before its beginning. A preempted sequence finds again what of its prefix is still there. With
no two requests alike that is all that caching does, so runs of blocks by owner are enough.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class CachedRun:
    """The first ``blocks`` blocks of a sequence that left, in the order in which they may be reused."""

    blocks: int


class BlockLedger:
    """Counts free, held and cached blocks of one replica.

    Args:
        capacity: Blocks in all.
        caching: Full blocks of sequences that left stay findable until others need them.
    """

    __slots__ = ("_caching", "_free", "_idle", "_runs", "capacity", "least_available")

    def __init__(self, capacity: int, *, caching: bool) -> None:
        self.capacity = capacity
        self.least_available = capacity
        self._caching = caching
        self._free = capacity
        self._idle = 0
        self._runs: deque[CachedRun] = deque()

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return self._free + self._idle

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.capacity - self.available

    def take(self, blocks: int) -> None:
        """Hold more blocks; the caller has looked at ``available``."""
        if blocks <= self._free:
            self._free -= blocks
        else:
            self._evict(blocks - self._free)
            self._free = 0
        self.least_available = min(self.least_available, self.available)

    def release(self, *, held: int, full: int) -> CachedRun | None:
        """Give back ``held`` blocks, of which the first ``full`` hold 16 computed tokens each.

        Returns:
            What may be found again; None without caching or full blocks.
        """
        cached = full if self._caching else 0
        self._free += held - cached
        if not cached:
            return None
        run = CachedRun(cached)
        self._runs.append(run)
        self._idle += cached
        return run

    def reuse(self, run: CachedRun) -> None:
        """Hold what is left of a run again."""
        self._idle -= run.blocks
        run.blocks = 0
        self.least_available = min(self.least_available, self.available)

    def _evict(self, blocks: int) -> None:
        self._idle -= blocks
        while blocks:
            run = self._runs[0]
            taken = min(run.blocks, blocks)
            run.blocks -= taken
            blocks -= taken
            if not run.blocks:
                self._runs.popleft()
