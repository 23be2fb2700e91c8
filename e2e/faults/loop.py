"""An event loop in a thread of its own, called from code that blocks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class LoopThread:
    """Runs coroutines for blocking callers; `start` it, `stop` it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what still runs in it is cancelled."""
        self.call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # Transports close their sockets one turn after they are told to.
        for _ in range(3):
            await asyncio.sleep(0)

    def call(self, coroutine: Coroutine[Any, Any, Any], *, seconds: float | None = 60) -> Any:
        """Run a coroutine and return its result.

        Raises:
            TimeoutError: It did not end within `seconds`; it is cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def soon(self, function: Callable[[], object]) -> None:
        """Call a function in the loop without waiting for it."""
        self._loop.call_soon_threadsafe(function)
