"""GPU slots per node, or thread sets on ``cpu``: what is free, what fits, and who lies where.

A group (a tensor-parallel group, one replica's thread set) lies on one node. For groups whose sizes
are powers of two the rows of `rows` are exact: if they hold, packing the largest groups first
succeeds on whatever nodes are tried, because a group of size g takes g/s slots of every smaller
size s, wherever it lies (planner.md §9). Other sizes are rounded up, which is safe and not exact.
Memory, where it is counted, makes two dimensions of one: its rows are necessary, not sufficient.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

Nodes = tuple[tuple[str, int], ...]
"""Groups by node, sorted by name."""

_MEMORY_ROWS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node has free: healthy, not excluded, not in foreign use.

    Attributes:
        name: Of the node.
        pool: Product of its GPUs; on ``cpu`` the CPU model.
        devices: GPUs, or whole threads.
        memory_bytes: Host memory that groups request; 0 where none of them does.
    """

    name: str
    pool: str
    devices: int
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Equal groups that want a place.

    Attributes:
        pool: As in `Node`.
        group: Devices of one group, at least 1.
        count: Groups: replicas times pipeline stages.
        memory_bytes: Host memory of one group; 0 where it is not counted.
    """

    pool: str
    group: int
    count: int
    memory_bytes: int = 0

    @property
    def size(self) -> int:
        """The group's size rounded up to a power of two."""
        return 1 << (self.group - 1).bit_length()

    @property
    def devices(self) -> int:
        """Devices of all groups."""
        return self.group * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Σ x_c·weight_c ≤ limit over the needs of one pool; weights by position, zeros left out."""

    weights: tuple[tuple[int, float], ...]
    limit: float


def first(nodes: Nodes, count: int) -> Nodes:
    """Return the first ``count`` groups of a placement, or all if there are fewer."""
    found: list[tuple[str, int]] = []
    for node, here in nodes:
        taken = min(here, count)
        if taken > 0:
            found.append((node, taken))
        count -= taken
    return tuple(found)


class Rack:
    """What is left of every node while groups are placed; mutable."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.pool: dict[str, str] = {}
        self.free: dict[str, int] = {}
        self.memory: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        for node in sorted(nodes, key=lambda n: n.name):
            self.pool[node.name] = node.pool
            self.free[node.name] = node.devices
            self.memory[node.name] = node.memory_bytes
            self._names.setdefault(node.pool, []).append(node.name)

    def place(self, need: Need, *, prefer: Nodes = ()) -> Nodes | None:
        """Return groups by node, kept where they are as far as possible; None if they do not fit.

        New groups go where most devices are free, so that groups spread over nodes.
        """
        left = need.count
        placed: dict[str, int] = {}
        for node, running in prefer:
            count = min(running, left, self.room(node, need))
            if count > 0:
                placed[node] = count
                left -= count
        if left:
            left = self._spread(need, left, placed)
        return None if left else tuple(sorted(placed.items()))

    def room(self, node: str, need: Need) -> int:
        """Return how many groups fit on a node."""
        if self.pool.get(node) != need.pool:
            return 0
        found = self.free[node] // need.group
        if need.memory_bytes:
            found = min(found, self.memory[node] // need.memory_bytes)
        return max(0, found)

    def fits(self, need: Need) -> bool:
        """Tell whether `place` would find a place."""
        left, group, memory = need.count, need.group, need.memory_bytes
        # As `room` counts, without its questions: every option of every intent is asked about here.
        for node in self._names.get(need.pool, ()):
            found = self.free[node] // group
            if memory:
                found = min(found, self.memory[node] // memory)
            if found > 0:
                left -= found
                if left <= 0:
                    return True
        return False

    def rooms(self, need: Need) -> int:
        """Return how many groups fit on all nodes together."""
        return sum(self.room(node, need) for node in self._names.get(need.pool, ()))

    def add(self, need: Need, nodes: Nodes, *, sign: int) -> None:
        """Give back groups (1) or take them (-1), on nodes that exist."""
        for node, count in nodes:
            self.free[node] += sign * count * need.group
            self.memory[node] += sign * count * need.memory_bytes

    def nodes(self) -> tuple[Node, ...]:
        """Return what is left; never less than nothing."""
        return tuple(
            Node(
                name=name,
                pool=pool,
                devices=max(0, self.free[name]),
                memory_bytes=max(0, self.memory[name]),
            )
            for name, pool in self.pool.items()
        )

    def _spread(self, need: Need, left: int, placed: dict[str, int]) -> int:
        """Place up to ``left`` more groups, the emptiest node first; return how many are left."""
        heap = []
        for node in self._names.get(need.pool, ()):
            room = self.room(node, need) - placed.get(node, 0)
            if room > 0:
                free = self.free[node] - placed.get(node, 0) * need.group
                heap.append((-free, node, room))
        heapq.heapify(heap)
        while left and heap:
            free, node, room = heap[0]
            placed[node] = placed.get(node, 0) + 1
            left -= 1
            if room > 1:
                heapq.heapreplace(heap, (free + need.group, node, room - 1))
            else:
                heapq.heappop(heap)
        return left


def rows(needs: Sequence[Need], nodes: Sequence[Node]) -> list[Row]:
    """Return the rows that every choice among ``needs`` must obey.

    Per pool and s in {1, 2, 4, …}: Σ over groups of at least s devices of count·size/s ≤ Σ over
    nodes of ⌊free/s⌋ (planner.md §9). Where memory is counted, the same for how many groups of at
    least m bytes the nodes hold, and for all bytes.
    """
    found: list[Row] = []
    for pool in sorted({need.pool for need in needs}):
        mine = [(n, need) for n, need in enumerate(needs) if need.pool == pool]
        here = [node for node in nodes if node.pool == pool]
        size = 1
        while size <= max(need.size for _, need in mine):
            weights = [(n, need.count * need.size / size) for n, need in mine if need.size >= size]
            limit = sum(max(0, node.devices) // size for node in here)
            found.append(Row(weights=tuple(weights), limit=float(limit)))
            size *= 2
        found.extend(_memory_rows(mine, here))
    return found


def _memory_rows(mine: Sequence[tuple[int, Need]], here: Sequence[Node]) -> Iterable[Row]:
    """Yield rows over memory, in units of the pool's whole memory so that numbers stay small."""
    every = sorted({need.memory_bytes for _, need in mine if need.memory_bytes})
    total = sum(max(0, node.memory_bytes) for node in here)
    if not every:
        return
    scale = max(1, total)
    weights = [(n, need.count * need.memory_bytes / scale) for n, need in mine if need.memory_bytes]
    yield Row(weights=tuple(weights), limit=total / scale)
    for least in every[:: max(1, len(every) // _MEMORY_ROWS)]:
        counts = [(n, float(need.count)) for n, need in mine if need.memory_bytes >= least]
        limit = sum(max(0, node.memory_bytes) // least for node in here)
        yield Row(weights=tuple(counts), limit=float(limit))
