from dataclasses import replace

import pytest

from tests.unit.planning.builders import LLAMA_8B, POLICY, a_fingerprint, a_key, a_pool
from tests.unit.planning.gpu_builders import (
    A100,
    H100,
    L40S,
    LLAMA_70B,
    SIZES,
    a_70b,
    a_105b,
    an_8b,
    gpus,
    on_gpus,
    scored,
)
from trimtab.planning.fingerprint import MemoryPoint
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.gpu_memory import gpu_memory
from trimtab.planning.slowdown import NONE, Slowdown, slowdown, slowed
from trimtab.planning.snapshot import Assignment, Config, Constraints, LeftOut, Load
from trimtab.planning.step_model import StepWork, fit

MIB = 2**20
BUSY = Load(requests_per_second=4, prompt_tokens=512, output_tokens=128)


def a_config(*, tp=1, pp=1, precision="bf16", product=H100):
    return Config(
        product=product,
        cpu_model="",
        precision=precision,
        threads=0,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
    )


def memory_of(architecture=LLAMA_8B, *, depth=32, product=H100, **shape):
    return gpu_memory(
        architecture,
        a_config(product=product, **shape),
        depth=depth,
        gpu_bytes=SIZES[product],
        kv_precision="bf16",
        block_tokens=16,
        rows=(),
        policy=POLICY,
    )


def plan(*intents, **fields):
    return plan_fleet(on_gpus(*intents, **fields), POLICY).intents


def test_memory_of_8b_on_one_h100_by_hand():
    """16 GB of weights, 2.3 GiB + 5 % beside them, 2 % of the engine's 92 % in reserve: the rest is KV of 128 KiB a token."""
    found = memory_of()
    parameters = 32 * LLAMA_8B.layer_parameters() + 2 * 128256 * 4096
    assert found.weights == pytest.approx(2 * parameters, rel=1e-5)
    beside = POLICY.unmeasured_gpu_bytes + 0.05 * found.weights
    left = 0.98 * 0.92 * SIZES[H100] - found.weights - beside
    assert found.kv_tokens == pytest.approx(left / (32 * 2 * 8 * 128 * 2), abs=17)
    assert found.kv_tokens % 16 == 0
    assert found.weights + found.beside + found.reserve + found.kv <= found.budget


def test_key_heads_are_on_every_rank_beyond_their_number():
    """With 8 key heads, 16 ranks hold a head each: KV per rank no longer halves."""
    eight, sixteen = memory_of(tp=8), memory_of(tp=16)
    assert eight.kv / eight.kv_tokens == sixteen.kv / sixteen.kv_tokens
    assert 2 * memory_of(tp=4).kv / memory_of(tp=4).kv_tokens == pytest.approx(
        memory_of(tp=2).kv / memory_of(tp=2).kv_tokens
    )


def test_two_stages_hold_half_of_the_layers_each():
    """A stage has half of the layers and one of the two tables at most."""
    one, two = memory_of(), memory_of(pp=2)
    table = 2 * 128256 * 4096
    assert two.weights == pytest.approx((one.weights - 2 * table) / 2 + table, rel=1e-3)
    assert two.ranks == 2


def test_an_intent_is_planned_on_gpus():
    """A replica takes whole GPUs on a node that has them, priced by the GPU hour."""
    (found,) = plan(an_8b(load=BUSY, objective="MinCost"))
    option = found.option
    assert (found.verdict, option.config.product, option.config.threads) == ("Planned", H100, 0)
    groups = option.replicas * option.config.devices
    assert option.cost_per_hour_micro_usd == groups * 4_500_000
    assert sum(count for _, count in found.nodes) == option.replicas
    assert "GPU" in found.message
    assert not found.needs


def test_the_cheapest_product_that_carries_the_load_is_chosen():
    """Three products, one objective of money: each alternative says what it costs."""
    pools = (gpus("a"), gpus("b", product=A100), gpus("c", product=L40S))
    (found,) = plan(an_8b(load=BUSY, objective="MinCost"), pools=pools)
    shown = {a.option.config.product: a.option for a in found.alternatives if a.option}
    assert set(shown) | {found.option.config.product} == {H100, A100, L40S}
    cost = found.option.cost_per_hour_micro_usd
    meeting = [o for o in shown.values() if not o.predicted.overloaded]
    assert all(o.cost_per_hour_micro_usd >= cost for o in meeting)


