"""Carries a plan out: children, deletions, status, events, and nothing that changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from trimtab.api.v1alpha1.conditions import Condition, ConditionType, stamp, with_ready
from trimtab.api.v1alpha1.names import API_VERSION, OWNER_UID_LABEL
from trimtab.api.v1alpha1.reasons import Reason
from trimtab.kube.errors import Fault, FaultKind, classify
from trimtab.kube.events import event
from trimtab.kube.resources import INTENT, POD, resource_of
from trimtab.observe.digests import digest
from trimtab.reconcile.inferenceintent.transitions import transitions
from trimtab.reconcile.pacing import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from trimtab.kube.resources import Manifest, Resource
    from trimtab.kube.writer import Writer
    from trimtab.observe.cache import Change
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import IntentRecord, Record
    from trimtab.reconcile.plan import Deletion, EventRecord, Plan

_log = structlog.get_logger(__name__)

_REASONS: Final = {
    FaultKind.FIELD_CONFLICT: Reason.FIELD_CONFLICT,
    FaultKind.INVALID: Reason.INVALID_OBJECT,
    FaultKind.QUOTA_EXCEEDED: Reason.QUOTA_EXCEEDED,
    FaultKind.MISSING_PERMISSION: Reason.MISSING_PERMISSION,
}
_OUR_TYPES: Final = frozenset(str(kind) for kind in ConditionType)


@dataclass(frozen=True, slots=True)
class _Remembered:
    wanted: str
    live: str
    uid: str = ""


class Executor:
    """Writes plans; remembers what it wrote so that equal plans cost no request."""

    def __init__(
        self,
        writer: Writer,
        caches: Caches,
        *,
        utcnow: Callable[[], datetime],
        instance: str,
        changed: Callable[[str, Change[Any]], None],
    ) -> None:
        """Prepare; `changed` is told what our own writes changed, by the kind's plural."""
        self._changed = changed
        self._writer = writer
        self._caches = caches.by_plural()
        self._intents = caches.inferenceintents
        self._utcnow = utcnow
        self._instance = instance
        self._children: dict[tuple[str, str, str], _Remembered] = {}
        self._children_by_owner: dict[str, set[tuple[str, str, str]]] = {}
        self._statuses: dict[str, _Remembered] = {}

    def forget(self, uid: str) -> None:
        """Drop what is remembered of an intent that is gone."""
        self._statuses.pop(uid, None)
        for key in self._children_by_owner.pop(uid, ()):
            self._children.pop(key, None)

    def gone(self, plural: str, record: Record) -> None:
        """Drop what is remembered of an object that is gone, whoever or whatever removed it.

        A group's objects have no intent whose end would say so.
        """
        self._children.pop((plural, record.namespace, record.name), None)

    async def execute(self, plan: Plan, *, subject: IntentRecord) -> Outcome:
        """Apply children, delete what goes, write status, tell events; end at a refused child.

        Raises:
            Exception: Only what is no API failure: a bug.
        """
        fault = await self._children_of(plan)
        conditions = plan.conditions
        told = plan.events
        if fault is not None:
            if fault.kind is FaultKind.NAMESPACE_GONE:
                return Outcome(message=fault.message)
            if fault.kind not in _REASONS:
                return _failed(fault)
            conditions = _blame(plan, fault, subject)
            told = transitions(subject, conditions)
        try:
            changed = await self._status(plan, conditions, subject)
            if changed:
                for record in told:
                    await self.tell(record, subject)
        except Exception as error:
            status_fault = classify(error)
            if status_fault is None:
                raise
            if status_fault.kind is FaultKind.NOT_FOUND:
                return Outcome(message="The object is gone.")
            return _failed(status_fault)
        if fault is not None:
            return _failed(fault)
        return Outcome(requeue_after_seconds=plan.requeue_after_seconds)

    async def _children_of(self, plan: Plan) -> Fault | None:
        try:
            for manifest in plan.desired:
                await self.apply(manifest)
            for deletion in plan.deletions:
                await self.delete(deletion)
        except Exception as error:
            fault = classify(error)
            if fault is None:
                raise
            return fault
        return None

    async def apply(self, manifest: Manifest) -> bool:
        """Apply an own object unless it is known to be as wanted; return whether it was sent."""
        resource = resource_of(manifest)
        meta = manifest["metadata"]
        key = (resource.plural, meta.get("namespace", ""), meta["name"])
        cache = self._caches[resource.plural]
        wanted = digest(manifest)
        live = cache.get(key[1], key[2])
        known = self._children.get(key)
        if live and not live.deleting and known == _Remembered(wanted, live.fingerprint, live.uid):
            return False
        answer = await self._writer.apply(manifest)
        written, change = cache.put(answer)
        self._children[key] = _Remembered(wanted, written.fingerprint, written.uid)
        if owner := (meta.get("labels") or {}).get(OWNER_UID_LABEL):
            self._children_by_owner.setdefault(owner, set()).add(key)
        if change is not None:
            self._changed(resource.plural, change)
        return True

    async def add(self, manifest: Manifest, *, manager: str, force: bool) -> None:
        """Apply some fields of an object, as a manager that owns nothing else in it.

        Whoever wrote the rest keeps it, and without ``force`` also what he wrote of these fields.
        """
        plural = resource_of(manifest).plural
        answer = await self._writer.apply(manifest, force=force, manager=manager)
        _, change = self._caches[plural].put(answer)
        if change is not None:
            self._changed(plural, change)

    async def delete(self, deletion: Deletion) -> None:
        """Delete an object as it was observed."""
        await self._writer.delete(
            deletion.resource,
            namespace=deletion.namespace or None,
            name=deletion.name,
            uid=deletion.uid,
            resource_version=deletion.resource_version,
        )
        change = self._caches[deletion.resource.plural].forget(deletion.uid)
        if change is not None:
            self._changed(deletion.resource.plural, change)
        self._children.pop((deletion.resource.plural, deletion.namespace, deletion.name), None)

    async def annotate(
        self, record: Record, key: str, value: str, *, resource: Resource = POD
    ) -> None:
        """Set one annotation of an object of ours."""
        answer = await self._writer.annotate(
            resource,
            namespace=record.namespace,
            name=record.name,
            uid=record.uid,
            key=key,
            value=value,
        )
        _, change = self._caches[resource.plural].put(answer)
        if change is not None:
            self._changed(resource.plural, change)

    async def _status(
        self, plan: Plan, conditions: tuple[Condition, ...], subject: IntentRecord
    ) -> bool:
        if self._intents.by_uid(subject.uid) is None:
            # Gone meanwhile; a new object of the name has a loop and a status of its own. (The
            # server ignores a uid in the apply of a status, so it cannot guard this.)
            return False
        live = subject.status
        timeless = {
            **plan.status,
            "conditions": [[str(c.type), c.status, str(c.reason), c.message] for c in conditions],
        }
        wanted = digest([timeless, subject.generation])
        if self._statuses.get(subject.uid) == _Remembered(wanted, digest(live)):
            return False
        stamped = stamp(
            conditions,
            previous=live.get("conditions") or (),
            generation=subject.generation,
            now=self._utcnow(),
        )
        status = {"conditions": stamped, **plan.status}
        if _equal(status, live):
            self._statuses[subject.uid] = _Remembered(wanted, digest(live))
            return False
        answer = await self._writer.apply_status(
            {
                "apiVersion": API_VERSION,
                "kind": "InferenceIntent",
                "metadata": {"name": subject.name, "namespace": subject.namespace},
                "status": json.loads(json.dumps(status)),
            }
        )
        written, change = self._intents.put(answer)
        self._statuses[subject.uid] = _Remembered(wanted, digest(written.status))
        if change is not None:
            # It may bring an edit made meanwhile, whose own event will tell nothing new any more.
            self._changed(INTENT.plural, change)
        return True

    async def tell(self, record: EventRecord, subject: IntentRecord) -> None:
        """Post an event; one that cannot be posted is not worth failing a step for."""
        manifest = event(
            regarding={
                "apiVersion": API_VERSION,
                "kind": "InferenceIntent",
                "namespace": subject.namespace,
                "name": subject.name,
                "uid": subject.uid,
            },
            reason=str(record.reason),
            note=record.note,
            warning=record.warning,
            action=record.action,
            occasion=record.occasion,
            controller=self._writer.manager,
            instance=self._instance,
            at=self._utcnow(),
        )
        try:
            await self._writer.post_event(manifest)
        except Exception as error:
            fault = classify(error)
            if fault is None:
                raise
            _log.warning("event_not_posted", reason=str(record.reason), error=fault.message)


def _failed(fault: Fault) -> Outcome:
    return Outcome(
        failed=True, message=fault.message, retry_after_seconds=fault.retry_after_seconds
    )


def _blame(plan: Plan, fault: Fault, subject: IntentRecord) -> tuple[Condition, ...]:
    kind = plan.blames or ConditionType.PLACED
    blamed = Condition(
        type=kind,
        status="False",
        reason=_REASONS[fault.kind],
        message=f"InferenceIntent {subject.namespace}/{subject.name}: {fault.message}",
    )
    others = [c for c in plan.conditions if c.type not in (kind, ConditionType.READY)]
    return with_ready("InferenceIntent", [*others, blamed])


def _equal(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether a stored status is as wanted; conditions of other managers do not matter."""
    ours = [c for c in live.get("conditions") or () if c.get("type") in _OUR_TYPES]
    stored = {**live, "conditions": sorted(ours, key=lambda c: str(c["type"]))}
    asked = {**wanted, "conditions": sorted(wanted["conditions"], key=lambda c: str(c["type"]))}
    return digest(stored) == digest(asked)
