"""Which load is planned for: observed once there is enough of it, held until it clearly moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.observe.traffic import two_digits
from trimtab.planning.snapshot import Load

if TYPE_CHECKING:
    from trimtab.observe.traffic import Traffic

ENOUGH_REQUESTS: Final = 200
UP, DOWN = 1.2, 0.6
UP_SECONDS: Final = 60.0
DOWN_SECONDS: Final = 1800.0
"""Down is slow: an idle quarter of an hour must not cost the next burst its replicas."""


@dataclass(slots=True)
class _Held:
    load: Load | None
    outside_since: float | None = None


class LoadBook:
    """Remembers the load each intent is planned for.

    Observed load replaces declared load after 200 requests, and then whenever it stays above
    1.2 times the planned rate for a minute or below 0.6 times for half an hour (planner.md §9).
    """

    def __init__(self, *, time_divisor: float = 1.0) -> None:
        self._held: dict[str, _Held] = {}
        self._divisor = time_divisor

    def of(self, uid: str) -> Load | None:
        """Return the observed load in force, None while the declared one holds."""
        held = self._held.get(uid)
        return held.load if held else None

    def restore(self, uid: str, load: Load | None) -> None:
        """Take up again what was planned for before a restart."""
        if load is not None:
            self._held[uid] = _Held(load=load)

    def forget(self, uid: str) -> None:
        """Drop an intent that is gone, or whose declared load was edited."""
        self._held.pop(uid, None)

    def update(self, uid: str, *, planned: Load | None, traffic: Traffic, now: float) -> bool:
        """Take traffic in; return whether the load to plan for changed.

        Args:
            uid: Of the intent.
            planned: What is planned for now, declared or observed.
            traffic: Of the last five minutes.
            now: Monotonic seconds.
        """
        if traffic.requests_hour < ENOUGH_REQUESTS or not traffic.output_tokens:
            return False
        held = self._held.setdefault(uid, _Held(load=None))
        observed = _rounded(traffic)
        if planned is None:
            held.load = observed
            return True
        base = max(planned.requests_per_second, 1e-9)
        ratio = traffic.requests_per_second / base
        if DOWN <= ratio <= UP:
            held.outside_since = None
            return False
        if held.outside_since is None:
            held.outside_since = now
        patience = (UP_SECONDS if ratio > UP else DOWN_SECONDS) / self._divisor
        if now - held.outside_since < patience or traffic.requests == 0:
            return False
        held.load, held.outside_since = observed, None
        return True


def _rounded(traffic: Traffic) -> Load:
    return Load(
        requests_per_second=float(two_digits(traffic.requests_per_second)),
        prompt_tokens=max(1, round(float(two_digits(traffic.prompt_tokens or 1)))),
        output_tokens=max(1, round(float(two_digits(traffic.output_tokens or 1)))),
    )
