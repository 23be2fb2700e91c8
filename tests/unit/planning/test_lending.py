"""Lending decides who shares: three models fit one worker only because idle ones give layers up."""

from dataclasses import replace

from tests.unit.planning.builders import (
    GIB,
    LOAD,
    POLICY,
    SMOLLM2,
    a_fingerprint,
    a_fleet,
    a_key,
    a_pool,
    an_intent,
)
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.group_memory import Member, group_memory
from trimtab.planning.memory import arena_shape, weight_bytes
from trimtab.planning.snapshot import Load, Targets

DEPTH = 30
MEASURED = (a_fingerprint(key=a_key(threads=1)),)
NO_LINK = replace(POLICY, cpu_reload_bytes_per_us=1)
"""Weights come back at 1 MB/s: models alternate faster than lending would pay."""


def the_three(**fields):
    """Return one model that is asked for long answers, and two that are asked now and then."""
    rare = replace(LOAD, requests_per_second=0.01)
    loads = {
        "a": Load(requests_per_second=0.35, prompt_tokens=128, output_tokens=512),
        "b": rare,
        "c": rare,
    }
    base = {
        "sharing": "Shared",
        "objective": "TargetLatency",
        "targets": Targets(tpot_us=60_000_000),
    }
    return [
        replace(
            an_intent(name, load=load, group_id=f"team-a-{name}", **(base | fields)),
            created_seconds=1_700_000_000 + age,
        )
        for age, (name, load) in enumerate(loads.items())
    ]


def planned(*, nodes=1, memory_bytes=64 * GIB, policy=POLICY, **fields):
    """Return the three's plans by name, on nodes of one thread."""
    pools = tuple(
        replace(a_pool(f"n{i}", threads=1), memory_bytes=memory_bytes) for i in range(nodes)
    )
    fleet = a_fleet(*the_three(**fields), pools=pools, fingerprints=MEASURED, headroom_models=0)
    return {p.name: p for p in plan_fleet(fleet, policy).intents}


def worker_of(plans, *, keeps):
    """Return the memory of one worker for the three, of which an idle model keeps so many layers.

    ``plans`` are those of workers of their own.
    """
    shape = arena_shape(
        SMOLLM2, depth=DEPTH, precision="bf16", kv_precision="bf16", block_tokens=16
    )
    host = weight_bytes(SMOLLM2, depth=DEPTH, precision="bf16")
    members = [
        Member(
            uid=plan.uid,
            shape=shape,
            host_bytes=host,
            home_tokens=plan.option.max_model_len,
            reach_tokens=max(plan.option.max_model_len, plan.option.kv_tokens),
            overhead_bytes=plan.option.memory_bytes - plan.option.arena_bytes - host,
        )
        for plan in plans.values()
    ]
    return group_memory(
        members, headroom_models=0, min_resident_units=keeps, block_tokens=16, policy=POLICY
    )


def test_three_fit_a_node_together_only_because_idle_ones_lend():
    """A node of exactly the group's memory takes all three; with all layers kept their worker would not fit."""
    least = planned()["a"].group.least_memory_bytes
    alone = planned(nodes=3, sharing="Exclusive")
    assert worker_of(alone, keeps=2).least_total == least
    assert worker_of(alone, keeps=DEPTH).least_total > least + 128 * 2**20

    plans = planned(memory_bytes=least)
    group = plans["a"].group
    assert {p.verdict for p in plans.values()} == {"Planned"}
    assert group.members == ("uid-a", "uid-b", "uid-c")
    assert plans["b"].group == plans["c"].group == group
    assert (group.advice.verdict, group.advice.lend_units) == (
        "IdleOnly",
        {"uid-b": DEPTH - 2, "uid-c": DEPTH - 2},
    )
    assert group.advice.kv_tokens_after >= alone["a"].option.kv_tokens
    assert group.advice.kv_tokens_before < alone["a"].option.kv_tokens


def test_the_same_three_keep_to_themselves_where_nothing_can_be_lent():
    """Where reading weights back takes longer than models alternate, each has a worker of its own, and is told so."""
    plans = planned(nodes=3, policy=NO_LINK)
    assert {p.verdict for p in plans.values()} == {"Planned"}
    assert len({p.nodes for p in plans.values()}) == 3
    assert [len(p.group.members) for p in plans.values()] == [1, 1, 1]
    for name in "bc":
        assert plans[name].remap_verdict == "DoNotRemap"
        assert plans[name].remap_reasons[0].startswith("SwitchesTooOften: ")


def test_the_node_that_takes_all_three_takes_one_where_nothing_can_be_lent():
    """On the node that lending made large enough, two of the three find no place without it."""
    least = planned()["a"].group.least_memory_bytes
    plans = planned(memory_bytes=least, policy=NO_LINK)
    assert [p.verdict for p in plans.values()] == ["Planned", "Unplanned", "Unplanned"]
    assert {plans[name].reason for name in "bc"} == {"NoCapacity"}
