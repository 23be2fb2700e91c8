"""Heart-beats of every loop: what `/debug/loops` shows and metrics are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.reconcile.pacing import Outcome

KIND = "InferenceIntent"


@dataclass(slots=True)
class _Beat:
    steps: int = 0
    failures: int = 0
    last: float = 0.0
    message: str = ""


class HeartBeats:
    """Remembers the last step of each loop."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loops: dict[str, _Beat] = {}
        self._jobs: dict[str, _Beat] = {}
        self.names: dict[str, str] = {}
        """`namespace/name` by uid."""

    def beat(self, key: str, *, outcome: Outcome, failures: int, seconds: float) -> None:
        """Note one step of an object's loop."""
        found = self._loops.setdefault(key, _Beat())
        found.steps += 1
        found.failures = failures
        found.last = self._clock()
        found.message = outcome.message
        result = "failed" if outcome.failed else "ok"
        metrics.RECONCILE_TOTAL.labels(kind=KIND, result=result).inc()
        metrics.RECONCILE_SECONDS.labels(kind=KIND).observe(seconds)
        if outcome.ended:
            self.drop(key)

    def job(self, name: str) -> None:
        """Note one run of a periodic job."""
        found = self._jobs.setdefault(name, _Beat())
        found.steps += 1
        found.last = self._clock()

    def drop(self, key: str) -> None:
        """Forget a loop that ended."""
        self._loops.pop(key, None)
        self.names.pop(key, None)

    def stepped(self, key: str) -> bool:
        """Whether a loop has stepped at least once."""
        return key in self._loops

    def oldest_seconds(self) -> float:
        """Return the age of the oldest last step, 0 without loops."""
        now = self._clock()
        return max((now - b.last for b in self._loops.values()), default=0.0)

    def document(self) -> dict[str, Any]:
        """Return what `/debug/loops` shows."""
        now = self._clock()
        return {
            "loops": {
                self.names.get(key, key): {
                    "uid": key,
                    "steps": b.steps,
                    "failures": b.failures,
                    "secondsAgo": round(now - b.last, 1),
                    "message": b.message,
                }
                for key, b in sorted(self._loops.items())
            },
            "jobs": {
                name: {"runs": b.steps, "secondsAgo": round(now - b.last, 1)}
                for name, b in sorted(self._jobs.items())
            },
        }
