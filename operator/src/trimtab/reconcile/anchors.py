"""Anchors of predictions: taken from workers' answers, kept beside the fingerprints (planner.md §7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from trimtab.api.v1alpha1.names import ANCHORS, COMPONENT_LABEL, PLAN_DIGEST_ANNOTATION
from trimtab.kube.errors import refused
from trimtab.planning.anchors import (
    AnchorsInvalidError,
    correction_for,
    departure,
    dump_anchors,
    parse_anchors,
    read_counters,
)
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.sources import best_for, key_for
from trimtab.reconcile.fingerprint_book import FINGERPRINT_KEY
from trimtab.reconcile.fingerprints import ANSWERS_ANNOTATION
from trimtab.reconcile.snapshot import running_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet

    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import ConfigMapRecord, IntentRecord, PodRecord
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.snapshot import Config, FleetSnapshot
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.fleet import Planned
    from trimtab.reconcile.world import World

_log = structlog.get_logger(__name__)

ANCHORS_KEY: Final = "anchors"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a window says something about."""

    fingerprint: Fingerprint
    depth: int
    margin_permille: int
    snapshot: FleetSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """What was last seen of the ConfigMaps of a fingerprint: their uids, and whether one had anchors."""

    uids: frozenset[str]
    anchored: bool


