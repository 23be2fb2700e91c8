"""Measuring what precisions lose: Jobs beside the models, documents in the system namespace.

What is kept is found again by the model's identity: its namespace and source, the files' headers, the
checkpoint's own precision, the engine's version and the text. Namespace and source are part of it,
because two models of one shape have equal headers, and because a tenant could forge the message of a
Job in its own namespace: it then misleads nobody else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, PAUSED_ANNOTATION
from trimtab.kube.errors import refused
from trimtab.kube.resources import CONFIG_MAP
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.intents import AccuracyProgress
from trimtab.planning.accuracy import TEXT_DIGEST, AccuracyInvalidError, AccuracyLoss, dump, parse
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.inferenceintent.jobs import AccuracyNeed
from trimtab.reconcile.inferenceintent.policies import Admission, first_violation
from trimtab.reconcile.inferenceintent.sources import mount
from trimtab.reconcile.labels import Owner, shared_labels
from trimtab.reconcile.measuring import DocumentError, Measurer
from trimtab.reconcile.plan import Deletion
from trimtab.reconcile.snapshot import ACCURACY_KEY, accuracy_map, parse_intent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import ConfigMapRecord, JobRecord
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.snapshot import IntentView

_log = structlog.get_logger(__name__)

_LARGE_BYTES: Final = 4 * 2**30
_LARGE_THREADS: Final = 4
"""A model of gigabytes takes an hour on one thread; a small one is done in seconds."""


class AccuracyKeeper(Measurer[AccuracyNeed]):
    """Creates accuracy Jobs, keeps what they find per precision, repeats what failed."""

    component = "accuracy"
    prefix = "acc-"
    meanwhile = "until then its loss of accuracy is unknown"

    async def step(self) -> float | None:
        """Harvest, start, and remove what no release can use any more."""
        await self._prune()
        return await super().step()

    async def _prune(self) -> None:
        for record in list(self._caches.configmaps):
            labelled = record.labels.get(COMPONENT_LABEL) == self.component
            if record.namespace != self._settings.system_namespace or not labelled:
                continue
            # What somebody else wrote or adopted is his, readable or not.
            if record.deleting or record.foreign_keys:
                continue
            if not _usable(record.data.get(ACCURACY_KEY, "")):
                await self._discard(record)

    async def _discard(self, record: ConfigMapRecord) -> None:
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
            _log.warning("unusable_not_deleted", name=record.name, error=fault.message)

    def progress(self, uid: str, plan: IntentPlan | None) -> AccuracyProgress:
        """Return where measuring the precisions of an intent's plan stands."""
        view = self._views().get(uid)
        if plan is None or not plan.unmeasured or view is None or view.model is None:
            return AccuracyProgress()
        identity = view.model.identity
        name = jobs.accuracy_name(identity)
        running = self._caches.jobs.get(view.namespace, name) is not None
        failure = self._failures.get(identity)
        return AccuracyProgress(
            precisions=plan.unmeasured,
            job=name if running else "",
            failure=failure.message if failure else self._spoilt(identity, plan.unmeasured),
        )

    def _spoilt(self, identity: str, precisions: Sequence[str]) -> str:
        """Return what to do about a document that answers nothing and is not ours to remove."""
        for precision in precisions:
            name = accuracy_map(identity, precision)
            record = self._caches.configmaps.get(self._settings.system_namespace, name)
            if record is not None and not _usable(record.data.get(ACCURACY_KEY, "")):
                return (
                    f"ConfigMap {record.namespace}/{name}, key {ACCURACY_KEY}, is no accuracy "
                    "measurement of this release. Delete the ConfigMap to have it measured again."
                )
        return ""

    def _views(self) -> dict[str, IntentView]:
        snapshot = self._fleet.current.snapshot
        return {view.uid: view for view in snapshot.intents} if snapshot else {}

    def _wanted(self) -> list[AccuracyNeed]:
        """Return each model with the precisions that plans ask about, once, by its oldest intent."""
        views = self._views()
        needs: dict[str, AccuracyNeed] = {}
        plans = self._fleet.current.by_uid
        for uid, plan in sorted(plans.items(), key=lambda item: _age(views.get(item[0]))):
            view = views.get(uid)
            if view is None or view.model is None or not view.model.identity:
                continue
            identity = view.model.identity
            open_ = {p for p in plan.unmeasured if not self._kept(identity, p)}
            if not open_ or not self._admitted(uid):
                continue
            need = needs.setdefault(
                identity,
                AccuracyNeed(
                    key=identity,
                    intent_uid=uid,
                    model=view.model,
                    precisions=(),
                    threads=self._threads(view.model.weight_bytes),
                ),
            )
            precisions = tuple(sorted(open_ | set(need.precisions)))
            needs[identity] = replace(need, precisions=precisions)
        return list(needs.values())

    def _threads(self, weight_bytes: int) -> int:
        snapshot = self._fleet.current.snapshot
        most = max((p.millicores // 1000 for p in snapshot.pools), default=1) if snapshot else 1
        return max(1, min(_LARGE_THREADS, most)) if weight_bytes >= _LARGE_BYTES else 1

    def _admitted(self, uid: str) -> bool:
        """Whether this installation mounts the intent's source, and it is not paused."""
        record = self._caches.inferenceintents.by_uid(uid)
        if record is None or record.deleting:
            return False
        if record.annotations.get(PAUSED_ANNOTATION) == "true":
            return False
        admission = Admission(intent=parse_intent(record), settings=self._settings)
        return first_violation(admission) is None

    def _kept(self, identity: str, precision: str) -> bool:
        name = accuracy_map(identity, precision)
        return self._caches.configmaps.get(self._settings.system_namespace, name) is not None

    def _jobs(self) -> Sequence[JobRecord]:
        """Return the Jobs of models that are planned for, each in its own namespace."""
        known = {
            (view.namespace, jobs.accuracy_name(view.model.identity))
            for view in self._views().values()
            if view.model is not None and view.model.identity
        }
        return [job for job in self._jobs_labelled() if job.key in known]

    def _job_of(self, need: AccuracyNeed) -> JobRecord | None:
        record = self._caches.inferenceintents.by_uid(need.intent_uid)
        namespace = record.namespace if record else ""
        return self._caches.jobs.get(namespace, jobs.accuracy_name(need.key))

    def _manifests(
        self, need: AccuracyNeed, *, attempt: int, contended: bool
    ) -> Sequence[Manifest]:
        # Whether others compute beside it changes how long it takes, not what it finds.
        del contended
        record = self._caches.inferenceintents.by_uid(need.intent_uid)
        if record is None:
            return ()
        owner = Owner(namespace=record.namespace, name=record.name, uid=record.uid)
        source = parse_intent(record).spec.model.source
        mounted = mount(source, settings=self._settings, headers_only=False)
        return (
            jobs.reading_policy(owner=owner, mounted=mounted, component="accuracy"),
            jobs.accuracy_job(
                need=need, owner=owner, mounted=mounted, attempt=attempt, settings=self._settings
            ),
        )

    def _documents(self, job: JobRecord, key: str, message: str) -> Sequence[Manifest]:
        views = self._views().values()
        models = [v.model for v in views if v.model is not None and v.model.identity == key]
        try:
            losses = parse(message)
            for loss in losses:
                _check(loss, source=models[0].source if models else "", job=job)
            return [self._config_map(key, loss) for loss in losses]
        except AccuracyInvalidError as error:
            raise DocumentError(str(error)) from error

    def _config_map(self, identity: str, loss: AccuracyLoss) -> Manifest:
        name = accuracy_map(identity, loss.precision)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self._settings.system_namespace,
                "labels": shared_labels("accuracy", instance=name),
            },
            "data": {ACCURACY_KEY: dump([loss])},
        }


