"""One request's outputs, handed from the engine thread to an asyncio loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.engine.types import Output


class OutputStream:
    """Async iterator over a request's outputs; raises the request's EngineError.

    Ends after the output that finishes the request. `aclose`, or dropping out of the loop by
    cancellation, aborts what still runs.
    """

    def __init__(self, *, abort: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Output] = asyncio.Queue()
        self._abort = abort
        self._ended = False

    def push(self, output: Output) -> None:
        """Deliver an output; called on the engine thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, output)
        except RuntimeError:
            # The loop is closed: nobody listens any more.
            self._abort()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        try:
            output = await self._queue.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        self._ended = output.finished
        if output.error is not None:
            raise output.error
        return output

    async def aclose(self) -> None:
        """Stop listening; aborts the request if it still runs."""
        if not self._ended:
            self._ended = True
            self._abort()
