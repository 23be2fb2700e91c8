"""Where groups lie if some of those that run may move: as few as possible, each by name.

Groups that run keep their nodes. A new group that finds no room asks the node where the least has
to make way; only smaller groups do, so this ends, and for sizes that are powers of two it finds a
place whenever the slot rows hold (planner.md §9).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trimtab.planning.columns import Column
from trimtab.planning.slots import Need, Node, Nodes, Rack

_Queue = list[tuple[int, int, str]]
"""Groups that want a place: the largest first, then by memory and column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A packed choice; columns of which a group moves cost what moving costs."""

    placed: tuple[tuple[Column, Nodes], ...]
    ids: tuple[str, ...]


def pack_moving(columns: Iterable[Column], slots: Sequence[Node]) -> Moved | None:
    """Return a place for every group of a choice, None if there is none even so."""
    table = _Table(columns, slots)
    while table.queue:
        if not table.place_next():
            return None
    return table.result()


class _Table:
    """One group at a time: which node holds which groups of which columns."""

    def __init__(self, columns: Iterable[Column], slots: Sequence[Node]) -> None:
        self._columns = {column.id: column for column in sorted(columns, key=lambda c: c.id)}
        self._rack = Rack(slots)
        self._held: dict[str, dict[str, int]] = {name: {} for name in self._rack.pool}
        self.queue: _Queue = []
        for column in self._columns.values():
            kept = 0
            for node, count in column.kept:
                here = min(count, self._rack.room(node, _one(column)))
                kept += here
                if here:
                    self._add(column, node, here)
            for _ in range(column.need.count - kept):
                self._want(column)

    def place_next(self) -> bool:
        """Place the largest group that waits; return whether it could be."""
        column = self._columns[heapq.heappop(self.queue)[2]]
        one = _one(column)
        found = self._rack.place(one)
        if found is None:
            node = self._cheapest(column)
            if node is None:
                return False
            self._clear(node, column)
            found = ((node, 1),)
        self._add(column, found[0][0], 1)
        return True

    def result(self) -> Moved:
        """Return the places, and what moved."""
        placed: list[tuple[Column, Nodes]] = []
        ids: list[str] = []
        for id_, column in self._columns.items():
            counts = {node: held[id_] for node, held in self._held.items() if held.get(id_)}
            stays = all(counts.get(node, 0) >= count for node, count in column.kept)
            charged = (
                column if stays else replace(column, switching=column.switching + column.moving)
            )
            if not stays:
                ids.append(id_)
            placed.append((charged, tuple(sorted(counts.items()))))
        return Moved(placed=tuple(placed), ids=tuple(ids))

    def _want(self, column: Column) -> None:
        heapq.heappush(self.queue, (-column.need.size, -column.need.memory_bytes, column.id))

    def _add(self, column: Column, node: str, count: int) -> None:
        self._rack.add(_one(column), ((node, count),), sign=-1)
        self._held[node][column.id] = self._held[node].get(column.id, 0) + count

    def _leaving(self, node: str, column: Column) -> list[str]:
        """Return the groups of a node that make way for one of a column, the largest first; empty if they cannot."""
        need = column.need
        free, memory = self._rack.free[node], self._rack.memory[node]
        smaller = [
            id_
            for id_, count in sorted(self._held[node].items())
            for _ in range(count)
            if self._columns[id_].need.size < need.size
        ]
        smaller.sort(key=lambda id_: -self._columns[id_].need.group)
        leaving: list[str] = []
        for id_ in smaller:
            if free >= need.group and memory >= need.memory_bytes:
                break
            leaving.append(id_)
            free += self._columns[id_].need.group
            memory += self._columns[id_].need.memory_bytes
        enough = free >= need.group and memory >= need.memory_bytes
        return leaving if enough else []

    def _cheapest(self, column: Column) -> str | None:
        """Return the node on which the least has to make way."""
        best: tuple[float, int, str] | None = None
        for node, pool in self._rack.pool.items():
            leaving = self._leaving(node, column) if pool == column.need.pool else []
            if leaving:
                moving = sum(self._columns[id_].moving for id_ in set(leaving))
                best = min(best or (moving, len(leaving), node), (moving, len(leaving), node))
        return None if best is None else best[2]

    def _clear(self, node: str, column: Column) -> None:
        for id_ in self._leaving(node, column):
            other = self._columns[id_]
            self._rack.add(_one(other), ((node, 1),), sign=1)
            self._held[node][id_] -= 1
            self._want(other)


def _one(column: Column) -> Need:
    return replace(column.need, count=1)
