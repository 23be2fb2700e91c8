"""One plan for the whole fleet: debounced, made in a process of its own, never two at once."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.planning.triggers import triggers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from trimtab.planning.plan import Findings, FleetPlan, IntentPlan
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.snapshot import FleetSnapshot
    from trimtab.planning.survey import Surveys

_log = structlog.get_logger(__name__)

PLAN_SECONDS: Final = 30.0
_FIRST_PLAN_SECONDS: Final = 90.0
"""The process starts with the first plan; importing takes its time on a busy machine."""


class PlannerFailedError(RuntimeError):
    """The planner's process ended, hung, or raised; the last plan stays in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fleet plan in force."""

    revision: int
    snapshot: FleetSnapshot | None
    by_uid: dict[str, IntentPlan]
    problem: str = ""
    findings: Mapping[str, Findings] = field(default_factory=dict)
    """What was found about intents that run, by uid: what steps are made from."""


def solve(snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
    """Run the planner; executed in the pool's process."""
    from trimtab.planning.fleet import plan_fleet  # noqa: PLC0415 - solver only where it runs
    from trimtab.planning.spare import findings  # noqa: PLC0415 - the same

    known = _surveys()
    plan = plan_fleet(snapshot, policy, surveys=known)
    found = findings(snapshot, plan, policy=policy, simulations=known.simulations)
    waiting = plan.waiting + sum(one.waits for one in found)
    return replace(plan, findings=found, waiting=waiting)


@functools.cache
def _surveys() -> Surveys:
    """Return what this process remembers of its last plan."""
    from trimtab.planning.survey import Surveys  # noqa: PLC0415 - planner only where it runs

    return Surveys()


class Pool:
    """One worker process for planning, replaced when it dies or hangs."""

    def __init__(self, solver: Callable[[FleetSnapshot, PlannerPolicy], FleetPlan] = solve) -> None:
        self._solver = solver
        self._executor: ProcessPoolExecutor | None = None
        self._warm = False

    async def plan(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
        """Return the plan of a snapshot.

        Raises:
            PlannerFailedError: The process died, took over 30 s, or raised.
        """
        if self._executor is None:
            # spawn: a fork would copy sockets and locks of the event loop.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(max_workers=1, mp_context=context)
            self._warm = False
        limit = PLAN_SECONDS if self._warm else _FIRST_PLAN_SECONDS
        loop = asyncio.get_running_loop()
        call = functools.partial(self._solver, snapshot, policy)
        try:
            async with asyncio.timeout(limit):
                plan = await loop.run_in_executor(self._executor, call)
        except TimeoutError:
            self.close(kill=True)
            raise PlannerFailedError(
                f"The planner took longer than {limit:g} s and was stopped; the last plan stays "
                "in force and planning is repeated."
            ) from None
        except BrokenExecutor as error:
            self.close(kill=True)
            raise PlannerFailedError(
                "The planner's process ended (out of memory, or killed); the last plan stays in "
                "force and planning is repeated. Raise the operator's memory limit if it recurs."
            ) from error
        except Exception as error:
            _log.exception("planner_raised")
            raise PlannerFailedError(
                f"The planner failed with {type(error).__name__}: {error}. This is a bug; please "
                "report it. The last plan stays in force and planning is repeated."
            ) from error
        self._warm = True
        return plan

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        processes = list((getattr(executor, "_processes", None) or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        if kill:
            for process in processes:
                process.kill()


class FleetPlanner:
    """Makes plans when asked, and tells who has to follow."""

    def __init__(
        self,
        *,
        pool: Pool,
        policy: PlannerPolicy,
        observe: Callable[[], Awaitable[FleetSnapshot]],
        changed: Callable[[Planned, Planned], None],
        clock: Callable[[], float],
        seconds: Callable[[float], float],
        timed: Callable[[float], None] = lambda _: None,
        unfound: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            pool: Where plans are computed.
            policy: Constants of the planner.
            observe: Returns the present snapshot.
            changed: Told of the plan before and after.
            clock: Monotonic seconds.
            seconds: Scales policy times, for tests.
            timed: Told how long each plan took.
            unfound: Told of how many running intents a plan could find out nothing.
        """
        self._pool = pool
        self._policy = policy
        self._observe = observe
        self._changed = changed
        self._clock = clock
        self._seconds = seconds
        self._timed = timed
        self._unfound = unfound
        self._asked = asyncio.Event()
        self._open = False
        self._last_asked = 0.0
        self._asked_since: float | None = None
        self._taken_since: float | None = None
        self._waiting = 0
        self.ready = asyncio.Event()
        """Set by the first plan, or by the first failure to make one."""
        self.current = Planned(revision=0, snapshot=None, by_uid={})

    def ask(self) -> None:
        """Ask for a new plan: something that it is made from has changed."""
        self._last_asked = self._clock()
        if self._open:
            self._asked.set()
            if self._asked_since is None:
                self._asked_since = self._last_asked

    def open(self) -> None:
        """Make the first plan now: all that plans are made from has been read once."""
        self._open = True
        self._last_asked = float("-inf")
        self._asked_since = self._clock()
        self._asked.set()

    def of(self, uid: str, *, generation: int) -> IntentPlan | None:
        """Return the decision for an intent, None if it was made for another generation."""
        plan = self.current.by_uid.get(uid)
        return plan if plan is not None and plan.generation == generation else None

    def waiting_seconds(self) -> float:
        """Return the age of the oldest request that no plan has answered yet; 0 without any."""
        since = [at for at in (self._asked_since, self._taken_since) if at is not None]
        return max(0.0, self._clock() - min(since)) if since else 0.0

    async def run(self) -> None:
        """Plan for ever."""
        failures = 0
        while True:
            await self._settled()
            try:
                await self.plan_once()
                failures = 0
            except PlannerFailedError as error:
                failures += 1
                _log.error("planner_failed", error=str(error), failures=failures)
                self._publish(
                    self.current.by_uid,
                    self.current.snapshot,
                    findings=self.current.findings,
                    problem=str(error),
                )
                await asyncio.sleep(self._seconds(min(60.0, 2.0**failures)))
                self._asked.set()
            except Exception:  # noqa: BLE001 - logged, paced and repeated
                failures += 1
                _log.exception("snapshot_failed")
                await asyncio.sleep(self._seconds(min(60.0, 2.0**failures)))
                self._asked.set()

    async def _settled(self) -> None:
        """Wait until asked, and then for 2 s of quiet, 10 s at most."""
        await self._asked.wait()
        first = self._clock()
        quiet = self._seconds(self._policy.debounce_seconds)
        longest = self._seconds(self._policy.debounce_most_seconds)
        while True:
            now = self._clock()
            remaining = min(self._last_asked + quiet, first + longest) - now
            if remaining <= 0:
                break
            await asyncio.sleep(remaining)
        self._asked.clear()

    async def plan_once(self) -> None:
        """Plan unless nothing that planning reads has changed.

        Raises:
            PlannerFailedError: From the pool.
        """
        # What is asked from here on may not be in the snapshot. A failure leaves it unanswered.
        if self._taken_since is None:
            self._taken_since = self._asked_since
        self._asked_since = None
        snapshot = await self._observe()
        if snapshot == self.current.snapshot and not self.current.problem and not self._waiting:
            self._taken_since = None
            return
        began = self._clock()
        plan = await self._pool.plan(snapshot, self._policy)
        self._taken_since = None
        self._timed(self._clock() - began)
        _log.info(
            "fleet_planned",
            revision=self.current.revision + 1,
            intents=len(plan.intents),
            because=triggers(self.current.snapshot, snapshot),
            seconds=round(self._clock() - began, 3),
        )
        self._tell_unfound(plan)
        # Before it is told: whoever fails to hear of a plan must not leave the next one unmade.
        self._waiting = plan.waiting
        self._publish(
            {entry.uid: entry for entry in plan.intents},
            snapshot,
            findings={found.uid: found for found in plan.findings},
        )
        if self._waiting:
            # Its budget was too small for all queues; the next plan goes on with the rest.
            self.ask()

    def _tell_unfound(self, plan: FleetPlan) -> None:
        """Say of whom nothing could be found out: what runs of them stays, which hides the bug."""
        names = {entry.uid: f"{entry.namespace}/{entry.name}" for entry in plan.intents}
        failed = [found for found in plan.findings if found.problem]
        self._unfound(len(failed))
        for found in failed:
            _log.error("findings_failed", intent=names.get(found.uid), error=found.problem)

    def _publish(
        self,
        by_uid: dict[str, IntentPlan],
        snapshot: FleetSnapshot | None,
        *,
        findings: Mapping[str, Findings],
        problem: str = "",
    ) -> None:
        before = self.current
        self.current = Planned(
            revision=before.revision + 1,
            snapshot=snapshot,
            by_uid=by_uid,
            problem=problem,
            findings=findings,
        )
        self.ready.set()
        self._changed(before, self.current)

    def close(self) -> None:
        """End the planner's process."""
        self._pool.close(kill=True)
