"""Quantiles of a wait that is certain up to a point and then ends as a queue's exponential tail does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from trimtab.planning.step_arrays import Floats, Ints, pick, totals

_ITERATIONS: Final = 40
_EXACT: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Per row, further waits whose certain times rise by equal steps and probabilities by equal factors.

    They are those of requests that find all slots taken, and one, two, … others who wait for one. Their
    sums are geometric series, so a thousand of them cost what one does.

    Attributes:
        count: How many there are.
        share: Probability of the first.
        log_ratio: Of each probability to the one before it.
        sure: Certain time of the first, µs.
        step: By how much each is longer than the one before it, µs, above 0.
        use: Probability of queueing beyond that, alike for all.
        tail: Mean of the queue's exponential tail, µs, alike for all.
    """

    count: Floats
    share: Floats
    log_ratio: Floats
    sure: Floats
    step: Floats
    use: Floats
    tail: Floats

    def mean(self) -> Floats:
        """Return what the waits add to every row's mean."""
        places = np.arange(max(1.0, self.count.max()))
        inside = places < self.count[:, None]
        logs = np.where(inside, places, 0.0) * self.log_ratio[:, None]
        times = (self.sure + self.use * self.tail)[:, None] + places * self.step[:, None]
        return self.share * totals(np.where(inside, np.exp(logs) * times, 0.0))

    def at(self, rows: Ints, place: Floats) -> Floats:
        """Return the certain time at a place, which counts from 0."""
        time: Floats = self.sure[rows] + place * self.step[rows]
        return time

    def ended(self, rows: Ints, times: Floats) -> Floats:
        """Return how many certain times are over at a time."""
        places = np.floor((times - self.sure[rows]) / self.step[rows]) + 1
        ended: Floats = np.clip(places, 0.0, self.count[rows])
        return ended

    def before(self, rows: Ints, times: Floats) -> Floats:
        """Return how many certain times lie before a time."""
        places = np.ceil((times - self.sure[rows]) / self.step[rows])
        before: Floats = np.clip(places, 0.0, self.count[rows])
        return before

    def ahead(self, rows: Ints, ended: Floats) -> Floats:
        """Return the probability of those that have not ended."""
        log_ratio = self.log_ratio[rows]
        rest = _series(log_ratio, self.count[rows] - ended)
        probability: Floats = self.share[rows] * np.exp(ended * log_ratio) * rest
        return probability

    def late(self, rows: Ints, ended: Floats, times: Floats) -> Floats:
        """Return the probability of those that have ended and queue longer than a time."""
        log_ratio, step, tail = self.log_ratio[rows], self.step[rows], self.tail[rows]
        last = np.maximum(0.0, ended - 1)
        # Summed from the last one back, whose part is the largest: nothing overflows.
        over = last * log_ratio + np.minimum(0.0, (self.at(rows, last) - times) / tail)
        back = _series(-(log_ratio + step / tail), ended)
        probability: Floats = self.share[rows] * self.use[rows] * np.exp(over) * back
        return probability


