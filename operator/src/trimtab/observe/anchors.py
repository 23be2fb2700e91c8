"""Windows of live replicas: which become anchors of the next plan, and when they ask for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.triggers import drifted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from trimtab.planning.anchors import DecodeCounters
    from trimtab.planning.snapshot import Anchor


WINDOW_SECONDS: Final = 60.0
"""At least so long a window lasts (planner.md §7)."""
ANCHORS_SECONDS: Final = 600.0
"""So often plans see new windows; a fingerprint drifts at most once in between."""

Place = tuple[str, str]
"""The uid of a pod and the name of a model in it."""


@dataclass(slots=True)
class _Held:
    """Anchors of one fingerprint.

    ``recent`` are the last windows of each replica with how far each departed from what was known:
    replicas of one fingerprint run other batches, and what one does is no drift of another.
    ``fresh`` are those that no plan has seen yet.
    """

    published: tuple[Anchor, ...] = ()
    fresh: list[Anchor] = field(default_factory=list)
    recent: dict[Place, list[tuple[float, Anchor]]] = field(default_factory=dict)
    drifted_at: float = float("-inf")


class AnchorBook:
    """Collects windows of 60 s; plans see them when they have drifted, or every ten minutes.

    Between two publications plans are made from the same anchors, so that noise asks for no plan
    and what was predicted stays remembered.
    """

    def __init__(
        self,
        *,
        policy: PlannerPolicy | None = None,
        window_seconds: float = WINDOW_SECONDS,
        drift_seconds: float = ANCHORS_SECONDS,
    ) -> None:
        """Prepare; a fingerprint's steps drift at most once per ``drift_seconds``."""
        self._policy = policy or PlannerPolicy()
        self._window_seconds = window_seconds
        self._drift_seconds = drift_seconds
        self._begun: dict[Place, tuple[float, DecodeCounters]] = {}
        self._held: dict[str, _Held] = {}

    def window(
        self, pod_uid: str, model: str, counters: DecodeCounters, *, now: float
    ) -> DecodeCounters | None:
        """Return a model's steps in a worker over the window that ends now; None while it goes on.

        A window lasts 60 s and longer until it has 200 steps: fewer say little about their mean.
        """
        place = (pod_uid, model)
        began = self._begun.get(place)
        found = counters.since(began[1]) if began is not None else None
        if began is None or found is None:
            self._begun[place] = (now, counters)
            return None
        if now - began[0] < self._window_seconds or found.steps < self._policy.anchor_steps:
            return None
        self._begun[place] = (now, counters)
        return found

    def keep_pods(self, alive: AbstractSet[str]) -> None:
        """Forget windows of workers that are gone."""
        self._begun = {place: b for place, b in self._begun.items() if place[0] in alive}
        for held in self._held.values():
            held.recent = {place: r for place, r in held.recent.items() if place[0] in alive}

    def add(
        self, anchor: Anchor, *, place: Place, departure: float, margin_permille: int, now: float
    ) -> bool:
        """Take a window in; return whether steps have drifted, so that a new plan is due.

        After a drift the windows before it say nothing about what runs now, and go: those of the
        same depth whose batch is no more than twice or half as large.

        Args:
            anchor: The window.
            place: Whose it is.
            departure: ln(measured/predicted) beyond what the anchors in force saw.
            margin_permille: Of the prediction in force: what it absorbs is no drift.
            now: Seconds of a clock that only goes forward.
        """
        held = self._held.setdefault(anchor.key, _Held())
        held.fresh.append(anchor)
        last = self._policy.drift_windows
        recent = [*held.recent.get(place, ()), (departure, anchor)][-last:]
        held.recent[place] = recent
        errors = [error for error, _ in recent]
        if now - held.drifted_at < self._drift_seconds or not drifted(
            errors, margin_permille=margin_permille, policy=self._policy
        ):
            return False
        new = [one for _, one in recent]
        kept = [one for one in held.published if not any(_alike(one, n) for n in new)]
        held.published = (*kept, *new)[-self._policy.kept_anchors :]
        held.fresh = [one for one in held.fresh if not any(_alike(one, n) for n in new)]
        held.recent, held.drifted_at = {}, now
        return True

    def forget(self, key: str) -> None:
        """Forget all anchors of a fingerprint: it was measured anew, or somebody removed them."""
        self._held.pop(key, None)

    def publish(self) -> None:
        """Let plans see all windows, the newest 64 per fingerprint."""
        for held in self._held.values():
            every = (*held.published, *held.fresh)
            held.published = every[-self._policy.kept_anchors :]
            held.fresh = []

    def recall(self, key: str, anchors: Sequence[Anchor]) -> None:
        """Take up again what was kept before a restart."""
        if anchors:
            self._held.setdefault(key, _Held()).published = tuple(anchors)

    def published(self) -> Mapping[str, tuple[Anchor, ...]]:
        """Return what plans see, by the fingerprint's digest."""
        return {key: held.published for key, held in sorted(self._held.items()) if held.published}

    def all(self) -> tuple[Anchor, ...]:
        """Return what plans see in one order, of each fingerprint the newest last."""
        return tuple(anchor for anchors in self.published().values() for anchor in anchors)


def _alike(one: Anchor, other: Anchor) -> bool:
    return (
        one.depth == other.depth and other.batch <= 2 * one.batch and one.batch <= 2 * other.batch
    )
