"""What `/-/state` and the gauges say about the arena, and the advice from live figures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from trimtab.planning.remap import Hardware, Limits, ModelShape, Traffic, plan_remap
from trimtab_workers.engine.arena import OWNERS
from trimtab_workers.engine.balance import decode_seconds
from trimtab_workers.engine.capabilities import CAPABILITIES, ENGINE_VERSION
from trimtab_workers.engine.config import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.engine.balance import Balance
    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.metrics import EngineMetrics
    from trimtab_workers.engine.tenants import Tenant

# Until a device is calibrated only ratios of these matter: they price the roofline's floor, which
# a measured step replaces.
_ASSUMED_MEMORY_RATE = 10e9
_ASSUMED_FLOPS_RATE = 1e12
_CPU_COPY_RATE = 4e9


def engine_state(
    config: EngineConfig, tenants: Mapping[str, Tenant], *, balance: Balance | None, now: float
) -> dict[str, Any]:
    """Return contracts §6's document, without what only the engine knows."""
    schedulers = [t.scheduler for t in tenants.values() if t.scheduler is not None]
    return {
        "v": 1,
        "revision": config.revision,
        "engine_version": ENGINE_VERSION,
        "capabilities": CAPABILITIES.to_dict(),
        "config": {
            "device": config.device,
            "threads": config.threads,
            "tensor_parallel_size": config.tensor_parallel_size,
            "pipeline_parallel_size": config.pipeline_parallel_size,
            "memory_bytes": config.memory_bytes,
            "max_batch_tokens": config.max_batch_tokens,
            "max_seqs": config.max_seqs,
            "pressure": config.pressure,
            "limits": dict(config.limits),
        },
        "models": [_model(name, tenant, balance) for name, tenant in tenants.items()],
        "slabs": {"free": 0, "weights": 0, "kv": 0} if balance is None else balance.arena.counts(),
        "slabs_by_owner": (
            dict.fromkeys(OWNERS, 0) if balance is None else dict(balance.arena.owners())
        ),
        "kv": {
            "capacity_tokens": sum(s.blocks.capacity for s in schedulers) * BLOCK_TOKENS,
            "used_tokens": sum(s.blocks.used for s in schedulers) * BLOCK_TOKENS,
            "reachable_tokens": 0 if balance is None else sum(reachable(balance, config).values()),
            "borrowed_tokens": BLOCK_TOKENS
            * sum(len(k.blocks) for s in schedulers for k in s.blocks.slabs.values() if k.borrowed),
        },
        "advice": advice(config, tenants, balance=balance, now=now),
        "remap": None if balance is None else remap_counts(balance),
        "windows": {name: tenant.windows.rows(now=now) for name, tenant in tenants.items()},
        "decode_only": {name: tenant.windows.totals.to_dict() for name, tenant in tenants.items()},
    }


def _model(name: str, tenant: Tenant, balance: Balance | None) -> dict[str, Any]:
    scheduler = tenant.scheduler
    units = Counter(tenant.units)
    return {
        "name": name,
        "state": tenant.state,
        "error": error_of(tenant),
        "max_model_len": tenant.max_model_len,
        "running": len(scheduler.running) if scheduler else 0,
        "waiting": len(scheduler.waiting) if scheduler else 0,
        "units": {kind: units[kind] for kind in ("resident", "lent", "loading", "streamed")},
        "alpha": tenant.alpha,
        "kv_slabs": 0 if scheduler is None or balance is None else len(scheduler.blocks.slabs),
        "lendable": tenant.copy is not None,
    }


def error_of(tenant: Tenant) -> dict[str, str] | None:
    """Return reason and message of what ails a model."""
    if tenant.error is None:
        return None
    reason = getattr(tenant.error, "reason", tenant.error.code)
    return {"reason": reason, "message": tenant.error.message}


def remap_counts(balance: Balance) -> dict[str, Any]:
    """Return what was moved since the start, in units, blocks and bytes."""
    mover = balance.mover
    return mover.counts | {
        "thrash_holds": balance.controller.thrash_holds,
        "link_bytes": dict(mover.link_bytes),
        "compacted_bytes": mover.compacted_bytes,
    }