@dataclass(slots=True, kw_only=True)
class Waits:
    """Per row, mixtures over columns: what waits are possible, and how probable each one is.

    Attributes:
        shares: Probability of each; 0 where a row has fewer than others.
        sure: Certain time, µs.
        use: Probability of queueing beyond that.
        tail: Mean of the queue's exponential tail, µs.
        line: Further waits of every row; None if there are none.
    """

    shares: Floats
    sure: Floats
    use: Floats
    tail: Floats
    line: Line | None = None
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
        mean = totals(self.shares * times)
        return mean if self.line is None else mean + self.line.mean()

    def exceeded(self, shares: Sequence[float]) -> Floats:
        """Return the times that each row's wait exceeds with each of these probabilities.

        The probability falls in jumps where a certain time ends, and between them as a sum of
        exponentials, on whose logarithm Newton's method comes from the left and never overshoots.
        """
        count, width = self.shares.shape
        rows = np.repeat(np.arange(count), len(shares))
        wanted = np.tile(np.array(shares), count)
        first = self._first(rows, wanted)
        begin = np.where(first > 0, self.sure[rows, np.maximum(first - 1, 0)], -np.inf)
        edge = np.where(first < width, self.sure[rows, np.minimum(first, width - 1)], np.inf)
        ended = np.zeros(len(rows))
        if self.line is not None:
            ended, begin, edge = self._on_line(
                self.line, rows, first, wanted, begin=begin, edge=edge
            )
        # Before the first certain time everything lies ahead.
        times = np.where(first + ended > 0, begin, edge)
        some = np.nonzero(first + ended > 0)[0]
        if len(some):
            times[some] = self._between_jumps(
                rows[some],
                first[some],
                ended[some],
                wanted[some],
                start=times[some],
                edge=edge[some],
            )
        return times.reshape(count, len(shares))

    def _first(self, rows: Ints, wanted: Floats) -> Ints:
        """Return the first wait of the table at whose certain time at most what is wanted is left."""
        # Before these more than that lies ahead alone.
        low: Ints = (self._ahead[rows, 1:] > wanted[:, None]).sum(axis=1)
        high: Ints = (self.shares > 0).sum(axis=1)[rows]
        while True:
            here = np.nonzero(low < high)[0]
            if not len(here):
                return low
            middle = (low[here] + high[here]) // 2
            times = self.sure[rows[here], middle]
            ended = None if self.line is None else self.line.ended(rows[here], times)
            enough = self._left(rows[here], middle + 1, ended, times) <= wanted[here]
            high[here] = np.where(enough, middle, high[here])
            low[here] = np.where(enough, low[here], middle + 1)

    def _on_line(
        self,
        line: Line,
        rows: Ints,
        first: Ints,
        wanted: Floats,
        *,
        begin: Floats,
        edge: Floats,
    ) -> tuple[Floats, Floats, Floats]:
        """Return between which certain times of the line the probability falls to what is wanted.

        Returns:
            How many have ended there, and the certain times, of table or line, on both sides.
        """
        least = line.ended(rows, begin)
        most = np.maximum(least, line.before(rows, edge))
        low, high = least.copy(), most.copy()
        while True:
            here = np.nonzero(low < high)[0]
            if not len(here):
                break
            middle = np.floor((low[here] + high[here]) / 2)
            times = line.at(rows[here], middle)
            enough = self._left(rows[here], first[here], middle + 1, times) <= wanted[here]
            high[here] = np.where(enough, middle, high[here])
            low[here] = np.where(enough, low[here], middle + 1)
        after = np.where(low > least, line.at(rows, low - 1), begin)
        until = np.where(low < most, line.at(rows, low), edge)
        return low, after, until

    def _left(self, rows: Ints, first: Ints, ended: Floats | None, times: Floats) -> Floats:
        """Return the probability of more than a time at which so many waits of table and line ended."""
        tails, _ = self._tails(rows, first, times)
        left: Floats = self._ahead[rows, first] + totals(tails)
        if self.line is not None and ended is not None:
            left = left + self.line.ahead(rows, ended) + self.line.late(rows, ended, times)
        return left

    def _tails(self, rows: Ints, first: Ints, times: Floats) -> tuple[Floats, Floats]:
        """Return the probabilities of waits that have ended and queue, and the means of their tails."""
        width = max(1, int(first.max()))
        ended = np.arange(width) < first[:, None]
        tail = self.tail[rows, :width]
        over = np.where(ended, (self.sure[rows, :width] - times[:, None]) / tail, -np.inf)
        tails: Floats = self._late[rows, :width] * np.exp(over)
        return tails, tail

    def _between_jumps(
        self,
        rows: Ints,
        first: Ints,
        ended: Floats,
        share: Floats,
        *,
        start: Floats,
        edge: Floats,
    ) -> Floats:
        """Return where the probability falls to ``share`` after one certain time, or the next one."""
        found, under_way = start.copy(), np.arange(len(rows))
        ahead = self._ahead[rows, first]
        if self.line is not None:
            ahead = ahead + self.line.ahead(rows, ended)
        for _ in range(_ITERATIONS):
            here, time = under_way, found[under_way]
            tails, tail = self._tails(rows[here], first[here], time)
            late, slope = totals(tails), totals(tails / tail)
            if self.line is not None:
                further = self.line.late(rows[here], ended[here], time)
                late, slope = late + further, slope + further / self.line.tail[rows[here]]
            value = ahead[here] + late
            above = value > share[here]
            with np.errstate(divide="ignore", invalid="ignore"):
                log = np.log(np.maximum(value, share[here]) / share[here])
                step = np.where(above, value * log / slope, 0.0)
            found[here] = np.minimum(time + step, edge[here])
            under_way = here[above & (found[here] < edge[here]) & (step > _EXACT * found[here])]
            if not len(under_way):
                break
        return found


def _series(x: Floats, count: Floats) -> Floats:
    """Return Σ e^(m·x) over m = 0, …, count - 1, exact also where e^x is nearly 1."""
    each = np.expm1(x)
    flat = each == 0.0
    return np.where(flat, count, np.expm1(count * x) / np.where(flat, 1.0, each))
