"""A choice of columns with the place of every group; what runs stays where it is."""

from collections.abc import Iterable, Sequence

from trimtab.planning.columns import Board, Column
from trimtab.planning.slots import Node, Nodes, Rack


class Layout:
    """Chosen columns and their nodes; mutable, never oversubscribed."""

    def __init__(self, board: Board, nodes: Iterable[Node]) -> None:
        self.board = board
        self.placed: dict[str, tuple[Column, Nodes]] = {}
        self.rack = Rack(nodes)
        self._by_member: dict[str, Column] = {}
        self._by_pool: dict[str, dict[str, Column]] = {}

    def chosen(self) -> list[Column]:
        """Return the chosen columns, sorted by id."""
        return [self.placed[id_][0] for id_ in sorted(self.placed)]

    def in_pool(self, pool: str) -> list[Column]:
        """Return the chosen columns of one pool, in no order that means anything."""
        return list(self._by_pool.get(pool, {}).values())

    def of(self, uid: str) -> Column | None:
        """Return the column that serves an intent."""
        return self._by_member.get(uid)

    def rivals(self, column: Column) -> list[Column]:
        """Return the chosen columns that have a member in common with this one, sorted by id."""
        found = {c.id: c for m in column.members if (c := self._by_member.get(m.uid)) is not None}
        return [found[id_] for id_ in sorted(found)]

    def put(self, column: Column) -> bool:
        """Choose a column if there is room, and its groups that run can stay where they are."""
        nodes = self.rack.place(column.need, prefer=column.nodes)
        if nodes is None:
            return False
        here = dict(nodes)
        if any(here.get(node, 0) < count for node, count in column.kept):
            return False
        self._take(column, nodes)
        return True

    def drop(self, column: Column) -> Nodes:
        """Give a column's place back and return where it was."""
        _, nodes = self.placed.pop(column.id)
        self.rack.add(column.need, nodes, sign=1)
        del self._by_pool[column.need.pool][column.id]
        for member in column.members:
            del self._by_member[member.uid]
        return nodes

    def exchange(self, gone: Sequence[Column], come: Sequence[Column]) -> bool:
        """Replace columns by others if all of them find a place; else leave everything as it was."""
        before = [(column, self.drop(column)) for column in gone]
        done: list[Column] = []
        for column in come:
            if not self.put(column):
                break
            done.append(column)
        if len(done) == len(come):
            return True
        for column in done:
            self.drop(column)
        for column, nodes in before:
            self._take(column, nodes)
        return False

    def pack(self, columns: Iterable[Column]) -> list[Column]:
        """Place columns, what runs first where it runs, then the largest groups; return who found no place."""
        wanted = sorted(columns, key=_packing)
        return [column for column in wanted if not self.put(column)]

    def _take(self, column: Column, nodes: Nodes) -> None:
        self.rack.add(column.need, nodes, sign=-1)
        self.placed[column.id] = (column, nodes)
        self._by_pool.setdefault(column.need.pool, {})[column.id] = column
        for member in column.members:
            self._by_member[member.uid] = column


def _packing(column: Column) -> tuple[object, ...]:
    need = column.need
    return (not column.nodes, -need.size, -need.memory_bytes, column.id)
