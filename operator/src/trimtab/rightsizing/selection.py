"""Which candidate's class is taken (rightsizer.md §6.4): each is charged what its class would have cost.

One measured run gives the cost of every class, so candidates that were not followed are judged too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.rightsizing.types import Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DECAY: Final = 0.98
_SAME_RATE: Final = 0.01
CANDIDATES: Final = (Source.BUCKET, Source.RAISED, Source.LEARNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """When the learner alone may be followed.

    Attributes:
        scored: Decayed count of judged runs.
        clean: Judged runs in a row in which it was never under; 0 asks for a rate of under-predictions
            no more than one point above the better of the others instead.
    """

    scored: float
    clean: int


CPU_ENTRY: Final = Entry(scored=20.0, clean=0)
MEMORY_ENTRY: Final = Entry(scored=0.0, clean=200)


@dataclass(slots=True)
class Scores:
    """What each candidate would have cost lately, decayed.

    Attributes:
        entry: When the learner alone joins.
        count: Judged runs.
        cost: Costs by candidate.
        under: Under-predictions by candidate.
        clean: Judged runs since the learner alone was under.
    """

    entry: Entry
    count: float = 0.0
    cost: dict[Source, float] = field(default_factory=lambda: dict.fromkeys(CANDIDATES, 0.0))
    under: dict[Source, float] = field(default_factory=lambda: dict.fromkeys(CANDIDATES, 0.0))
    clean: int = 0

    def charge(
        self,
        candidates: Mapping[Source, int],
        *,
        costs: Sequence[float],
        target: int,
        least: int = 0,
        miss_price: float = 0.0,
    ) -> None:
        """Judge the candidates of a run whose costs are known.

        Args:
            candidates: The class that each said.
            costs: Of each class.
            target: The class that was needed, head-room included.
            least: The class below which the run would have been late or killed.
            miss_price: What that costs on top.
        """
        self.count = self.count * _DECAY + 1.0
        for name, index in candidates.items():
            self.cost[name] = self.cost[name] * _DECAY + costs[index] + miss_price * (index < least)
            self.under[name] = self.under[name] * _DECAY + (index < target)
        learned = candidates.get(Source.LEARNED, target)
        self.clean = 0 if learned < target else self.clean + 1

    def best(self, candidates: Mapping[Source, int]) -> Source:
        """Return the cheaper of bucket and raised (the bucket where equal), or the learner alone."""
        if len(candidates) == 1:
            return next(iter(candidates))
        cost = self.cost
        best = Source.RAISED if cost[Source.RAISED] < cost[Source.BUCKET] else Source.BUCKET
        if Source.LEARNED in candidates and self._joins() and cost[Source.LEARNED] < cost[best]:
            return Source.LEARNED
        return best

    def _joins(self) -> bool:
        if self.count < self.entry.scored or self.clean < self.entry.clean:
            return False
        if self.entry.clean:
            return True
        least = min(self.under[Source.BUCKET], self.under[Source.RAISED])
        return self.under[Source.LEARNED] <= least + _SAME_RATE * self.count
