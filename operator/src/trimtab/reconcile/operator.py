"""Puts the loops, keepers and pollers together; handlers hand events in here."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import structlog

from trimtab.api.v1alpha1.reasons import Reason
from trimtab.kube.errors import ApiError, classify
from trimtab.kube.events import event
from trimtab.kube.resources import WATCHED
from trimtab.observe.anchors import ANCHORS_SECONDS, WINDOW_SECONDS, AnchorBook
from trimtab.observe.barrier import Barrier
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.loads import LoadBook
from trimtab.observe.records import config_map
from trimtab.planning.policy import PlannerPolicy
from trimtab.reconcile import auditing, pollers
from trimtab.reconcile.accuracy import AccuracyKeeper
from trimtab.reconcile.anchors import AnchorKeeper
from trimtab.reconcile.beats import HeartBeats
from trimtab.reconcile.execute import Executor
from trimtab.reconcile.figures import publish
from trimtab.reconcile.fingerprints import FingerprintKeeper
from trimtab.reconcile.fleet import FleetPlanner, Planned, Pool
from trimtab.reconcile.group.gather import mates
from trimtab.reconcile.group.reload import ReloadKeeper
from trimtab.reconcile.inbox import Inbox
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.gather import gather
from trimtab.reconcile.load_keeper import LOADS_SECONDS, LoadKeeper
from trimtab.reconcile.loop import run_loop
from trimtab.reconcile.pacing import Outcome
from trimtab.reconcile.periodic import Periodic
from trimtab.reconcile.plan_changes import KINDS, plan_changes
from trimtab.reconcile.routes import RoutesKeeper
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot, planned_load, planned_variation
from trimtab.reconcile.stepping import STEPS_SECONDS, Stepper
from trimtab.reconcile.sweep import SWEEP_SECONDS, Sweeper
from trimtab.reconcile.untouched import untouched
from trimtab.reconcile.unused import KINDS as PRUNED_KINDS
from trimtab.reconcile.unused import LOOK_SECONDS, Pruner
from trimtab.reconcile.volumes import VolumeReader
from trimtab.reconcile.waking import Waker
from trimtab.reconcile.world import World
from trimtab.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from trimtab.kube.client import KubeClient
    from trimtab.kube.writer import Writer
    from trimtab.observe.cache import Change
    from trimtab.observe.records import ConfigMapRecord
    from trimtab.observe.workers import AdminClient
    from trimtab.planning.snapshot import FleetSnapshot
    from trimtab.settings import Settings

_log = structlog.get_logger(__name__)

STEPS_AT_ONCE: Final = 32
_LIST_ERRORS: Final = (ApiError, aiohttp.ClientError, TimeoutError, OSError)
_RELEASE_SECONDS: Final = 30.0
_FIRST_READ_SECONDS: Final = 60.0
_BEFORE_FIRST_PLAN: Final = ("prices", "foreign", "gateways", "workers")
"""What a restarted operator must know again before its first plan, or that would differ."""


def recall_all(*recalls: Callable[[], None]) -> None:
    """Take up what was kept before a restart; a document that nobody foresaw must not end every start."""
    for recall in recalls:
        try:
            recall()
        except Exception as error:  # noqa: BLE001 - logged; what is lost is collected anew
            _log.warning("recall_failed", error=repr(error)[:200])


class Operator:
    """The leader's whole memory, rebuilt at every start."""

    def __init__(
        self,
        *,
        settings: Settings,
        client: KubeClient,
        writer: Writer,
        admin: AdminClient,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
        pool: Pool | None = None,
    ) -> None:
        self.settings = settings
        self._client = client
        self._writer = writer
        self._clock = clock
        self._utcnow = utcnow
        self._started = clock()
        self._cold = True
        self._random = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.caches = Caches()
        self.inbox = Inbox()
        self.beats = HeartBeats(clock=clock)
        self.world = World(
            settings=settings,
            caches=self.caches,
            clock=clock,
            utcnow=utcnow,
            capabilities=ASSUMED,
            loads=LoadBook(time_divisor=settings.policy_time_divisor),
            anchors=AnchorBook(
                policy=PlannerPolicy(),
                window_seconds=settings.policy_seconds(WINDOW_SECONDS),
                drift_seconds=settings.policy_seconds(ANCHORS_SECONDS),
            ),
        )
        self._volumes = VolumeReader(client, clock=clock)
        self.executor = Executor(
            writer,
            self.caches,
            utcnow=utcnow,
            instance=settings.pod_name,
            changed=self._written,
        )
        self.fleet = FleetPlanner(
            pool=pool or Pool(),
            policy=PlannerPolicy(),
            observe=self._snapshot,
            changed=self._planned,
            clock=clock,
            seconds=settings.policy_seconds,
            timed=metrics.PLAN_SECONDS.observe,
            unfound=metrics.UNFOUND.set,
        )
        self.world.fleet = self.fleet
        self.stepper = Stepper(
            self.world,
            current=lambda: self.fleet.current,
            wake=self._wake,
            replan=self.fleet.ask,
            policy=PlannerPolicy().hurried(settings.policy_time_divisor),
        )
        self.world.steps = self.stepper
        for kind in KINDS:
            # From the start: a rate needs a first sample, and an absent series says nothing.
            metrics.PLAN_CHANGES.labels(change=kind)
        self.keeper = FingerprintKeeper(
            caches=self.caches,
            executor=self.executor,
            fleet=self.fleet,
            settings=settings,
            clock=clock,
            changed=self._wake_needing,
            others=self._accuracy_jobs,
        )
        self.world.fingerprints = self.keeper
        self.accuracy = AccuracyKeeper(
            caches=self.caches,
            executor=self.executor,
            fleet=self.fleet,
            settings=settings,
            clock=clock,
            changed=self._wake_unmeasured,
            others=self.keeper.running,
        )
        self.world.accuracy = self.accuracy
        self.barrier = Barrier(self.caches.by_plural(), list_uids=self._list_uids, clock=clock)
        self.auditor = auditing.Auditor(
            client=client,
            caches=self.caches,
            clock=clock,
            wake=self._wake,
            differs=lambda kind, n: metrics.CACHE_DIFFERENCES.labels(kind=kind).inc(n),
            changed=self._written,
        )
        self.sweeper = Sweeper(
            client=client,
            writer=writer,
            executor=self.executor,
            caches=self.caches,
            utcnow=utcnow,
            changed=self._written,
        )
        self._loads = LoadKeeper(self.world, executor=self.executor)
        self._anchors = AnchorKeeper(
            self.world,
            executor=self.executor,
            current=lambda: self.fleet.current,
            drifted=self._drifted,
            policy=PlannerPolicy(),
        )
        for kind in PRUNED_KINDS:
            metrics.UNUSED_DELETED.labels(kind=kind)
        self._pruner = Pruner(self.world, executor=self.executor)
        self._slots = asyncio.Semaphore(STEPS_AT_ONCE)
        self._jobs = self._periodics(admin)
        self.waker = Waker(
            caches=self.caches,
            wake=self._wake,
            wake_needing=self._wake_needing,
            replan=self.fleet.ask,
            run=self._run_job,
            relisted=self._relisted,
            renamed=self.world.names_changed,
            load_edited=lambda uid: self.world.loads.edited(uid, now=utcnow().timestamp()),
            forget_load=self.world.loads.forget,
            gone=self.executor.gone,
            settings=settings,
        )

    def _periodics(self, admin: AdminClient) -> dict[str, Periodic]:
        world, replan = self.world, self.fleet.ask
        routes = RoutesKeeper(world=world, executor=self.executor, wake=self._wake)
        workers = pollers.WorkerPoller(
            world,
            admin,
            wake=self._wake,
            replan=replan,
            moved=lambda: self._run_job("routes"),
            anchors=self._anchors,
        )
        reloads = ReloadKeeper(
            world,
            admin,
            annotate=self.executor.annotate,
            poll=lambda: self._run_job("workers"),
        )
        gateways = pollers.GatewayPoller(world, admin, wake=self.inbox.wake, replan=replan)
        prices = pollers.PricePoller(
            world,
            self._client,
            replan=replan,
            wake_all=self.inbox.wake_all,
            invalid=self._price_book_invalid,
        )
        foreign = pollers.ForeignPoller(world, self._client, replan=replan)
        jitter = 1 + 0.1 * self._random.uniform(-1, 1)
        table: list[tuple[str, Callable[[], Any], float]] = [
            ("routes", routes.step, 600.0),
            ("fingerprints", self.keeper.step, 60.0),
            ("accuracy", self.accuracy.step, 60.0),
            ("workers", workers.step, pollers.WORKERS_SECONDS),
            ("reloads", reloads.step, pollers.WORKERS_SECONDS),
            ("gateways", gateways.step, pollers.GATEWAYS_SECONDS),
            ("steps", self.stepper.step, STEPS_SECONDS),
            ("prices", prices.step, pollers.PRICES_SECONDS),
            ("foreign", foreign.step, pollers.FOREIGN_SECONDS),
            ("audit", self.auditor.step, auditing.INTENTS_SECONDS * jitter),
            ("sweep", self.sweeper.step, SWEEP_SECONDS),
            ("loads", self._loads.step, LOADS_SECONDS),
            ("anchors", self._anchors.step, ANCHORS_SECONDS),
            ("unused", self._pruner.step, LOOK_SECONDS),
            ("release", self.sweeper.release_stuck, _RELEASE_SECONDS),
        ]
        return {
            name: Periodic(
                name,
                step,
                every_seconds=every,
                gate=self.barrier.wait,
                beat=self.beats.job,
            )
            for name, step, every in table
        }

    # For handlers.

    def event(self, plural: str, kind: str | None, body: Mapping[str, Any]) -> None:
        """Take a watch event in and wake whom it concerns."""
        self.waker.event(plural, kind, body, past_barrier=self.barrier.passed)
        self._stepped(plural)

    async def run_intent(self, uid: str, *, stopped: Callable[[], bool]) -> None:
        """Run the loop of one intent until it is deleted or the process stops."""
        # Before the first plan every status would say "no plan yet", and change again at once.
        await self.fleet.ready.wait()
        record = self.caches.inferenceintents.by_uid(uid)
        if record is not None:
            self.beats.names[uid] = f"{record.namespace}/{record.name}"
        try:
            await run_loop(
                key=uid,
                inbox=self.inbox,
                step=lambda: self._step(uid),
                slots=self._slots,
                clock=self._clock,
                jitter=lambda: self._random.uniform(-1, 1),
                stopped=stopped,
                heart_beat=self.beats.beat,
            )
        finally:
            self.beats.drop(uid)
            self.executor.forget(uid)
            self.keeper.forget(uid)
            self.world.shown.pop(uid, None)

    async def run(self) -> None:
        """Run everything but the objects' loops; ends only with an exception."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._open_barrier())
            group.create_task(self.fleet.run())
            for job in self._jobs.values():
                group.create_task(job.run())

    async def drain(self, *, timeout_seconds: float) -> None:
        """Wake nobody any more and wait for the steps in flight."""
        self.inbox.close()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.inbox.emptied()
        except TimeoutError:
            _log.warning("drain_timed_out", loops=len(self.inbox.keys()))
        self.fleet.close()

    # Inside.

    def _wake(self, uid: str, cause: str) -> None:
        """Wake an intent and all who share a group with it; a group's id stands for its members."""
        for one in mates(self.world, uid):
            self.inbox.wake(one, cause)

    async def _open_barrier(self) -> None:
        await self.barrier.run(retryable=_LIST_ERRORS)
        gc.collect()
        # What the caches hold lives long; the collector need not walk it again and again.
        gc.freeze()
        _log.info(
            "barrier_passed",
            seconds=round(self._clock() - self._started, 3),
            objects={name: len(cache) for name, cache in self.caches.by_plural().items()},
        )
        for record in self.caches.inferenceintents:
            self.world.loads.restore(
                record.uid, planned_load(record), variation=planned_variation(record)
            )
        recall_all(self._loads.recall, self._anchors.recall)
        try:
            async with asyncio.timeout(_FIRST_READ_SECONDS):
                for name in _BEFORE_FIRST_PLAN:
                    await self._jobs[name].succeeded.wait()
        except TimeoutError:
            _log.warning("first_plan_without", jobs=_missing(self._jobs))
        self.fleet.open()

    async def _list_uids(self, plural: str) -> frozenset[str] | None:
        resource = next(r for r in WATCHED if r.plural == plural)
        try:
            return await auditing.list_uids(self._client, resource)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _step(self, uid: str) -> Outcome:
        record = self.caches.inferenceintents.by_uid(uid)
        if record is None or record.deleting:
            # No I/O here: the finalizer waits for this. Leftovers are swept.
            return Outcome(ended=True)
        observed = gather(record, world=self.world)
        plan = decide(observed, settings=self.settings)
        outcome = await self.executor.execute(plan, subject=record)
        self._first_round()
        return outcome

    def _first_round(self) -> None:
        if self._cold and all(
            self.beats.stepped(r.uid) for r in self.caches.inferenceintents if not r.deleting
        ):
            self._cold = False
            metrics.COLD_START.set(self._clock() - self._started)

    async def _snapshot(self) -> FleetSnapshot:
        world = self.world
        snapshot = fleet_snapshot(
            self.caches,
            loads=world.loads,
            settings=self.settings,
            surroundings=Surroundings(
                prices=world.prices,
                capabilities=world.capabilities,
                foreign=world.foreign,
                gateway_overhead_us=world.gateway_overhead_us,
                anchors=world.anchors.all(),
                volumes=await self._volumes.read(self.caches.inferenceintents),
                fingerprints=self.keeper.book,
                fixed=frozenset(r.uid for r in self.caches.inferenceintents if untouched(r, world)),
            ),
        )
        metrics.INVALID_FINGERPRINTS.set(self.keeper.book.spoilt())
        for spoilt in self.keeper.book.news():
            await self._tell_of_config_map(
                spoilt.record,
                reason=Reason.FINGERPRINT_INVALID,
                note=spoilt.message,
                action="ReadFingerprint",
            )
        return snapshot

    def _written(self, plural: str, change: Change[Any]) -> None:
        self.waker.changed(plural, change)
        self._stepped(plural)

    def _stepped(self, plural: str) -> None:
        """What a Deployment has come to decides about the next step of everybody."""
        if plural == "deployments":
            self._run_job("steps")

    def _planned(self, before: Planned, after: Planned) -> None:
        """Wake whose plan is new, and everybody if planning began or ceased to fail."""
        # First of all: between a plan and its steps nobody may follow it as it is.
        self.stepper.refresh()
        metrics.PLAN_FAILURES.inc(bool(after.problem))
        for kind, count in plan_changes(before, after).items():
            metrics.PLAN_CHANGES.labels(change=kind).inc(count)
        everybody = before.problem != after.problem
        for uid in before.by_uid.keys() | after.by_uid.keys():
            if everybody or before.by_uid.get(uid) != after.by_uid.get(uid):
                self._wake(uid, "plan")
        self._run_job("fingerprints")
        self._run_job("accuracy")
        self._run_job("routes")

    def _wake_needing(self, key: str) -> None:
        for uid, plan in self.fleet.current.by_uid.items():
            if any(need.key == key for need in plan.needs):
                self._wake(uid, "fingerprint")

    def _accuracy_jobs(self) -> int:
        return self.accuracy.running()

    def _wake_unmeasured(self, identity: str) -> None:
        snapshot = self.fleet.current.snapshot
        for view in snapshot.intents if snapshot else ():
            if view.model is not None and view.model.identity == identity:
                self._wake(view.uid, "accuracy")

    def _drifted(self) -> None:
        """Plan anew, and keep what the plan is made from."""
        self.fleet.ask()
        self._run_job("anchors")

    def _run_job(self, name: str) -> None:
        self._jobs[name].wake()

    def _relisted(self, plural: str) -> None:
        self.auditor.relisted(plural)
        self._run_job("audit")

    async def _price_book_invalid(self, body: Mapping[str, Any], problem: str) -> None:
        record = config_map(body)
        named = dataclasses.replace(
            record, namespace=self.settings.system_namespace, name=pollers.PRICES_NAME
        )
        await self._tell_of_config_map(
            named, reason=Reason.PRICE_BOOK_INVALID, note=problem, action="ReadPrices"
        )

    async def _tell_of_config_map(
        self, record: ConfigMapRecord, *, reason: Reason, note: str, action: str
    ) -> None:
        """Post a warning about a ConfigMap; one that cannot be posted stops nothing."""
        manifest = event(
            regarding={
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "namespace": record.namespace,
                "name": record.name,
                "uid": record.uid,
            },
            reason=str(reason),
            note=note,
            warning=True,
            action=action,
            occasion=str(record.resource_version or ""),
            controller=self._writer.manager,
            instance=self.settings.pod_name,
            at=self._utcnow(),
        )
        try:
            await self._writer.post_event(manifest)
        except Exception as error:
            fault = classify(error)
            if fault is None:
                raise
            _log.warning("event_not_posted", reason=str(reason), error=fault.message)

    def before_scrape(self) -> None:
        """Set the gauges that are computed from what is known."""
        metrics.OLDEST_TICK.labels(kind="InferenceIntent").set(self.beats.oldest_seconds())
        metrics.PLAN_WAITING.set(self.fleet.waiting_seconds())
        publish(self.caches.inferenceintents)


def _missing(jobs: Mapping[str, Periodic]) -> list[str]:
    return [name for name in _BEFORE_FIRST_PLAN if not jobs[name].succeeded.is_set()]
