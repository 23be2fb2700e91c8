"""Few sizes for many wants (rightsizer.md §6.5): each size is a pool, and a warm misfit beats a cold fit."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.rightsizing.types import Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

MOST_SIZES: Final = 4
_WORTH_SWITCHING: Final = 0.10


def round_up(want: Size, sizes: Iterable[Size], *, weights: tuple[float, float]) -> Size:
    """Return the cheapest size that covers the want; the want itself if none does.

    Args:
        want: What is predicted to suffice.
        sizes: Those in use.
        weights: What a thousandth of a vCPU and a MiB cost, in any unit.
    """
    covering = [size for size in sizes if size.covers(want)]
    return min(covering, key=lambda size: (_price(size, weights), size), default=want)


def waste(wants: Counter[Size], sizes: Sequence[Size], *, weights: tuple[float, float]) -> float:
    """Return what the sizes cost above the wants, summed over them."""
    return sum(
        count * (_price(round_up(want, sizes, weights=weights), weights) - _price(want, weights))
        for want, count in wants.items()
    )


def choose_sizes(
    wants: Sequence[Size],
    *,
    default: Size,
    weights: tuple[float, float],
    limit: int = MOST_SIZES,
) -> tuple[Size, ...]:
    """Return at most `limit` sizes, the default among them, that cover every want.

    The two sizes whose component-wise maximum adds the least waste become one, again and again.

    Args:
        wants: The last ones, at most 256.
        default: Is kept.
        weights: What a thousandth of a vCPU and a MiB cost, in any unit.
        limit: At least 2; 1 would leave the default alone, which may cover not everything.
    """
    counts = Counter(want for want in wants if want != default)
    rows = [default, *counts]
    sizes = np.asarray([(size.cpu_m, size.mem_mib) for size in rows], dtype=np.float64)
    number = np.asarray([0, *counts.values()], dtype=np.float64)
    while len(sizes) > limit:
        first, second = _cheapest_pair(sizes, number, np.asarray(weights))
        sizes[first] = np.maximum(sizes[first], sizes[second])
        number[first] += number[second]
        sizes, number = np.delete(sizes, second, axis=0), np.delete(number, second)
    return tuple(sorted({Size(int(cpu), int(mem)) for cpu, mem in sizes}))


def switch(
    current: Sequence[Size],
    proposed: Sequence[Size],
    *,
    wants: Sequence[Size],
    weights: tuple[float, float],
) -> bool:
    """Return whether other sizes save at least a tenth of what the wants' pods cost now.

    Sizes that do not cover a want are left at once: each such want makes a pool of its own.
    """
    counts = Counter(wants)
    if not all(any(size.covers(want) for size in current) for want in counts):
        return True
    now = waste(counts, current, weights=weights)
    then = waste(counts, proposed, weights=weights)
    base = sum(count * _price(want, weights) for want, count in counts.items())
    return then < now and (now - then) >= _WORTH_SWITCHING * (base + now)


def _cheapest_pair(
    sizes: NDArray[np.float64], number: NDArray[np.float64], price: NDArray[np.float64]
) -> tuple[int, int]:
    """Return the pair whose union adds the least waste, the lower index first.

    Row 0 is the default: it may take in what it covers, and never grows.
    """
    unions = np.maximum(sizes[:, None, :], sizes[None, :, :])
    own = number * (sizes @ price)
    added = (number[:, None] + number[None, :]) * (unions @ price) - own[:, None] - own[None, :]
    added[0, (unions[0] != sizes[0]).any(axis=1)] = np.inf
    added[np.tril_indices(len(sizes))] = np.inf
    first, second = np.unravel_index(int(np.argmin(added)), added.shape)
    return int(first), int(second)


def _price(size: Size, weights: tuple[float, float]) -> float:
    return size.cpu_m * weights[0] + size.mem_mib * weights[1]
