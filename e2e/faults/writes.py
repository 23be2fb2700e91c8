"""How much a controller writes: mutating requests per minute, Lease renewals shown apart."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from e2e.faults.seen import Seen


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """What passed the proxy in a window; a window without reads proves nothing."""

    seconds: float
    writes: int
    leases: int
    reads: int
    by_kind: dict[str, int]

    @property
    def per_minute(self) -> float:
        """Mutating requests per minute, Leases aside."""
        return 60 * self.writes / self.seconds

    def __str__(self) -> str:
        """Return one line for a report."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.by_kind.items()))
        return (
            f"{self.writes} mutating requests in {self.seconds:.0f} s ({kinds or 'none'}), beside "
            f"{self.leases} of Leases and {self.reads} reads"
        )


def writes(log: Iterable[Seen], *, since: float, until: float, identity: str = "") -> Writes:
    """Count the requests between two times of the proxy's clock, of one identity if given."""
    window = [s for s in log if since <= s.at < until and identity in s.identity]
    mutating = [s for s in window if s.mutating and not s.lease]
    kinds = collections.Counter(
        f"{s.verb} {s.resource}{'/' + s.subresource if s.subresource else ''}" for s in mutating
    )
    return Writes(
        seconds=until - since,
        writes=len(mutating),
        leases=sum(s.mutating and s.lease for s in window),
        reads=sum(s.verb in {"get", "list", "watch"} for s in window),
        by_kind=dict(kinds),
    )
