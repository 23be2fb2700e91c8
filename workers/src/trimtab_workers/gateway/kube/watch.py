"""List, then watch, for ever: what `sink` is told is what the API server has.

A watch resumes from the last version it saw; 410 means that version is forgotten, so it lists
again. Failures are retried with growing, jittered pauses, and never end the gateway: it serves
from what it knows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp

from trimtab.kube.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from trimtab_workers.gateway.kube.client import WatchingClient
    from trimtab_workers.gateway.metrics import GatewayMetrics

log = logging.getLogger(__name__)

_PAGE: Final = "500"
_WATCH_SECONDS: Final = 50
_SILENCE_SECONDS: Final = 65.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_SHORTEST_WATCH_SECONDS: Final = 1.0
_GONE: Final = 410


class Sink(Protocol):
    """Who learns of the objects."""

    def replace(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """These objects exist, and no others."""
        ...

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """One event: ADDED, MODIFIED or DELETED."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What to watch."""

    name: str
    path: str
    label_selector: str


class _ExpiredError(Exception):
    """The server forgot the version to resume from."""


@dataclass(slots=True, kw_only=True)
class Reflector:
    """Keeps one sink equal to one collection."""

    client: WatchingClient
    collection: Collection
    sink: Sink
    metrics: GatewayMetrics
    jitter: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    version: str | None = None
    failures: int = field(default=0, init=False)

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                if self.version is None:
                    await self._list()
                await self._watch()
                reason = "ended"
                if loop.time() - started < _SHORTEST_WATCH_SECONDS:
                    self.failures += 1
                    await self.sleep(self._pause())
            except _ExpiredError:
                reason, self.version = "expired", None
                self.failures += 1
                if self.failures > 1:
                    await self.sleep(self._pause())
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                reason = "failed"
                self._report(error)
                self.failures += 1
                await self.sleep(self._pause(error))
            self.metrics.watch_restarts.labels(resource=self.collection.name, reason=reason).inc()

    async def _list(self) -> None:
        query = {"limit": _PAGE, "labelSelector": self.collection.label_selector}
        bodies: list[dict[str, Any]] = []
        while True:
            page = await self._page(query)
            bodies += page.get("items") or ()
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self.sink.replace(bodies)
        self.version = str(metadata.get("resourceVersion", ""))
        log.info("listed", extra={"resource": self.collection.name, "objects": len(bodies)})

    async def _page(self, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            return await self.client.request("GET", self.collection.path, query=query)
        except ApiError as error:
            if error.code == _GONE:
                raise _ExpiredError from error
            raise

    async def _watch(self) -> None:
        events = self.client.watch(
            self.collection.path,
            query={
                "watch": "true",
                "allowWatchBookmarks": "true",
                "labelSelector": self.collection.label_selector,
                "resourceVersion": self.version or "",
                "timeoutSeconds": str(_WATCH_SECONDS + round(5 * self.jitter())),
            },
            silence_seconds=_SILENCE_SECONDS,
        )
        try:
            await self._take(events)
        except ApiError as error:
            if error.code == _GONE:
                raise _ExpiredError from error
            raise

    async def _take(self, events: AsyncIterator[dict[str, Any]]) -> None:
        async for event in events:
            kind, body = event.get("type"), event.get("object")
            if not isinstance(body, dict):
                raise ValueError(f"The watch sent {kind!r} without an object.")  # noqa: TRY004 - garbage from the wire
            if kind == "ERROR":
                raise ApiError(
                    method="WATCH",
                    path=self.collection.path,
                    code=int(body.get("code") or 500),
                    status=body,
                )
            if kind in {"ADDED", "MODIFIED", "DELETED"}:
                self.sink.apply(str(kind), body)
            self.version = (body.get("metadata") or {}).get("resourceVersion") or self.version
            self.failures = 0

    def _report(self, error: Exception) -> None:
        """Say it once per outage; the metric counts the rest."""
        if not self.failures:
            extra = {"resource": self.collection.name, "reason": f"{type(error).__name__}: {error}"}
            log.warning("watch_failed", extra=extra)

    def _pause(self, error: Exception | None = None) -> float:
        asked = getattr(error, "retry_after_seconds", None)
        grown = _FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10)
        pause = min(_LONGEST_PAUSE_SECONDS, grown) * (0.5 + 0.5 * self.jitter())
        return max(pause, asked or 0.0)
