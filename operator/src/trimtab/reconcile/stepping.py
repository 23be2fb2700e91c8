"""From the fleet's plan to what each intent may do about it now (planner.md §9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.names import (
    COMPONENT_LABEL,
    GROUP_LABEL,
    REPLICAS_ANNOTATION,
)
from trimtab.planning.beside import Beside
from trimtab.planning.replan import Running, Wanted, next_step
from trimtab.planning.transition import Candidate, admit, devices, devices_by_product
from trimtab.planning.triggers import SpareWatch
from trimtab.reconcile.inferenceintent.gather import unplaced
from trimtab.reconcile.inferenceintent.rollout import in_force
from trimtab.reconcile.snapshot import epoch
from trimtab.reconcile.untouched import untouched

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.observe.records import DeploymentRecord, IntentRecord, PodRecord
    from trimtab.planning.plan import Findings, IntentPlan, Option
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.replan import Step
    from trimtab.planning.snapshot import Config
    from trimtab.reconcile.fleet import Planned
    from trimtab.reconcile.world import World

STEPS_SECONDS: Final = 15.0
_MICROSECONDS = 1_000_000


@dataclass(slots=True)
class _Seen:
    """What was seen of an intent's worker, and since when."""

    config: Config
    replicas: int
    changed_us: int
    progressed_us: int | None = None
    ready: int = 0
    updated: int = 0
    spare: SpareWatch = field(default_factory=SpareWatch)
    judged: Findings | None = None


