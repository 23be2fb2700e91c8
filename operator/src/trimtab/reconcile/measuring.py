"""Jobs that measure: started when a machine has room for them, harvested, repeated after failures."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL
from trimtab.kube.errors import FaultKind, refused
from trimtab.kube.resources import JOB
from trimtab.planning.capacity import one_per_place
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab.kube.errors import Fault
    from trimtab.kube.resources import Manifest
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import JobRecord, PodRecord
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.fleet import FleetPlanner
    from trimtab.reconcile.labels import Component
    from trimtab.settings import Settings

_log = structlog.get_logger(__name__)

IDLE_WAIT_SECONDS: Final = 60.0
_FIRST_RETRY_SECONDS: Final = 60.0
_LONGEST_RETRY_SECONDS: Final = 3600.0
_CONFLICT_SECONDS: Final = 2.0


class Measurable(Protocol):
    """What a Job is to measure."""

    @property
    def key(self) -> str:
        """16 hex digits that name the Job and what it finds."""
        ...

    @property
    def threads(self) -> int:
        """How many it computes with."""
        ...


NeedT = TypeVar("NeedT", bound=Measurable)


class DocumentError(ValueError):
    """A Job's message is not what was asked for; the text says what is wrong."""


@dataclass(slots=True)
class _Failure:
    attempts: int
    until: float
    message: str
    unharvested: str = ""
    """Uid of the ended Job whose harvest was refused; it stays, and is harvested later."""


