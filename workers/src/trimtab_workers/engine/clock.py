"""Time as an argument: the engine reads a clock it was given, tests give a virtual one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic seconds; the zero point means nothing."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return `time.perf_counter()`, which ticks in every process alike."""
        return time.perf_counter()


class VirtualClock:
    """A clock that moves only when told to, for tests and simulations."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def now(self) -> float:
        """Return the seconds advanced so far."""
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Move time forward by a number of seconds.

        Raises:
            ValueError: The number is negative; a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(
                f"VirtualClock.advance: seconds is {seconds}; a monotonic clock cannot go back. "
                "Give a number that is zero or larger."
            )
        self._seconds += seconds
