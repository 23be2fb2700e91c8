"""Who shares a worker: the rule, its reasons, its memory, and what a running group keeps."""

from dataclasses import replace

import pytest

from tests.unit.planning.builders import (
    GIB,
    LLAMA_8B,
    LOAD,
    POLICY,
    SMOLLM2,
    a_fingerprint,
    a_fleet,
    a_key,
    a_model,
    a_pool,
    an_intent,
    plan,
)
from trimtab.planning.architecture import Architecture
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.group_memory import Member, choose_slab, group_memory
from trimtab.planning.memory import arena_shape
from trimtab.planning.snapshot import Assignment, Config, Constraints, Targets
from trimtab_workers.engine import arena as engine_arena

MEASURED = (a_fingerprint(key=a_key(threads=1)), a_fingerprint(key=a_key(threads=2)))
ROOMY = (a_pool(threads=8, gib=32),)
NARROW = tuple(a_pool(f"n{i}", threads=1, gib=64) for i in range(4))
TINY = Architecture(
    family="llama",
    hidden_size=128,
    intermediate_size=344,
    attention_heads=4,
    kv_heads=4,
    head_dim=32,
    vocab_size=1024,
    tied_embeddings=True,
)

UNEVEN = replace(SMOLLM2, intermediate_size=2150)


def shared(name, *, age=0, **fields):
    base = an_intent(name, sharing="Shared", objective="MinCost", group_id=f"team-a-{name}")
    return replace(base, created_seconds=base.created_seconds + age, **fields)


def planned(*intents, pools=ROOMY, **fields):
    fields.setdefault("fingerprints", MEASURED)
    return {p.name: p for p in plan(*intents, pools=pools, **fields).intents}


def running(plans, *names, **fields):
    """Return the assignments of a group as the snapshot of the next round has them."""
    group = plans[names[0]].group
    return tuple(
        Assignment(
            intent_uid=f"uid-{name}",
            config=plans[name].option.config,
            replicas=1,
            nodes=(("n0", 1),),
            generation=1,
            memory_bytes=group.memory_bytes,
            group=group.id,
        )
        for name in names
    )


def test_two_that_fit_share_one_worker():
    """Two Shared intents of a namespace get one group of one place, whose cost they split exactly."""
    plans = planned(shared("a"), shared("b", age=1))
    one, two = plans["a"], plans["b"]
    assert one.group == two.group
    assert one.group.members == ("uid-a", "uid-b")
    assert one.group.id == "team-a-a"
    assert one.nodes == two.nodes == (("n0", 1),)
    assert (one.remap_verdict, one.option.memory_bytes) == ("IdleOnly", one.group.memory_bytes)
    alone = planned(replace(shared("a"), sharing="Exclusive"))["a"]
    together = one.option.cost_per_hour_micro_usd + two.option.cost_per_hour_micro_usd
    assert alone.option.cost_per_hour_micro_usd < together
    assert one.group.least_memory_bytes < 2 * alone.option.memory_bytes


def test_they_find_a_place_where_two_workers_would_not():
    """A node with one thread left serves two Shared intents, and only one of two Exclusive ones."""
    scarce = (a_pool(threads=1, gib=8),)
    both = planned(shared("a"), shared("b", age=1), pools=scarce)
    assert [p.verdict for p in both.values()] == ["Planned", "Planned"]
    own = [replace(shared(n, age=i), sharing="Exclusive") for i, n in enumerate("ab")]
    assert planned(*own, pools=scarce)["b"].verdict == "Unplanned"


def test_a_shared_intent_alone_founds_a_group_with_room_for_another():
    """Whoever comes first reserves room, so that the next one joins a worker that runs."""
    only = planned(shared("a"))["a"]
    assert only.group.members == ("uid-a",)
    assert only.group.arena_bytes > only.group.least_arena_bytes
    both = planned(shared("a"), shared("b", age=1))["a"]
    assert both.group.least_arena_bytes <= only.group.arena_bytes
    assert both.group.least_memory_bytes <= only.group.memory_bytes
    assert planned(shared("a"), headroom_models=0)["a"].group.memory_bytes == (
        only.group.least_memory_bytes
    )


def test_room_for_others_is_a_wish():
    """Where memory is short the group does without room for joiners, before anybody goes without a place."""
    least = planned(shared("a"))["a"].group.least_memory_bytes
    tight = (replace(a_pool(threads=2), memory_bytes=least),)
    only = planned(shared("a"), pools=tight)["a"]
    assert (only.verdict, only.group.memory_bytes) == ("Planned", least)


