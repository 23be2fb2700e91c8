"""What like inputs needed: the raw work and peaks of the last runs of each bucket (rightsizer.md §6.1, §6.4).

Raw, because the need depends on the deadline at hand, which clients may send.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.rightsizing.targets import Need, Work, bare_need

if TYPE_CHECKING:
    from trimtab.rightsizing.types import Features

MOST_BUCKETS: Final = 256
RING: Final = 32
_KEY_NUMBERS: Final = 2

Key = tuple[int | str, ...]


def bucket_key(features: Features) -> Key:
    """Return half octaves of the first two numbers, and the categories.

    Nought has an octave of its own, below all others.
    """
    octaves = tuple(
        math.floor(2 * math.log2(value)) if value > 0 else -9999
        for value in features.numbers[:_KEY_NUMBERS]
    )
    return (*octaves, *features.categories)


@dataclass(slots=True)
class Bucket:
    """The last runs of like inputs.

    Attributes:
        works: Newest last, at most 32.
        widths: vCPUs that runs kept busy which nothing held back, newest last, at most 32.
        peaks: Needs of memory in MiB, newest last, at most 32.
    """

    works: deque[Work] = field(default_factory=lambda: deque(maxlen=RING))
    widths: deque[float] = field(default_factory=lambda: deque(maxlen=RING))
    peaks: deque[float] = field(default_factory=lambda: deque(maxlen=RING))

    def cpu(self, *, budget_s: float, margin: float, share: float) -> Need:
        """Return the need that this share of the runs did not pass; there is one run at least."""
        needs = sorted([bare_need(work, budget_s=budget_s, margin=margin) for work in self.works])
        cpu, infeasible = needs[math.ceil(share * len(needs)) - 1]
        return Need(cpu=cpu, infeasible=infeasible)

    def memory(self) -> float:
        """Return the largest need, in MiB; there is one at least."""
        return max(self.peaks)


class Buckets:
    """The buckets used last, at most `most`."""

    __slots__ = ("_found", "_most")

    def __init__(self, *, most: int = MOST_BUCKETS) -> None:
        self._found: OrderedDict[Key, Bucket] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Bucket | None:
        """Return the bucket, if it is known; asking keeps it."""
        bucket = self._found.get(key)
        if bucket is not None:
            self._found.move_to_end(key)
        return bucket

    def ensure(self, key: Key) -> Bucket:
        """Return the bucket; a new one may push out the one that was used least lately."""
        bucket = self.get(key)
        if bucket is None:
            bucket = self._found[key] = Bucket()
            if len(self._found) > self._most:
                self._found.popitem(last=False)
        return bucket

    def newest(self, count: int) -> list[tuple[Key, Bucket]]:
        """Return the buckets used last, the latest at the end."""
        return list(self._found.items())[-count:]
