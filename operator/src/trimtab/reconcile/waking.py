"""From a watch event to the loops, keepers and plans that it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP_LABEL
from trimtab.observe.records import LAST_USED_ANNOTATION, ConfigMapRecord
from trimtab.reconcile.naming import model_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab.observe.cache import Change
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import IntentRecord, PodRecord, Record
    from trimtab.settings import Settings

_FINGERPRINT_KINDS: Final = frozenset({"jobs", "pods", "configmaps"})


class Waker:
    """Stores an event and wakes; cheap, because it runs for every event of the cluster."""

    def __init__(
        self,
        *,
        caches: Caches,
        wake: Callable[[str, str], None],
        wake_needing: Callable[[str], None],
        replan: Callable[[], None],
        run: Callable[[str], None],
        relisted: Callable[[str], None],
        renamed: Callable[[], None],
        load_edited: Callable[[str], None],
        forget_load: Callable[[str], None],
        gone: Callable[[str, Record], None],
        settings: Settings,
    ) -> None:
        """Prepare.

        Args:
            caches: Where events are stored.
            wake: Wakes a loop by uid, with a cause.
            wake_needing: Wakes the intents that need a fingerprint, by its key.
            replan: Asks for a fleet plan.
            run: Runs a periodic job soon, by name.
            relisted: Told of a kind that kopf listed again.
            renamed: Told that an intent came, went, or was edited.
            load_edited: Told the uid of an intent whose declared load was edited.
            forget_load: Told the uid of an intent that went.
            gone: Told of an object that is gone, with its kind's plural.
            settings: Of the installation.
        """
        self._caches = caches
        self._by_plural = caches.by_plural()
        self._wake = wake
        self._wake_needing = wake_needing
        self._replan = replan
        self._run = run
        self._relisted = relisted
        self._renamed = renamed
        self._load_edited = load_edited
        self._forget_load = forget_load
        self._gone = gone
        self._system = settings.system_namespace

    def event(
        self, plural: str, kind: str | None, body: Mapping[str, Any], *, past_barrier: bool
    ) -> None:
        """Take one event in."""
        change = self._by_plural[plural].apply_event(kind, body)
        if kind is None and past_barrier:
            self._relisted(plural)
        if change is not None:
            self.changed(plural, change)

    def changed(self, plural: str, change: Change[Any]) -> None:
        """Wake whom a change concerns, whether an event or a write of ours brought it."""
        if change.after is None:
            self._gone(plural, change.record)
        match plural:
            case "inferenceintents":
                self._intent(change)
            case "nodes":
                if _differs(change):
                    self._replan()
            case _:
                self._child(plural, change)

    def _intent(self, change: Change[Any]) -> None:
        record, before = change.record, change.before
        if change.after is None or record.deleting:
            self._renamed()
            self._wake(record.uid, "deleted")
            self._wake_namesakes(record)
            self._replan()
            self._run("routes")
            if change.after is None:
                self._forget_load(record.uid)
                self._run("sweep")
            return
        if before is None or before.generation != record.generation:
            self._renamed()
            self._wake(record.uid, "spec")
            if before is not None:
                self._wake_namesakes(before)
                if before.spec.get("load") != record.spec.get("load"):
                    self._load_edited(record.uid)
            self._replan()
            self._run("routes")
        elif before.annotations != record.annotations:
            self._wake(record.uid, "spec")
            # One that is paused no longer, or takes its replicas back, has another step.
            self._run("steps")
            # So has its place: nobody else's while it is paused.
            self._replan()
        # A change of status alone is our own writing.

    def _wake_namesakes(self, freed: IntentRecord) -> None:
        """Wake whoever waited for a model name that may be free now."""
        for other in self._caches.inferenceintents:
            same = other.namespace == freed.namespace and other.uid != freed.uid
            if same and model_name(other) == model_name(freed):
                self._wake(other.uid, "name")

    def _child(self, plural: str, change: Change[Any]) -> None:
        record = change.record
        for owner in record.owner_uids:
            self._wake(owner, plural)
        if plural == "services":
            self._run("routes")
        component = record.labels.get(COMPONENT_LABEL)
        if component == "worker" and plural == "pods":
            self._run("workers")
            if _can_be_sent_requests(change.before) != _can_be_sent_requests(change.after):
                self._run("routes")
        if GROUP_LABEL in record.labels and plural in ("pods", "configmaps"):
            self._run("reloads")
        if plural in _FINGERPRINT_KINDS and not _only_noted(change):
            self._measured(plural, record, component)

    def _measured(self, plural: str, record: Record, component: str | None) -> None:
        if component == "accuracy":
            # Its Jobs run beside the models, so anybody's label can wake the keeper, and only that.
            self._run("accuracy")
        if record.namespace != self._system:
            return
        if component == "fingerprint":
            self._run("fingerprints")
            self._wake_needing(_key(record))
        if plural == "configmaps" and component in ("fingerprint", "inspection", "accuracy"):
            # Something that plans are made from was read, measured, edited or removed.
            self._replan()
        if plural == "configmaps" and component == "routes":
            self._run("routes")


def _can_be_sent_requests(pod: PodRecord | None) -> bool:
    return pod is not None and pod.ready and not pod.deleting


def _only_noted(change: Change[Any]) -> bool:
    """Tell whether nothing has changed but when a document was last used."""
    before, after = change.before, change.after
    if not isinstance(before, ConfigMapRecord) or not isinstance(after, ConfigMapRecord):
        return False
    same = (before.uid, before.data, before.labels) == (after.uid, after.data, after.labels)
    noted = before.annotations.get(LAST_USED_ANNOTATION) != after.annotations.get(
        LAST_USED_ANNOTATION
    )
    return same and noted and _unnoted(before) == _unnoted(after)


def _unnoted(record: ConfigMapRecord) -> dict[str, str]:
    return {k: v for k, v in record.annotations.items() if k != LAST_USED_ANNOTATION}


def _key(record: Record) -> str:
    name = record.labels.get("batch.kubernetes.io/job-name") or record.name
    return name.removeprefix("fp-")


def _differs(change: Change[Any]) -> bool:
    before, after = change.before, change.after
    return before is None or after is None or before.fingerprint != after.fingerprint