def test_pinned_products_are_honoured():
    """A product that is not named is no option, whatever it costs."""
    pools = (gpus("a"), gpus("c", product=L40S))
    pinned = Constraints(gpu_products=(H100,))
    (found,) = plan(an_8b(load=BUSY, objective="MinCost", constraints=pinned), pools=pools)
    assert found.option.config.product == H100
    assert {a.config.product for a in found.alternatives} == {H100}


def test_gpus_and_threads_are_planned_side_by_side():
    """A node with GPUs beside one of CPUs: an intent that names cpu gets threads."""
    snapshot = on_gpus(an_8b(constraints=Constraints(gpu_products=("cpu",))))
    snapshot = replace(snapshot, pools=(a_pool(threads=16, gib=64),))
    (found,) = plan_fleet(snapshot, POLICY).intents
    assert (found.option.config.product, found.option.config.threads > 0) == ("cpu", True)


def test_a_model_that_fits_one_group_only_is_not_planned_on_less():
    """105B in bf16 is 210 GB: no replica on one or two H100, whose refusals name the figures."""
    (found,) = plan(a_105b())
    assert found.option.config.tensor_parallel_size == 4
    why = [a.why_not for a in found.alternatives if a.reason == "NoFit"]
    assert any("tokens of KV cache" in one and "GiB" in one for one in why)


def test_two_stages_are_planned_where_nothing_else_fits():
    """Four L40S do not hold 105B; two stages of four do, in one pod of eight GPUs."""
    (found,) = plan(a_105b(), pools=(gpus(product=L40S),))
    config = found.option.config
    assert (config.tensor_parallel_size, config.pipeline_parallel_size) == (4, 2)
    assert found.nodes == (("g0", 1),)
    undivided = [a for a in found.alternatives if a.config.pipeline_parallel_size == 1]
    assert undivided
    assert {a.reason for a in undivided} == {"NoFit"}
    assert any("one" in r and "stages" in r for r in found.option.confidence.reasons)
    assert {a.config.pipeline_parallel_size for a in found.alternatives if a.option} <= {2}


def test_stages_that_do_not_divide_the_layers_are_refused():
    """31 layers make no two equal stages; the sentence says so."""
    odd = an_8b(constraints=Constraints(pipeline_parallel_sizes=(2,)))
    odd = replace(odd, model=replace(odd.model, depth=31))
    (found,) = plan(odd)
    assert found.option is None
    assert "Pipeline parallel size 2 does not divide the model's 31 layers" in found.message


def test_two_stages_are_no_option_where_one_fits():
    """A second stage never makes a request faster, so it is not even an alternative."""
    (found,) = plan(a_105b(), pools=(gpus(), gpus("g1", product=L40S)))
    shown = (found.option.config, *(a.config for a in found.alternatives))
    assert {c.pipeline_parallel_size for c in shown if c.product == H100} == {1}


def test_what_fits_nowhere_says_what_it_needs_and_what_there_is():
    """NoFit with the figures of the largest group that was tried."""
    (found,) = plan(a_105b(), pools=(gpus(product=L40S, count=4),))
    assert (found.verdict, found.option) == ("Unplanned", None)
    assert found.reason in ("NoFit", "NoCapacity")
    assert "GPUs" in found.message


def test_gpus_that_are_left_out_are_told_to_whom_room_is_missing():
    """A plan without room counts the nodes that would have it, by reason; one with room says nothing."""
    out = tuple(LeftOut(node=f"m{n}", reason="MIG cuts them into slices") for n in (1, 2))
    (short,) = plan(a_105b(), pools=(gpus(count=2),), left_out=out)
    assert "GPUs are left out: those of 2 nodes because MIG cuts them into slices." in short.message
    (fine,) = plan(a_70b(), left_out=out)
    assert "left out" not in fine.message


def test_groups_of_gpus_are_never_promised_twice():
    """Four groups of four on two nodes of eight; the fifth intent has no place and is told so."""
    intents = [replace(a_105b(), uid=f"u{n}", name=f"n{n}", created_seconds=n) for n in range(5)]
    found = plan(*intents, pools=(gpus("g0"), gpus("g1")))
    used: dict[str, int] = {}
    for one in found:
        for node, count in one.nodes:
            used[node] = used.get(node, 0) + count * one.option.config.devices
    assert used == {"g0": 8, "g1": 8}
    (left,) = [one for one in found if one.option is None]
    assert (left.reason, left.name) == ("NoCapacity", "n4")
    assert "GPUs" in left.message


