"""Measuring what plans ask for: Jobs in the system namespace, one writer for the whole fleet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP
from trimtab.kube.resources import JOB
from trimtab.observe.intents import FingerprintProgress
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.step_model import fit
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.plan import Deletion
from trimtab.reconcile.snapshot import FINGERPRINT_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trimtab.kube.resources import Manifest
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import JobRecord, PodRecord
    from trimtab.planning.plan import FingerprintNeed, IntentPlan
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.fleet import FleetPlanner
    from trimtab.settings import Settings

_log = structlog.get_logger(__name__)

ANSWERS_ANNOTATION: Final = f"{GROUP}/answers"
"""Which need a document was measured for; its own key names the CPU that was really found."""

HOLD_SECONDS: Final = 300.0
IDLE_WAIT_SECONDS: Final = 60.0
_FIRST_RETRY_SECONDS: Final = 60.0
_LONGEST_RETRY_SECONDS: Final = 3600.0
_PER_INTENT: Final = 4
_MOST_NODES: Final = 64
"""Named in a Job's affinity; more would only make it long."""


@dataclass(slots=True)
class _Failure:
    attempts: int
    until: float
    message: str


class FingerprintKeeper:
    """Creates fingerprint Jobs, keeps their documents, repeats what failed."""

    def __init__(
        self,
        *,
        caches: Caches,
        executor: Executor,
        fleet: FleetPlanner,
        settings: Settings,
        clock: Callable[[], float],
        changed: Callable[[str], None],
    ) -> None:
        """Prepare; `changed` is told the key of a measurement that started or failed."""
        self._changed = changed
        self._caches = caches
        self._executor = executor
        self._fleet = fleet
        self._settings = settings
        self._clock = clock
        self._failures: dict[str, _Failure] = {}
        self._waiting: dict[str, float] = {}
        self._holding: dict[str, float] = {}

    # What intents read.

    def progress(
        self, uid: str, plan: IntentPlan | None, *, first_rollout: bool
    ) -> FingerprintProgress:
        """Return where an intent's measurements stand, and whether its first roll-out waits."""
        if plan is None:
            return FingerprintProgress()
        needs = [n for n in plan.needs[:_PER_INTENT] if not self._answered(n.key)]
        running = [f"fp-{n.key}" for n in needs if self._job(n.key) is not None]
        failures = [self._failures[n.key].message for n in needs if n.key in self._failures]
        hold = first_rollout and self._hold(uid, plan, needs)
        return FingerprintProgress(
            wanted=len(needs),
            running=tuple(running),
            failures=tuple(failures),
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

    async def step(self) -> float | None:
        """Harvest ended Jobs, start wanted ones; return when to look again."""
        for job in self._jobs():
            await self._harvest(job)
        delays = [await self._start(need) for need in self._wanted()]
        due = [d for d in delays if d is not None]
        return min(due) if due else None

    def _wanted(self) -> list[FingerprintNeed]:
        """Return all needs of the fleet plan, the most urgent of each intent first, each once."""
        plans = sorted(self._fleet.current.by_uid.items())
        needs: dict[str, FingerprintNeed] = {}
        for rank in range(_PER_INTENT):
            for _, plan in plans:
                if rank < len(plan.needs):
                    needs.setdefault(plan.needs[rank].key, plan.needs[rank])
        return [need for need in needs.values() if not self._answered(need.key)]

    async def _start(self, need: FingerprintNeed) -> float | None:
        if self._job(need.key) is not None:
            return None
        now = self._clock()
        failure = self._failures.get(need.key)
        if failure is not None and now < failure.until:
            return failure.until - now
        nodes = max(1, len(self._caches.nodes))
        if sum(not (j.complete or j.failed) for j in self._jobs()) >= nodes:
            # One at a time per node: two measurements on one machine measure each other.
            return None
        waited = now - self._waiting.setdefault(need.key, now)
        patience = self._settings.policy_seconds(IDLE_WAIT_SECONDS)
        idle = self._idle_threads() >= need.threads
        if not idle and waited < patience:
            return max(0.5, patience - waited)
        self._waiting.pop(need.key, None)
        attempt = failure.attempts if failure else 0
        await self._executor.apply(
            jobs.fingerprint_job(
                need=need,
                attempt=attempt,
                contended=not idle,
                settings=self._settings,
                nodes=self._nodes(need),
            )
        )
        _log.info("fingerprint_started", key=need.key, threads=need.threads, contended=not idle)
        self._changed(need.key)
        return None

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

    def _idle_threads(self) -> int:
        """Return the largest number of threads that no worker or fingerprint of ours uses on a node."""
        snapshot = self._fleet.current.snapshot
        if snapshot is None:
            return 0
        used: dict[str, int] = {}
        # A group's members have one place together.
        places = {a.group or a.intent_uid: a for a in snapshot.assignments}
        for assignment in places.values():
            for node, replicas in assignment.nodes:
                used[node] = used.get(node, 0) + replicas * assignment.config.threads
        return max((p.millicores // 1000 - used.get(p.node, 0) for p in snapshot.pools), default=0)

    async def _harvest(self, job: JobRecord) -> None:
        key = job.name.removeprefix("fp-")
        pod = self._ended_pod(job)
        if pod is not None and pod.ended is not None and pod.ended.exit_code == 0:
            await self._keep(job, key, pod.ended.message)
        elif job.failed or (job.complete and all(p.ended for p in self._pods(job))):
            # A completed Job whose pod is known but not yet seen to end: its event comes.
            ended = pod.ended if pod else None
            said = f": {ended.message.strip()[-1000:]}" if ended and ended.message.strip() else ""
            code = f"exit code {ended.exit_code} ({ended.reason})" if ended else job.problem
            await self._failed(job, key, f"Job {job.name} failed, {code}{said}")

    async def _keep(self, job: JobRecord, key: str, message: str) -> None:
        try:
            fingerprint = parse(message)
            # What no step model fits would count as measured, and plans rest on estimates for ever.
            fit(fingerprint, depth=1)
        except FingerprintInvalidError as error:
            await self._failed(job, key, _refusal(message) or f"Job {job.name}: {error}")
            return
        contended = job.annotations.get(jobs.CONTENDED_ANNOTATION) == "true"
        document = json.loads(message)
        if contended and "Contended" not in fingerprint.notes:
            document["notes"] = [*document.get("notes", []), "Contended"]
        await self._executor.apply(
            self._config_map(fingerprint.key.digest(), key=key, document=document)
        )
        await self._remove(job)
        self._failures.pop(key, None)
        _log.info("fingerprint_kept", key=key, measured=fingerprint.key.digest())
        self._fleet.ask()

    def _config_map(self, name: str, *, key: str, document: Manifest) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"fp-{name}",
                "namespace": self._settings.system_namespace,
                "labels": shared_labels("fingerprint", instance=f"fp-{name}"),
                "annotations": {ANSWERS_ANNOTATION: key},
            },
            "data": {FINGERPRINT_KEY: json.dumps(document, sort_keys=True, separators=(",", ":"))},
        }

    async def _failed(self, job: JobRecord, key: str, message: str) -> None:
        before = self._failures.get(key)
        attempts = (before.attempts if before else 0) + 1
        rest = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1))
        self._failures[key] = _Failure(
            attempts=attempts,
            until=self._clock() + self._settings.policy_seconds(rest),
            message=f"{message.rstrip('.')}. It is repeated; the plan rests on an estimate "
            "meanwhile.",
        )
        _log.warning("fingerprint_failed", key=key, attempts=attempts, reason=message)
        await self._remove(job)
        self._changed(key)

    async def _remove(self, job: JobRecord) -> None:
        await self._executor.delete(
            Deletion(resource=JOB, namespace=job.namespace, name=job.name, uid=job.uid)
        )

    # What exists.

    def _answered(self, key: str) -> bool:
        namespace = self._settings.system_namespace
        if self._caches.configmaps.get(namespace, f"fp-{key}") is not None:
            return True
        return any(
            record.annotations.get(ANSWERS_ANNOTATION) == key
            for record in self._caches.configmaps
            if record.namespace == namespace
        )

    def _jobs(self) -> Iterable[JobRecord]:
        return sorted(
            (
                job
                for job in self._caches.jobs
                if job.namespace == self._settings.system_namespace
                and job.labels.get(COMPONENT_LABEL) == "fingerprint"
                and not job.deleting
            ),
            key=lambda job: job.name,
        )

    def _job(self, key: str) -> JobRecord | None:
        return self._caches.jobs.get(self._settings.system_namespace, f"fp-{key}")

    def _pods(self, job: JobRecord) -> list[PodRecord]:
        return [
            pod
            for pod in self._caches.pods
            if pod.namespace == job.namespace
            and pod.labels.get("batch.kubernetes.io/job-name") == job.name
            and pod.labels.get("batch.kubernetes.io/controller-uid", job.uid) == job.uid
        ]

    def _ended_pod(self, job: JobRecord) -> PodRecord | None:
        ended = [pod for pod in self._pods(job) if pod.ended is not None]
        return max(ended, key=lambda p: (p.created, p.name), default=None)


def _refusal(message: str) -> str:
    """Return the sentence of a Job that says itself that it failed."""
    try:
        document = json.loads(message)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict) or document.get("ok") is not False:
        return ""
    return f"{document.get('reason', 'Failed')}: {document.get('message', '')}"
