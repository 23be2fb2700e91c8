"""Models that come and go while others serve (engine.md §5, joints.md §6)."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab_workers.engine import boot
from trimtab_workers.engine.arena import homes_of
from trimtab_workers.engine.errors import EngineError, OutOfMemoryError, SlabMismatchError
from trimtab_workers.engine.faults import attempt
from trimtab_workers.engine.parallel.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.backend import Backend
    from trimtab_workers.engine.balance import Balance
    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.tenants import Tenant

log = logging.getLogger(__name__)

MOST_WASTE = 0.10
_TENSOR_SLACK_BYTES = 64
_TENSORS_PER_LAYER = 5


class Joining:
    """Brings one model into a running engine: opened and read beside it, placed between its steps.

    Args:
        post: Runs a callable on the engine's thread.
        fail: Ends a model, with all that it holds.
        joined: Called there when the model is Resident or Failed.
    """

    def __init__(
        self,
        tenant: Tenant,
        *,
        balance: Balance,
        backend: Backend,
        config: EngineConfig,
        post: Callable[[Callable[[], None]], None],
        fail: Callable[[Tenant, EngineError], None],
        joined: Callable[[Tenant], None],
    ) -> None:
        self._tenant = tenant
        self._balance = balance
        self._backend = backend
        self._config = config
        self._post = post
        self._fail = fail
        self._joined = joined
        self._fixed_slab: int | None = None
        self._ranks = Ranks()  # models join only where there are no others

    def start(self) -> None:
        """Open the model's files in a thread of their own."""
        tenant = self._tenant
        problem = attempt(lambda: self._run(self._open), what=f"Model {tenant.spec.name}: opening")
        if problem is not None:
            self._end(problem)

    def _run(self, work: Callable[[], None]) -> None:
        self._tenant.loader = threading.Thread(
            target=work, name=f"load {self._tenant.spec.name}", daemon=True
        )
        self._tenant.loader.start()

    def _open(self) -> None:
        opened = False

        def work() -> None:
            nonlocal opened
            opened = boot.open_tenant(self._tenant, self._ranks)

        problem = attempt(work, what=f"Model {self._tenant.spec.name}: opening its files")
        self._post(self._place if opened else lambda: self._end(problem))

    def _place(self) -> None:
        tenant = self._tenant
        if tenant.drain_until_seconds is not None:
            self._end(None)  # removed while its files were opened
            return

        def begin() -> None:
            self._fixed_slab = place(tenant, self._balance, config=self._config)
            self._run(self._read)

        problem = attempt(begin, what=f"Model {tenant.spec.name}: finding it a place")
        if problem is not None:
            self._end(problem)

    def _read(self) -> None:
        def work() -> None:
            problem = boot.read_weights(
                self._tenant, self._backend, policy=self._config.policy, fixed_slab=self._fixed_slab
            )
            if problem is not None:
                raise problem

        # Whatever happens the engine's thread must hear of it, or the model loads for ever.
        problem = attempt(work, what=f"Model {self._tenant.spec.name}: reading its weights")
        self._post(lambda: self._end_read(problem))

    def _end_read(self, problem: EngineError | None) -> None:
        self._end(
            problem
            or attempt(self._open_scheduler, what=f"Model {self._tenant.spec.name}: joining")
        )

    def _open_scheduler(self) -> None:
        tenant, arena = self._tenant, self._balance.arena
        boot.settle_weights(tenant, arena)
        boot.open_scheduler(
            tenant,
            arena,
            self._backend,
            slabs=_spare(arena, self._balance.tenants),
            config=self._config,
            ranks=self._ranks,
        )
        boot.share_swap(self._balance.tenants.values(), arena, self._config, self._backend.transfer)
        if tenant.state == "Loading":
            tenant.set_state("Resident")
            boot.hand_out([tenant], arena, self._balance.mover, self._config)
            log.info("model_added", extra={"model": tenant.spec.name})

    def _end(self, problem: EngineError | None) -> None:
        tenant = self._tenant
        tenant.loader = None
        if problem is not None:
            self._fail(tenant, problem)
        self._joined(tenant)


def _spare(arena: Arena, tenants: Mapping[str, Tenant]) -> int:
    """Slabs of the home pool that no model counts on."""
    return arena.pool() - sum(tenant.floor_slabs for tenant in tenants.values())


