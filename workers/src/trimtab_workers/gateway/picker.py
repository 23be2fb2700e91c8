"""Which pod gets the next request: the one with the least outstanding work for its speed. Pure.

The pod with the smallest (outstanding + 1) ÷ weight wins, ties go to the pod that was chosen
longest ago. A pod that refused a connection is avoided for a moment while others exist, because
EndpointSlices learn of a dead pod seconds later than the request does.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from trimtab_workers.gateway.endpoints import Endpoint

FIRST_PENALTY_SECONDS: Final = 1.0
LONGEST_PENALTY_SECONDS: Final = 10.0


class Picker:
    """Counts the requests that each pod holds and chooses where the next one goes."""

    def __init__(self) -> None:
        self._outstanding: Counter[str] = Counter()
        self._chosen_at: dict[str, int] = {}
        self._turn = 0
        self._penalties: dict[str, tuple[float, float]] = {}

    def outstanding(self, uid: str) -> int:
        """Return how many requests the pod holds."""
        return self._outstanding[uid]

    def pick(
        self,
        endpoints: Iterable[Endpoint],
        *,
        weight: Callable[[str], int],
        exclude: AbstractSet[str] = frozenset(),
        now: float,
    ) -> Endpoint | None:
        """Return the endpoint for the next request and count it, or None if there is none.

        Args:
            endpoints: Those that may get new requests.
            weight: Speed of a pod by uid; 1000 is the median.
            exclude: Pods that already failed this request.
            now: Seconds on any monotonic clock.

        Callers give the endpoint back with `release`.
        """
        usable = [row for row in endpoints if row.uid not in exclude]
        healthy = [row for row in usable if self._penalties.get(row.uid, (0.0, 0.0))[0] <= now]
        best = min(
            healthy or usable,
            key=lambda row: (
                (self._outstanding[row.uid] + 1) / weight(row.uid),
                self._chosen_at.get(row.uid, -1),
            ),
            default=None,
        )
        if best is not None:
            self._turn += 1
            self._chosen_at[best.uid] = self._turn
            self._outstanding[best.uid] += 1
        return best

    def release(self, uid: str) -> None:
        """A request to the pod has ended, whatever its outcome."""
        self._outstanding[uid] -= 1
        if self._outstanding[uid] <= 0:
            del self._outstanding[uid]

    def refused(self, uid: str, *, now: float) -> None:
        """The pod did not accept a connection: avoid it, twice as long each time in a row."""
        _, last = self._penalties.get(uid, (0.0, 0.0))
        seconds = min(LONGEST_PENALTY_SECONDS, max(FIRST_PENALTY_SECONDS, 2 * last))
        self._penalties[uid] = (now + seconds, seconds)

    def accepted(self, uid: str) -> None:
        """The pod answered: forget its penalty."""
        self._penalties.pop(uid, None)

    def forget_all_but(self, uids: AbstractSet[str]) -> None:
        """Drop what is known of pods that no longer exist and hold no request."""
        for table in (self._chosen_at, self._penalties):
            for uid in [uid for uid in table if uid not in uids and not self._outstanding[uid]]:
                del table[uid]
