from dataclasses import replace

import pytest

from tests.unit.planning.builders import (
    CAPABILITIES,
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
    plan_one,
)
from trimtab.api.v1alpha1.reasons import Reason as ApiReason
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.prices import PriceBook, parse_price_book
from trimtab.planning.snapshot import Assignment, Config, Constraints, Targets

PARALLEL = replace(CAPABILITIES, tensor_parallel_sizes=(1, 2, 4), pipeline_parallel_sizes=(1, 2))
BIG = (a_pool("n0", threads=16, gib=64), a_pool("n1", threads=16, gib=64))

# One thread carries it without making requests wait; at LOAD its queue is too long to be usable.
CALM = replace(LOAD, requests_per_second=0.05)


def _measured(*, threads=(1, 2), **times):
    return tuple(
        a_fingerprint(key=a_key(threads=t), fixed_us=5000 / t, layer_us=700 / t, **times)
        for t in threads
    )


def _threads(plan_):
    return plan_.option.replicas * plan_.option.config.threads


# The four objectives.


def test_min_latency_takes_the_fastest_and_min_cost_the_cheapest():
    """Two goals, one model, two picks."""
    fast = plan_one(an_intent(objective="MinLatency"), fingerprints=_measured())
    cheap = plan_one(an_intent(objective="MinCost"), fingerprints=_measured())
    assert (fast.verdict, cheap.verdict) == ("Planned", "Planned")
    assert fast.option.predicted.e2e.mean_us < cheap.option.predicted.e2e.mean_us
    assert cheap.option.cost_per_hour_micro_usd < fast.option.cost_per_hour_micro_usd
    assert (fast.binding, cheap.binding) == ("Latency", "Cost")


def test_min_latency_does_not_take_the_fleet_for_nothing():
    """A further replica that gains less than 2 % is not added."""
    intent = an_intent(load=replace(LOAD, requests_per_second=0.05))
    assert plan_one(intent, pools=BIG).option.replicas <= 2


def test_two_targets_two_picks():
    """The target decides (AIConfigurator #725: it was ignored)."""

    def pick(milliseconds):
        targets = Targets(tpot_us=milliseconds * 1000)
        intent = an_intent(objective="TargetLatency", targets=targets)
        return plan_one(intent, pools=BIG, fingerprints=_measured(threads=(1, 2, 4)))

    loose, tight = pick(200), pick(25)
    assert (loose.verdict, tight.verdict) == ("Planned", "Planned")
    assert _threads(loose) < _threads(tight)
    for chosen, target in ((loose, 200_000), (tight, 25_000)):
        option = chosen.option
        assert (
            option.predicted.tpot.percentile_us * (1000 + option.margin_permille) <= target * 1000
        )


def test_a_budget_is_kept_exactly():
    """TargetCost stays at or below the budget and takes the fastest within it."""
    budget = plan_one(an_intent(objective="MinCost", load=CALM)).option.cost_per_hour_micro_usd
    targets = Targets(cost_per_hour_micro_usd=budget)
    chosen = plan_one(an_intent(objective="TargetCost", targets=targets, load=CALM))
    assert chosen.verdict == "Planned"
    assert chosen.option.cost_per_hour_micro_usd <= budget
    richer = replace(targets, cost_per_hour_micro_usd=10 * budget)
    faster = plan_one(an_intent(objective="TargetCost", targets=richer, load=CALM))
    assert faster.option.predicted.e2e.mean_us < chosen.option.predicted.e2e.mean_us


def test_a_target_per_million_tokens_counts_the_planned_load():
    """Cost per million output tokens at the planned load is what the target is compared with."""
    cheap = plan_one(an_intent(objective="MinCost", load=CALM)).option
    price = cheap.cost_per_million_output_tokens_micro_usd
    met = Targets(cost_per_million_output_tokens_micro_usd=price)
    missed = Targets(cost_per_million_output_tokens_micro_usd=price - 1)

    def reason(targets):
        return plan_one(an_intent(objective="TargetCost", targets=targets, load=CALM)).reason

    assert (reason(met), reason(missed)) == ("Chosen", "BudgetTooSmall")


def test_queueing_makes_the_percentile_worse_than_the_mean():
    """Under load the p99 TTFT lies above the p50 (closed form; for screening)."""
    predicted = plan_one(an_intent(load=replace(LOAD, requests_per_second=0.4))).option.predicted
    assert predicted.ttft.p50_us < predicted.ttft.p95_us < predicted.ttft.p99_us