def busy(name, *, age=0, share=0.5, **fields):
    """Return an intent whose one replica of one thread computes for this share of the time."""
    alone = planned(replace(shared(name), sharing="Exclusive"), pools=NARROW)[name].option
    rate = share * alone.predicted.capacity_milli_rps / 1000
    load = replace(LOAD, requests_per_second=rate)
    pins = Constraints(max_replicas=1)
    return shared(
        name, age=age, **({"objective": "MinLatency", "load": load, "constraints": pins} | fields)
    )


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (shared("b", age=1, load=None), "LoadUnknown"),
        (shared("b", age=1, namespace="team-b"), "SingleModel"),
        (shared("b", age=1, sharing="Exclusive"), "SingleModel"),
        (shared("b", age=1, constraints=Constraints(min_replicas=2)), "SeveralReplicas"),
        (
            shared("b", age=1, load=replace(LOAD, requests_per_second=0.0)),
            "LoadUnknown",
        ),
    ],
)
def test_who_stays_alone_is_told_why(other, reason):
    """Whatever keeps two apart is named in the reasons of the one that came later."""
    plans = planned(shared("a"), other)
    assert plans["a"].group is None or len(plans["a"].group.members) == 1
    assert plans["b"].verdict == "Planned"
    assert plans["b"].remap_verdict == "DoNotRemap"
    assert plans["b"].remap_reasons[0].startswith(reason)


def test_two_busy_ones_do_not_share():
    """Beyond 70 % of the threads' time together, each keeps a worker of its own."""
    plans = planned(busy("a"), busy("b", age=1), pools=NARROW)
    assert plans["a"].group.id != plans["b"].group.id
    assert plans["b"].remap_reasons[0].startswith("TooBusy")


def test_a_target_that_holds_only_alone_is_not_shared():
    """A latency target counts with the turns that the others take."""
    alone = planned(busy("b", share=0.1), pools=NARROW)["b"].option
    tpot = alone.predicted.tpot.percentile_us * (1000 + alone.margin_permille) // 1000
    targets = Targets(tpot_us=round(tpot * 1.05))
    picky = busy("b", age=1, share=0.1, objective="TargetLatency", targets=targets)
    assert planned(picky, pools=NARROW)["b"].verdict == "Planned"
    plans = planned(busy("a"), picky, pools=NARROW)
    assert plans["b"].remap_reasons[0].startswith("ObjectiveMissed")
    assert plans["a"].group != plans["b"].group


def test_models_of_very_different_layers_do_not_share():
    """Slabs that would be wasted by more than a tenth keep models apart."""
    large = shared("b", age=1, model=a_model(UNEVEN), constraints=Constraints(max_replicas=1))
    plans = planned(shared("a"), large, pools=NARROW)
    assert plans["a"].group.id != plans["b"].group.id
    assert plans["b"].remap_reasons[0].startswith("SlabMismatch")


def test_intents_that_want_different_threads_do_not_share():
    """Two whose best options differ in threads keep workers of their own, and are told so."""
    pools = (a_pool(threads=16, gib=64),)
    plans = planned(shared("a"), shared("b", age=1, objective="MinLatency"), pools=pools)
    assert plans["a"].option.config.threads != plans["b"].option.config.threads
    assert plans["a"].remap_reasons[0].startswith("ConfigurationsDiffer")


def test_a_worker_of_ones_own_lost_because_it_costs_more():
    """The option that was not taken is compared with the member's share of the cost, not with the whole."""
    plans = planned(shared("a"), shared("b", age=1))
    own = next(
        o for o in plans["a"].alternatives if o.option and o.config == plans["a"].option.config
    )
    assert own.reason == "Costlier"


def test_a_running_group_keeps_its_id_when_the_founder_leaves():
    """The name is the founder's, and stays with those who remain."""
    first = planned(shared("a"), shared("b", age=1))
    left = planned(shared("b", age=1), assignments=running(first, "a", "b")[1:])
    assert left["b"].group.id == "team-a-a"
    assert left["b"].group.members == ("uid-b",)


def test_a_founder_that_comes_back_takes_nobodys_name():
    """One who left a group of its name and does not fit any more runs without a group."""
    first = planned(shared("a"), shared("b", age=1))
    apart = shared("a", load=None)
    plans = planned(apart, shared("b", age=1), assignments=running(first, "b"))
    assert plans["b"].group.id == "team-a-a"
    assert plans["a"].group is None
    assert plans["a"].verdict == "Planned"


