"""What the fleet's choice is among: columns, and the order in which two choices are compared.

A column is one way to serve one intent or a whole sharing group. Choices are compared by
`Score`, level by level (joints.md §14): what serves stays served; per priority, highest first, as few
unplaced intents as possible; then, in the same order, the least loss; then age.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from trimtab.planning.slots import Need, Nodes, first

UNPLACED: Final = 1000.0
"""Loss of an intent without a place, where places and losses must be one number (planner.md §9)."""
_MISSED: Final = 50.0
_MOST_MISSED: Final = 2.0
_PER_DEVICE: Final = 0.001
_DIGITS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An intent as far as the choice reads it.

    Attributes:
        uid: Of the intent.
        priority: Higher first.
        created_seconds: Unix time; the older wins a tie.
        serves: It has pods that serve: no newcomer of any priority takes its place.
    """

    uid: str
    priority: int = 0
    created_seconds: int = 0
    serves: bool = False

    @property
    def rank(self) -> tuple[bool, int]:
        """What is compared first: what serves, then priority; smaller comes first."""
        return (not self.serves, -self.priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One way to serve its members.

    Attributes:
        id: Unique; the order of ids breaks ties.
        members: One intent, or all of a sharing group.
        need: The place that it asks for.
        loss: Regret against the best that each member could have, summed.
        missed: Predicted/target of the requirement that is missed most; 0 where none is.
        switching: Loss of moving there from what runs; 0 for what runs and for newcomers.
        nodes: Where its groups run now; empty for what does not run.
        moving: Loss if groups that run leave their nodes.
        largest: Devices of the members' largest column, for the tie-break.
        cost: Loss, misses, switching, and devices as a tie-break. The note's 0.001·GPUs would let
            a fleet of thousands of threads outvote regret, so devices count as a share of the
            members' largest column.
    """

    id: str
    members: tuple[Member, ...]
    need: Need
    loss: float = 0.0
    missed: float = 0.0
    switching: float = 0.0
    nodes: Nodes = ()
    moving: float = 0.0
    largest: int = 0
    cost: float = field(init=False)

    def __post_init__(self) -> None:
        """Add the cost up."""
        devices = self.need.devices / max(1, self.largest, self.need.devices)
        missed = _MISSED * min(_MOST_MISSED, self.missed)
        cost = self.loss + missed + self.switching + _PER_DEVICE * devices
        object.__setattr__(self, "cost", cost)

    @property
    def kept(self) -> Nodes:
        """Its groups that run and go on, by node; it may want fewer than run."""
        return first(self.nodes, self.need.count)

    @property
    def priority(self) -> int:
        """The highest of its members'."""
        return max(member.priority for member in self.members)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Score:
    """How good a choice is; the smaller is the better.

    Attributes:
        unplaced: Per rank, what serves first, then by priority: members without a place.
        losses: Per priority, highest first: cost of the chosen columns.
        age: Sum over the unplaced of how much older they are than the youngest, seconds.
    """

    unplaced: tuple[int, ...]
    losses: tuple[float, ...]
    age: int


class Board:
    """The members and columns of one choice, sorted, so that the order of inputs does not matter."""

    def __init__(self, columns: Iterable[Column]) -> None:
        """Sort them.

        Raises:
            ValueError: Two columns have one id.
        """
        self.columns: Final = tuple(sorted(columns, key=lambda c: c.id))
        ids = [column.id for column in self.columns]
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(
                f"Columns {', '.join(twice)} exist more than once. This is a bug; please report it."
            )
        found = {m.uid: m for column in self.columns for m in column.members}
        self.members: Final = tuple(found[uid] for uid in sorted(found))
        self.ranks: Final = tuple(sorted({member.rank for member in self.members}))
        self.priorities: Final = tuple(sorted({c.priority for c in self.columns}, reverse=True))
        by_member: dict[str, list[Column]] = {uid: [] for uid in sorted(found)}
        for column in self.columns:
            for member in column.members:
                by_member[member.uid].append(column)
        self.of: Final[Mapping[str, Sequence[Column]]] = {
            uid: sorted(mine, key=lambda c: (c.cost, c.id)) for uid, mine in by_member.items()
        }
        self._place = {rank: n for n, rank in enumerate(self.ranks)}
        self._level = {priority: n for n, priority in enumerate(self.priorities)}
        self._youngest = max((m.created_seconds for m in self.members), default=0)
        self._leaving: dict[str, tuple[float, ...]] = {}

    def level(self, column: Column) -> int:
        """Return where `change` counts a column's cost."""
        return len(self.ranks) + self._level[column.priority]

    def change(self, gone: Iterable[Column], come: Iterable[Column]) -> tuple[float, ...]:
        """Return by how much each level of the score changes; smaller than zeros is an improvement.

        Changes of columns that have no member in common add up.
        """
        ranks = [0.0] * len(self.ranks)
        losses = [0.0] * len(self.priorities)
        age = 0.0
        for sign, columns in ((1, gone), (-1, come)):
            for column in columns:
                losses[self._level[column.priority]] -= sign * column.cost
                for member in column.members:
                    ranks[self._place[member.rank]] += sign
                    age += sign * (self._youngest - member.created_seconds)
        return (*ranks, *(round(one, _DIGITS) for one in losses), age)

    def leaving(self, column: Column) -> tuple[float, ...]:
        """Return `change` if one of the columns goes; found once, since swaps ask for it all the time."""
        found = self._leaving.get(column.id)
        if found is None:
            found = self._leaving[column.id] = self.change((column,), ())
        return found

    def score(self, chosen: Iterable[Column]) -> Score:
        """Return how good a choice of columns is."""
        columns = sorted(chosen, key=lambda c: c.id)
        placed = {member.uid for column in columns for member in column.members}
        out = [member for member in self.members if member.uid not in placed]
        losses = [
            math.fsum(c.cost for c in columns if c.priority == priority)
            for priority in self.priorities
        ]
        return Score(
            unplaced=tuple(sum(m.rank == rank for m in out) for rank in self.ranks),
            losses=tuple(round(one, _DIGITS) for one in losses),
            age=sum(self._youngest - m.created_seconds for m in out),
        )
