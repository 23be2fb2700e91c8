"""From a model set to loaded models: open, size the arena, load, split the rest as KV cache."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trimtab_workers.engine.arena import Arena, choose_slab, homes_of, slabs_for_weights
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.errors import (
    EngineError,
    HostCopyError,
    ModelCorruptError,
    OutOfMemoryError,
)
from trimtab_workers.engine.kv import Block, DeviceBlockManager, HostBlockManager, KvSlab
from trimtab_workers.engine.parallel.ranks import LOAD_SECONDS, Ranks
from trimtab_workers.engine.scheduler import Scheduler
from trimtab_workers.engine.tokenizer import load_tokenizer
from trimtab_workers.engine.weights.store import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trimtab_workers.engine.backend import Backend
    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.config import EngineConfig, Policy
    from trimtab_workers.engine.kv import KvLayout
    from trimtab_workers.engine.mover import Mover
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.transfer import TransferEngine

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
_AUTO_CONTEXTS = 8


def open_tenant(tenant: Tenant, ranks: Ranks) -> bool:
    """Open a model's checkpoint and tokenizer; on failure the model is Failed, nothing else."""
    problem = ranks.settle(_open(tenant, ranks))
    if problem is not None:
        fail(tenant, problem)
        return False
    tenant.show_state()  # not set: one that joins may have been removed meanwhile
    return True


def _open(tenant: Tenant, ranks: Ranks) -> EngineError | None:
    try:
        checkpoint = open_checkpoint(tenant.spec)
        tenant.checkpoint = ranks.shard(checkpoint, model=tenant.spec.name)
        if ranks.leads:
            tenant.tokenizer = load_tokenizer(checkpoint, chat_template=tenant.spec.chat_template)
    except EngineError as error:
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of the Rust tokenizer is no Exception
        return ModelCorruptError(
            f"Model {tenant.spec.name}: its tokenizer or configuration cannot be read "
            f"({type(error).__name__}: {error}). Fetch it again."
        )
    return None


def fail(tenant: Tenant, error: EngineError) -> None:
    """Mark a model Failed and say why, once."""
    tenant.checkpoint = None
    tenant.set_state("Failed", error)
    log.error(
        "model_failed", extra={"model": tenant.spec.name, "code": error.code, "reason": str(error)}
    )


def build_arena(
    tenants: Sequence[Tenant],
    config: EngineConfig,
    *,
    backend: Backend,
    clock: Clock,
    ranks: Ranks,
) -> Arena:
    """Size and allocate the arena for opened models.

    Raises:
        OutOfMemoryError: `memory_bytes` holds not even the fixed regions; names both numbers.
    """
    units = [tenant.unit for tenant in tenants]
    slab_bytes = choose_slab(units, align_bytes=PAGE_BYTES).slab_bytes
    fixed = sum(tenant.fixed_bytes for tenant in tenants)
    weights = sum(slabs_for_weights(unit, slab_bytes) for unit in units)
    if config.memory_bytes is None:
        slabs = weights + sum(_kv_slabs(t, config, slab_bytes) for t in tenants)
    else:
        slabs = max(0, config.memory_bytes - fixed) // slab_bytes
    slabs = ranks.agree_on_slabs(slabs, slab_bytes=slab_bytes, fixed_bytes=fixed)
    if slabs < 1:
        raise OutOfMemoryError(
            f"memory_bytes is {config.memory_bytes}, but embeddings and norms of the models need "
            f"{fixed} bytes and their layers {weights * slab_bytes} more. Raise memory_bytes."
        )
    granted = config.policy.granted
    slabs += sum(granted * homes_of(unit, slab_bytes).slabs_per_home for unit in units)
    log.info(
        "arena_sized",
        extra={
            "slab_bytes": slab_bytes,
            "slabs": slabs,
            "weight_slabs": weights,
            "fixed_bytes": fixed,
            "slabs_granted": granted,
        },
    )
    backend.allocate(slab_bytes=slab_bytes, slabs=slabs, clock=clock)
    arena = Arena(slab_bytes=slab_bytes, slabs=slabs)
    ranks.watch(arena)
    return arena


