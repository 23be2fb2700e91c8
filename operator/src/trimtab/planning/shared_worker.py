"""One worker with several models: its memory, its advice on lending, its members' latencies and costs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trimtab.planning.estimate import hourly
from trimtab.planning.group_memory import GroupMemory, Member, group_memory
from trimtab.planning.memory import ArenaShape, arena_shape, kv_bytes_per_token, weight_bytes
from trimtab.planning.plan import Latency, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.prices import PriceBook
from trimtab.planning.remap import (
    Hardware,
    Limits,
    ModelShape,
    RemapAdvice,
    Traffic,
    plan_remap,
)
from trimtab.planning.snapshot import ModelView

if TYPE_CHECKING:
    from trimtab.planning.sharing_rule import Candidate

LIMITS: Final = Limits(active_cap=0.0)
"""On CPU copies use the cores that compute, so running layers are never streamed."""


def worker_memory(
    members: Sequence["Candidate"],
    *,
    headroom_models: int,
    block_tokens: int,
    policy: PlannerPolicy,
) -> GroupMemory:
    """Return the memory of one worker for these intents."""
    return group_memory(
        [_member(member, block_tokens) for member in members],
        headroom_models=headroom_models,
        min_resident_units=LIMITS.min_resident_units,
        block_tokens=block_tokens,
        policy=policy,
    )


def advise(
    members: Sequence["Candidate"],
    *,
    memory: GroupMemory,
    block_tokens: int,
    policy: PlannerPolicy,
) -> RemapAdvice:
    """Return whether idle members lend while the busiest runs; keys of `lend_units` are uids.

    Requests of different models follow each other as independent Poisson streams do: the next one
    is for another model with probability 1 - Σ pᵢ².
    """
    rates = {m.uid: m.case.load.rate if m.case.load else 0.0 for m in members}
    total = sum(rates.values())
    switches = total * (1 - sum((r / total) ** 2 for r in rates.values())) if total else 0.0
    busiest = max(members, key=lambda m: (m.judged.option.predicted.utilisation_permille, m.uid))
    load = busiest.case.load
    return plan_remap(
        {member.uid: _model_shape(member, block_tokens) for member in members},
        {busiest.uid},
        Hardware(
            memory_bytes=memory.least_arena,
            memory_rate=policy.roofline_cpu_bytes_per_us * 1e6,
            link_rate=policy.cpu_reload_bytes_per_us * 1e6,
            link_latency_s=0.0,
            flops_rate=policy.roofline_thread_mflops * 1e6 * busiest.judged.option.config.threads,
            host_bytes=sum(_host_bytes(member) for member in members),
        ),
        Traffic(
            sequence_tokens=load.prompt + load.output if load else 1,
            prefill_tokens_per_step=0,
            switch_interval_s=1 / switches if switches > 0 else None,
            step_s=max(1, busiest.judged.option.predicted.tpot.mean_us) / 1e6,
        ),
        LIMITS,
    )


def beside(member: "Candidate", together: Sequence["Candidate"]) -> Option:
    """Return a member's option beside the others: models take turns by step.

    While others keep the threads busy for a share u of the time, everything takes 1/(1 - u) as
    long (processor sharing), and 1 - u of the capacity is left.
    """
    others = sum(
        m.judged.option.predicted.utilisation_permille for m in together if m.uid != member.uid
    )
    option = member.judged.option
    if not others:
        return option
    left = max(1, 1000 - others)
    predicted = option.predicted
    return replace(
        option,
        predicted=replace(
            predicted,
            ttft=_slower(predicted.ttft, left),
            tpot=_slower(predicted.tpot, left),
            e2e=_slower(predicted.e2e, left),
            capacity_milli_rps=predicted.capacity_milli_rps * left // 1000,
            utilisation_permille=predicted.utilisation_permille * 1000 // left,
        ),
    )


def split_cost(
    members: Sequence["Candidate"], option: Option, *, prices: PriceBook
) -> tuple[int | None, ...]:
    """Return each member's part of the worker's cost, by predicted busy time; they sum to it."""
    cost = hourly(option.config, replicas=1, memory_bytes=option.memory_bytes, prices=prices)
    if cost is None:
        return tuple(None for _ in members)
    weights = [m.judged.option.predicted.utilisation_permille + 1 for m in members]
    parts = [cost * weight // sum(weights) for weight in weights]
    parts[0] += cost - sum(parts)
    return tuple(parts)


def _slower(latency: Latency, left_permille: int) -> Latency:
    def scaled(value: int) -> int:
        return value * 1000 // left_permille

    return Latency(
        mean_us=scaled(latency.mean_us),
        p50_us=scaled(latency.p50_us),
        p95_us=scaled(latency.p95_us),
        p99_us=scaled(latency.p99_us),
        percentile=latency.percentile,
        percentile_us=scaled(latency.percentile_us),
    )


def _member(member: "Candidate", block_tokens: int) -> Member:
    option = member.judged.option
    host = _host_bytes(member)
    return Member(
        uid=member.uid,
        shape=_shape(member, block_tokens),
        host_bytes=host,
        home_tokens=option.max_model_len,
        reach_tokens=max(option.max_model_len, option.kv_tokens),
        overhead_bytes=max(0, option.memory_bytes - option.arena_bytes - host),
    )


def _shape(member: "Candidate", block_tokens: int) -> ArenaShape:
    model, precision = _model(member), member.judged.option.config.precision
    return arena_shape(
        model.architecture,
        depth=model.depth,
        precision=precision,
        kv_precision=precision,
        block_tokens=block_tokens,
    )


def _model_shape(member: "Candidate", block_tokens: int) -> ModelShape:
    model, precision = _model(member), member.judged.option.config.precision
    shape = _shape(member, block_tokens)
    return ModelShape(
        layers=shape.depth,
        layer_bytes=shape.layer,
        fixed_bytes=shape.fixed,
        read_outside_bytes=shape.fixed,
        kv_bytes_per_token=kv_bytes_per_token(
            model.architecture, depth=model.depth, kv_precision=precision
        ),
    )


def _host_bytes(member: "Candidate") -> int:
    model = _model(member)
    return weight_bytes(
        model.architecture,
        depth=model.depth,
        precision=member.judged.option.config.precision,
    )


def _model(member: "Candidate") -> ModelView:
    model = member.case.intent.model
    if model is None:
        raise ValueError(
            f"Intent {member.uid} has options but no model; this is a bug, please report it."
        )
    return model