def show_arena(
    balance: Balance, metrics: EngineMetrics, *, config: EngineConfig, now: float
) -> None:
    """Bring the gauges of arena and advice up to date, after something moved."""
    for owner, slabs in balance.arena.owners().items():
        metrics.arena_bytes.labels(owner).set(slabs * balance.arena.slab_bytes)
    held = balance.controller.thrash_holds
    metrics.thrash_holds.inc(held - balance.shown_holds)
    balance.shown_holds = held
    told = advice(config, balance.tenants, balance=balance, now=now) or {}
    for name, tokens in reachable(balance, config).items():
        balance.tenants[name].metrics.advice(
            verdict=str(told.get("verdict", "DoNotRemap")),
            hidden_layers=float(told.get("hidden_m", 0.0)),
            reachable_tokens=tokens,
        )


def reachable(balance: Balance, config: EngineConfig) -> dict[str, int]:
    """Return the tokens that each model's KV cache could grow to, alone, with all lent."""
    tenants = balance.tenants
    result: dict[str, int] = {}
    for name, tenant in tenants.items():
        if tenant.scheduler is None:
            continue
        slabs = balance.arena.pool()
        if config.policy.lend:
            slabs += sum(
                len(other.homes[0]) * max(0, len(other.homes) - config.min_resident_units)
                for other in tenants.values()
                if other is not tenant and other.copy is not None and other.homes
            )
        if tenant.alpha:
            slabs += tenant.alpha * len(tenant.homes[0])
        per_slab = tenant.layout(balance.arena.slab_bytes).blocks_per_slab
        result[name] = (slabs * per_slab - 1) * BLOCK_TOKENS
    return result


def advice(
    config: EngineConfig, tenants: Mapping[str, Tenant], *, balance: Balance | None, now: float
) -> dict[str, Any] | None:
    """Return the planner's advice computed from live figures; the planner's own until there are any."""
    told = None if config.advice is None else dict(config.advice) | {"source": "plan"}
    loaded = {name: t for name, t in tenants.items() if t.scheduler is not None}
    if balance is None or not loaded:
        return told
    active = {name for name, t in loaded.items() if t.scheduler and t.scheduler.has_work}
    rate = balance.transfer.link_rate
    steps = [s for name in active if (s := decode_seconds(loaded[name], now)) is not None]
    running = [s for t in loaded.values() if t.scheduler for s in t.scheduler.running]
    tokens = sum(len(s.tokens) for s in running)
    try:
        found = plan_remap(
            {name: _shape(tenant) for name, tenant in loaded.items()},
            active,
            Hardware(
                memory_bytes=len(balance.arena) * balance.arena.slab_bytes
                + sum(tenant.fixed_bytes for tenant in loaded.values()),
                memory_rate=_ASSUMED_MEMORY_RATE,
                link_rate=rate or _CPU_COPY_RATE,
                link_latency_s=balance.transfer.latency_seconds,
                flops_rate=_ASSUMED_FLOPS_RATE,
                host_bytes=sum(
                    t.copy.unit_bytes * t.copy.units for t in loaded.values() if t.copy is not None
                ),
            ),
            Traffic(
                sequence_tokens=max(1, tokens // max(1, len(running))),
                prefill_tokens_per_step=0,
                switch_interval_s=balance.controller.switch_interval(now),
                step_s=min(steps) if steps else None,
            ),
            Limits(min_resident_units=config.min_resident_units, active_cap=config.active_cap),
        )
    except ValueError as error:
        return {"verdict": "DoNotRemap", "reasons": [str(error)], "source": "live"}
    reasons = list(found.reasons)
    if rate is None and found.alpha:
        reasons.append("NoLink: copies use the cores that compute, so nothing streams by itself.")
    return {
        "verdict": "IdleOnly" if rate is None and found.alpha else found.verdict,
        "reasons": reasons,
        "hidden_m": 0.0 if rate is None else found.hidden_m,
        "alpha": 0 if rate is None else found.alpha,
        "slots": 0 if rate is None else found.slots,
        "lend_units": dict(found.lend_units),
        "kv_tokens_before": found.kv_tokens_before,
        "kv_tokens_after": found.kv_tokens_after,
        "switch_s": found.switch_s,
        "ratio_if_forced": found.ratio_if_forced if found.ratio_if_forced < float("inf") else None,
        "source": "live",
    }


def _shape(tenant: Tenant) -> ModelShape:
    shape, unit = tenant.shape, tenant.unit
    head = shape.vocab * shape.hidden * tenant.fixed_bytes // max(1, shape.fixed_elements)
    return ModelShape(
        layers=shape.layers,
        layer_bytes=unit.layer_bytes,
        fixed_bytes=tenant.fixed_bytes,
        read_outside_bytes=head,
        kv_bytes_per_token=unit.block_bytes * unit.layers // BLOCK_TOKENS,
    )
