"""Which invocations teach what (rightsizer.md §6.2): a sample that misleads is worse than none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trimtab.rightsizing.types import Outcome, Usage

_SLOW_TRANSFER_SHARE: Final = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a sample may teach.

    Attributes:
        cpu: CPU and time.
        memory: The peak.
        dropped: Why not all of it, as counted in `trimtab_function_dropped_samples`.
    """

    cpu: bool
    memory: bool
    dropped: str | None = None


_ALL: Final = Lesson(cpu=True, memory=True)


def lesson(usage: Usage, outcome: Outcome) -> Lesson:
    """Return what the sample may teach.

    A kill for memory always teaches memory, whatever the answer was: that is its cause.
    """
    if usage.oom:
        return Lesson(cpu=False, memory=True, dropped="oom")
    reason = _unusable(usage, outcome)
    if reason is not None:
        return Lesson(cpu=False, memory=False, dropped=reason)
    if outcome.status >= 500:
        return Lesson(cpu=False, memory=True, dropped="server_error")
    if usage.alloc_changed:
        return Lesson(cpu=False, memory=True, dropped="resized")
    return _ALL


def _unusable(usage: Usage, outcome: Outcome) -> str | None:
    reasons = (
        ("overlapping", outcome.overlapping),
        ("length_differs", outcome.length_differs),
        ("client_gone", outcome.client_gone),
        ("timed_out", outcome.timed_out),
        ("excluded", outcome.excluded),
        ("first_call", outcome.first_call),
        ("client_error", 400 <= outcome.status < 500),
        ("no_answer", outcome.status == 0),
        ("slow_transfer", outcome.transfer_s > _SLOW_TRANSFER_SHARE * usage.wall_s),
    )
    return next((name for name, holds in reasons if holds), None)