# Every reason for which there is no plan, in the order in which they are looked for.


def _impossible():
    tiny = Targets(tpot_us=1000)
    heavy = replace(LOAD, requests_per_second=500.0)
    cents = Targets(cost_per_hour_micro_usd=1)
    none = PriceBook()
    big = a_model(LLAMA_8B, depth=32)
    return [
        ("NoEstimate", an_intent(model=None), {}, "has not been inspected"),
        (
            "ConstraintsExcludeAll",
            an_intent(constraints=Constraints(gpu_products=("NVIDIA-L4",))),
            {},
            "gpuProducts allows NVIDIA-L4, but the fleet offers cpu",
        ),
        (
            "ConstraintsExcludeAll",
            an_intent(constraints=Constraints(precisions=("fp8",))),
            {},
            "precisions allows fp8, but the engine runs bf16, fp32",
        ),
        (
            "ConstraintsExcludeAll",
            an_intent(constraints=Constraints(tensor_parallel_sizes=(4,))),
            {},
            "tensorParallelSizes",
        ),
        (
            "ConstraintsExcludeAll",
            an_intent(constraints=Constraints(min_replicas=3, max_replicas=2)),
            {},
            "minReplicas is 3, more than maxReplicas 2",
        ),
        (
            "ConstraintsExcludeAll",
            an_intent(load=replace(LOAD, prompt_tokens=4096)),
            {},
            "4096 prompt and 64 output tokens, but the model's context is 2048",
        ),
        ("NoFit", an_intent(model=big), {}, "the largest node has 8.00 GiB"),
        (
            "PriceUnknown",
            an_intent(objective="TargetCost", targets=cents),
            {"prices": none},
            "no cpuHour that matches 'AMD EPYC'",
        ),
        (
            "TargetBelowFloor",
            an_intent(objective="TargetLatency", targets=tiny),
            {},
            "so more replicas cannot help. Raise spec.targets.timePerOutputTokenMilliseconds to",
        ),
        (
            "BudgetTooSmall",
            an_intent(objective="TargetCost", targets=cents),
            {},
            "the cheapest option that carries the load",
        ),
        ("TargetNeedsMoreGPUs", an_intent(load=heavy), {}, "Add nodes"),
        (
            "TargetNeedsMoreGPUs",
            an_intent(load=heavy, constraints=Constraints(max_replicas=1)),
            {"pools": BIG},
            "Raise spec.constraints.maxReplicas above 1",
        ),
        (
            "NoCapacity",
            an_intent(),
            {"pools": (a_pool(threads=0),)},
            "no node has a whole CPU thread",
        ),
        ("NoCapacity", an_intent(), {"pools": ()}, ""),
    ]


@pytest.mark.parametrize(("reason", "intent", "fields", "said"), _impossible()[:-1])
def test_every_reason_is_reached_and_says_what_would_help(reason, intent, fields, said):
    """With Refuse nothing is created, and the message names object, figures and remedy."""
    found = plan_one(replace(intent, infeasible="Refuse"), **fields)
    assert (found.verdict, found.reason) == ("Unplanned", reason)
    assert found.option is None
    assert said in found.message
    assert found.message.startswith("InferenceIntent team-a/chat: ")
    assert found.message.endswith(".")


def test_a_fleet_without_nodes_excludes_every_product():
    """No node at all reads as a fleet that offers nothing."""
    found = plan_one(an_intent(), pools=())
    assert found.reason == "ConstraintsExcludeAll"
    assert "the fleet offers no usable node" in found.message


def test_reasons_exist_in_the_api():
    """Every reason that planning can give is one of the API's closed list."""
    from typing import get_args

    from trimtab.planning import plan as values

    known = {reason.value for reason in ApiReason}
    assert set(get_args(values.Reason)) <= known
    # NoFit and NoCapacity double as reasons of conditions.
    assert set(get_args(values.Lost)) <= known


def test_a_target_below_the_floor_does_not_add_replicas():
    """Replicas cannot fix one request (Dynamo PR #11624): the nearest is served with one."""
    targets = Targets(tpot_us=1000)
    found = plan_one(an_intent(objective="TargetLatency", targets=targets), pools=BIG)
    assert (found.verdict, found.reason) == ("PlannedNearest", "TargetBelowFloor")
    assert found.option.replicas == 1


