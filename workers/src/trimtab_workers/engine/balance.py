"""Shows the controller what there is and has its orders carried out, once between two steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from trimtab_workers.engine.arena import FIXED
from trimtab_workers.engine.faults import attempt
from trimtab_workers.engine.ops import ArenaView, ModelView, StepStats
from trimtab_workers.engine.tenants import FAILURES_UNTIL_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.controller import RemapController
    from trimtab_workers.engine.mover import Mover
    from trimtab_workers.engine.ops import Op
    from trimtab_workers.engine.scheduler import Scheduler
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.transfer import TransferEngine

T = TypeVar("T")

_WINDOW_SECONDS = 2.0
_PERCENTILE = 0.2


@dataclass(slots=True)
class Balance:
    """The arena of an engine with those who decide about it and those who act.

    Attributes:
        paid_slabs: Slabs that `memory_bytes` pays for; `oracle` has more.
        fixed_budget: Bytes of fixed regions at start.
        shown_holds: Held wakes that the metrics have counted.
        undecided: Times in a row that the controller failed.
    """

    arena: Arena
    controller: RemapController
    mover: Mover
    tenants: Mapping[str, Tenant]
    transfer: TransferEngine
    clock: Clock
    paid_slabs: int
    fixed_budget: int
    shown_holds: int = 0
    undecided: int = 0

    def between_steps(self) -> bool:
        """Look at every model, decide, act; True if anything was done."""
        now = self.clock.now()
        for tenant in self.tenants.values():
            if tenant.scheduler is not None and tenant.scheduler.has_work:
                tenant.last_work_seconds = now
        if not self._unsettled():
            return False
        return self.mover.run(self._decide(now))

    def _decide(self, now: float) -> list[Op]:
        """Ask the controller; models that wait for it fail once it failed three times in a row."""
        orders: list[Op] = []

        def decide() -> None:
            orders.extend(self.controller.decide(self.view(), self.stats(now), now))

        problem = attempt(decide, what="Deciding whose slab is whose")
        if problem is None:
            self.undecided = 0
            return orders
        self.undecided += 1
        if self.undecided >= FAILURES_UNTIL_FAILED:
            for tenant in self._unsettled():
                if tenant.scheduler is not None and tenant.scheduler.has_work:
                    self.mover.fail(tenant, problem)
        return []

    def due_seconds(self) -> float | None:
        """Return the seconds until something is to be done though no request comes; None if never."""
        return self.controller.due_seconds(self.clock.now())

    def forget(self, tenant: Tenant) -> None:
        """Free all that a model held; KV that others have in its homes is theirs from now on."""
        name = tenant.spec.name
        self.controller.forget(name)
        self.mover.forget(tenant)
        homes = {
            slab.index for slab in self.arena if slab.home is not None and slab.home[0] == name
        }
        for other in self.tenants.values():
            if other is not tenant and other.scheduler is not None:
                for slab in homes & other.scheduler.blocks.slabs.keys():
                    other.scheduler.blocks.own(slab)
        self.arena.release(name)

    def _unsettled(self) -> list[Tenant]:
        """Return the models that lack a block or have a unit elsewhere: none in most steps."""
        return [t for t in self.tenants.values() if self._counted(t, partial(_lacks, t))]

    def _counted(self, tenant: Tenant, count: Callable[[], T]) -> T | None:
        """Return what is counted of a model; None, and it fails, where its books are wrong."""
        found: list[T] = []
        what = f"Model {tenant.spec.name}: counting what it has and lacks"
        problem = attempt(lambda: found.append(count()), what=what)
        if problem is not None:
            self.mover.fail(tenant, problem)
        return found[0] if found else None

    def view(self) -> ArenaView:
        """Return what the controller decides from; a model whose books are wrong fails."""
        models: dict[str, ModelView] = {}
        for name, tenant in self.tenants.items():
            if tenant.scheduler is None:
                continue
            look = partial(_model_view, tenant, tenant.scheduler, self.arena.slab_bytes)
            if (found := self._counted(tenant, look)) is not None:
                models[name] = found
        homes = {
            slab.index: slab.home
            for slab in self.arena
            if slab.home is not None and slab.home[1] != FIXED and slab.home[0] in models
        }
        free = [slab for slab in self.arena if slab.state == "free"]
        return ArenaView(
            free=[slab.index for slab in free if slab.home is None],
            free_homes=[
                slab.index
                for slab in free
                if slab.index in homes
                and models[homes[slab.index][0]].units[homes[slab.index][1]] == "lent"
            ],
            home_of=homes,
            models=models,
        )

    def stats(self, now: float) -> StepStats:
        """Return what was measured lately."""
        switches = self.mover.switch_seconds
        return StepStats(
            decode_seconds={
                name: seconds
                for name, tenant in self.tenants.items()
                if (seconds := decode_seconds(tenant, now)) is not None
            },
            link_rate=self.transfer.link_rate,
            latency_seconds=self.transfer.latency_seconds,
            switch_seconds=sum(switches) / len(switches) if switches else 0.0,
        )


def _lacks(tenant: Tenant) -> bool:
    """Whether a model lacks a block or has a unit elsewhere."""
    if tenant.state in {"Lent", "Waking"} or tenant.alpha or "loading" in tenant.units:
        return True
    scheduler = tenant.scheduler
    if scheduler is None or not scheduler.has_work:
        return False
    return bool(scheduler.missing_running() or scheduler.missing_waiting())


def decode_seconds(tenant: Tenant, now: float) -> float | None:
    """Return the 20th percentile of a model's decode-only steps of the last 2 s, if any."""
    recent = sorted(s for end, s in tenant.decode_steps if now - end <= _WINDOW_SECONDS)
    return recent[int(_PERCENTILE * len(recent))] if recent else None


def _model_view(tenant: Tenant, scheduler: Scheduler | None, slab_bytes: int) -> ModelView:
    if scheduler is None:
        raise ValueError(f"Model {tenant.spec.name} has no scheduler; this is a bug.")
    blocks = scheduler.blocks
    return ModelView(
        name=tenant.spec.name,
        state=tenant.state,
        has_work=scheduler.has_work,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        last_work_seconds=tenant.last_work_seconds,
        units=tenant.units,
        homes=tenant.homes,
        lendable=tenant.copy is not None,
        floor_slabs=tenant.floor_slabs,
        blocks_per_slab=tenant.layout(slab_bytes).blocks_per_slab,
        kv=blocks.slabs,
        held=blocks.used + (blocks.zero is not None),
        missing_running=scheduler.missing_running(),
        missing_waiting=scheduler.missing_waiting(),
        victims=scheduler.victims,
        alpha=tenant.alpha,
        unit_bytes=tenant.unit_bytes,
    )
