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

T = TypeVar("T")
V = TypeVar("V")


class Standing(Enum):
    """What may be done with what is known of a question."""

    FRESH = auto()
    STALE = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class _Grant(Generic[V]):
    value: V
    answered_at: float
    usable_until: float


class AuthCache(Generic[V]):
    """Answers by question; the least recently used are dropped past `entries` of either kind.

    Refusals are kept apart: who invents tokens must not push out callers that an outage spares.
    """

    def __init__(self, *, entries: int = ENTRIES) -> None:
        self._grants: OrderedDict[Hashable, _Grant[V]] = OrderedDict()
        self._refusals: OrderedDict[Hashable, float] = OrderedDict()
        self._size = entries

    def __len__(self) -> int:
        return len(self._grants) + len(self._refusals)

    def look_up(self, key: Hashable, *, now: float) -> tuple[Standing, V | None]:
        """Return how an earlier answer stands, and its value if it was positive.

        Args:
            key: The question.
            now: Seconds since the epoch, because tokens expire by that clock.
        """
        refused_at = self._refusals.get(key)
        if refused_at is not None and refused_at <= now < refused_at + REFUSED_SECONDS:
            self._refusals.move_to_end(key)
            return Standing.REFUSED, None
        grant = self._grants.get(key)
        if grant is None or not grant.answered_at <= now < grant.usable_until:
            return Standing.UNKNOWN, None
        self._grants.move_to_end(key)
        fresh = now < grant.answered_at + FRESH_SECONDS
        return (Standing.FRESH if fresh else Standing.STALE), grant.value

    def grant(
        self, key: Hashable, value: V, *, now: float, expires_at: float | None = None
    ) -> None:
        """Keep a positive answer, which never outlives the token's expiry."""
        limit = now + OUTAGE_SECONDS
        until = limit if expires_at is None else min(limit, expires_at)
        self._refusals.pop(key, None)
        self._put(self._grants, key, _Grant(value, now, until))

    def refuse(self, key: Hashable, *, now: float) -> None:
        """Keep a refusal for a moment; whatever was granted before is gone."""
        self._grants.pop(key, None)
        self._put(self._refusals, key, now)

    def _put(self, kept: OrderedDict[Hashable, T], key: Hashable, answer: T) -> None:
        kept[key] = answer
        kept.move_to_end(key)
        while len(kept) > self._size:
            kept.popitem(last=False)