def test_serve_nearest_says_what_is_missed_and_what_is_served():
    """ServeNearest serves what is nearest to the target, and the message has both."""
    targets = Targets(ttft_us=1000)
    found = plan_one(an_intent(objective="TargetLatency", targets=targets))
    assert found.verdict == "PlannedNearest"
    assert "Served nearest: 1 replica of 2 threads" in found.message
    assert found.binding == "TimeToFirstToken"


def test_min_cost_without_prices_serves_the_fewest_threads_and_names_the_key():
    """Without a price MinCost is served with the least, PriceUnknown, and the key to add."""
    found = plan_one(an_intent(objective="MinCost", load=CALM), prices=None)
    assert (found.verdict, found.reason) == ("PlannedNearest", "PriceUnknown")
    assert _threads(found) == 1
    assert "cpuHour" in found.message


# Load, pins, memory.


def test_a_plan_exists_without_any_history():
    """No load and no fingerprint still give a plan, with the assumption named (AIBrix #1713)."""
    found = plan_one(an_intent(load=None))
    assert found.verdict == "Planned"
    assert found.load_assumed
    assert found.option.replicas == 1
    assert found.option.confidence.level == "Low"
    assert any(note.startswith("LoadAssumed") for note in found.notes)
    assert "1024 prompt and 256 output tokens" in found.message


def test_the_assumed_load_is_cut_to_the_context():
    """A model of 512 tokens context is not planned for 1,280."""
    found = plan_one(an_intent(load=None, model=a_model(context=512)))
    assert found.verdict == "Planned"
    assert "410 prompt and 102 output tokens" in found.message


def test_pins_are_honoured():
    """Whatever is pinned is respected (KAITO #1956: an overridden count)."""
    pins = Constraints(min_replicas=2, max_replicas=2, precisions=("fp32",))
    for objective in ("MinLatency", "MinCost"):
        option = plan_one(an_intent(objective=objective, constraints=pins), pools=BIG).option
        assert option.replicas == 2
        assert option.config.precision == "fp32"


@pytest.mark.parametrize(
    ("constraints", "architecture", "said"),
    [
        ({"tensor_parallel_sizes": (2,)}, SMOLLM2, "does not divide the model's 9 attention heads"),
        ({"tensor_parallel_sizes": (4,)}, LLAMA_8B, "does not divide 2 threads"),
        (
            {"pipeline_parallel_sizes": (2,), "tensor_parallel_sizes": (2,)},
            LLAMA_8B,
            "does not divide 2 threads",
        ),
    ],
)
def test_ranks_that_a_model_or_its_threads_do_not_divide_over(constraints, architecture, said):
    """The plan says what does not divide instead of a worker that fails."""
    intent = an_intent(model=a_model(architecture, depth=2), constraints=Constraints(**constraints))
    found = plan_one(intent, capabilities=PARALLEL)
    assert found.option is None
    assert said in found.message


def test_two_stages_on_cpu_are_predicted_from_the_threads_of_one():
    """A step passes both stages in turn, on half of the threads each, and is handed on: slower than undivided."""
    prints = _measured()
    pinned = an_intent(load=None, constraints=Constraints(pipeline_parallel_sizes=(2,)))
    split = plan_one(pinned, capabilities=PARALLEL, fingerprints=prints).option
    one = plan_one(an_intent(load=None), capabilities=PARALLEL, fingerprints=prints)
    alone = next(
        o
        for o in (one.option, *(a.option for a in one.alternatives))
        if o and o.config.threads == 1
    )
    assert (split.config.pipeline_parallel_size, split.config.threads) == (2, 2)
    handed = split.predicted.tpot.mean_us - alone.predicted.tpot.mean_us
    assert handed == pytest.approx(2 * POLICY.cpu_stage_us, rel=0.01)
    assert "pipeline stages predicted from one" in split.confidence.reasons


def test_ranks_are_planned_only_where_they_are_pinned():
    """Without a pin nothing is split; with one the replica's threads are shared by its ranks."""
    model = a_model(LLAMA_8B, depth=2)
    free = plan_one(an_intent(model=model), capabilities=PARALLEL)
    assert free.option.config.tensor_parallel_size == 1
    pins = Constraints(tensor_parallel_sizes=(2,))
    pinned = plan_one(an_intent(model=model, constraints=pins), capabilities=PARALLEL)
    assert (pinned.option.config.tensor_parallel_size, pinned.option.config.threads) == (2, 2)
    assert pinned.needs[0].tensor_parallel_size == 2
    # Two interpreters, before a fingerprint has counted them.
    alone = [a for a in free.alternatives if a.config.threads == 2] or [free]
    assert pinned.option.memory_bytes > alone[0].option.memory_bytes


