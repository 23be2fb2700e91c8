"""Deletes measurements that nothing has used for 30 days (planner.md §4).

The last use is an annotation of the document, written at most once a day: a status would tick. What
a user made, imported or edited is never deleted, whoever else has written to it since.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL
from trimtab.kube.errors import refused
from trimtab.kube.resources import CONFIG_MAP
from trimtab.observe.records import LAST_USED_ANNOTATION
from trimtab.planning.documents import in_use
from trimtab.reconcile.fingerprint_book import FINGERPRINT_KEY
from trimtab.reconcile.fingerprints import ANSWERS_ANNOTATION
from trimtab.reconcile.plan import Deletion
from trimtab.reconcile.snapshot import ACCURACY_KEY
from trimtab.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab.observe.records import ConfigMapRecord
    from trimtab.planning.snapshot import FleetSnapshot
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.world import World

_log = structlog.get_logger(__name__)

KINDS: Final = ("fingerprint", "accuracy")
UNUSED_SECONDS: Final = 30 * 86400.0
NOTED_SECONDS: Final = 86400.0
LOOK_SECONDS: Final = 3600.0
"""So often documents are looked at, and so long one is seen unused by this process before it goes."""
_SHORTEST_REST_SECONDS: Final = 1.0


class Pruner:
    """Notes which measurements are used, and deletes those that none is made from any more."""

    def __init__(self, world: World, *, executor: Executor) -> None:
        self._world = world
        self._executor = executor
        self._idle: dict[str, float] = {}

    async def step(self) -> float:
        """Note uses, delete what was not used; return when to look again."""
        policy_seconds = self._world.settings.policy_seconds
        snapshot = self._world.fleet.current.snapshot
        if snapshot is not None:
            now = self._world.clock()
            used = _uses(snapshot)
            idle: dict[str, float] = {}
            for record in list(self._measured()):
                unused_seconds = self._unused_seconds(record)
                if _subject(record) in used:
                    if unused_seconds > policy_seconds(NOTED_SECONDS):
                        await self._note(record)
                    continue
                idle[record.uid] = self._idle.get(record.uid, now)
                # An operator that was away for a month has not seen who used what meanwhile.
                watched = now - idle[record.uid] >= policy_seconds(LOOK_SECONDS)
                if watched and unused_seconds > policy_seconds(UNUSED_SECONDS):
                    await self._delete(record, days=unused_seconds / policy_seconds(86400.0))
            self._idle = idle
        return max(_SHORTEST_REST_SECONDS, policy_seconds(LOOK_SECONDS))

    def _measured(self) -> Iterator[ConfigMapRecord]:
        """Yield the documents that Jobs found and nobody else has written to, sorted by name."""
        system = self._world.settings.system_namespace
        for record in sorted(self._world.caches.configmaps, key=lambda r: r.name):
            if record.namespace != system or not record.ours or record.deleting:
                continue
            match record.labels.get(COMPONENT_LABEL):
                case "fingerprint":
                    own = ANSWERS_ANNOTATION in record.annotations
                    if own and FINGERPRINT_KEY not in record.foreign_keys:
                        yield record
                case "accuracy" if ACCURACY_KEY not in record.foreign_keys:
                    yield record

    def _unused_seconds(self, record: ConfigMapRecord) -> float:
        """Return for how long nobody has been noted to use a document; one is used when it is made."""
        created = _moment(record.created)
        noted = _moment(record.annotations.get(LAST_USED_ANNOTATION, ""))
        last = max((m for m in (created, noted) if m is not None), default=None)
        return 0.0 if last is None else (self._world.utcnow() - last).total_seconds()

    async def _note(self, record: ConfigMapRecord) -> None:
        moment = self._world.utcnow().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            await self._executor.annotate(record, LAST_USED_ANNOTATION, moment, resource=CONFIG_MAP)
        except Exception as error:
            fault = refused(error)
            if fault is None:
                raise
            _log.warning("use_not_noted", name=record.name, error=fault.message)

    async def _delete(self, record: ConfigMapRecord, *, days: float) -> None:
        kind = record.labels[COMPONENT_LABEL]
        try:
            await self._executor.delete(
                Deletion(
                    resource=CONFIG_MAP,
                    namespace=record.namespace,
                    name=record.name,
                    uid=record.uid,
                    # Somebody may have edited it just now: then it is a user's.
                    resource_version=str(record.resource_version or ""),
                )
            )
        except Exception as error:
            fault = refused(error)
            if fault is None:
                raise
            _log.warning("unused_not_deleted", name=record.name, error=fault.message)
            return
        metrics.UNUSED_DELETED.labels(kind=kind).inc()
        _log.info("unused_deleted", kind=kind, name=record.name, unused_days=round(days, 1))


def _uses(snapshot: FleetSnapshot) -> frozenset[str]:
    """Return the names of ConfigMaps, up to the precision, that plans for these intents may read."""
    models = (view.model for view in snapshot.intents)
    identities = {m.identity for m in models if m is not None and m.identity}
    return frozenset(
        {f"fp-{digest}" for digest in in_use(snapshot)} | {f"acc-{one}" for one in identities}
    )


def _subject(record: ConfigMapRecord) -> str:
    """Return what a document is about: its name without the precision."""
    return "-".join(record.name.split("-")[:2])


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
