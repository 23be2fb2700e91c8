"""Numbers for the traces that plans are compared on: a pure function of a seed, and evenly spread.

The percentiles of a few hundred independent requests hang on luck. Here the requests of a trace have
the quantiles of their laws, each once, in an order drawn from the seed (stratified sampling): rate and mean
lengths are exact and only the order is left to luck. Gaps that are not exponential have the means of as
many equally probable parts of their law: where most of the time is in a few long gaps, a quantile more
or less would be another rate. The generator is SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014); a library's could change its numbers with a release, and every plan with them.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK: Final = (1 << 64) - 1
_GAMMA: Final = 0x9E3779B97F4A7C15
_NORMAL: Final = NormalDist()
_LENGTHS: Final = 2
_POINTS: Final = 8_000


class StratifiedDraws:
    """Draws for one trace of ``count`` requests (`workload.Draws`).

    For each request a gap is drawn and then two lengths, as `workload.synthesize` does; numbers of
    one kind are the quantiles (i + ½)/count of its law in random order.
    """

    __slots__ = ("_count", "_gaps", "_lengths", "_turn")

    def __init__(self, seed: int, *, count: int) -> None:
        gaps, *lengths = _decks(seed, count)
        self._count = count
        self._gaps = iter(gaps)
        self._lengths = [iter(deck) for deck in lengths]
        self._turn = 0

    def gammavariate(self, shape: float, scale: float, /) -> float:
        """Return a gap."""
        u = next(self._gaps)
        if shape == 1.0:
            return -scale * math.log(u)
        return scale * _gamma_parts(shape, self._count)[int(u * self._count)]

    def lognormvariate(self, mean: float, deviation: float, /) -> float:
        """Return a length, of prompt and output in turn."""
        normal = next(self._lengths[self._turn])
        self._turn = (self._turn + 1) % _LENGTHS
        return math.exp(mean + deviation * normal)


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


@lru_cache(maxsize=8)
def _decks(seed: int, count: int) -> tuple[tuple[float, ...], ...]:
    """Return the quantiles (i + ½)/count in a random order for gaps, and normal ones for lengths."""
    random = _Random(seed)
    gaps, *lengths = (_shuffled(count, random) for _ in range(1 + _LENGTHS))
    return (tuple(gaps), *(tuple(map(_NORMAL.inv_cdf, deck)) for deck in lengths))


def _shuffled(count: int, random: _Random) -> list[float]:
    values = [(i + 0.5) / count for i in range(count)]
    for last in range(count - 1, 0, -1):
        other = int(random.uniform() * (last + 1))
        values[last], values[other] = values[other], values[last]
    return values


@lru_cache(maxsize=64)
def _gamma_parts(shape: float, count: int) -> tuple[float, ...]:
    """Return the means of ``count`` equally probable parts of a Gamma law of scale 1, rising.

    By the trapezoidal rule, closer towards 0. In u = x^min(1, shape) the density has no pole there.
    """
    power = max(1.0, 1.0 / shape)
    most = shape + 12.0 * math.sqrt(shape) + 40.0
    u = most ** (1.0 / power) * np.linspace(0.0, 1.0, _POINTS) ** 2
    x = u**power
    density = np.exp(-x) * (1.0 if shape <= 1.0 else x ** (shape - 1.0))
    steps = np.diff(u)

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * steps)])

    below, moment = summed(density), summed(density * x)
    edges = np.linspace(0.0, 1.0, count + 1)
    parts = np.diff(np.interp(edges * below[-1], below, moment))
    return tuple((parts * (shape * count / moment[-1])).tolist())