def test_precision_is_the_checkpoint_s_own_unless_allowed():
    """Precision costs accuracy, so no other is chosen by itself."""
    assert plan_one(an_intent()).option.config.precision == "bf16"
    pins = Constraints(precisions=("fp8", "bf16"))
    found = plan_one(an_intent(constraints=pins))
    assert found.option.config.precision == "bf16"
    assert any(a.reason == "PrecisionUnsupported" for a in found.alternatives)


def test_no_option_exceeds_a_node_s_memory():
    """On every option that is shown, the planned memory fits its node (AIConfigurator #1396)."""
    checked = 0
    for gib in (1, 2, 3, 4, 8, 16):
        for rate in (0.05, 0.2, 0.6):
            intent = an_intent(load=replace(LOAD, requests_per_second=rate))
            found = plan_one(intent, pools=(a_pool(threads=8, gib=gib),))
            options = [
                a.option for a in found.alternatives if a.option and a.reason != "NoCapacity"
            ]
            for option in (*options, *([found.option] if found.option else [])):
                assert option.memory_bytes * option.replicas <= gib * GIB
                assert option.kv_tokens >= option.max_model_len
                checked += 1
    assert checked > 50


# Several intents.


def test_two_intents_share_a_node_instead_of_one_taking_it():
    """The second intent shrinks the first rather than staying unplaced."""
    alone = plan(an_intent("a"))
    both = plan(an_intent("a"), an_intent("b"))
    assert _threads(alone.intents[0]) == 2
    assert [_threads(p) for p in both.intents] == [1, 1]


def test_threads_and_memory_are_never_promised_twice():
    """The sum over intents stays within each node, whatever they ask for."""
    pools = (a_pool("n0", threads=4, gib=4), a_pool("n1", threads=3, gib=3))
    intents = [an_intent(f"i{n}", objective=o) for n, o in enumerate(["MinLatency", "MinCost"] * 5)]
    found = plan(*intents, pools=pools)
    used: dict[str, list[int]] = {pool.node: [0, 0] for pool in pools}
    for intent in found.intents:
        for node, count in intent.nodes:
            used[node][0] += count * intent.option.config.threads
            used[node][1] += count * intent.option.memory_bytes
    for pool in pools:
        assert used[pool.node][0] <= pool.millicores // 1000
        assert used[pool.node][1] <= pool.memory_bytes
    assert any(p.reason == "NoCapacity" for p in found.intents)
    assert any(p.verdict == "Planned" for p in found.intents)


def test_priority_wins_then_age():
    """With room for one, the higher priority is served; between equals the older."""
    one = (a_pool(threads=1),)
    young = an_intent("young", created_seconds=1_800_000_000)
    found = {p.name: p for p in plan(an_intent("old"), young, pools=one).intents}
    assert found["old"].verdict == "Planned"
    assert found["young"].reason == "NoCapacity"
    assert "come first (old)" in found["young"].message
    urgent = replace(young, priority=1)
    found = {p.name: p for p in plan(an_intent("old"), urgent, pools=one).intents}
    assert found["young"].verdict == "Planned"


def test_priority_takes_nothing_from_what_serves():
    """A newcomer of any priority waits for what serves, is told who that is, and nothing is full."""
    low, high = an_intent("low"), an_intent("high", priority=10)
    one = (a_pool(threads=1),)
    found = {
        p.name: p
        for p in plan(low, high, pools=one, assignments=(_running("uid-low", threads=1),)).intents
    }
    assert (found["low"].verdict, found["low"].nodes) == ("Planned", (("n0", 1),))
    assert (found["high"].verdict, found["high"].reason) == ("Unplanned", "NoCapacity")
    assert "(low)" in found["high"].message
    assert "raise spec.priority" not in found["high"].message


def test_what_runs_without_a_plan_is_held():
    """Pods that no option describes any more still compute: their thread is nobody else's."""
    pinned = an_intent("low", constraints=Constraints(precisions=("int4",)))
    broken = an_intent("low", model=a_model(depth=0))
    high = an_intent("high", priority=10)
    for low in (pinned, broken):
        running = (replace(_running("uid-low", threads=1), memory_bytes=GIB),)
        found = {
            p.name: p
            for p in plan(low, high, pools=(a_pool(threads=1),), assignments=running).intents
        }
        assert (found["high"].verdict, found["high"].reason) == ("Unplanned", "NoCapacity")


