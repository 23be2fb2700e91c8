import pytest

from tests.unit.planning.builders import LLAMA_8B, POLICY, SMOLLM2, a_fingerprint
from trimtab.planning.fingerprint import MemoryPoint
from trimtab.planning.memory import kv_bytes_per_token, memory_plan, weight_bytes


def _plan(
    architecture=SMOLLM2,
    *,
    depth=30,
    precision="bf16",
    kv_tokens=2048,
    fingerprint=None,
    stages=1,
):
    return memory_plan(
        architecture,
        depth=depth,
        precision=precision,
        kv_precision=precision,
        kv_tokens=kv_tokens,
        block_tokens=16,
        fingerprint=fingerprint,
        policy=POLICY,
        processes=stages,
        stages=stages,
    )


def test_weights_and_kv_by_hand():
    """SmolLM2 and the 8B reference: 15.0 GiB of weights, 128 KiB of KV per token, grouped queries."""
    assert weight_bytes(SMOLLM2, depth=30, precision="bf16") == 269_030_016
    assert weight_bytes(SMOLLM2, depth=30, precision="fp32") == 538_060_032
    assert kv_bytes_per_token(SMOLLM2, depth=30, kv_precision="bf16") == 2 * 30 * 3 * 64 * 2
    assert weight_bytes(LLAMA_8B, depth=32, precision="bf16") / 2**30 == pytest.approx(
        15.0, abs=0.05
    )
    assert kv_bytes_per_token(LLAMA_8B, depth=32, kv_precision="bf16") == 128 * 1024


def test_the_arena_holds_weights_and_whole_slabs_of_kv():
    """SmolLM2's slab is 7,077,888 bytes = 19 blocks of all layers = 304 tokens (engine.md §4)."""
    plan = _plan(kv_tokens=2048)
    assert plan.weights == 269_030_016
    assert plan.kv % 7_077_888 == 0
    # 128 blocks, 3 of watermark and 2 kept need 7 slabs of 19.
    assert plan.kv == 7 * 7_077_888
    assert plan.kv_tokens >= 2048


def test_the_request_includes_the_host_copy_and_everything_else():
    """The pod's request covers arena, host copy, overhead and reserve."""
    plan = _plan()
    assert plan.total == plan.arena + plan.host_weights + plan.overhead + plan.reserve
    assert plan.host_weights == 269_030_016
    assert plan.reserve >= 0.02 * (plan.total - plan.reserve) - 1
    assert not plan.measured


def test_measured_overhead_replaces_the_estimate():
    """Memory rows of a fingerprint, the larger of two depths, beat the constant."""
    rows = tuple(
        MemoryPoint(depth=d, weights=1, activation=2**20 * d, non_torch=300 * 2**20, graphs=0)
        for d in (1, 2)
    )
    plan = _plan(fingerprint=a_fingerprint(memory=rows))
    assert plan.measured
    assert plan.overhead == 302 * 2**20
    assert _plan(fingerprint=a_fingerprint(memory=rows), stages=2).overhead == 2 * plan.overhead


def test_two_stages_have_the_tables_of_both_ends():
    """A tied table is on the first stage and on the last one; two tables are one on each."""
    table = 2 * SMOLLM2.vocab_size * SMOLLM2.hidden_size
    assert _plan(stages=2).weights == pytest.approx(_plan().weights + table, rel=1e-3)
    one, two = _plan(LLAMA_8B, depth=32), _plan(LLAMA_8B, depth=32, stages=2)
    assert two.weights == pytest.approx(one.weights, rel=1e-3)


@pytest.mark.parametrize("architecture", [SMOLLM2, LLAMA_8B])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kv_tokens", [1, 16, 1000, 8192, 100_000])
@pytest.mark.parametrize("stages", [1, 2])
def test_the_engine_fits_what_was_planned_into_the_arena_it_is_given(
    architecture, precision, kv_tokens, stages
):
    """The slab choice of every rank gets at least the planned tokens out of its planned bytes."""
    from trimtab_workers.engine.arena import UnitShape, choose_slab, slabs_for_weights
    from trimtab_workers.engine.models.llama import fixed_bytes, layer_bytes
    from trimtab_workers.engine.models.shape import LlamaShape
    from trimtab_workers.engine.parallel.placement import Placement, rank_shape

    depth = 30
    plan = _plan(architecture, depth=depth, precision=precision, kv_tokens=kv_tokens, stages=stages)
    whole = LlamaShape.from_hf_config(
        architecture.to_hf_config(depth=depth, context_length=8192), where="test"
    )
    for rank in range(stages):
        shape = rank_shape(whole, Placement(rank=rank, pipeline=stages), model="test")
        unit = UnitShape(
            layer_bytes=layer_bytes(shape, precision),
            layers=shape.layers,
            block_bytes=shape.kv_bytes_per_token_layer(precision) * 16,
        )
        slab = choose_slab([unit], align_bytes=4096).slab_bytes
        slabs = (plan.arena // stages - fixed_bytes(shape, precision)) // slab
        kv_slabs = slabs - slabs_for_weights(unit, slab)
        blocks = kv_slabs * (slab // unit.block_bytes // shape.layers) - 1
        assert blocks * 16 >= kv_tokens
        assert plan.kv_tokens <= blocks * 16