def test_what_runs_on_gpus_keeps_them():
    """An equal choice again: the same option, on the node where it is."""
    intent = an_8b(load=BUSY)
    (first,) = plan(intent, pools=(gpus("g0"), gpus("g1")))
    held = Assignment(
        intent_uid=intent.uid,
        config=first.option.config,
        replicas=first.option.replicas,
        nodes=(("g1", first.option.replicas),),
        generation=intent.generation,
        memory_bytes=first.option.memory_bytes,
    )
    (again,) = plan(intent, pools=(gpus("g0"), gpus("g1")), assignments=(held,))
    assert (again.keeps_assignment, again.nodes) == (True, held.nodes)


def test_scores_slow_a_group_down_and_the_median_does_not():
    """Every GPU 10 % slow: a tenth more time; scores of 1000 change nothing."""
    intent = an_8b(load=None)
    (plain,) = plan(intent)
    (even,) = plan(intent, scores=scored("g0", *[1000] * 8))
    (slow,) = plan(intent, scores=scored("g0", *[1100] * 8))
    assert even.option == plain.option
    ratio = slow.option.predicted.tpot.mean_us / plain.option.predicted.tpot.mean_us
    assert ratio == pytest.approx(1.1, rel=0.01)


def test_before_places_are_chosen_a_group_expects_a_slow_member():
    """One slow GPU of eight is in half of all groups of four; of a whole node's group it is certain."""
    scores = scored("g0", *[1000] * 7, 1100)
    assert slowdown(a_config(tp=4), scores).memory_permille == 1050
    assert slowdown(a_config(tp=8), scores, nodes=(("g0", 1),)).memory_permille == 1100
    assert slowdown(a_config(tp=4, product=L40S), scores) == NONE


def test_the_slowest_of_the_nodes_counts_where_a_replica_runs():
    """Two replicas on two nodes: requests of the slower one are as slow as it is."""
    scores = (*scored("g0", 1000, 1000), *scored("g1", 1000, 1080))
    both = slowdown(a_config(tp=2), scores, nodes=(("g0", 1), ("g1", 1)))
    assert both == Slowdown(compute_permille=1080, memory_permille=1080)


def test_prompts_take_the_compute_score_and_decoding_the_memory_score():
    """A GPU that is slow at matrices alone slows a long prompt and not a decode step."""
    model = fit(a_fingerprint(key=a_key()), depth=30)
    slow = slowed(model, Slowdown(compute_permille=1200))
    decode = StepWork(tokens=4, sampled=4, batch=4, kv_tokens=1000)
    prompt = StepWork(tokens=512, sampled=1, work=512 * 4096)
    assert slow.step_us(decode) == model.step_us(decode)
    assert 1.1 < slow.step_us(prompt) / model.step_us(prompt) <= 1.2


def test_an_unknown_product_says_that_a_fingerprint_is_missing():
    """No data sheet, no measurement: no number is made up."""
    odd = replace(gpus(), product="NVIDIA-X1")
    (found,) = plan(an_8b(), pools=(odd,))
    assert (found.option, found.reason) == (None, "NoEstimate")
    assert "Import a fingerprint" in found.message


def test_70b_has_the_sizes_that_the_tests_rest_on():
    """About 69 billion weights."""
    total = 80 * LLAMA_70B.layer_parameters() + LLAMA_70B.fixed_parameters()
    assert total == pytest.approx(69.5e9, rel=0.03)


def test_tables_keep_16_bits_under_8_bit_layers():
    """On two ranks each holds half of the layers at a byte per value and half of two tables at two."""
    found = memory_of(tp=2, precision="fp8")
    layers = 32 * LLAMA_8B.layer_parameters()
    assert found.weights == pytest.approx((layers + 2 * 2 * 128256 * 4096) / 2, rel=1e-4)
    one = 32 * LLAMA_8B.layer_parameters() + 2 * LLAMA_8B.fixed_parameters()
    host = one + 2 * POLICY.gpu_rank_host_bytes
    assert found.total == pytest.approx(host * 1.02, rel=1e-5)


def test_graphs_that_gave_memory_back_make_no_room():
    """An engine that reports -1 GiB for graphs is planned with none, not with 1 GiB more for KV."""
    gib = 2**30

    def beside(graphs):
        row = MemoryPoint(depth=4, weights=0, activation=gib, non_torch=gib, graphs=graphs)
        return gpu_memory(
            LLAMA_8B,
            a_config(),
            depth=32,
            gpu_bytes=SIZES[H100],
            kv_precision="bf16",
            block_tokens=16,
            rows=(row,),
            policy=POLICY,
        ).beside

    assert (beside(-gib), beside(0), beside(gib)) == (2 * gib, 2 * gib, 3 * gib)
