"""A job of the whole operator that repeats, or runs when woken; it never ends by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from trimtab.kube.errors import classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = structlog.get_logger(__name__)


class Periodic:
    """Runs a step each `every_seconds`, or soon after `wake()`."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float | None]],
        *,
        every_seconds: float,
        gate: Callable[[], Awaitable[None]],
        beat: Callable[[str], None],
        settle_seconds: float = 0.2,
    ) -> None:
        """Prepare.

        Args:
            name: For logs and heart-beats.
            step: The work; may return a shorter time until the next run.
            every_seconds: Longest rest.
            gate: Awaited once before the first run, such as the barrier.
            beat: Told of every run, whatever its outcome.
            settle_seconds: Rest after a wake, so that wakes that come together count once.
        """
        self._name = name
        self._step = step
        self._every = every_seconds
        self._gate = gate
        self._beat = beat
        self._settle = settle_seconds
        self._woken = asyncio.Event()
        self.succeeded = asyncio.Event()
        """Set by the first run that did not fail."""

    def wake(self) -> None:
        """Run soon."""
        self._woken.set()

    async def run(self) -> None:
        """Repeat for ever."""
        await self._gate()
        failures = 0
        while True:
            self._woken.clear()
            delay: float | None = None
            try:
                delay = await self._step()
                failures = 0
                self.succeeded.set()
            except Exception as error:  # noqa: BLE001 - logged, paced and repeated
                failures += 1
                delay = min(60.0, 2.0**failures)
                fault = classify(error)
                if fault is None:
                    _log.exception("periodic_failed", job=self._name)
                else:
                    _log.warning("periodic_failed", job=self._name, error=fault.message)
            self._beat(self._name)
            try:
                async with asyncio.timeout(self._every if delay is None else delay):
                    await self._woken.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(self._settle)