class AnchorKeeper:
    """Makes anchors of decode-only steps; asks for a plan when steps have left their prediction."""

    def __init__(
        self,
        world: World,
        *,
        executor: Executor,
        current: Callable[[], Planned],
        drifted: Callable[[], None],
        policy: PlannerPolicy,
    ) -> None:
        """Prepare.

        Args:
            world: What is known.
            executor: Writes the kept documents.
            current: Returns the fleet's plan in force.
            drifted: Told that steps have left their prediction for good.
            policy: Constants.
        """
        self._world = world
        self._executor = executor
        self._current = current
        self._drifted = drifted
        self._policy = policy
        self._objects: dict[str, _Object] = {}

    def recall(self) -> None:
        """Take up what was kept before a restart; what cannot be read is collected anew."""
        self._objects = self._seen()
        for record, fingerprint in self._kept():
            key = fingerprint.key.digest()
            try:
                anchors = parse_anchors(
                    record.data.get(ANCHORS_KEY, ""),
                    key=key,
                    tensor_parallel_size=fingerprint.key.tensor_parallel_size,
                )
            except AnchorsInvalidError as error:
                _log.warning("anchors_invalid", name=record.name, error=str(error))
                continue
            self._world.anchors.recall(key, anchors)

    def take(self, pod: PodRecord, document: Mapping[str, Any]) -> None:
        """Take a worker's answer in."""
        counted = document.get("decode_only")
        if not isinstance(counted, Mapping):
            return
        for model, entry in counted.items():
            try:
                self._take(pod, str(model), entry)
            except (ValueError, ArithmeticError) as error:
                # Nonsense of one model must keep neither the others nor other pods from being heard.
                _log.warning("decode_counters_garbled", pod=pod.name, error=str(error))

    def _take(self, pod: PodRecord, model: str, entry: Any) -> None:
        anchors, now = self._world.anchors, self._world.clock()
        window = anchors.window(pod.uid, model, read_counters(entry), now=now)
        subject = self._subject(pod, model) if window is not None else None
        if window is None or subject is None:
            return
        key = subject.fingerprint.key
        anchor = window.anchor(
            key=key.digest(),
            depth=subject.depth,
            tensor_parallel_size=key.tensor_parallel_size,
        )
        known = correction_for(
            subject.fingerprint,
            fingerprints=subject.snapshot.fingerprints,
            anchors=anchors.all(),
            policy=self._policy,
        )
        try:
            away = departure(anchor, subject.fingerprint, known=known)
        except FingerprintInvalidError:
            return
        if anchors.add(
            anchor,
            place=(pod.uid, model),
            departure=away,
            margin_permille=subject.margin_permille,
            now=now,
        ):
            _log.info("steps_drifted", pod=pod.name, model=model, log_ratio=round(away, 3))
            self._drifted()

    def keep_pods(self, alive: AbstractSet[str]) -> None:
        """Forget windows of workers that are gone."""
        self._world.anchors.keep_pods(alive)

    async def step(self) -> None:
        """Let plans see all windows, and keep what they see."""
        anchors = self._world.anchors
        self._forget()
        anchors.publish()
        published = anchors.published()
        for record, fingerprint in self._kept():
            found = published.get(fingerprint.key.digest())
            if found is None:
                continue
            text = dump_anchors(found)
            if record.data.get(ANCHORS_KEY) != text:
                await self._keep(record, text)

    async def _keep(self, record: ConfigMapRecord, text: str) -> None:
        live = self._world.caches.configmaps.get(record.namespace, record.name)
        if live != record or record.deleting:
            # Written or deleted while others were kept: the next step reads it anew.
            return
        try:
            await self._executor.add(
                _manifest(record, text),
                manager=ANCHORS,
                # Whoever imported a document and keeps its anchors in a file of his own has them.
                force=ANSWERS_ANNOTATION in record.annotations,
            )
        except Exception as error:
            fault = refused(error)
            if fault is None:
                raise
            _log.warning("anchors_not_kept", name=record.name, error=fault.message)

    def _forget(self) -> None:
        """Forget anchors of fingerprints that were deleted or replaced, or whose anchors were."""
        seen = self._seen()
        for key, before in self._objects.items():
            now = seen.get(key)
            gone = now is None or not before.uids & now.uids
            if gone or (now is not None and before.anchored and not now.anchored):
                _log.info("anchors_forgotten", fingerprint=key)
                self._world.anchors.forget(key)
        self._objects = seen

    def _seen(self) -> dict[str, _Object]:
        found: dict[str, _Object] = {}
        for record, fingerprint in self._kept():
            key = fingerprint.key.digest()
            other = found.get(key)
            found[key] = _Object(
                uids=frozenset({record.uid}) | (other.uids if other else frozenset()),
                anchored=bool(record.data.get(ANCHORS_KEY))
                or (other is not None and other.anchored),
            )
        return found

    def _subject(self, pod: PodRecord, model: str) -> _Subject | None:
        """Return what predicts a model in a pod; None if nothing does, or an old plan's pod it is."""
        snapshot = self._current().snapshot
        record = self._intent(pod, model)
        if snapshot is None or record is None:
            return None
        config = self._config(pod, record)
        view = next((i for i in snapshot.intents if i.uid == record.uid), None)
        if config is None or view is None or view.model is None:
            return None
        if config.pipeline_parallel_size > 1:
            # Its steps pass through stages and are handed on; the fingerprint is of one process, and
            # predicts workers of that too.
            return None
        key = key_for(view.model, config, capabilities=self._world.capabilities)
        fingerprint = best_for(key, snapshot.fingerprints)
        if fingerprint is None:
            return None
        plan = self._current().by_uid.get(record.uid)
        option = plan.option if plan is not None else None
        return _Subject(
            fingerprint=fingerprint,
            depth=view.model.depth,
            margin_permille=option.margin_permille if option else self._policy.margin_low_permille,
            snapshot=snapshot,
        )

    def _intent(self, pod: PodRecord, model: str) -> IntentRecord | None:
        namespace, _, name = model.partition("/")
        if namespace != pod.namespace:
            return None
        return self._world.oldest_namesake(namespace, name)

    def _config(self, pod: PodRecord, record: IntentRecord) -> Config | None:
        digest = pod.annotations.get(PLAN_DIGEST_ANNOTATION)
        for deployment in self._world.caches.deployments.owned_by(record.uid):
            if digest and deployment.plan_digest == digest:
                return running_config(record, deployment)
        return None

    def _kept(self) -> Iterator[tuple[ConfigMapRecord, Fingerprint]]:
        system = self._world.settings.system_namespace
        for record in sorted(self._world.caches.configmaps, key=lambda r: r.name):
            measured = record.labels.get(COMPONENT_LABEL) == "fingerprint"
            if record.namespace != system or not measured:
                continue
            try:
                yield record, parse(record.data.get(FINGERPRINT_KEY, ""))
            except FingerprintInvalidError:
                continue


def _manifest(record: ConfigMapRecord, text: str) -> Manifest:
    """Return the anchors alone: the document beside them may be a user's, and stays so."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record.name,
            "namespace": record.namespace,
            # With it, the server refuses to create again what was deleted meanwhile.
            "uid": record.uid,
        },
        "data": {ANCHORS_KEY: text},
    }