def place(tenant: Tenant, balance: Balance, *, config: EngineConfig) -> int | None:
    """Make room for an opened model and give it homes; return its fixed region's first slab.

    None means that the fixed region fits beside the arena, where a removed one was.

    Raises:
        SlabMismatchError: Its layers or blocks do not suit the slabs.
        OutOfMemoryError: Too little that nobody counts on; names bytes needed and free.
    """
    arena = balance.arena
    _check_shape(tenant, arena)
    size = arena.slab_bytes
    homes = homes_of(tenant.unit, size)
    outside = fixed_room(balance, config)
    slack = _TENSOR_SLACK_BYTES * (_TENSORS_PER_LAYER * tenant.unit.layers + 3)
    fixed = 0 if tenant.fixed_bytes <= outside else -(-(tenant.fixed_bytes + slack) // size)
    need = homes.units * homes.slabs_per_home + fixed
    spare = _spare(arena, balance.tenants)
    if need + 1 > spare:
        raise OutOfMemoryError(
            f"Model {tenant.spec.name} needs {(need + 1) * size} bytes beside the others ({need} slabs "
            f"for weights, 1 for KV cache), but {max(0, spare) * size} bytes ({max(0, spare)} slabs) are "
            "free of what they count on. Raise memory_bytes, or lower max_model_len."
        )
    places = choose_places(
        _costs(arena, balance), fixed=fixed, homes=homes.units, per_home=homes.slabs_per_home
    )
    if places is None:
        beside = f" and {fixed} for embedding and norms" if fixed else ""
        raise OutOfMemoryError(
            f"Model {tenant.spec.name} needs {homes.units} times {homes.slabs_per_home} adjacent slabs for "
            f"its layers{beside}. There are enough slabs of {size} bytes, but weights of other models lie "
            "between them. Roll the worker, which then lays out all its models anew, or raise memory_bytes."
        )
    _empty(balance, places.slabs(fixed=fixed, per_home=homes.slabs_per_home))
    if places.fixed is not None:
        arena.claim_fixed(tenant.spec.name, slabs=fixed, at=places.fixed)
    boot.claim(tenant, arena, at=places.homes)
    tenant.fixed_outside = 0 if fixed else tenant.fixed_bytes
    return places.fixed


def _empty(balance: Balance, slabs: Sequence[int]) -> None:
    """Move what lies in slabs of the pool elsewhere, so that they become free."""
    for _ in balance.tenants:  # a model that fails at an order takes the orders after it with it
        if all(balance.arena[slab].state == "free" for slab in slabs):
            return
        balance.mover.run(balance.controller.clear(balance.view(), slabs))


def fixed_room(balance: Balance, config: EngineConfig) -> int:
    """Bytes of `memory_bytes` that are neither arena nor somebody's fixed region."""
    used = sum(tenant.fixed_outside for tenant in balance.tenants.values())
    budget = balance.fixed_budget
    if config.memory_bytes is not None:
        budget = config.memory_bytes - balance.paid_slabs * balance.arena.slab_bytes
    return max(0, budget - used)


def _check_shape(tenant: Tenant, arena: Arena) -> None:
    unit, size = tenant.unit, arena.slab_bytes
    homes = homes_of(unit, size)
    waste = 1 - unit.layers * unit.layer_bytes / (homes.units * homes.slabs_per_home * size)
    if waste > MOST_WASTE:
        raise SlabMismatchError(
            f"Model {tenant.spec.name}: its layers of {unit.layer_bytes} bytes would leave {waste:.0%} "
            f"of its slabs of {size} bytes empty, and {MOST_WASTE:.0%} is the most. Roll the worker, "
            "which then chooses slabs for all its models."
        )
    if size % unit.block_bytes or size < unit.layers * unit.block_bytes:
        raise SlabMismatchError(
            f"Model {tenant.spec.name}: its KV blocks of {unit.block_bytes} bytes in {unit.layers} layers "
            f"do not divide slabs of {size} bytes. Roll the worker, which then chooses slabs for all."
        )


def _costs(arena: Arena, balance: Balance) -> dict[int, int]:
    """What emptying costs for each slab of the pool that can be emptied: its live blocks, and one."""
    costs = {slab.index: 0 for slab in arena if slab.home is None and slab.state == "free"}
    for tenant in balance.tenants.values():
        if tenant.scheduler is not None:
            for index, kv in tenant.scheduler.blocks.slabs.items():
                if not kv.borrowed:
                    costs[index] = 1 + kv.used
    return costs


@dataclass(frozen=True, slots=True)
class Places:
    """First slabs of a model's fixed region, if the arena holds it, and of its homes."""

    fixed: int | None
    homes: list[int]

    def slabs(self, *, fixed: int, per_home: int) -> list[int]:
        """Return all slabs that it takes."""
        own = [] if self.fixed is None else list(range(self.fixed, self.fixed + fixed))
        return own + [slab for start in self.homes for slab in range(start, start + per_home)]


def choose_places(
    costs: Mapping[int, int], *, fixed: int, homes: int, per_home: int
) -> Places | None:
    """Choose runs of slabs that cost little to empty; None only if there are no such runs.

    Args:
        costs: Price of each slab that can be had.
        fixed: Adjacent slabs of the fixed region; 0 for none.
        homes: Number of homes.
        per_home: Adjacent slabs of each.
    """
    return _cheap(costs, fixed=fixed, homes=homes, per_home=per_home) or _packed(
        costs, fixed=fixed, homes=homes, per_home=per_home
    )


def _cheap(costs: Mapping[int, int], *, fixed: int, homes: int, per_home: int) -> Places | None:
    """Take the cheapest run each time, which may cut what the next ones need."""
    left = dict(costs)
    starts: list[int] = []
    for length in ([fixed] if fixed else []) + [per_home] * homes:
        runs = [
            range(start, start + length)
            for start in left
            if all(index in left for index in range(start, start + length))
        ]
        if not runs:
            return None
        best = min(runs, key=lambda run: (sum(left[index] for index in run), run[0]))
        for index in best:
            del left[index]
        starts.append(best[0])
    return Places(starts[0], starts[1:]) if fixed else Places(None, starts)


def _packed(costs: Mapping[int, int], *, fixed: int, homes: int, per_home: int) -> Places | None:
    """Lay homes end to end, the fixed region where that loses fewest: the most that fit."""
    gaps: list[list[int]] = []
    for index in sorted(costs):
        if gaps and gaps[-1][-1] == index - 1:
            gaps[-1].append(index)
        else:
            gaps.append([index])
    own = None
    if fixed:
        wide = [gap for gap in gaps if len(gap) >= fixed]
        if not wide:
            return None
        gap = min(wide, key=lambda g: len(g) // per_home - (len(g) - fixed) // per_home)
        own = gap[0]
        del gap[:fixed]
    starts = [gap[at] for gap in gaps for at in range(0, len(gap) - per_home + 1, per_home)]
    starts.sort(key=lambda start: sum(costs[start + offset] for offset in range(per_home)))
    return Places(own, starts[:homes]) if len(starts) >= homes else None