class Measurer(ABC, Generic[NeedT]):
    """Creates Jobs of one kind, keeps their documents, repeats what failed.

    At most one measurement runs per node, of whatever kind: two on one machine measure each other.
    """

    component: ClassVar[Component]
    prefix: ClassVar[str]

    def __init__(
        self,
        *,
        caches: Caches,
        executor: Executor,
        fleet: FleetPlanner,
        settings: Settings,
        clock: Callable[[], float],
        changed: Callable[[str], None],
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        """Prepare.

        Args:
            caches: What exists.
            executor: Writes.
            fleet: Whose plans say what is to be measured.
            settings: Of the installation.
            clock: Monotonic seconds.
            changed: Told the key of a measurement that started or failed.
            others: How many measurements of other kinds run.
        """
        self._changed = changed
        self._caches = caches
        self._executor = executor
        self._fleet = fleet
        self._settings = settings
        self._clock = clock
        self._others = others
        self._failures: dict[str, _Failure] = {}
        self._waiting: dict[str, float] = {}
        self._begun: set[str] = set()

    async def step(self) -> float | None:
        """Harvest ended Jobs, start wanted ones; return when to look again.

        What is refused for one of them, by its namespace's quota or a webhook, is its own failure.
        """
        delays = [await self._harvested(job) for job in self._jobs()]
        delays += [await self._start(need) for need in self._wanted()]
        due = [d for d in delays if d is not None]
        return min(due) if due else None

    def running(self) -> int:
        """Return how many of the Jobs that this process began have not ended.

        Others are not counted: in a tenant's namespace somebody may hold a Job of ours open for ever.
        """
        return sum(
            not (job.complete or job.failed) and job.name.removeprefix(self.prefix) in self._begun
            for job in self._jobs()
        )

    # What a kind of measurement is.

    @abstractmethod
    def _wanted(self) -> list[NeedT]:
        """Return what is not measured yet, the most urgent first."""

    @abstractmethod
    def _jobs(self) -> Sequence[JobRecord]:
        """Return its Jobs that exist, sorted by name."""

    @abstractmethod
    def _job_of(self, need: NeedT) -> JobRecord | None:
        """Return the Job that measures a need now, be it in deletion."""

    @abstractmethod
    def _manifests(self, need: NeedT, *, attempt: int, contended: bool) -> Sequence[Manifest]:
        """Return the Job, and before it what it needs."""

    @abstractmethod
    def _documents(self, job: JobRecord, key: str, message: str) -> Sequence[Manifest]:
        """Return the ConfigMaps that keep what a Job found.

        Raises:
            DocumentError: The message cannot be used.
        """

    # How all of them run.

    async def _start(self, need: NeedT) -> float | None:
        if self._job_of(need) is not None:
            return None
        now = self._clock()
        failure = self._failures.get(need.key)
        if failure is not None and now < failure.until:
            return failure.until - now
        nodes = max(1, len(self._caches.nodes))
        if self.running() + self._others() >= nodes:
            return None
        waited = now - self._waiting.setdefault(need.key, now)
        patience = self._settings.policy_seconds(IDLE_WAIT_SECONDS)
        idle = self._idle_threads() >= need.threads
        if not idle and waited < patience:
            return max(0.5, patience - waited)
        self._waiting.pop(need.key, None)
        attempt = failure.attempts if failure else 0
        for manifest in self._manifests(need, attempt=attempt, contended=not idle):
            try:
                await self._executor.apply(manifest)
            except Exception as error:
                fault = refused(error)
                if fault is None:
                    raise
                meta = manifest["metadata"]
                what = f"{manifest['kind']} {meta['namespace']}/{meta['name']} was not created"
                return self._refused(need.key, what, fault)
        self._begun.add(need.key)
        _log.info(
            "measurement_started",
            kind=self.component,
            key=need.key,
            threads=need.threads,
            contended=not idle,
        )
        self._changed(need.key)
        return None

    def _idle_threads(self) -> int:
        """Return the largest number of threads that no worker or measurement uses on a node."""
        snapshot = self._fleet.current.snapshot
        if snapshot is None:
            return 0
        used: dict[str, int] = {}
        for assignment in one_per_place(snapshot.assignments):
            for node, replicas in assignment.nodes:
                used[node] = used.get(node, 0) + replicas * assignment.config.threads
        return max((p.millicores // 1000 - used.get(p.node, 0) for p in snapshot.pools), default=0)

    async def _harvested(self, job: JobRecord) -> float | None:
        """Harvest a Job if it ended; return when to look again if that is refused."""
        key = job.name.removeprefix(self.prefix)
        failure = self._failures.get(key)
        if failure is not None and failure.unharvested == job.uid:
            rest = failure.until - self._clock()
            if rest > 0:
                return rest
        try:
            await self._harvest(job)
        except Exception as error:
            fault = refused(error)
            if fault is None:
                raise
            what = f"What Job {job.namespace}/{job.name} found was not kept"
            return self._refused(key, what, fault, unharvested=job.uid)
        return None

    async def _harvest(self, job: JobRecord) -> None:
        key = job.name.removeprefix(self.prefix)
        pod = self._ended_pod(job)
        if pod is not None and pod.ended is not None and pod.ended.exit_code == 0:
            await self._keep(job, key, pod.ended.message)
        elif job.failed or (job.complete and all(p.ended for p in self._pods(job))):
            # A completed Job whose pod is known but not yet seen to end: its event comes.
            ended = pod.ended if pod else None
            message = ended.message.strip() if ended else ""
            code = f"exit code {ended.exit_code} ({ended.reason})" if ended else job.problem
            said = refusal(message) or message[-1000:]
            await self._failed(
                job, key, f"Job {job.name} failed, {code}{f': {said}' if said else ''}"
            )

    async def _keep(self, job: JobRecord, key: str, message: str) -> None:
        try:
            documents = self._documents(job, key, message)
        except DocumentError as error:
            await self._failed(job, key, refusal(message) or f"Job {job.name}: {error}")
            return
        for document in documents:
            await self._executor.apply(document)
        await self._remove(job)
        self._failures.pop(key, None)
        _log.info("measurement_kept", kind=self.component, key=key)
        self._fleet.ask()

    async def _failed(self, job: JobRecord, key: str, message: str) -> None:
        self._note(key, message)
        await self._remove(job)
        self._changed(key)

    def _refused(self, key: str, what: str, fault: Fault, *, unharvested: str = "") -> float:
        """Note what was refused; return when to try again."""
        if fault.kind is FaultKind.CONFLICT:
            # Two wrote at once, as to a quota's count: nobody has to do anything about it.
            _log.info("measurement_conflict", kind=self.component, key=key, error=fault.message)
            return _CONFLICT_SECONDS
        rest = self._note(key, f"{what}: {fault.message}", unharvested=unharvested)
        self._changed(key)
        return rest

    def _note(self, key: str, message: str, *, unharvested: str = "") -> float:
        """Remember a failure; return after how many seconds it is repeated."""
        before = self._failures.get(key)
        attempts = (before.attempts if before else 0) + 1
        # Never beyond what a float holds, however often it failed.
        doublings = min(attempts - 1, 16)
        rest = self._settings.policy_seconds(
            min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0**doublings)
        )
        self._failures[key] = _Failure(
            attempts=attempts,
            until=self._clock() + rest,
            message=f"{message.rstrip('.')}. It is repeated; {self.meanwhile}.",
            unharvested=unharvested,
        )
        _log.warning(
            "measurement_failed", kind=self.component, key=key, attempts=attempts, reason=message
        )
        return rest

    meanwhile: ClassVar[str]
    """What holds until a failed measurement succeeds, as the end of a sentence."""

    async def _remove(self, job: JobRecord) -> None:
        self._begun.discard(job.name.removeprefix(self.prefix))
        await self._executor.delete(
            Deletion(resource=JOB, namespace=job.namespace, name=job.name, uid=job.uid)
        )

    def _jobs_labelled(self) -> list[JobRecord]:
        """Return Jobs that call themselves of this kind; anybody can label a Job."""
        found = (
            job
            for job in self._caches.jobs
            if job.labels.get(COMPONENT_LABEL) == self.component and not job.deleting
        )
        return sorted(found, key=lambda job: (job.name, job.namespace))

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


def refusal(message: str) -> str:
    """Return the sentence of a Job that says itself that it failed, empty where it says nothing."""
    try:
        document = json.loads(message)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict) or document.get("ok") is not False:
        return ""
    return f"{document.get('reason', 'Failed')}: {document.get('message', '')}"
