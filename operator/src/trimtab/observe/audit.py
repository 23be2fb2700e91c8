"""Compares a cache with a fresh list: watches can lose events without a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.observe.records import generic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.observe.cache import ObjectCache
    from trimtab.observe.records import Body, Record

WAKE_AFTER_SECONDS: Final = 60.0
RED_AFTER_SECONDS: Final = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Uids by kind of difference."""

    missing: frozenset[str] = frozenset()
    """At the server, not in the cache."""
    stale: frozenset[str] = frozenset()
    """Older in the cache than at the server."""
    ghosts: frozenset[str] = frozenset()
    """In the cache, no longer at the server."""

    @property
    def uids(self) -> frozenset[str]:
        """All that differ."""
        return self.missing | self.stale | self.ghosts


def compare(cache: ObjectCache[Record], listed: Iterable[Body]) -> AuditReport:
    """Compare a cache with a metadata-only list taken just before."""
    live = {record.uid: record for record in map(generic, listed)}
    known = {record.uid: record for record in cache}
    return AuditReport(
        missing=frozenset(uid for uid in live if not cache.seen(uid)),
        stale=frozenset(
            uid
            for uid, record in live.items()
            if uid in known and known[uid].resource_version < record.resource_version
        ),
        ghosts=frozenset(known.keys() - live.keys()),
    )


@dataclass(slots=True)
class Ledger:
    """Remembers since when each difference lasts: a watch is allowed to lag a little."""

    _since: dict[tuple[str, str], float] = field(default_factory=dict)

    def note(self, kind: str, report: AuditReport, *, now: float) -> frozenset[str]:
        """Take a report in; return the uids whose difference is older than 60 s."""
        for key in [k for k in self._since if k[0] == kind and k[1] not in report.uids]:
            del self._since[key]
        for uid in report.uids:
            self._since.setdefault((kind, uid), now)
        return frozenset(
            uid
            for (of, uid), since in self._since.items()
            if of == kind and now - since > WAKE_AFTER_SECONDS
        )

    def healthy(self, *, now: float) -> bool:
        """Whether no difference is older than 150 s."""
        return all(now - since <= RED_AFTER_SECONDS for since in self._since.values())