class Stepper:
    """Computes the steps of all intents together, because a fleet changes only so much at once."""

    def __init__(
        self,
        world: World,
        *,
        current: Callable[[], Planned],
        wake: Callable[[str, str], None],
        replan: Callable[[], None],
        policy: PlannerPolicy,
    ) -> None:
        """Prepare.

        Args:
            world: What is known.
            current: Returns the fleet's plan in force.
            wake: Told whose step changed.
            replan: Asks for a plan, for what runs is an input of it.
            policy: With the times of re-planning.
        """
        self._world = world
        self._current = current
        self._wake = wake
        self._replan = replan
        self._policy = policy
        self._newcomers = False
        self._left: Beside | None = None
        self._seen: dict[str, _Seen] = {}
        self._steps: dict[str, tuple[IntentPlan, Step]] = {}

    def of(self, record: IntentRecord, plan: IntentPlan | None) -> Step | None:
        """Return the step towards a plan; None where the plan is followed as it is."""
        known = self._steps.get(record.uid)
        if known is None or plan is None or known[0] != plan:
            return None
        deployment = self._own(record)
        # Replicas are taken back because somebody asked for it: at once, not at the next look.
        return None if deployment is not None and _taken_back(record, deployment) else known[1]

    async def step(self) -> float:
        """Compute all steps; return when to look again."""
        return self.refresh()

    def refresh(self) -> float:
        """Compute all steps and wake whose changed; return the seconds until time changes one."""
        now_us = round(self._world.clock() * _MICROSECONDS)
        candidates: dict[str, Candidate] = {}
        waiting: dict[str, Step] = {}
        plans: dict[str, IntentPlan] = {}
        self._newcomers, self._left = self._unserved(), None
        for record in self._world.caches.inferenceintents:
            plan = self._current().by_uid.get(record.uid)
            found = self._candidate(record, plan, now_us=now_us)
            if found is None or plan is None:
                continue
            plans[record.uid] = plan
            if found.step.kind == "Keep" or not untouched(record, self._world):
                candidates[record.uid] = found
            else:
                # One that is not taken must not hold up others.
                waiting[record.uid] = found.step
        snapshot = self._current().snapshot
        totals = devices_by_product(snapshot.pools, snapshot.gpu_pools) if snapshot else {}
        admitted = waiting | admit(
            candidates.values(), totals=totals, now_us=now_us, policy=self._policy
        )
        before, self._steps = (
            self._steps,
            {uid: (plans[uid], step) for uid, step in admitted.items()},
        )
        alive = {record.uid for record in self._world.caches.inferenceintents}
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in alive}
        for uid, (_, step) in self._steps.items():
            old = before.get(uid)
            if old is None or (old[1].kind, old[1].config, old[1].replicas, old[1].held) != (
                step.kind,
                step.config,
                step.replicas,
                step.held,
            ):
                self._wake(uid, "step")
        ends = [step.again_us for step in admitted.values() if step.again_us is not None]
        rest = min((end - now_us) / _MICROSECONDS for end in ends) if ends else STEPS_SECONDS
        return max(0.2, min(STEPS_SECONDS, rest))

    def _candidate(
        self, record: IntentRecord, plan: IntentPlan | None, *, now_us: int
    ) -> Candidate | None:
        """Return an intent's own step; None where it shares, or has nothing yet."""
        deployment = self._own(record)
        if deployment is None or record.deleting:
            return None
        rollout = in_force(deployment, self._world.caches.configmaps.owned_by(record.uid))
        if rollout is None or (plan is not None and plan.group is not None):
            return None
        if _taken_back(record, deployment):
            return None
        seen = self._look(record.uid, rollout.config, deployment, now_us=now_us)
        pods = self._pods(record)
        running = Running(
            config=rollout.config,
            replicas=deployment.replicas,
            ready=min(deployment.ready_replicas, deployment.replicas),
            generation=rollout.generation,
            rolling=_rolling(deployment, pods),
            changed_us=seen.changed_us,
            progressed_us=seen.progressed_us,
            lost=bool(
                unplaced(
                    pods,
                    now=self._world.utcnow(),
                    seconds=self._world.settings.policy_seconds,
                ).long
            ),
            foreign=bool(deployment.foreign_replicas_manager),
        )
        wanted = None
        if plan is not None and plan.option is not None:
            wanted = self._wanted(record, plan, running, seen, now_us=now_us)
        step = next_step(running, wanted, now_us=now_us, policy=self._policy)
        if step is None:
            return None
        if step.held in ("Lone", "NoRoom") and self._gave_up(record.uid):
            # Its place was given away while nothing of it served; now it is not left any more.
            self._replan()
        return Candidate(
            uid=record.uid,
            priority=int(record.spec.get("priority") or 0),
            created_seconds=epoch(record.created),
            running=running,
            step=step,
        )

    def _own(self, record: IntentRecord) -> DeploymentRecord | None:
        for deployment in self._world.caches.deployments.owned_by(record.uid):
            own = GROUP_LABEL not in deployment.labels and not deployment.deleting
            if own and deployment.namespace == record.namespace:
                return deployment
        return None

    def _pods(self, record: IntentRecord) -> list[PodRecord]:
        return [
            pod
            for pod in self._world.caches.pods.owned_by(record.uid)
            if pod.namespace == record.namespace
            and pod.labels.get(COMPONENT_LABEL) == "worker"
            and GROUP_LABEL not in pod.labels
        ]

    def _look(
        self, uid: str, config: Config, deployment: DeploymentRecord, *, now_us: int
    ) -> _Seen:
        """Note what runs; what is seen for the first time counts as changed just now."""
        seen, replicas = self._seen.get(uid), deployment.replicas
        if seen is None or seen.config != config:
            if seen is not None:
                self._replan()
            seen = self._seen[uid] = _Seen(config, replicas, now_us)
        elif seen.replicas != replicas:
            seen.replicas, seen.changed_us, seen.progressed_us = replicas, now_us, None
            seen.ready = seen.updated = 0
            self._replan()
        # Only what was never reached since that change: a replica that comes and goes is no progress.
        ready, updated = deployment.ready_replicas, deployment.updated_replicas
        if ready > seen.ready or updated > seen.updated:
            seen.ready, seen.updated = max(ready, seen.ready), max(updated, seen.updated)
            seen.progressed_us = now_us
        return seen

    def _wanted(
        self,
        record: IntentRecord,
        plan: IntentPlan,
        running: Running,
        seen: _Seen,
        *,
        now_us: int,
    ) -> Wanted | None:
        option = plan.option
        if option is None:
            return None
        found = self._current().findings.get(record.uid)
        if found is None:
            seen.spare = SpareWatch()
        elif found is not seen.judged:
            seen.judged = found
            fewest = min(found.fewest, running.replicas)
            seen.spare = seen.spare.seen(fewest, now_us=now_us)
        pins = record.spec.get("constraints") or {}
        moves = option.config != running.config
        room, swaps = self._ways(record.uid, option) if moves else (0, False)
        return Wanted(
            config=option.config,
            replicas=option.replicas,
            generation=plan.generation,
            least=int(pins.get("minReplicas") or 1),
            most=int(pins["maxReplicas"]) if pins.get("maxReplicas") else None,
            meets=found.meets if found else True,
            running_meets=found.running_meets if found else True,
            fewest=seen.spare.fewest(now_us=now_us, policy=self._policy),
            fewest_now=found.fewest if found else None,
            lasts=found.lasts if found else True,
            room=room,
            swaps=swaps,
            needed=self._newcomers and _takes_less(option, running),
            measuring=self._world.fingerprints.progress(
                record.uid, plan, first_rollout=False
            ).pending,
        )

    def _beside(self) -> Beside | None:
        """Return what the fleet has left beside all that runs; None before the first plan."""
        snapshot = self._current().snapshot
        if self._left is None and snapshot is not None:
            self._left = Beside(snapshot)
        return self._left

    def _ways(self, uid: str, option: Option) -> tuple[int, bool]:
        """Return how many replicas fit beside all that runs, and whether one fits in another's place."""
        beside = self._beside()
        if beside is None:
            return 0, False
        snapshot = self._current().snapshot
        here = snapshot.assignments if snapshot else ()
        running = next((a for a in here if a.intent_uid == uid and not a.group), None)
        swaps = running is not None and beside.swaps(option, running)
        return beside.rooms(option), swaps

    def _gave_up(self, uid: str) -> bool:
        """Tell whether nothing of an intent served when the plan in force was made."""
        snapshot = self._current().snapshot
        here = snapshot.assignments if snapshot else ()
        return any(a.ready == 0 for a in here if a.intent_uid == uid and not a.group)

    def _unserved(self) -> bool:
        """Tell whether somebody is planned who has no ready replica yet."""
        for uid, plan in self._current().by_uid.items():
            if plan.option is None:
                continue
            deployments = self._world.caches.deployments.owned_by(uid)
            if not any(d.ready_replicas for d in deployments):
                return True
        return False


def _taken_back(record: IntentRecord, deployment: DeploymentRecord) -> bool:
    foreign = bool(deployment.foreign_replicas_manager)
    return foreign and record.annotations.get(REPLICAS_ANNOTATION) == "Trimtab"


def _takes_less(option: Option, running: Running) -> bool:
    wanted = option.replicas * devices(option.config)
    return wanted < running.replicas * devices(running.config)


def _rolling(deployment: DeploymentRecord, pods: list[PodRecord]) -> bool:
    present = sum(not pod.deleting for pod in pods)
    return (
        deployment.observed_generation < deployment.generation
        or deployment.updated_replicas < deployment.replicas
        or present > deployment.replicas
    )
