"""Numbers for the traces that plans are compared on: a pure function of a seed, and evenly spread.

The percentiles of a few hundred independent requests hang on luck. Here the requests of a trace have
the quantiles of their laws, each once, in an order drawn from the seed (stratified sampling): rate and mean
lengths are exact and only the order is left to luck. The generator is SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014); a library's could change its numbers with a release, and every plan with them.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

_MASK: Final = (1 << 64) - 1
_GAMMA: Final = 0x9E3779B97F4A7C15
_NORMAL: Final = NormalDist()
_LENGTHS: Final = 2


class StratifiedDraws:
    """Draws for one trace of ``count`` requests (`workload.Draws`).

    For each request a gap is drawn and then two lengths, as `workload.synthesize` does; numbers of
    one kind are the quantiles (i + ½)/count of its law in random order.
    """

    __slots__ = ("_gaps", "_lengths", "_random", "_turn")

    def __init__(self, seed: int, *, count: int) -> None:
        gaps, *lengths = _decks(seed, count)
        self._gaps = iter(gaps)
        self._lengths = [iter(deck) for deck in lengths]
        self._random = _Random(seed)
        self._turn = 0

    def gammavariate(self, shape: float, scale: float, /) -> float:
        """Return a gap; only exponential ones are spread evenly."""
        if shape == 1.0:
            return -scale * math.log(next(self._gaps))
        return self._random.gammavariate(shape, scale)

    def lognormvariate(self, mean: float, deviation: float, /) -> float:
        """Return a length, of prompt and output in turn."""
        u = next(self._lengths[self._turn])
        self._turn = (self._turn + 1) % _LENGTHS
        return math.exp(mean + deviation * _NORMAL.inv_cdf(u))


class _Random:
    """Independent numbers from a seed."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def uniform(self) -> float:
        """Return a number strictly between 0 and 1."""
        self._state = (self._state + _GAMMA) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53 + 2.0**-54

    def gammavariate(self, shape: float, scale: float) -> float:
        """Return a Gamma number: Marsaglia and Tsang's method (ACM TOMS 26, 2000)."""
        if shape < 1.0:
            lift = math.pow(self.uniform(), 1.0 / shape)
            return lift * self.gammavariate(shape + 1.0, scale)
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = _NORMAL.inv_cdf(self.uniform())
            v = (1.0 + c * x) ** 3
            if v > 0 and math.log(self.uniform()) < x * x / 2 + d - d * v + d * math.log(v):
                return scale * d * v


@lru_cache(maxsize=8)
def _decks(seed: int, count: int) -> tuple[tuple[float, ...], ...]:
    """Return the quantiles (i + ½)/count in three random orders."""
    random = _Random(seed)
    return tuple(tuple(_shuffled(count, random)) for _ in range(1 + _LENGTHS))


def _shuffled(count: int, random: _Random) -> list[float]:
    values = [(i + 0.5) / count for i in range(count)]
    for last in range(count - 1, 0, -1):
        other = int(random.uniform() * (last + 1))
        values[last], values[other] = values[other], values[last]
    return values
