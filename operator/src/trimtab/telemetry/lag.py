"""How late the event loop is: one blocking call stalls every object."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_SECONDS: Final = 0.05
_WINDOW_TICKS: Final = 200


class LoopLag:
    """Measures the lateness of a 50 ms tick."""

    def __init__(self, *, clock: Callable[[], float], report: Callable[[float], None]) -> None:
        self._clock = clock
        self._report = report
        self._recent: deque[float] = deque(maxlen=_WINDOW_TICKS)
        self._last = clock()

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            began = self._clock()
            await asyncio.sleep(TICK_SECONDS)
            self._last = self._clock()
            self._recent.append(max(0.0, self._last - began - TICK_SECONDS))
            self._report(max(self._recent))

    def worst(self) -> float:
        """Return the largest lateness of the last 10 s, a tick that is overdue now included."""
        overdue = max(0.0, self._clock() - self._last - TICK_SECONDS)
        return max([overdue, *self._recent])
