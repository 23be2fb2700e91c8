"""Models that come and go while others serve (engine.md §5, joints.md §6)."""

from __future__ import annotations

import logging
import threading
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
        opened = boot.open_tenant(self._tenant, self._ranks)
        self._post(self._place if opened else lambda: self._end(None))

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
        problem = boot.read_weights(
            self._tenant, self._backend, policy=self._config.policy, fixed_slab=self._fixed_slab
        )
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
    lengths = ([fixed] if fixed else []) + [homes.slabs_per_home] * homes.units
    wanted = _choose(arena, balance, lengths)
    balance.mover.run(balance.controller.clear(balance.view(), wanted))
    first = arena.claim_fixed(tenant.spec.name, slabs=fixed) if fixed else None
    boot.claim(tenant, arena)
    tenant.fixed_outside = 0 if fixed else tenant.fixed_bytes
    return first


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


def _choose(arena: Arena, balance: Balance, lengths: Sequence[int]) -> list[int]:
    """Choose slabs of the pool in runs of the given lengths, those with fewest live blocks first."""
    costs: dict[int, int] = {}
    for slab in arena:
        if slab.home is None and slab.state == "free":
            costs[slab.index] = 0
    for tenant in balance.tenants.values():
        if tenant.scheduler is not None:
            for index, kv in tenant.scheduler.blocks.slabs.items():
                if not kv.borrowed:
                    costs[index] = 1 + kv.used
    wanted: list[int] = []
    for length in lengths:
        runs = [
            range(start, start + length)
            for start in costs
            if all(index in costs for index in range(start, start + length))
        ]
        if not runs:
            break
        best = min(runs, key=lambda run: (sum(costs[index] for index in run), run[0]))
        for index in best:
            del costs[index]
        wanted += best
    return wanted