def _kv_slabs(tenant: Tenant, config: EngineConfig, slab_bytes: int) -> int:
    """KV slabs for up to 8 full contexts, when no budget was given."""
    shape = tenant.shape
    context = min(config.max_model_len or shape.max_positions, shape.max_positions)
    tokens = context * min(config.max_seqs, _AUTO_CONTEXTS)
    per_slab = slab_bytes // (tenant.unit.block_bytes * shape.layers)
    blocks = -(-tokens // BLOCK_TOKENS) + 1
    reserve = int(config.watermark * blocks) + 2
    return -(-(blocks + reserve) // per_slab)


def claim(tenant: Tenant, arena: Arena, *, at: Sequence[int] | None = None) -> None:
    """Give a model's units their homes, `at` these first slabs, which wait for its weights.

    Raises:
        OutOfMemoryError: They do not fit; names bytes needed and free.
    """
    homes = homes_of(tenant.unit, arena.slab_bytes)
    starts = arena.claim_homes(
        tenant.spec.name, homes=homes.units, slabs_per_home=homes.slabs_per_home, at=at
    )
    tenant.layers_per_unit = homes.layers_per_unit
    tenant.homes = [range(start, start + homes.slabs_per_home) for start in starts]
    tenant.units = ["loading"] * homes.units
    for slab in (slab for home in tenant.homes for slab in home):
        arena.change(slab, "loading", model=tenant.spec.name)


def read_weights(
    tenant: Tenant, backend: Backend, *, policy: Policy, fixed_slab: int | None = None
) -> EngineError | None:
    """Read a model's weights into its homes and keep a host copy; return what went wrong.

    A model whose host copy cannot be made serves all the same, and is never lent. May run beside
    the engine's thread: nobody else touches the homes of a model that is loading.
    """
    try:
        backend.load(tenant, fixed_slab=fixed_slab)
    except EngineError as error:
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust reader is no Exception
        return ModelCorruptError(
            f"Model {tenant.spec.name}: its weights cannot be read: {error}. Fetch them again."
        )
    if policy.host_copies:
        try:
            tenant.copy = backend.keep(tenant)
        except HostCopyError as error:
            tenant.lack("host_copy", reason=error.message)
        except Exception as error:  # noqa: BLE001 - a loading thread that ends here joins nobody
            reason = f"its host copy cannot be made ({type(error).__name__}: {error})."
            tenant.lack("host_copy", reason=f"Model {tenant.spec.name}: {reason}")
    return None


def settle_weights(tenant: Tenant, arena: Arena) -> None:
    """Note that a model's weights are in their homes."""
    for slab in (slab for home in tenant.homes for slab in home):
        arena.change(slab, "weight")
    tenant.units = ["resident"] * len(tenant.homes)


def load_tenant(
    tenant: Tenant, arena: Arena, backend: Backend, *, policy: Policy, ranks: Ranks
) -> bool:
    """Copy a model's weights into its slabs; on failure it is Failed and its slabs are free."""
    problem: EngineError | None = None
    try:
        claim(tenant, arena)
    except EngineError as error:
        problem = error
    else:
        tenant.fixed_outside = tenant.fixed_bytes
        problem = read_weights(tenant, backend, policy=policy)
    problem = ranks.settle(problem, seconds=LOAD_SECONDS)
    if problem is not None:
        give_up(tenant, arena, problem)
        return False
    settle_weights(tenant, arena)
    if tenant.model is not None:
        ranks.connect(tenant.model)
    return True


def give_up(tenant: Tenant, arena: Arena, error: EngineError) -> None:
    """Free what a model took and mark it Failed."""
    arena.release(tenant.spec.name)
    tenant.model, tenant.copy = None, None
    tenant.homes, tenant.units, tenant.fixed_outside = [], [], 0
    fail(tenant, error)


def open_scheduler(
    tenant: Tenant,
    arena: Arena,
    backend: Backend,
    *,
    slabs: int,
    config: EngineConfig,
    ranks: Ranks,
) -> None:
    """Build a loaded model's scheduler and runner; `slabs` of the pool are what it can count on.

    Raises:
        OutOfMemoryError: They do not hold two blocks; names bytes.
    """
    layout = tenant.layout(arena.slab_bytes)
    blocks = slabs * layout.blocks_per_slab - 1  # one is set aside for zeros
    if blocks < 2:
        raise OutOfMemoryError(
            f"Model {tenant.spec.name}: its weights fit, but {slabs} slabs of "
            f"{arena.slab_bytes} bytes are left for its KV cache and 1 with 3 blocks of "
            f"{BLOCK_TOKENS} tokens is the least. Raise memory_bytes."
        )
    positions = tenant.shape.max_positions
    tenant.max_model_len = min(config.max_model_len or positions, positions, blocks * BLOCK_TOKENS)
    floor_blocks = -(-tenant.max_model_len // BLOCK_TOKENS)
    tenant.floor_slabs = -(-(floor_blocks + 1) // layout.blocks_per_slab)
    host = None
    if config.policy.swap:
        share = _swap_bytes(arena, config) // len(config.models)
        host = _open_host_tier(tenant, backend, share_bytes=share, layout=layout)
    tenant.scheduler = Scheduler(
        DeviceBlockManager(caching=config.prefix_caching),
        model=tenant.spec.name,
        max_batch_tokens=config.max_batch_tokens,
        max_seqs=config.max_seqs,
        watermark=config.watermark,
        host=host,
        floor_blocks=floor_blocks,
    )
    placeholder = Block(0, KvSlab(-1, borrowed=False))
    tenant.runner = backend.runner(
        tenant, layout=layout, zero_block=placeholder, config=config, ranks=ranks
    )


def _swap_bytes(arena: Arena, config: EngineConfig) -> int:
    """Host memory for swapped blocks of all models together."""
    return arena.pool() * arena.slab_bytes if config.swap_bytes is None else config.swap_bytes


def share_swap(
    tenants: Iterable[Tenant], arena: Arena, config: EngineConfig, transfer: TransferEngine
) -> None:
    """Split swap space evenly anew, after a model came or went; none gets more than it reserved."""
    hosts = [
        (tenant, tenant.scheduler.host)
        for tenant in tenants
        if tenant.scheduler is not None and tenant.scheduler.host is not None
    ]
    for tenant, host in hosts:
        block_bytes = tenant.unit.layers * tenant.unit.block_bytes
        host.resize(_swap_bytes(arena, config) // len(hosts) // block_bytes)
        tenant.drop_surplus(transfer)


def _open_host_tier(
    tenant: Tenant, backend: Backend, *, share_bytes: int, layout: KvLayout
) -> HostBlockManager | None:
    """Return the places for swapped blocks; None, and why is noted, if there are none."""
    block_bytes = layout.layers * layout.block_bytes
    places = share_bytes // block_bytes
    if places < 1:
        tenant.lack(
            "swap",
            reason=f"Model {tenant.spec.name}: its share of swap_bytes is {share_bytes} bytes, less "
            f"than one KV block of {block_bytes}, so preempted requests are recomputed. Raise "
            "swap_bytes.",
        )
        return None
    try:
        tenant.host_blocks = backend.host_blocks(places=places, layout=layout)
    except HostCopyError as error:
        tenant.lack("swap", reason=f"Model {tenant.spec.name}: {error.message}")
        return None
    tenant.metrics.host_tier = True
    return HostBlockManager(places)


def open_caches(
    tenants: Sequence[Tenant],
    arena: Arena,
    backend: Backend,
    config: EngineConfig,
    ranks: Ranks,
) -> None:
    """Let loaded models count on even shares of the pool; they become Resident."""
    free = arena.pool()
    for index, tenant in enumerate(tenants):
        share = free // len(tenants) + (index < free % len(tenants))
        try:
            open_scheduler(tenant, arena, backend, slabs=share, config=config, ranks=ranks)
        except OutOfMemoryError as error:
            give_up(tenant, arena, error)
            continue
        tenant.set_state("Resident")
        log.info(
            "model_resident",
            extra={
                "model": tenant.spec.name,
                "max_model_len": tenant.max_model_len,
                "kv_slabs": share,
            },
        )


def hand_out(tenants: Sequence[Tenant], arena: Arena, mover: Mover, config: EngineConfig) -> None:
    """Split the pool evenly among Resident models to begin with; `static` streams from here on."""
    resident = [tenant for tenant in tenants if tenant.state == "Resident"]
    free = [slab for slab in arena.free_slabs() if arena[slab].home is None]
    for index, tenant in enumerate(resident):
        for slab in free[index :: len(resident)]:
            mover.grow(tenant, slab)
        _show_cache(tenant, arena, config)
    if not config.policy.streamed:
        return
    for tenant in resident:
        slots = config.slots or 2
        alpha = min(config.policy.streamed, len(tenant.homes) - slots)
        if tenant.copy is None:
            continue  # noted when the copy failed
        if alpha < 1 or not mover.set_alpha(tenant, alpha, slots=slots):
            tenant.lack(
                "streaming",
                reason=f"Model {tenant.spec.name}: pressure is {config.pressure!r}, but of its "
                f"{len(tenant.homes)} units {slots} are slots and none can be freed, so nothing "
                "streams. Set pressure to 'recompute' or 'swap', or slots to 1.",
            )


def _show_cache(tenant: Tenant, arena: Arena, config: EngineConfig) -> None:
    if tenant.scheduler is not None:
        tenant.metrics.cache(
            blocks=tenant.scheduler.blocks.capacity,
            block_tokens=BLOCK_TOKENS,
            slab_bytes=arena.slab_bytes,
            pressure=config.pressure,
        )
