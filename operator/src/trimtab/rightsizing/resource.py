"""One resource of one function: gate, candidates, selection, learning (rightsizer.md §6.3, §6.4).

CPU and memory are learned apart by one of these each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.rightsizing.learner import CostSensitive
from trimtab.rightsizing.selection import Entry, Scores
from trimtab.rightsizing.targets import cost_vector, smallest_class
from trimtab.rightsizing.types import Choice, Gate, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from trimtab.rightsizing.policy import SizerPolicy

_BROKEN_IN_A_ROW = 3


class Resource:
    """What is known about a function's need of CPU, or of memory.

    Attributes:
        classes: Ascending, in thousandths of a vCPU or MiB.
        default: Index of the class that is used while nothing is known.
        feedbacks: Runs learned from since the last restart.
        rejected: Updates that would have left numbers that are not finite.
        resets: How often the learner began anew because of that.
    """

    def __init__(
        self,
        classes: tuple[int, ...],
        *,
        default: int,
        width: int,
        under: float,
        entry: Entry,
        policy: SizerPolicy,
    ) -> None:
        self.classes = classes
        self.default = default
        self.learner = CostSensitive(len(classes), width)
        self.scores = Scores(entry)
        self.feedbacks = 0
        self.rejected = 0
        self.resets = 0
        self._broken = 0
        self._entry = entry
        self._under = under
        self._policy = policy

    def gated(self, gate: Gate) -> Choice:
        """Return the default, and why."""
        return Choice(index=self.default, source=Source.DEFAULT, gate=gate)

    def choose(self, x: NDArray[np.float64], *, runs: int, need: float | None) -> Choice:
        """Return the decision for an input.

        Args:
            x: The learner's inputs.
            runs: Runs in the input's bucket.
            need: What the bucket says, in the classes' unit; None if it has no run, which only a policy
                without the gate for novel inputs lets through.
        """
        if self.feedbacks < self._policy.warm_up:
            return self.gated(Gate.WARMING_UP)
        if runs < self._policy.known:
            return self.gated(Gate.NOVEL_INPUT)
        costs = self.learner.costs(x)
        candidates = self.candidates(costs, need=need)
        source = self.scores.best(candidates)
        return Choice(
            index=candidates[source],
            source=source,
            costs=tuple(costs.tolist()),
            candidates=candidates,
        )

    def candidates(self, costs: NDArray[np.float64], *, need: float | None) -> dict[Source, int]:
        """Return the class that each candidate of the policy says; without a need, the learner's."""
        learned = int(costs.argmin())
        if need is None:
            return {Source.LEARNED: learned}
        bucket = smallest_class(self.classes, need)
        every = {
            Source.BUCKET: bucket,
            Source.RAISED: max(bucket, learned),
            Source.LEARNED: learned,
        }
        if len(self._policy.candidates) == len(every):
            return every
        return {name: index for name, index in every.items() if name in self._policy.candidates}

    def learn(
        self,
        x: NDArray[np.float64],
        *,
        target: int,
        least: int,
        runs: int,
        need: float | None,
        weight: float = 1.0,
    ) -> None:
        """Judge the candidates by a measured run, then learn from it.

        Args:
            x: The learner's inputs.
            target: Index of the class that was needed, head-room included.
            least: Index of the class below which it would have been late or killed.
            runs: Runs in the input's bucket before this one.
            need: What the bucket said before this one.
            weight: Of the lesson.
        """
        cost = cost_vector(len(self.classes), target=target, under=self._under)
        known = runs >= self._policy.known and self.feedbacks >= self._policy.warm_up
        if known and need is not None:
            candidates = self.candidates(self.learner.costs(x), need=need)
            self.scores.charge(
                candidates,
                costs=cost.tolist(),
                target=target,
                least=least,
                miss_price=self._policy.miss_price,
            )
        self.feedbacks += 1
        if self.learner.learn(x, cost, weight=weight):
            self._broken = 0
            return
        self.rejected += 1
        self._broken += 1
        if self._broken >= _BROKEN_IN_A_ROW:
            self.learner = CostSensitive(*self.learner.weights.shape)
            self.scores = Scores(self._entry)
            self.resets += 1
            self._broken = 0

    def target(self, need: float, *, at_most: int | None = None) -> int:
        """Return the smallest class that is at least the need."""
        found = smallest_class(self.classes, need)
        return found if at_most is None else min(found, at_most)

    def restart(self) -> None:
        """Go back to the default until enough has been seen again; the weights stay."""
        self.feedbacks = 0
        self.scores = Scores(self._entry)


def index_of(classes: Sequence[int], value: int) -> int:
    """Return the class of what a pod really has: the largest that is not above it, else the first."""
    return max((i for i, size in enumerate(classes) if size <= value), default=0)