def test_what_runs_for_an_intent_outside_this_plan_keeps_its_threads():
    """Pods of an intent that is being inspected again still occupy their node."""
    held = _running("uid-gone", threads=1)
    found = plan_one(an_intent(), assignments=(held,))
    assert found.option.config.threads == 1


def test_what_runs_keeps_its_memory_until_it_is_decided_about():
    """Memory is requested in full, so a plan that promised it twice would never be scheduled."""
    held = replace(_running("uid-gone", threads=1), memory_bytes=8 * GIB)
    found = plan_one(an_intent(), pools=(a_pool(threads=4, gib=8),), assignments=(held,))
    assert (found.verdict, found.reason) == ("Unplanned", "NoFit")
    assert "0.00 GiB free" in found.message


# Re-planning.


def _running(uid="uid-chat", *, threads, replicas=1, generation=1):
    config = Config(product="cpu", cpu_model="AMD EPYC", precision="bf16", threads=threads)
    return Assignment(
        intent_uid=uid,
        config=config,
        replicas=replicas,
        nodes=(("n0", replicas),),
        generation=generation,
    )


def test_a_small_gain_moves_nothing():
    """What runs is kept if another option is better by less than the switching cost."""
    fingerprints = tuple(
        a_fingerprint(
            key=a_key(threads=t), fixed_us=5000 * f, layer_us=700 * f, us_per_token=20 * f
        )
        for t, f in ((1, 1.0), (2, 0.93))
    )
    fresh = plan_one(an_intent(), fingerprints=fingerprints)
    assert fresh.option.config.threads == 2
    kept = plan_one(an_intent(), fingerprints=fingerprints, assignments=(_running(threads=1),))
    assert kept.option.config.threads == 1
    assert kept.keeps_assignment
    assert kept.alternatives[0].reason == "SwitchingCost"


def test_a_large_gain_moves():
    """A halved time is worth a roll."""
    running = (_running(threads=1),)
    moved = plan_one(an_intent(), fingerprints=_measured(), assignments=running)
    assert moved.option.config.threads == 2
    assert not moved.keeps_assignment


def test_an_edit_is_planned_anew():
    """After a change of the spec stickiness does not bind."""
    fingerprints = tuple(
        a_fingerprint(
            key=a_key(threads=t), fixed_us=5000 * f, layer_us=700 * f, us_per_token=20 * f
        )
        for t, f in ((1, 1.0), (2, 0.93))
    )
    edited = an_intent(generation=2)
    found = plan_one(edited, fingerprints=fingerprints, assignments=(_running(threads=1),))
    assert found.option.config.threads == 2


def test_an_estimate_never_replaces_a_measurement_that_works():
    """A roofline that looks better is measured first; what runs stays."""
    running = (_running(threads=1),)
    found = plan_one(an_intent(), fingerprints=_measured(threads=(1,)), assignments=running)
    assert found.option.config.threads == 1
    assert found.needs[0].threads == 2


def test_refuse_never_removes_what_serves():
    """Serving pods stay when a prediction worsens, though nothing new would be created."""
    targets = Targets(tpot_us=1000)
    intent = an_intent(objective="TargetLatency", targets=targets, infeasible="Refuse")
    assert plan_one(intent).verdict == "Unplanned"
    kept = plan_one(intent, assignments=(_running(threads=1),))
    assert (kept.verdict, kept.reason) == ("PlannedNearest", "TargetBelowFloor")
    assert kept.keeps_assignment


def test_replicas_stay_on_their_nodes():
    """What is kept is not moved to an emptier node."""
    pools = (a_pool("n0", threads=2), a_pool("n1", threads=16, gib=64))
    pins = Constraints(max_replicas=1)
    intent = an_intent(constraints=pins)
    fingerprints = _measured(threads=(2,))
    capabilities = replace(CAPABILITIES)
    running = (_running(threads=2),)
    found = plan_one(
        intent,
        pools=pools,
        fingerprints=fingerprints,
        assignments=running,
        capabilities=capabilities,
    )
    assert found.nodes == (("n0", 1),)


# Sources, confidence, needs.


