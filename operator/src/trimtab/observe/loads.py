"""Which load each intent is planned for: what gateways counted, kept over restarts and silences."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trimtab.planning.load_history import LoadHistory, added, join, read
from trimtab.planning.observed_load import busy_load, next_load
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.triggers import MissWatch
from trimtab.planning.variation import NOTHING_SEEN, POISSON, ObservedVariation, Variation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab.planning.snapshot import Load

_CLOCK_SECONDS = 10.0
_MICROSECONDS = 1_000_000


@dataclass(slots=True)
class _Held:
    history: LoadHistory = field(default_factory=LoadHistory)
    from_seconds: int = 0
    """What was counted before is not looked at: the declared load was edited then."""
    load: Load | None = None
    variation: Variation = POISSON
    """What the declared load is planned with: an edit of it says nothing of gaps and lengths."""
    busy: Load | None = None
    missed: MissWatch = field(default_factory=MissWatch)
    told: bool = False
    """Somebody knows that the target counts as missed."""


class LoadBook:
    """Remembers what arrived for each intent, and the load that it is planned for.

    Observed load replaces declared load after 200 requests or 10 minutes, and then whenever it
    leaves its band by more than chance explains (planner.md §9).
    """

    def __init__(self, *, policy: PlannerPolicy | None = None, time_divisor: float = 1.0) -> None:
        """Prepare; tests divide the times of the policy."""
        self._policy = (policy or PlannerPolicy()).hurried(time_divisor)
        self._held: dict[str, _Held] = {}

    def of(self, uid: str) -> Load | None:
        """Return the observed load in force, None while the declared one holds."""
        held = self._held.get(uid)
        return held.load if held else None

    def planned(self, uid: str, *, declared: Load | None) -> Load | None:
        """Return the load to plan for: the observed one or else the declared one, as uneven as known."""
        held = self._held.get(uid)
        return self.of(uid) or (_varied(declared, held.variation) if held else declared)

    def busy(self, uid: str) -> Load | None:
        """Return the load that fewer replicas would have to carry; None while unknown."""
        held = self._held.get(uid)
        return held.busy if held else None

    def missed(self, uid: str, *, now: float) -> bool:
        """Tell whether the intent's target is missed for five minutes; ``now`` is monotonic."""
        held = self._held.get(uid)
        return held is not None and held.missed.due(
            now_us=round(now * _MICROSECONDS), policy=self._policy
        )

    def restore(self, uid: str, load: Load | None, *, variation: Variation = POISSON) -> None:
        """Take up again what was planned for before a restart: an observed load, or how uneven one is."""
        if load is not None or variation != POISSON:
            held = self._held.setdefault(uid, _Held())
            held.load, held.variation = load or held.load, variation

    def history(self, uid: str) -> LoadHistory:
        """Return what arrived, as far as it is known."""
        held = self._held.get(uid)
        return held.history if held else LoadHistory()

    def recall(self, uid: str, history: LoadHistory) -> None:
        """Take up again what was counted before a restart, and from when on it counts."""
        held = self._held.setdefault(uid, _Held())
        held.history = join(held.history, history)
        held.from_seconds = max(held.from_seconds, history.since)

    def edited(self, uid: str, *, now: float) -> None:
        """Begin anew: the declared load was edited, so it holds until it is observed again.

        How uneven requests are stays: the gateways' hour says the same as before.

        Args:
            uid: Of the intent.
            now: Seconds since the epoch.
        """
        held = self._held.get(uid, _Held())
        kept = held.variation if held.load is None else held.load.variation
        self._held[uid] = _Held(from_seconds=int(now), variation=kept)

    def forget(self, uid: str) -> None:
        """Drop an intent that is gone."""
        self._held.pop(uid, None)

    def judged(self, uid: str, *, within: bool | None, now: float) -> bool:
        """Take in whether the target is met; return whether it has begun to count as missed."""
        held = self._held.setdefault(uid, _Held())
        held.missed = held.missed.seen(within=within, now_us=round(now * _MICROSECONDS))
        before, held.told = held.told, self.missed(uid, now=now)
        return held.told and not before

    def update(
        self,
        uid: str,
        *,
        declared: Load | None,
        seen: LoadHistory,
        lengths: tuple[float, float] | None,
        several: bool,
        now: float,
        variation: ObservedVariation = NOTHING_SEEN,
    ) -> bool:
        """Take in what gateways counted; return whether a load to plan for changed.

        Args:
            uid: Of the intent.
            declared: The load that it declares.
            seen: By all gateway replicas together, up to now.
            lengths: Mean prompt and output tokens of requests that ended within the hour.
            several: It has more than one replica, so that fewer are thinkable.
            now: Monotonic seconds.
            variation: How much gaps and lengths varied within the hour.
        """
        held = self._held.setdefault(uid, _Held())
        before = held.load, held.busy
        declared = _varied(declared, held.variation)
        held.history = join(held.history, _since(seen, held.from_seconds))
        held.load = next_load(
            held.history,
            held=held.load,
            declared=declared,
            lengths=lengths,
            variation=variation,
            missed=self.missed(uid, now=now),
            policy=self._policy,
        )
        held.busy = (
            busy_load(
                held.history,
                planned=held.load or declared,
                held=held.busy,
                lengths=lengths,
                policy=self._policy,
            )
            if several
            else None
        )
        return before != (held.load, held.busy)


def _varied(load: Load | None, variation: Variation) -> Load | None:
    return None if load is None else replace(load, variation=variation)


def seen_by(documents: Iterable[Mapping[str, Any]], intent: str, *, now: float) -> LoadHistory:
    """Return what all gateway replicas counted of one intent; a garbled row counts as none.

    Args:
        documents: Of all replicas (contracts §7).
        intent: ``namespace/name``.
        now: Seconds since the epoch; a replica whose clock differs is read by ours.
    """
    parts = []
    for document in documents:
        entry = (document.get("intents") or {}).get(intent) or {}
        shift = now - float(document.get("now") or now)
        try:
            rows = list(entry.get("counts") or ())
            parts.append(read(rows, now=now, shift=shift if abs(shift) > _CLOCK_SECONDS else 0.0))
        except (TypeError, ValueError, IndexError, AttributeError):
            parts.append(read((), now=now))
    return added(parts)


def _since(history: LoadHistory, seconds: int) -> LoadHistory:
    """Return a history without what was counted before a time."""
    if history.since >= seconds:
        return history
    first = -(-seconds // 10) * 10
    return LoadHistory(
        since=min(first, history.until),
        until=history.until,
        buckets=tuple(b for b in history.buckets if b.start >= first),
        peaks=history.peaks,
    )
