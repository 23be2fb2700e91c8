"""From a model set to loaded models: open, size the arena, load, split the rest as KV cache."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trimtab_workers.engine.arena import Arena, choose_slab, slabs_for_weights
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.errors import EngineError, ModelCorruptError, OutOfMemoryError
from trimtab_workers.engine.memory import ArenaMemory
from trimtab_workers.engine.parallel.ranks import LOAD_SECONDS, Ranks
from trimtab_workers.engine.tokenizer import load_tokenizer
from trimtab_workers.engine.weights.store import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.tenants import Tenant

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
_AUTO_CONTEXTS = 8


def open_tenant(tenant: Tenant, ranks: Ranks) -> bool:
    """Open a model's checkpoint and tokenizer; on failure the model is Failed, nothing else."""
    problem = ranks.settle(_open(tenant, ranks))
    if problem is not None:
        fail(tenant, problem)
        return False
    tenant.set_state("Loading")
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
    tenants: Sequence[Tenant], config: EngineConfig, ranks: Ranks
) -> tuple[Arena, ArenaMemory]:
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
    log.info(
        "arena_sized",
        extra={
            "slab_bytes": slab_bytes,
            "slabs": slabs,
            "weight_slabs": weights,
            "fixed_bytes": fixed,
        },
    )
    arena = Arena(slab_bytes=slab_bytes, slabs=slabs)
    ranks.watch(arena)
    return arena, ArenaMemory(slab_bytes=slab_bytes, slabs=slabs)


def _kv_slabs(tenant: Tenant, config: EngineConfig, slab_bytes: int) -> int:
    """KV slabs for up to 8 full contexts, when no budget was given."""
    shape = tenant.shape
    context = min(config.max_model_len or shape.max_positions, shape.max_positions)
    tokens = context * min(config.max_seqs, _AUTO_CONTEXTS)
    per_slab = slab_bytes // (tenant.unit.block_bytes * shape.layers)
    blocks = -(-tokens // BLOCK_TOKENS) + 1
    reserve = int(config.watermark * blocks) + 2
    return -(-(blocks + reserve) // per_slab)


def load_tenant(tenant: Tenant, arena: Arena, memory: ArenaMemory, ranks: Ranks) -> bool:
    """Copy a model's weights into its slabs; on failure it is Failed and its slabs are free."""
    problem = ranks.settle(_load(tenant, arena, memory), seconds=LOAD_SECONDS)
    if problem is not None:
        arena.release(tenant.spec.name)
        tenant.model = None
        fail(tenant, problem)
        return False
    if tenant.model is not None:
        ranks.connect(tenant.model)
    return True


def _load(tenant: Tenant, arena: Arena, memory: ArenaMemory) -> EngineError | None:
    try:
        tenant.claim(arena, memory)
        if tenant.model is not None and tenant.checkpoint is not None:
            tenant.model.load(tenant.checkpoint)
            tenant.checkpoint.close()
    except EngineError as error:
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust reader is no Exception
        return ModelCorruptError(
            f"Model {tenant.spec.name}: its weights cannot be read: {error}. Fetch them again."
        )
    return None


def open_caches(
    tenants: Sequence[Tenant],
    arena: Arena,
    memory: ArenaMemory,
    config: EngineConfig,
    ranks: Ranks,
) -> None:
    """Split the free slabs evenly among loaded models, which become Resident."""
    free = arena.free
    for index, tenant in enumerate(tenants):
        share = free // len(tenants) + (index < free % len(tenants))
        try:
            tenant.open_cache(arena, memory, slabs=share, config=config, ranks=ranks)
        except OutOfMemoryError as error:
            arena.release(tenant.spec.name)
            tenant.model = None
            fail(tenant, error)
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