def test_what_runs_in_a_group_stays_up_to_a_higher_load():
    """Between the limits for joining and for staying, a group neither forms nor breaks."""
    pair = [busy(n, age=i, share=0.45) for i, n in enumerate("ab")]
    new = planned(*pair, pools=NARROW)
    assert new["a"].group.id != new["b"].group.id
    calm = planned(*(busy(n, age=i, share=0.1) for i, n in enumerate("ab")), pools=NARROW)
    kept = planned(*pair, pools=NARROW, assignments=running(calm, "a", "b"))
    assert kept["a"].group.id == kept["b"].group.id == "team-a-a"


def test_a_newcomer_joins_the_group_that_runs():
    """The third intent joins the running pair, whose memory is kept where it suffices."""
    pair = planned(shared("a"), shared("b", age=1))
    three = planned(
        shared("a"), shared("b", age=1), shared("c", age=2), assignments=running(pair, "a", "b")
    )
    assert three["c"].group.id == "team-a-a"
    assert three["c"].group.memory_bytes == pair["a"].group.memory_bytes


def test_memory_that_is_kept_is_not_promised_twice():
    """Who joins takes the room of joiners: an arena with more of it would not fit the pod's memory."""
    only = planned(shared("a"))["a"].group
    both = planned(
        shared("a"), shared("b", age=1), assignments=running({"a": planned(shared("a"))["a"]}, "a")
    )
    group = both["b"].group
    assert group.memory_bytes == only.memory_bytes
    assert group.least_arena_bytes <= group.arena_bytes <= only.arena_bytes


def test_a_running_group_takes_nobody_in_who_needs_more_than_there_is():
    """A full node keeps what runs in its group, and a joiner goes where there is room for it."""
    room = (replace(a_pool(threads=4), memory_bytes=32 << 30),)
    only = planned(shared("a"), pools=room, headroom_models=0)
    least = only["a"].group.least_memory_bytes
    full = replace(a_pool(threads=4), memory_bytes=least)
    other = replace(a_pool("n1", threads=4), memory_bytes=least)
    plans = planned(
        shared("a"), shared("b", age=1),
        pools=(full, other), headroom_models=0, assignments=running(only, "a"),
    )  # fmt: skip
    assert plans["a"].group.members == ("uid-a",)
    assert (plans["a"].nodes, plans["a"].group.config.threads) == ((("n0", 1),), 1)
    assert plans["b"].nodes == (("n1", 1),)
    needed = planned(shared("a"), shared("b", age=1), pools=room, headroom_models=0)["b"].group
    mebibytes = -(-needed.least_memory_bytes >> 20)
    reason = plans["b"].remap_reasons[0]
    assert reason.startswith("NoPlace: no node has room for the group's worker")
    assert f" {mebibytes}Mi of free memory" in reason


def test_a_groups_place_is_counted_once():
    """Two members of a group on a node of one thread leave it as full as one worker does."""
    pair = planned(shared("a"), shared("b", age=1))
    full = (a_pool(threads=2, gib=32),)
    plans = planned(
        shared("a"), shared("b", age=1), an_intent("c", objective="MinCost"),
        pools=full, assignments=running(pair, "a", "b"),
    )  # fmt: skip
    assert plans["c"].verdict == "Planned"
    tight = (a_pool(threads=1, gib=32),)
    none = planned(
        shared("a"), shared("b", age=1), an_intent("c", objective="MinCost"),
        pools=tight, assignments=running(pair, "a", "b"),
    )  # fmt: skip
    assert none["c"].reason == "NoCapacity"
    assert none["a"].nodes == (("n0", 1),)


def test_five_make_two_groups():
    """No more than four models share a worker."""
    plans = planned(
        *(shared(n, age=i, load=replace(LOAD, requests_per_second=0.01))
          for i, n in enumerate("abcde"))
    )  # fmt: skip
    groups = [plans[n].group.id for n in "abcde"]
    assert groups == ["team-a-a"] * 4 + ["team-a-e"]
    assert plans["e"].remap_reasons[0].startswith("GroupFull")


def test_the_order_of_the_snapshot_does_not_matter():
    """Permuted intents and assignments give equal plans."""
    intents = [shared(n, age=i) for i, n in enumerate("abc")]
    first = {p.name: p for p in plan(*intents, pools=ROOMY, fingerprints=MEASURED).intents}
    held = running(first, "a", "b")
    one = plan_fleet(a_fleet(*intents, pools=ROOMY, assignments=held), POLICY)
    two = plan_fleet(a_fleet(*intents[::-1], pools=ROOMY, assignments=held[::-1]), POLICY)
    assert one == two


