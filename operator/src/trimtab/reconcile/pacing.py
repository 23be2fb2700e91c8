"""How long a loop rests after a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RESYNC_SECONDS: Final = 600.0
LONGEST_BACKOFF_SECONDS: Final = 300.0
SPREAD: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a step ended."""

    failed: bool = False
    message: str = ""
    retry_after_seconds: float | None = None
    """What the API server asked for."""
    requeue_after_seconds: float | None = None
    """When the plan wants to look again, although nothing failed."""
    ended: bool = False
    """The object is gone or being deleted: the loop returns."""


def next_delay_seconds(*, outcome: Outcome, failures: int, jitter: float) -> float:
    """Return how long to rest: the resync period, an earlier appointment, or a back-off.

    Args:
        outcome: Of the last step.
        failures: Failed steps in a row, this one included.
        jitter: Uniform in [-1, 1]; spreads by 20 %.
    """
    spread = 1 + SPREAD * max(-1.0, min(1.0, jitter))
    if outcome.failed:
        backoff = min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 30)) * spread
        return max(backoff, outcome.retry_after_seconds or 0.0)
    if outcome.requeue_after_seconds is not None:
        return max(0.1, min(outcome.requeue_after_seconds, RESYNC_SECONDS * spread))
    return RESYNC_SECONDS * spread
