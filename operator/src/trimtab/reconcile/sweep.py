"""Removes what belongs to nobody any more: garbage collection cannot cross namespaces."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from trimtab.api.v1alpha1.names import (
    GROUP_LABEL,
    INTENT_LABEL,
    INTENT_NAMESPACE_LABEL,
    OWNER_UID_LABEL,
)
from trimtab.kube.errors import ApiError
from trimtab.kube.finalizers import release
from trimtab.kube.resources import CHILDREN, INTENT, Resource
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.kube.client import KubeClient
    from trimtab.kube.writer import Writer
    from trimtab.observe.cache import Change
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import Record
    from trimtab.reconcile.execute import Executor

_log = structlog.get_logger(__name__)

SWEEP_SECONDS: Final = 3600.0
STUCK_SECONDS: Final = 60.0


class Sweeper:
    """Deletes objects of ours whose owner exists neither in the cache nor at the API server."""

    def __init__(
        self,
        *,
        client: KubeClient,
        writer: Writer,
        executor: Executor,
        caches: Caches,
        utcnow: Callable[[], datetime],
        changed: Callable[[str, Change[Any]], None],
    ) -> None:
        """Prepare; `changed` is told of intents that turn out to be gone."""
        self._changed = changed
        self._client = client
        self._writer = writer
        self._executor = executor
        self._caches = caches
        self._utcnow = utcnow

    async def step(self) -> None:
        """Sweep once."""
        caches = self._caches.by_plural()
        gone: dict[str, bool] = {}
        for resource in CHILDREN:
            for record in caches[resource.plural]:
                if record.labels.get(GROUP_LABEL) and record.ours and not record.deleting:
                    if await self._is_nobodys(record):
                        await self._delete(resource, record)
                    continue
                owner = record.labels.get(OWNER_UID_LABEL)
                if not record.ours or not owner or record.deleting:
                    continue
                if owner not in gone:
                    gone[owner] = await self._is_gone(owner, record)
                if gone[owner]:
                    await self._delete(resource, record)

    async def _is_gone(self, uid: str, child: Record) -> bool:
        """Whether an owner is unknown to the cache *and* to a live read."""
        if self._caches.inferenceintents.by_uid(uid) is not None:
            return False
        namespace = child.labels.get(INTENT_NAMESPACE_LABEL) or child.namespace
        name = child.labels.get(INTENT_LABEL, "")
        if not name:
            # Not as we label: somebody else's business, and no name to look for.
            return False
        live = await self._client.get(INTENT, namespace=namespace, name=name)
        return live is None or live["metadata"]["uid"] != uid

    async def _is_nobodys(self, record: Record) -> bool:
        """Whether no owner of a group's object is left, in the cache and at the API server.

        Garbage collection takes such objects, unless somebody took their references away.
        """
        known = self._caches.inferenceintents
        if any(known.by_uid(uid) is not None for uid in record.owner_uids):
            return False
        alive = {
            item["metadata"]["uid"]
            async for item in self._client.items(
                INTENT, namespace=record.namespace, metadata_only=True
            )
        }
        return not alive & set(record.owner_uids)

    async def _delete(self, resource: Resource, record: Record) -> None:
        try:
            await self._executor.delete(
                Deletion(
                    resource=resource,
                    namespace=record.namespace,
                    name=record.name,
                    uid=record.uid,
                    resource_version=str(record.resource_version or ""),
                )
            )
        except ApiError as error:
            if error.code != 409:
                raise
        else:
            _log.info("swept", kind=resource.kind, namespace=record.namespace, name=record.name)

    async def release_stuck(self) -> None:
        """Take our finalizer off intents that are in deletion for over a minute.

        kopf does this itself; an object whose daemon or PATCH failed it forgets until a restart.
        """
        for record in self._caches.inferenceintents:
            if not record.deleting_since:
                continue
            since = datetime.fromisoformat(record.deleting_since)
            if (self._utcnow() - since).total_seconds() < STUCK_SECONDS:
                continue
            live = await self._client.get(INTENT, namespace=record.namespace, name=record.name)
            if live is None or live["metadata"]["uid"] != record.uid:
                gone = self._caches.inferenceintents.forget(record.uid)
                if gone is not None:
                    self._changed(INTENT.plural, gone)
                continue
            if await release(self._writer, INTENT, live):
                _log.warning("finalizer_released", namespace=record.namespace, name=record.name)