def _check(loss: AccuracyLoss, *, source: str, job: JobRecord) -> None:
    """Refuse what answers another question.

    Raises:
        DocumentError: Another model or text, or a precision that the engine has not.
    """
    if loss.precision not in ASSUMED.precisions:
        raise DocumentError(
            f"Job {job.name} measured precision {loss.precision[:80]!r}, but the engine has "
            f"{', '.join(ASSUMED.precisions)}. Use operator and worker image of one release"
        )
    for name, found, wanted in (
        ("model", loss.key.model, source),
        ("text", loss.key.text, TEXT_DIGEST),
    ):
        if found != wanted:
            raise DocumentError(
                f"Job {job.name} measured on {name} {found!r}, not on {wanted!r}. If the model's "
                "files were replaced, name them by another path or revision in spec.model.source; "
                "else operator and worker image are of different releases: use the same"
            )


def _usable(text: str) -> bool:
    """Whether a document is of this release's engine and text, and can be read."""
    try:
        losses = parse(text)
    except AccuracyInvalidError:
        return False
    return all(
        loss.key.text == TEXT_DIGEST and loss.key.engine_version == ASSUMED.version
        for loss in losses
    )


def _age(view: IntentView | None) -> tuple[int, str]:
    return (view.created_seconds, view.uid) if view else (0, "")
