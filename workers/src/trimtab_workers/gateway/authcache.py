"""How long an answer of the API server about a caller may be used. Pure.

A positive answer is fresh for 10 s. After that it must be asked again; if the API server does
not answer, it stays usable until the token expires, at most 15 min after the last answer
(joints.md, section 8). A refusal is an answer: it ends the positive one, and is kept for 2 s so
that a client in a loop does not become a load on the API server.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

FRESH_SECONDS: Final = 10.0
OUTAGE_SECONDS: Final = 900.0
REFUSED_SECONDS: Final = 2.0
ENTRIES: Final = 10_000

V = TypeVar("V")


class Standing(Enum):
    """What may be done with what is known of a question."""

    FRESH = auto()
    STALE = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V | None
    answered_at: float
    usable_until: float


class AuthCache(Generic[V]):
    """Answers by question; the least recently used are dropped past `entries`."""

    def __init__(self, *, entries: int = ENTRIES) -> None:
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._size = entries

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, key: Hashable, *, now: float) -> tuple[Standing, V | None]:
        """Return how an earlier answer stands, and its value if it was positive.

        Args:
            key: The question.
            now: Seconds since the epoch, because tokens expire by that clock.
        """
        entry = self._entries.get(key)
        if entry is None or now >= entry.usable_until or now < entry.answered_at:
            return Standing.UNKNOWN, None
        self._entries.move_to_end(key)
        if entry.value is None:
            return Standing.REFUSED, None
        fresh = now < entry.answered_at + FRESH_SECONDS
        return (Standing.FRESH if fresh else Standing.STALE), entry.value

    def grant(
        self, key: Hashable, value: V, *, now: float, expires_at: float | None = None
    ) -> None:
        """Keep a positive answer, which never outlives the token's expiry."""
        limit = now + OUTAGE_SECONDS
        self._put(key, _Entry(value, now, limit if expires_at is None else min(limit, expires_at)))

    def refuse(self, key: Hashable, *, now: float) -> None:
        """Keep a refusal for a moment; whatever was granted before is gone."""
        self._put(key, _Entry(None, now, now + REFUSED_SECONDS))

    def _put(self, key: Hashable, entry: _Entry[V]) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
