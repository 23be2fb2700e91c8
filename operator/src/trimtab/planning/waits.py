"""Quantiles of a wait that is certain up to a point and then ends as a queue's exponential tail does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from trimtab.planning.step_arrays import Floats, Ints, pick, totals

_ITERATIONS: Final = 40
_EXACT: Final = 1e-10


@dataclass(slots=True, kw_only=True)
class Waits:
    """Per row, mixtures over columns: what waits are possible, and how probable each one is.

    Attributes:
        shares: Probability of each; 0 where a row has fewer than others.
        sure: Certain time, µs.
        use: Probability of queueing beyond that.
        tail: Mean of the queue's exponential tail, µs.
    """

    shares: Floats
    sure: Floats
    use: Floats
    tail: Floats
    _late: Floats = field(init=False)
    _ahead: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Put the possible waits in the order of their certain times, the impossible ones last."""
        self.sure = np.where(self.shares > 0, self.sure, np.inf)
        order = np.argsort(self.sure, axis=1, kind="stable")
        self.shares, self.sure, self.use, self.tail = (
            pick(table, order) for table in (self.shares, self.sure, self.use, self.tail)
        )
        self._late = self.shares * self.use
        # The probability of each wait and all after it, 0 at the end.
        self._ahead = np.zeros((len(self.shares), self.shares.shape[1] + 1))
        self._ahead[:, :-1] = np.cumsum(self.shares[:, ::-1], axis=1)[:, ::-1]

    def mean(self) -> Floats:
        """Return every row's mean."""
        times = np.where(self.shares > 0, self.sure, 0.0) + self.use * self.tail
        return totals(self.shares * times)

    def exceeded(self, shares: Sequence[float]) -> Floats:
        """Return the times that each row's wait exceeds with each of these probabilities.

        The probability falls in jumps where a certain time ends, and between them as a sum of
        exponentials, on whose logarithm Newton's method comes from the left and never overshoots.
        """
        wanted = np.tile(np.array(shares), (len(self.shares), 1))
        first = self._first(wanted)
        times = pick(self.sure, np.maximum(first - 1, 0))
        rows, columns = np.nonzero(first > 0)
        if len(rows):
            times[rows, columns] = self._between_jumps(
                rows,
                first[rows, columns],
                wanted[rows, columns],
                start=times[rows, columns],
            )
        return times

    def _first(self, wanted: Floats) -> Ints:
        """Return the first wait at whose certain time at most what is wanted is left."""
        # Before these more than that lies ahead alone.
        low: Ints = (self._ahead[:, 1:, None] > wanted[:, None, :]).sum(axis=1)
        high = np.repeat((self.shares > 0).sum(axis=1)[:, None], low.shape[1], axis=1)
        while True:
            rows, columns = np.nonzero(low < high)
            if not len(rows):
                return low
            middle = (low[rows, columns] + high[rows, columns]) // 2
            left = self._left(rows, middle + 1, self.sure[rows, middle])
            enough = left <= wanted[rows, columns]
            high[rows, columns] = np.where(enough, middle, high[rows, columns])
            low[rows, columns] = np.where(enough, low[rows, columns], middle + 1)

    def _left(self, rows: Ints, first: Ints, times: Floats) -> Floats:
        """Return the probability of more than a time at which the first so many waits have ended."""
        tails, _ = self._tails(rows, first, times)
        left: Floats = self._ahead[rows, first] + totals(tails)
        return left

    def _tails(self, rows: Ints, first: Ints, times: Floats) -> tuple[Floats, Floats]:
        """Return the probabilities of waits that have ended and queue, and the means of their tails."""
        width = int(first.max())
        ended = np.arange(width) < first[:, None]
        tail = self.tail[rows, :width]
        over = np.where(ended, (self.sure[rows, :width] - times[:, None]) / tail, -np.inf)
        tails: Floats = self._late[rows, :width] * np.exp(over)
        return tails, tail

    def _between_jumps(self, rows: Ints, first: Ints, share: Floats, *, start: Floats) -> Floats:
        """Return where the probability falls to ``share`` after one certain time, or the next one."""
        width = self.shares.shape[1]
        edge = np.where(first < width, self.sure[rows, np.minimum(first, width - 1)], np.inf)
        found = start.copy()
        ahead, under_way = self._ahead[rows, first], np.arange(len(rows))
        for _ in range(_ITERATIONS):
            here, time = under_way, found[under_way]
            tails, tail = self._tails(rows[here], first[here], time)
            value = ahead[here] + totals(tails)
            above = value > share[here]
            with np.errstate(divide="ignore", invalid="ignore"):
                log = np.log(np.maximum(value, share[here]) / share[here])
                step = np.where(above, value * log / totals(tails / tail), 0.0)
            found[here] = np.minimum(time + step, edge[here])
            under_way = here[above & (found[here] < edge[here]) & (step > _EXACT * found[here])]
            if not len(under_way):
                break
        return found
