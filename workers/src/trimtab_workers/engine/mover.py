"""Carries out what the controller orders: slab states, block tables, copies, in one place."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from trimtab.planning.remap import streamed_layers
from trimtab_workers.engine.faults import attempt
from trimtab_workers.engine.ops import Compact, Grow, Lend, Load, Preempt, SetAlpha
from trimtab_workers.engine.streaming import Ring, UnitGate, choose_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.backend import Backend
    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.errors import EngineError
    from trimtab_workers.engine.metrics import EngineMetrics
    from trimtab_workers.engine.ops import Op
    from trimtab_workers.engine.scheduler import Swap
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.transfer import Ticket

log = logging.getLogger(__name__)

# A wake must not stop the other models for longer than about a step.
LOAD_BYTES_PER_STEP = 64 << 20
_SWITCH_SAMPLES = 8


class Mover:
    """Edits arena and block tables and begins copies.

    Without a link beside the CPU, a wake's loads are spread over steps, so that the other models
    keep stepping; the model computes once all are there. With one, all loads begin at once and
    the first prefill follows behind them, unit by unit (`UnitGate`).

    Args:
        fail: Called with a model for which something could not be done, as when its weights came
            back damaged.
    """

    def __init__(
        self,
        arena: Arena,
        backend: Backend,
        *,
        tenants: Mapping[str, Tenant],
        clock: Clock,
        metrics: EngineMetrics,
        fail: Callable[[Tenant, EngineError], None],
    ) -> None:
        self.arena = arena
        self._backend = backend
        self._tenants = tenants
        self._clock = clock
        self._metrics = metrics
        self.fail = fail
        self._loads: deque[Load] = deque()
        self.switch_seconds: deque[float] = deque(maxlen=_SWITCH_SAMPLES)
        self.counts = dict.fromkeys(
            ("lends", "reverts", "wakes", "alphas", "swaps_out", "swaps_in"), 0
        )
        self.link_bytes: dict[str, int] = {}
        self.compacted_bytes = 0

    def run(self, ops: Iterable[Op]) -> bool:
        """Carry out orders, then a step's worth of loads; True if anything was done.

        Where one goes wrong its model fails, and the orders after it are dropped: they were given
        for another arena than there is now.
        """
        worked = False
        for op in ops:
            worked = True
            if not self._one(op):
                break
        for tenant in self._tenants.values():
            tenant.drop_surplus(self._backend.transfer)
        return self._load_some() or worked

    def _one(self, op: Op) -> bool:
        """Carry out an order; False if a model failed at it."""
        if isinstance(op, Lend):
            owner, borrower = self._tenants[op.owner], self._tenants[op.borrower]
            return self._for_tenant(owner, partial(self._give, owner, op)) and self._for_tenant(
                borrower, partial(self._receive, borrower, owner.homes[op.unit])
            )
        tenant = self._tenants[op.owner if isinstance(op, Load) else op.model]
        return self._for_tenant(tenant, partial(self._for_one, tenant, op))

    def _for_tenant(self, tenant: Tenant, work: Callable[[], object]) -> bool:
        """Do something for one model, which fails if it goes wrong: then False."""
        problem = attempt(work, what=f"Model {tenant.spec.name}: moving its slabs or weights")
        if problem is not None:
            self.fail(tenant, problem)
        return problem is None

    def _for_one(self, tenant: Tenant, op: Op) -> None:
        match op:
            case Grow():
                self.grow(tenant, op.slab)
            case Compact():
                self.vacate(tenant, op.slab)
            case Preempt():
                self._preempt(tenant, to_host=op.to_host)
            case Load():
                self._order_load(op)
            case SetAlpha():
                self.set_alpha(tenant, op.alpha, slots=op.slots)

    # -- KV ------------------------------------------------------------------------------------

    def grow(self, tenant: Tenant, slab: int) -> None:
        """Make a free slab KV cache of a model."""
        self.arena.change(slab, "kv", model=tenant.spec.name)
        self._adopt(tenant, slab)

    def _adopt(self, tenant: Tenant, slab: int) -> None:
        scheduler = tenant.scheduler
        if scheduler is None:
            raise ValueError(
                f"Model {tenant.spec.name} gets KV cache before it was loaded; this is a bug, "
                "please report it."
            )
        self._backend.transfer.zero(slab)
        blocks = scheduler.blocks
        slots = tenant.layout(self.arena.slab_bytes).slots(slab)
        blocks.grow(slab, slots, borrowed=self.arena[slab].home is not None)
        self._show_zero(tenant)

    def _show_zero(self, tenant: Tenant) -> None:
        if tenant.scheduler is not None and tenant.runner is not None:
            zero = tenant.scheduler.blocks.zero
            if zero is not None:
                tenant.runner.zero_block = zero

    def vacate(self, tenant: Tenant, slab: int) -> bool:
        """Free a KV slab, moving what is live in it; False if it does not fit elsewhere."""
        scheduler = tenant.scheduler
        if scheduler is None or slab not in scheduler.blocks.slabs:
            return False
        moves = scheduler.blocks.vacate(slab)
        self.copy_swaps(tenant, scheduler.take_swaps())
        if moves is None:
            return False
        self.arena.change(slab, "draining")
        if moves:
            layout = tenant.layout(self.arena.slab_bytes)
            self._begun(tenant, self._backend.transfer.copy_blocks(layout, moves))
        self.arena.change(slab, "free")
        return True

    def _preempt(self, tenant: Tenant, *, to_host: bool) -> bool:
        scheduler = tenant.scheduler
        if scheduler is None or not scheduler.preempt_youngest(to_host=to_host):
            return False
        self.copy_swaps(tenant, scheduler.take_swaps())
        return True

    def copy_swaps(self, tenant: Tenant, swaps: Iterable[Swap]) -> None:
        """Copy blocks between device and host, in order, runs of one direction together."""
        run: list[Swap] = []
        for swap in swaps:
            if run and run[0].out != swap.out:
                self._copy_run(tenant, run)
                run = []
            run.append(swap)
        if run:
            self._copy_run(tenant, run)

    def _copy_run(self, tenant: Tenant, run: list[Swap]) -> None:
        layout = tenant.layout(self.arena.slab_bytes)
        if tenant.host_blocks is None:
            raise ValueError(
                f"Model {tenant.spec.name} swaps without host blocks; this is a bug, please report it."
            )
        if run[0].out:
            ticket = self._backend.transfer.swap_out(
                layout, tenant.host_blocks, [(swap.slot, swap.place) for swap in run]
            )
            self.counts["swaps_out"] += len(run)
        else:
            ticket = self._backend.transfer.swap_in(
                layout, tenant.host_blocks, [(swap.place, swap.slot) for swap in run]
            )
            self.counts["swaps_in"] += len(run)
        tenant.metrics.swapped("out" if run[0].out else "in", blocks=len(run))
        self._begun(tenant, ticket)
        if ticket.direction == "h2d":
            self._settle(tenant, ticket)

    # -- weights -------------------------------------------------------------------------------

    def _give(self, owner: Tenant, op: Lend) -> None:
        self._arrive(owner, op.unit)
        owner.units[op.unit] = "lent"
        self.counts["lends"] += 1
        owner.metrics.remapped("lend")
        if owner.state == "Resident":
            owner.set_state("Lent")
            log.info("model_lent", extra={"model": op.owner, "borrower": op.borrower})
        else:
            owner.show_state()
        for slab in owner.homes[op.unit]:  # last: what fails before leaves them the owner's
            self.arena.change(slab, "kv", model=op.borrower)

    def _receive(self, borrower: Tenant, home: Iterable[int]) -> None:
        for slab in home:
            self._adopt(borrower, slab)

    def _order_load(self, op: Load) -> None:
        owner = self._tenants[op.owner]
        if any(self.arena[slab].state != "free" for slab in owner.homes[op.unit]):
            return  # what lay there did not fit elsewhere; the next step tries again
        for slab in owner.homes[op.unit]:
            self.arena.change(slab, "loading", model=op.owner)
        owner.units[op.unit] = "loading"
        if op.reason == "wake":
            if owner.state == "Lent":
                owner.set_state("Waking")
                owner.wake_began_seconds = self._clock.now()
                self.counts["wakes"] += 1
                owner.metrics.woke()
            owner.metrics.reverted("wake")
            self._loads.append(op)
            return
        self.counts["reverts"] += 1
        owner.metrics.reverted("idle")
        self._loads.appendleft(op)

    def _load_some(self) -> bool:
        """Begin loads; without a link of its own only as many as a step should wait for."""
        budget = LOAD_BYTES_PER_STEP
        linked = self._backend.transfer.link_rate is not None
        began = bool(self._loads)
        while self._loads and (linked or budget > 0):
            op = self._loads.popleft()
            owner = self._tenants.get(op.owner)
            if owner is None or owner.copy is None or owner.state == "Failed":
                continue
            budget -= owner.unit_bytes
            self._for_tenant(owner, partial(self._load, owner, op))
        for tenant in self._tenants.values():
            self._for_tenant(tenant, partial(self._note_arrivals, tenant))
        return began

    def _note_arrivals(self, tenant: Tenant) -> None:
        self.arrive_all(tenant)
        self._finish_wake(tenant)

    def _load(self, owner: Tenant, op: Load) -> None:
        if owner.copy is None:
            raise ValueError(f"Model {op.owner} has no host copy; this is a bug, please report it.")
        home = owner.homes[op.unit]
        ticket = self._backend.transfer.load_unit(
            owner.copy, op.unit, slab=home[0], slabs=len(home), reason=op.reason
        )
        self._begun(owner, ticket)
        gate = self.gate(owner)
        gate.tickets[op.unit] = ticket
        if ticket.ready_seconds <= self._clock.now():
            self._arrive(owner, op.unit)

    def _arrive(self, owner: Tenant, unit: int) -> None:
        """Wait for a unit, if it is on its way, and call it resident."""
        if owner.units[unit] != "loading":
            return
        ticket = None if owner.gate is None else owner.gate.tickets.pop(unit, None)
        if ticket is not None:
            self._settle(owner, ticket)
        owner.units[unit] = "resident"
        for slab in owner.homes[unit]:
            self.arena.change(slab, "weight")

    def arrive_all(self, owner: Tenant) -> None:
        """Note which units have come since; those before the gate are waited for there."""
        gate = owner.gate
        if gate is None or "loading" not in owner.units:
            return
        queued = {op.unit for op in self._loads if op.owner == owner.spec.name}
        now = self._clock.now()
        for unit, state in enumerate(owner.units):
            if state != "loading" or unit in queued:
                continue
            ticket = gate.tickets.get(unit)
            if ticket is None or ticket.ready_seconds <= now:
                self._arrive(owner, unit)
        self._show_gate(owner)

    def _finish_wake(self, tenant: Tenant) -> None:
        if tenant.state not in {"Waking", "Lent"}:
            return
        waits = {op.owner for op in self._loads}
        if "lent" in tenant.units or tenant.spec.name in waits:
            tenant.show_state()
            return
        tenant.set_state("Resident")
        if tenant.wake_began_seconds is not None:
            # The rest of what is on its way counts too: the first prefill waits for it.
            last = [t.ready_seconds for t in (tenant.gate.tickets if tenant.gate else {}).values()]
            end = max([self._clock.now(), *last])
            seconds = end - tenant.wake_began_seconds
            self.switch_seconds.append(seconds)
            tenant.metrics.switched(seconds)
            tenant.wake_began_seconds = None
            log.info("model_awake", extra={"model": tenant.spec.name, "seconds": seconds})
        self._show_gate(tenant)

    def forget(self, tenant: Tenant) -> None:
        """Drop what is queued for a model that goes, and wait for what is on its way."""
        self._loads = deque(op for op in self._loads if op.owner != tenant.spec.name)
        if tenant.gate is not None:
            tenant.gate.finish()  # its slabs may be another's before the bytes have come

    # -- streaming -----------------------------------------------------------------------------

    def gate(self, tenant: Tenant) -> UnitGate:
        """Return a model's gate, made at first need."""
        if tenant.gate is None:

            def fetch(unit: int, slab: int) -> Ticket:
                copy = tenant.copy
                if copy is None:
                    raise ValueError("A model streams without a host copy; this is a bug.")
                ticket = self._backend.transfer.load_unit(
                    copy, unit, slab=slab, slabs=len(tenant.homes[unit]), reason="stream"
                )
                return self._begun(tenant, ticket)

            tenant.gate = UnitGate(
                layers=tenant.unit.layers,
                layers_per_unit=tenant.layers_per_unit,
                fetch=fetch,
                settle=lambda ticket: self._settle(tenant, ticket),
            )
        return tenant.gate

    def _show_gate(self, tenant: Tenant) -> None:
        if tenant.runner is not None and tenant.gate is not None:
            tenant.runner.gate = None if tenant.gate.open else tenant.gate

    def set_alpha(self, tenant: Tenant, alpha: int, *, slots: int) -> bool:
        """Change which units stream; False (and nothing changed) if KV cannot make way.

        The homes that are new to KV come first, so that blocks of those that go back find room.
        """
        name, gate = tenant.spec.name, self.gate(tenant)
        count = len(tenant.homes)
        units = streamed_layers(count, alpha + slots) if alpha else ()
        chosen = choose_slots(units, count=slots if alpha else 0, before=tenant.slots)
        freed = [unit for unit in units if unit not in chosen]
        if not self._fits(tenant, units, freed):
            log.info("streaming_level_kept", extra={"model": name, "alpha": tenant.alpha})
            return False
        gate.finish()
        before = {u for u, state in enumerate(tenant.units) if state == "streamed"}
        for unit in freed:
            if tenant.units[unit] == "resident" or unit in tenant.slots:
                self._to_kv(tenant, unit)
        gate.ring = None
        self._bring_back(tenant, sorted(before | set(tenant.slots)), freed=freed, chosen=chosen)
        tenant.alpha, tenant.slots = alpha, chosen
        for slab in (slab for unit in chosen for slab in tenant.homes[unit]):
            if self.arena[slab].state == "weight":
                self.arena.change(slab, "slot")
        if alpha:
            ring = Ring(units, tuple(tenant.homes[unit][0] for unit in chosen))
            for unit in units:
                tenant.units[unit] = "streamed"
                self._backend.move_unit(tenant, unit, slab=ring.slots[ring.slot_of(unit)])
            gate.ring = ring
        self._show_gate(tenant)
        self.counts["alphas"] += 1
        tenant.metrics.streams(alpha)
        tenant.show_state()
        log.info("streaming_level", extra={"model": name, "alpha": alpha, "slots": slots})
        return True

    def _bring_back(
        self, tenant: Tenant, streamed: list[int], *, freed: list[int], chosen: tuple[int, ...]
    ) -> None:
        """Empty the homes of units that stop lying elsewhere, and fetch those that stay there."""
        for unit in streamed:
            if unit not in freed and unit not in tenant.slots:
                for slab in tenant.homes[unit]:
                    self._empty_own(tenant, slab)
        for unit in streamed:
            if unit not in freed:
                self._come_home(tenant, unit, stays=unit not in chosen)

    def _to_kv(self, tenant: Tenant, unit: int) -> None:
        for slab in tenant.homes[unit]:
            if self.arena[slab].state == "slot":
                self.arena.change(slab, "weight")
            self.arena.change(slab, "kv", model=tenant.spec.name)
            self._adopt(tenant, slab)

    def _fits(self, tenant: Tenant, units: Iterable[int], freed: list[int]) -> bool:
        """Whether the oldest sequence fits into the KV slabs of another level."""
        scheduler = tenant.scheduler
        if scheduler is None:
            return False
        now = sum(s == "streamed" for s in tenant.units) - len(tenant.slots)
        slabs = len(scheduler.blocks.slabs) + (len(freed) - now) * len(tenant.homes[0])
        per_slab = tenant.layout(self.arena.slab_bytes).blocks_per_slab
        oldest = len(scheduler.running[0].blocks) if scheduler.running else 0
        return oldest + 1 <= slabs * per_slab and len(set(units)) <= len(tenant.homes)

    def _empty_own(self, tenant: Tenant, slab: int) -> None:
        while not self.vacate(tenant, slab):
            if not self._preempt(tenant, to_host=tenant.host_blocks is not None):
                raise ValueError(
                    f"Slab {slab} of {tenant.spec.name} cannot be emptied; this is a bug, please "
                    "report it with your model set."
                )

    def _come_home(self, tenant: Tenant, unit: int, *, stays: bool) -> None:
        """Make a streamed unit's home its own again; its bytes come too if it stays resident."""
        home = tenant.homes[unit]
        for slab in home:
            state = self.arena[slab].state
            if state == "free":
                self.arena.change(slab, "loading", model=tenant.spec.name)
                self.arena.change(slab, "weight")
            elif state == "slot":
                self.arena.change(slab, "weight")
        tenant.units[unit] = "resident"
        if not stays or tenant.copy is None:
            return
        ticket = self._backend.transfer.load_unit(
            tenant.copy, unit, slab=home[0], slabs=len(home), reason="revert"
        )
        self._settle(tenant, self._begun(tenant, ticket))
        self._backend.move_unit(tenant, unit, slab=home[0])
        tenant.metrics.reverted("alpha")

    # -- counting ------------------------------------------------------------------------------

    def _begun(self, tenant: Tenant, ticket: Ticket) -> Ticket:
        """Count a copy, where it begins: it may be waited for more than once, or never."""
        if ticket.direction == "d2d":  # it stays inside the arena
            self.compacted_bytes += ticket.size_bytes
            tenant.metrics.compacted(ticket.size_bytes)
            return ticket
        key = f"{ticket.direction}/{ticket.reason}"
        self.link_bytes[key] = self.link_bytes.get(key, 0) + ticket.size_bytes
        tenant.metrics.moved(ticket.direction, ticket.reason, ticket.size_bytes)
        return ticket

    def _settle(self, tenant: Tenant, ticket: Ticket) -> None:
        stalled = self._backend.transfer.wait(ticket)
        if stalled > 0:
            tenant.metrics.stalled(ticket.reason, stalled)