def test_no_fingerprint_serves_another_machine():
    """Another CPU model's measurement is not used (AIBrix #507)."""
    other = a_fingerprint(key=replace(a_key(threads=1), cpu_model="Other"))
    found = plan_one(an_intent(), pools=(a_pool(threads=1),), fingerprints=(other,))
    assert found.option.fingerprint == "Roofline"


def test_another_engine_version_serves_with_less_confidence():
    """A measurement of the last release is used, marked, and asked for again."""
    one = (a_pool(threads=1),)
    current = plan_one(an_intent(), pools=one, fingerprints=_measured(threads=(1,)))
    old = a_fingerprint(key=replace(a_key(threads=1), engine_version="0.0.9"))
    stale = plan_one(an_intent(), pools=one, fingerprints=(old,))
    assert (current.option.confidence.level, stale.option.confidence.level) == ("High", "Medium")
    assert any("0.0.9" in r for r in stale.option.confidence.reasons)
    assert not current.needs
    assert [need.threads for need in stale.needs] == [1]
    assert stale.option.margin_permille > current.option.margin_permille


def test_a_contended_measurement_lowers_the_confidence():
    """What was measured beside other work is marked."""
    busy = a_fingerprint(key=a_key(threads=1), notes=("Contended",))
    found = plan_one(an_intent(), pools=(a_pool(threads=1),), fingerprints=(busy,))
    assert found.option.confidence.level == "Medium"


def test_an_invalid_fingerprint_leaves_the_plan_on_the_next_source():
    """A document whose layer time is negative is not used."""
    good = a_fingerprint(key=a_key(threads=1))
    bad = replace(good, decode=tuple(replace(p, t2_us=1) for p in good.decode))
    found = plan_one(an_intent(), pools=(a_pool(threads=1),), fingerprints=(bad,))
    assert found.option.fingerprint == "Roofline"


def test_needs_are_the_specifications_of_jobs():
    """What is not measured is asked for, the likeliest winner first, at most four."""
    found = plan_one(an_intent(), pools=BIG)
    assert 1 <= len(found.needs) <= 4
    assert [need.priority for need in found.needs] == list(range(len(found.needs)))
    assert found.needs[0].threads == found.option.config.threads
    spec = found.needs[0].spec(grid="cpu", max_seconds=120)
    assert spec["architecture"]["hidden_size"] == 576
    assert (spec["v"], spec["product"], spec["precision"]) == (1, "cpu", "bf16")


def test_one_intent_that_cannot_be_estimated_leaves_the_others_their_plans():
    """A bug that one intent meets is told in its own condition; the fleet is planned without it."""
    impossible = an_intent("impossible", model=a_model(depth=0))
    found = {p.name: p for p in plan(an_intent(), impossible).intents}
    assert found["chat"].verdict == "Planned"
    assert (found["impossible"].verdict, found["impossible"].reason) == ("Unplanned", "NoEstimate")
    assert "team-a/impossible" in found["impossible"].message


# Explanations.


def test_every_alternative_says_why_it_lost():
    """At most five others, each with one sentence that names it."""
    found = plan_one(an_intent(objective="MinCost"), pools=BIG)
    assert 2 <= len(found.alternatives) <= 5
    for other in found.alternatives:
        assert other.option != found.option
        assert other.why_not.endswith(".")
        assert "replica" in other.why_not
        assert other.reason in {"Costlier", "Slower"}


def test_prices_are_dated_in_the_plan():
    """A plan on dated example prices says so."""
    assert "Costs use prices dated 2026-11-01." in plan_one(an_intent()).notes
    undated = parse_price_book({"cpuHour": {"*": "1"}, "memoryGiBHour": "0"})
    assert "The prices carry no date." in plan_one(an_intent(), prices=undated).notes


def test_the_order_of_the_inputs_does_not_matter():
    """Reversed tuples give an identical plan."""
    intents = tuple(an_intent(f"i{n}", priority=n % 2) for n in range(5))
    pools = (a_pool("n0"), a_pool("n1", threads=4, gib=16), a_pool("n2", threads=1))
    fingerprints = _measured()
    one = a_fleet(*intents, pools=pools, fingerprints=fingerprints)
    other = a_fleet(*intents[::-1], pools=pools[::-1], fingerprints=fingerprints[::-1])
    assert plan_fleet(one, POLICY) == plan_fleet(other, POLICY)
    assert repr(plan_fleet(one, POLICY)) == repr(plan_fleet(other, POLICY))
