"""Nothing is planned until the caches have seen, or seen gone, all that existed at the start.

Planning over a half-filled cache deletes healthy children: the worst bug this design can have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = structlog.get_logger(__name__)
_POLL_SECONDS: Final = 0.2
_RELIST_SECONDS: Final = 5.0


class Seen(Protocol):
    """The part of a cache that the barrier reads."""

    def seen(self, uid: str) -> bool:
        """Whether the object is known, or known to be gone."""


class Barrier:
    """Opens once, when every uid that was listed at the start is known or gone."""

    def __init__(
        self,
        caches: Mapping[str, Seen],
        *,
        list_uids: Callable[[str], Awaitable[frozenset[str] | None]],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare.

        Args:
            caches: By kind.
            list_uids: Lists a kind at the API server, None where its definition is missing;
                raises while the server does not answer.
            clock: Monotonic seconds.
            sleep: For tests.
        """
        self._caches = caches
        self._list_uids = list_uids
        self._clock = clock
        self._sleep = sleep
        self._open = asyncio.Event()
        self.missing: dict[str, int] = {}

    @property
    def passed(self) -> bool:
        """Whether planning may start."""
        return self._open.is_set()

    async def wait(self) -> None:
        """Return once the barrier is open."""
        await self._open.wait()

    async def run(self, *, retryable: tuple[type[BaseException], ...]) -> None:
        """List every kind, wait until the caches have caught up, and open.

        Args:
            retryable: Errors of `list_uids` after which it is asked again.
        """
        pending: dict[str, frozenset[str]] = {}
        for kind in self._caches:
            pending[kind] = await self._listed(kind, retryable)
        relisted = self._clock()
        while True:
            pending = {
                kind: frozenset(u for u in uids if not self._caches[kind].seen(u))
                for kind, uids in pending.items()
            }
            self.missing = {kind: len(uids) for kind, uids in pending.items() if uids}
            if not self.missing:
                break
            await self._sleep(_POLL_SECONDS)
            if self._clock() - relisted > _RELIST_SECONDS:
                # What vanished between our list and the watch's own is in neither.
                for kind in list(self.missing):
                    pending[kind] &= await self._listed(kind, retryable)
                relisted = self._clock()
                _log.info("barrier_waiting", missing=self.missing)
        self._open.set()

    async def _listed(
        self, kind: str, retryable: tuple[type[BaseException], ...]
    ) -> frozenset[str]:
        delay = 1.0
        while True:
            try:
                listed = await self._list_uids(kind)
            except retryable as error:
                _log.warning("barrier_list_failed", kind=kind, error=str(error))
            else:
                if listed is not None:
                    return listed
                _log.warning("definition_missing", kind=kind)
            await self._sleep(delay)
            delay = min(10.0, delay * 2)
