"""Measuring what plans ask for: Jobs in the system namespace, one writer for the whole fleet."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.names import GROUP
from trimtab.observe.digests import digest
from trimtab.observe.intents import FingerprintProgress
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.plan import FingerprintNeed
from trimtab.planning.step_model import fit
from trimtab.reconcile.fingerprint_book import (
    FINGERPRINT_KEY,
    SEAL_ANNOTATION,
    FingerprintBook,
)
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.measuring import DocumentError, Measurer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import JobRecord
    from trimtab.planning.plan import IntentPlan

ANSWERS_ANNOTATION: Final = f"{GROUP}/answers"
"""Which need a document was measured for; its own key names the CPU that was really found."""

HOLD_SECONDS: Final = 300.0
_AGAIN_SECONDS: Final = 3600.0
_PER_INTENT: Final = 4
_MOST_NODES: Final = 64
"""Named in a Job's affinity; more would only make it long."""


class FingerprintKeeper(Measurer[FingerprintNeed]):
    """Creates fingerprint Jobs, keeps their documents, repeats what failed."""

    component = "fingerprint"
    prefix = "fp-"
    meanwhile = "the plan rests on an estimate meanwhile"

    @cached_property
    def _holding(self) -> dict[str, float]:
        """Since when first roll-outs wait, by the intent's uid."""
        return {}

    @cached_property
    def _again_at(self) -> dict[str, float]:
        """When suspect measurements may be repeated, by key."""
        return {}

    @cached_property
    def book(self) -> FingerprintBook:
        """Which documents are in force: one that is spoilt answers nothing."""
        return FingerprintBook()

    _indexed: tuple[int, Mapping[str, Sequence[str]]] | None = None
    """What `_answers` found, and at which revision of the cache."""

    # What intents read.

    def progress(
        self, uid: str, plan: IntentPlan | None, *, first_rollout: bool
    ) -> FingerprintProgress:
        """Return where an intent's measurements stand, and whether its first roll-out waits."""
        if plan is None:
            return FingerprintProgress()
        needs = [n for n in plan.needs[:_PER_INTENT] if not self._done(n)]
        running = [f"fp-{n.key}" for n in needs if self._job_of(n) is not None]
        failures = [self._failures[n.key].message for n in needs if n.key in self._failures]
        hold = first_rollout and self._hold(uid, plan, needs)
        return FingerprintProgress(
            wanted=len(needs),
            running=tuple(running),
            failures=tuple(failures),
            pending=any(n.key not in self._failures for n in needs),
            hold=hold,
            hold_ends_in_seconds=self._hold_ends_in(uid) if hold else None,
        )

    def _hold(self, uid: str, plan: IntentPlan, needs: list[FingerprintNeed]) -> bool:
        """Hold the first roll-out for the first measurement, but not for ever.

        A worker that starts on an estimate is likely to roll again once the measurement is there,
        and would contend with it for the same threads meanwhile. So a first roll-out waits, at
        most five minutes, and not for a measurement that failed.
        """
        if plan.option is None or plan.option.fingerprint != "Roofline":
            self._holding.pop(uid, None)
            return False
        first = next((n for n in needs if n.key not in self._failures), None)
        if first is None:
            self._holding.pop(uid, None)
            return False
        since = self._holding.setdefault(uid, self._clock())
        return self._clock() - since < self._settings.policy_seconds(HOLD_SECONDS)

    def _hold_ends_in(self, uid: str) -> float:
        since = self._holding[uid]
        return max(0.5, since + self._settings.policy_seconds(HOLD_SECONDS) - self._clock() + 0.5)

    def forget(self, uid: str) -> None:
        """Drop what is kept of an intent that is gone."""
        self._holding.pop(uid, None)

    # What the keeper does.

    def _wanted(self) -> list[FingerprintNeed]:
        """Return all needs of the fleet plan, the most urgent of each intent first, each once."""
        plans = sorted(self._fleet.current.by_uid.items())
        needs: dict[str, FingerprintNeed] = {}
        for rank in range(_PER_INTENT):
            for _, plan in plans:
                if rank < len(plan.needs):
                    needs.setdefault(plan.needs[rank].key, plan.needs[rank])
        return [need for need in needs.values() if not self._done(need)]

    def _manifests(
        self, need: FingerprintNeed, *, attempt: int, contended: bool
    ) -> Sequence[Manifest]:
        job = jobs.fingerprint_job(
            need=need,
            attempt=attempt,
            contended=contended,
            settings=self._settings,
            nodes=self._nodes(need),
        )
        return (job,)

    def _nodes(self, need: FingerprintNeed) -> list[str]:
        """Return the nodes that can answer, nothing where every node can.

        The document is keyed by the CPU that the Job finds: measured on another one, it would
        answer another question, and this one would count as answered.
        """
        snapshot = self._fleet.current.snapshot
        pools = snapshot.pools if snapshot else ()
        fitting = [
            p.node
            for p in pools
            if p.cpu_model == need.cpu_model and p.millicores // 1000 >= need.threads
        ]
        return fitting[:_MOST_NODES] if len(fitting) < len(pools) else []

    def _documents(self, job: JobRecord, key: str, message: str) -> Sequence[Manifest]:
        try:
            fingerprint = parse(message)
            # What no step model fits would count as measured, and plans rest on estimates for ever.
            fit(fingerprint, depth=1)
        except FingerprintInvalidError as error:
            raise DocumentError(str(error)) from error
        self._again_at[key] = self._clock() + self._settings.policy_seconds(_AGAIN_SECONDS)
        contended = job.annotations.get(jobs.CONTENDED_ANNOTATION) == "true"
        document = json.loads(message)
        if contended and "Contended" not in fingerprint.notes:
            document["notes"] = [*document.get("notes", []), "Contended"]
        return (self._config_map(fingerprint.key.digest(), key=key, document=document),)

    def _config_map(self, name: str, *, key: str, document: Manifest) -> Manifest:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"fp-{name}",
                "namespace": self._settings.system_namespace,
                "labels": shared_labels("fingerprint", instance=f"fp-{name}"),
                "annotations": {ANSWERS_ANNOTATION: key, SEAL_ANNOTATION: digest(text)},
            },
            # Anchors are another manager's: what live replicas said outlasts a new measurement.
            "data": {FINGERPRINT_KEY: text},
        }

    # What exists.

    def _done(self, need: FingerprintNeed) -> bool:
        """Whether a need is met; a suspect measurement is repeated, at most once an hour."""
        due = need.again and self._clock() >= self._again_at.get(need.key, 0.0)
        return self._answered(need.key) and not due

    def _answered(self, key: str) -> bool:
        names = set(self._answers().get(key, ()))
        if self._caches.configmaps.get(self._settings.system_namespace, f"fp-{key}") is not None:
            names.add(f"fp-{key}")
        return any(self.book.in_force(name) for name in names)

    def _answers(self) -> Mapping[str, Sequence[str]]:
        """Return the names of documents by the need that they were measured for.

        Every intent asks at every step: one look through all ConfigMaps serves until one changes.
        """
        known = self._caches.configmaps
        if self._indexed is None or self._indexed[0] != known.revision:
            found: dict[str, list[str]] = {}
            for record in known:
                key = record.annotations.get(ANSWERS_ANNOTATION)
                if key and record.namespace == self._settings.system_namespace:
                    found.setdefault(key, []).append(record.name)
            self._indexed = known.revision, found
        return self._indexed[1]

    def _jobs(self) -> Sequence[JobRecord]:
        return [j for j in self._jobs_labelled() if j.namespace == self._settings.system_namespace]

    def running(self) -> int:
        """Return how many of its Jobs have not ended, whichever operator began them."""
        return sum(not (job.complete or job.failed) for job in self._jobs())

    def _job_of(self, need: FingerprintNeed) -> JobRecord | None:
        return self._caches.jobs.get(self._settings.system_namespace, f"fp-{need.key}")