@pytest.mark.parametrize(
    "models", [((TINY, 4),), ((TINY, 4), (TINY, 4)), ((LLAMA_8B, 32), (TINY, 4))]
)
def test_slabs_are_chosen_as_the_engine_chooses_them(models):
    """The planner's slab size is that of the engine's own arithmetic."""
    shapes = [
        arena_shape(a, depth=d, precision="bf16", kv_precision="bf16", block_tokens=16)
        for a, d in models
    ]
    units = [
        engine_arena.UnitShape(layer_bytes=s.layer, layers=s.depth, block_bytes=s.block)
        for s in shapes
    ]
    engine = engine_arena.choose_slab(units, align_bytes=4096)
    assert choose_slab(shapes) == engine.slab_bytes


def test_memory_of_a_group_needs_a_member():
    """An empty group is an error that says so."""
    with pytest.raises(ValueError, match="members is empty"):
        group_memory([], headroom_models=0, min_resident_units=2, block_tokens=16, policy=POLICY)


def test_more_kv_than_lending_reaches_is_added():
    """A member that would hold more KV alone than home and others' idle layers give gets slabs for it."""
    shape = arena_shape(TINY, depth=4, precision="bf16", kv_precision="bf16", block_tokens=16)

    def of(reach):
        members = [
            Member(uid=u, shape=shape, host_bytes=GIB, home_tokens=128, reach_tokens=reach, overhead_bytes=GIB)
            for u in "ab"
        ]  # fmt: skip
        return group_memory(
            members, headroom_models=0, min_resident_units=2, block_tokens=16, policy=POLICY
        )

    assert of(128).arena == of(200).arena < of(2048).arena


def test_an_exclusive_config_is_the_default():
    """An intent that says nothing about sharing gets a worker of its own, without a group."""
    only = planned(an_intent("a"))["a"]
    assert only.group is None
    assert only.option.config == Config(
        product="cpu", cpu_model="AMD EPYC", precision="bf16", threads=only.option.config.threads
    )


def test_volumes_of_two_nodes_share_no_worker():
    """A pod that asks for both is never scheduled; a volume that is everywhere binds nobody."""
    plans = planned(
        shared("a", volume_nodes=("n0",)),
        shared("b", age=1, volume_nodes=("n1",)),
        shared("c", age=2),
    )
    assert plans["a"].group.members == ("uid-a", "uid-c")
    assert plans["b"].group.members == ("uid-b",)
    assert plans["b"].remap_reasons[0] == (
        "VolumesApart: no node can mount the volumes of a, b together."
    )


@pytest.mark.parametrize(("nodes", "joins"), [(("n1",), False), (("n0", "n1"), True)])
def test_a_volume_elsewhere_joins_no_group_that_runs(nodes, joins):
    """The group's worker stays where it is; whose files cannot be mounted there runs alone."""
    alone = planned(shared("a"))
    plans = planned(
        shared("a"), shared("b", age=1, volume_nodes=nodes), assignments=running(alone, "a")
    )
    assert plans["a"].group.id == "team-a-a"
    assert (plans["b"].group == plans["a"].group) is joins
    if not joins:
        assert plans["b"].remap_reasons[0] == (
            "VolumesApart: the volume of b can be mounted on n1, and the group's worker runs on n0."
        )


def test_a_member_whose_volume_lies_apart_leaves_a_group_that_runs():
    """A group that took it in before anybody looked goes on without it."""
    pair = planned(shared("a"), shared("b", age=1))
    plans = planned(
        shared("a", volume_nodes=("n0",)), shared("b", age=1, volume_nodes=("n1",)),
        assignments=running(pair, "a", "b"),
    )  # fmt: skip
    assert plans["a"].group.members == ("uid-a",)
    assert plans["b"].group.members == ("uid-b",)


def test_a_group_knows_the_disk_of_its_members_host_copies():
    """Each member's weights are kept in a file, and so are those of whoever joins."""
    one = planned(shared("a"), headroom_models=0)["a"].group
    assert one.host_bytes == one.least_host_bytes > 0
    pair = planned(shared("a"), shared("b", age=1), headroom_models=1)["b"].group
    assert (pair.least_host_bytes, pair.host_bytes) == (2 * one.host_bytes, 3 * one.host_bytes)
