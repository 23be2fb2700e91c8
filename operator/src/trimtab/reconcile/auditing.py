"""Audits of the caches against the API server, and what follows from a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from trimtab.kube.resources import CHILDREN, INTENT, NODE, POD, Resource
from trimtab.observe.audit import Ledger, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.kube.client import KubeClient
    from trimtab.observe.cache import Change
    from trimtab.observe.caches import Caches

_log = structlog.get_logger(__name__)

INTENTS_SECONDS: Final = 60.0
CHILDREN_SECONDS: Final = 600.0
SELECTOR: Final = "app.kubernetes.io/part-of=trimtab"
"""What every watch and list of children is limited to."""


def selector_of(resource: Resource) -> str:
    """Return the label selector under which a kind is watched."""
    return "" if resource in (INTENT, NODE) else SELECTOR


async def list_uids(client: KubeClient, resource: Resource) -> frozenset[str]:
    """Return the uids of all watched objects of a kind, by a metadata-only list."""
    return frozenset(
        [
            item["metadata"]["uid"]
            async for item in client.items(
                resource, label_selector=selector_of(resource), metadata_only=True
            )
        ]
    )


class Auditor:
    """Compares, remembers since when something differs, wakes, and turns liveness red."""

    def __init__(
        self,
        *,
        client: KubeClient,
        caches: Caches,
        clock: Callable[[], float],
        wake: Callable[[str, str], None],
        differs: Callable[[str, int], None],
        changed: Callable[[str, Change[Any]], None],
    ) -> None:
        """Prepare; `changed` is told of objects that vanished, as an event would have told it."""
        self._changed = changed
        self._client = client
        self._caches = caches
        self._clock = clock
        self._wake = wake
        self._differs = differs
        self._ledger = Ledger()
        self._last_children = float("-inf")
        self._relisted: set[str] = set()
        self.last_intents = clock()

    def relisted(self, plural: str) -> None:
        """Note that kopf listed a kind again: what vanished meanwhile got no event."""
        self._relisted.add(plural)

    async def step(self) -> None:
        """Audit the intents, and children when due or listed again."""
        await self._audit(INTENT)
        self.last_intents = self._clock()
        relisted, self._relisted = self._relisted, set()
        due = self._clock() - self._last_children >= CHILDREN_SECONDS
        for resource in (*CHILDREN, POD, NODE):
            if due or resource.plural in relisted:
                await self._audit(resource)
        if due:
            self._last_children = self._clock()

    async def _audit(self, resource: Resource) -> None:
        cache = self._caches.by_plural()[resource.plural]
        listed = [
            item
            async for item in self._client.items(
                resource, label_selector=selector_of(resource), metadata_only=True
            )
        ]
        report = compare(cache, listed)
        owners = {uid: r.owner_uids for uid in report.ghosts if (r := cache.by_uid(uid))}
        old = self._ledger.note(resource.plural, report, now=self._clock())
        if not old:
            return
        _log.warning("cache_differs", kind=resource.kind, objects=len(old))
        self._differs(resource.kind, len(old))
        for uid in old:
            gone = cache.forget(uid) if uid in report.ghosts else None
            if gone is not None:
                self._changed(resource.plural, gone)
            for key in (uid, *owners.get(uid, ())):
                self._wake(key, "audit")

    def healthy(self) -> bool:
        """Whether no difference is older than 150 s and the last audit of intents is fresh."""
        now = self._clock()
        return self._ledger.healthy(now=now) and now - self.last_intents < 5 * INTENTS_SECONDS
