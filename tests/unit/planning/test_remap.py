import dataclasses
import math
import subprocess
import sys

import pytest

from tests.unit.planning.remap_builders import (
    H100,
    LLAMA_7B,
    LLAMA_8B,
    LLAMA_13B,
    hardware,
    traffic,
)
from trimtab.planning.remap import (
    Hardware,
    Limits,
    ModelShape,
    Traffic,
    hidden_bound,
    layer_share,
    plan_remap,
    slots_for,
    step_floor,
    streamed_layers,
    streaming_ratio,
)

GB = 10**9


def close(figure):
    return pytest.approx(figure, rel=0.03)


@pytest.mark.parametrize(
    ("model", "milliseconds", "tokens", "reload_s"),
    [
        (LLAMA_8B, (8.7, 1.09, 0.145), 3328, 0.32),
        (LLAMA_7B, (8.1, 1.01, 0.135), 772, 0.27),
        (LLAMA_13B, (12.7, 1.59, 0.211), 774, 0.52),
    ],
)
def test_what_to_expect_per_layer(model, milliseconds, tokens, reload_s):
    """One layer's transfer, read and worth in tokens are those of engine.md §1."""
    transfer_ms, fast_ms, read_ms = milliseconds
    assert 1e3 * H100.transfer_s(model.layer_bytes) == close(transfer_ms)
    fast = hardware(link_rate=400e9)
    assert 1e3 * fast.transfer_s(model.layer_bytes) == close(fast_ms)
    assert 1e3 * model.layer_bytes / H100.memory_rate == close(read_ms)
    assert model.layer_bytes // model.kv_bytes_per_token == close(tokens)
    assert model.weight_bytes / H100.link_rate == close(reload_s)


@pytest.mark.parametrize(
    ("kv_gb", "floor_ms", "hidden", "hidden_fast"),
    [(1, 5.3, 0.6, 3.7), (8, 7.7, 0.9, 5.3), (32, 15.7, 1.8, 10.8), (56, 23.7, 2.7, 16.3)],
)
def test_floor_and_hidden_bound(kv_gb, floor_ms, hidden, hidden_fast):
    """The step floor and the hidden layers by resident KV are those of engine.md §1's table."""
    for hw, expected in (
        (H100, hidden),
        (hardware(link_rate=400e9, memory_rate=4e12), hidden_fast),
    ):
        floor = step_floor(LLAMA_8B, hw, traffic(), kv_bytes=kv_gb * GB)
        bound = hidden_bound(
            step_s=floor,
            transfer_s=hw.transfer_s(LLAMA_8B.layer_bytes),
            layer_s=floor * layer_share(LLAMA_8B, kv_bytes=kv_gb * GB),
            slots=2,
        )
        # The table has one decimal.
        assert bound == pytest.approx(expected, rel=0.03, abs=0.05)
    assert 1e3 * step_floor(LLAMA_8B, H100, traffic(), kv_bytes=kv_gb * GB) == close(floor_ms)


@pytest.mark.parametrize(
    ("pool_gb", "slow", "fast"),
    [
        (0.5, (0.54, 0.52, 0.51), (1.82, 3.65, 3.78)),
        (1, (0.43, 0.33, 0.30), (1.40, 2.30, 2.20)),
        (4, (0.39, 0.20, 0.15), (1.08, 1.32, 1.09)),
        (16, (0.59, 0.25, 0.15), (1.01, 1.05, 1.09)),
        (32, (0.86, 0.36, 0.21), (1.00, 1.02, 1.03)),
    ],
)
def test_ratio_of_active_remapping_over_none(pool_gb, slow, fast):
    """Throughput with 1, 4 and 8 freed layers over none is that of engine.md §1's table."""
    for rate, expected in ((50e9, slow), (400e9, fast)):
        for alpha, figure in zip((1, 4, 8), expected, strict=True):
            ratio = streaming_ratio(
                LLAMA_8B,
                hardware(link_rate=rate),
                traffic(),
                pool_bytes=pool_gb * GB,
                alpha=alpha,
            )
            assert ratio == pytest.approx(figure, rel=0.03, abs=0.005)


@pytest.mark.parametrize(("chunk", "milliseconds", "layers"), [(512, 12.8, 1.5), (2048, 51.0, 5.9)])
def test_a_prompt_chunk_hides_more_than_decoding(chunk, milliseconds, layers):
    """A chunk's compute lengthens the step and hides as many layers as engine.md §1 says."""
    floor = step_floor(LLAMA_8B, H100, traffic(prefill_tokens_per_step=chunk), kv_bytes=0)
    assert 1e3 * floor == close(milliseconds)
    assert floor / H100.transfer_s(LLAMA_8B.layer_bytes) == close(layers)


@pytest.mark.parametrize(
    ("memory_gb", "before_gb", "after_gb", "times"),
    [(52, 3.8, 30.0, 7.9), (56, 7.8, 34.0, 4.4), (64, 15.8, 42.0, 2.7), (76, 27.8, 54.0, 1.9)],
)
def test_idle_models_lend(memory_gb, before_gb, after_gb, times):
    """Two of three idle 8B models multiply the KV cache as engine.md §1 says, in 0.26 s back."""
    advice = plan_remap(
        {"a": LLAMA_8B, "b": LLAMA_8B, "c": LLAMA_8B},
        {"a"},
        hardware(memory_bytes=memory_gb * GB),
        traffic(),
    )
    token = LLAMA_8B.kv_bytes_per_token
    assert advice.verdict == "IdleOnly"
    assert advice.lend_units == {"b": 30, "c": 30}
    assert sum(advice.lend_units.values()) * LLAMA_8B.layer_bytes / GB == close(26.2)
    assert advice.kv_tokens_before * token / GB == close(before_gb)
    assert advice.kv_tokens_after * token / GB == close(after_gb)
    assert advice.kv_tokens_after / advice.kv_tokens_before == close(times)
    assert advice.switch_s == close(0.26)
    # 38 GB of live KV hide two layers, but there they are worth nothing.
    refused = "LinkTooSlow" if after_gb < 38 else "KvShareLarge"
    assert [reason.split(":")[0] for reason in advice.reasons] == [refused]


@pytest.mark.parametrize(("alpha", "slots"), [(8, 1), (9, 2)])
def test_slot_rule_switches_where_the_paper_does(alpha, slots):
    """At r = 9.4 eight freed layers rotate through one slot, nine through two."""
    assert slots_for(alpha, 9.4, 1.0) == slots


@pytest.mark.parametrize("kv_gb", [1, 8, 32, 36])
def test_do_not_remap_a_busy_model_over_pcie(kv_gb):
    """At 50 GB/s a decoding model alone frees nothing below 38 GB of live KV, and says why."""
    memory = LLAMA_8B.weight_bytes + kv_gb * GB
    advice = plan_remap({"a": LLAMA_8B}, {"a"}, hardware(memory_bytes=memory), traffic())
    assert advice.verdict == "DoNotRemap"
    assert (advice.alpha, advice.slots, advice.lend_units) == (0, 0, {})
    assert advice.kv_tokens_after == advice.kv_tokens_before
    assert advice.ratio_if_forced < 1
    assert [reason.split(":")[0] for reason in advice.reasons] == ["SingleModel", "LinkTooSlow"]
    assert "8.72 ms" in advice.reasons[1]


def test_a_fast_link_and_a_small_kv_cache_stream():
    """At 400 GB/s with 1 GB of KV active layers are freed, hidden, and gain as the table says."""
    memory = LLAMA_8B.weight_bytes + 1 * GB
    advice = plan_remap(
        {"a": LLAMA_8B}, {"a"}, hardware(memory_bytes=memory, link_rate=400e9), traffic()
    )
    assert advice.verdict == "IdleAndActive"
    assert (advice.alpha, advice.slots) == (2, 1)
    assert advice.alpha + advice.slots <= advice.hidden_m
    assert advice.ratio_if_forced > 1.5
    grown = 2 * LLAMA_8B.layer_bytes // LLAMA_8B.kv_bytes_per_token
    assert advice.kv_tokens_after - advice.kv_tokens_before in (grown, grown + 1)


def test_a_large_kv_share_is_not_worth_streaming():
    """Where a layer more of KV is under two percent, the link may be fast: KvShareLarge."""
    memory = LLAMA_8B.weight_bytes + 60 * GB
    advice = plan_remap(
        {"a": LLAMA_8B},
        {"a"},
        hardware(memory_bytes=memory, link_rate=400e9),
        traffic(),
        Limits(levels=(0, 1)),
    )
    assert advice.verdict == "DoNotRemap"
    assert advice.reasons[-1].startswith("KvShareLarge: the KV cache is 80%")


def test_models_that_alternate_fast_keep_their_weights():
    """Below four switch times between switches nothing is lent; exactly four are enough."""
    models = {"a": LLAMA_8B, "b": LLAMA_8B}
    hw = hardware(memory_bytes=56 * GB)
    switch_s = 30 * LLAMA_8B.layer_bytes / hw.link_rate
    thrash = plan_remap(models, {"a"}, hw, traffic(switch_interval_s=3.99 * switch_s))
    assert thrash.verdict == "DoNotRemap"
    assert thrash.reasons[0].startswith("SwitchesTooOften: models alternate every 1.04 s")
    calm = plan_remap(models, {"a"}, hw, traffic(switch_interval_s=4 * switch_s))
    assert calm.lend_units == {"b": 30}


def test_only_models_with_a_host_copy_lend():
    """Host memory for one copy lends one model; the other is named with both numbers."""
    advice = plan_remap(
        {"a": LLAMA_8B, "b": LLAMA_8B, "c": LLAMA_8B},
        {"a"},
        hardware(memory_bytes=56 * GB, host_bytes=20 * GB),
        traffic(),
    )
    assert advice.lend_units == {"b": 30}
    assert (
        "HostMemoryShort: the host copy of c needs 13.96 GB, 6.04 GB are left" in advice.reasons[0]
    )


def test_unequal_layers_stream_nothing_but_lend():
    """Active models of unequal layers share no slot; an idle third still lends."""
    advice = plan_remap(
        {"a": LLAMA_8B, "b": LLAMA_13B, "c": LLAMA_7B},
        {"a", "b"},
        hardware(memory_bytes=76 * GB, link_rate=400e9),
        traffic(),
    )
    assert advice.verdict == "IdleOnly"
    assert advice.reasons == (
        "UnequalLayers: layers of the active models have 436207616, 634388480 bytes.",
    )


def test_without_a_link_nothing_is_remapped():
    """A link rate of 0 is a valid answer, not an error."""
    advice = plan_remap(
        {"a": LLAMA_8B, "b": LLAMA_8B},
        {"a"},
        hardware(memory_bytes=56 * GB, link_rate=0.0),
        traffic(),
    )
    assert advice.verdict == "DoNotRemap"
    assert all(reason.startswith("LinkTooSlow") for reason in advice.reasons)


def test_active_cap_of_zero_is_named():
    """Where policy forbids streaming, the reason says so and not the link."""
    advice = plan_remap(
        {"a": LLAMA_8B}, {"a"}, hardware(link_rate=400e9), traffic(), Limits(active_cap=0.0)
    )
    assert advice.reasons[-1] == "ActiveCapped: 0.00 of 32 layers is below the lowest level."


def test_a_measured_step_replaces_the_floor():
    """A step three times as long as the floor hides three times as many layers."""
    memory = LLAMA_8B.weight_bytes + 8 * GB
    hw = hardware(memory_bytes=memory)
    floor = step_floor(LLAMA_8B, hw, traffic(), kv_bytes=8 * GB)
    plain = plan_remap({"a": LLAMA_8B}, {"a"}, hw, traffic())
    slow = plan_remap({"a": LLAMA_8B}, {"a"}, hw, traffic(step_s=3 * floor))
    assert slow.hidden_m / plain.hidden_m == pytest.approx(3 if not slow.alpha else 2.8, rel=0.1)
    assert slow.alpha >= plain.alpha


def test_two_active_models_share_the_pool():
    """Two active models hold half of the KV each, so their shorter steps hide less than one's."""
    hw = hardware(memory_bytes=2 * LLAMA_8B.weight_bytes + 8 * GB, link_rate=400e9)
    both = plan_remap({"a": LLAMA_8B, "b": LLAMA_8B}, {"a", "b"}, hw, traffic())
    alone = plan_remap(
        {"a": LLAMA_8B},
        {"a"},
        dataclasses.replace(hw, memory_bytes=LLAMA_8B.weight_bytes + 8 * GB),
        traffic(),
    )
    assert both.hidden_m < alone.hidden_m
    assert both.reasons[0].startswith("SingleModel: 2 of 2 models are active")


def test_weights_that_never_fit_are_an_error_with_both_numbers():
    """More weights than memory, after all lending, is no advice but a ValueError."""
    with pytest.raises(ValueError, match=r"memory_bytes is 18000000000, but the weights need"):
        plan_remap({"a": LLAMA_8B, "b": LLAMA_8B}, {"a"}, hardware(memory_bytes=18 * GB), traffic())


def test_lending_makes_models_fit_that_do_not_without():
    """Weights beyond memory are served when what is lent covers them; there is no ratio."""
    advice = plan_remap(
        {"a": LLAMA_8B, "b": LLAMA_8B}, {"a"}, hardware(memory_bytes=30 * GB), traffic()
    )
    assert advice.kv_tokens_before == 0
    assert advice.kv_tokens_after > 50_000


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ModelShape, "layers", 0),
        (ModelShape, "layer_bytes", -1),
        (ModelShape, "kv_bytes_per_token", math.nan),
        (ModelShape, "fixed_bytes", -1),
        (Hardware, "memory_rate", 0.0),
        (Hardware, "link_rate", -1.0),
        (Hardware, "link_latency_s", math.nan),
        (Hardware, "flops_rate", math.inf),
        (Traffic, "sequence_tokens", 0),
        (Traffic, "switch_interval_s", 0.0),
        (Traffic, "step_s", math.nan),
        (Limits, "min_gain", -0.1),
        (Limits, "levels", (1, 2)),
    ],
)
def test_bad_values_are_refused(kind, field, value):
    """A negative, NaN or zero size is refused with field, value and remedy."""
    good = {ModelShape: LLAMA_8B, Hardware: H100, Traffic: traffic(), Limits: Limits()}[kind]
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {field} is .*Give "):
        dataclasses.replace(good, **{field: value})


def test_models_and_active_are_checked():
    """No model, or an active one that is not served, is an error that names it."""
    with pytest.raises(ValueError, match="models is empty"):
        plan_remap({}, set(), H100, traffic())
    with pytest.raises(ValueError, match="active names ghost, but models has a"):
        plan_remap({"a": LLAMA_8B}, {"ghost"}, H100, traffic())


def test_formulas_refuse_nonsense():
    """Slots beyond two, no freed layer, more layers than there are: ValueError."""
    with pytest.raises(ValueError, match="slots is 3"):
        hidden_bound(step_s=1.0, transfer_s=1.0, layer_s=1.0, slots=3)
    with pytest.raises(ValueError, match="alpha is 0"):
        slots_for(0, 1.0, 1.0)
    with pytest.raises(ValueError, match="transfer_s is 0"):
        slots_for(1, 0.0, 1.0)
    with pytest.raises(ValueError, match="m is 5"):
        streamed_layers(4, 5)


def test_slabs_of_the_notes():
    """engine.md §4: an 8B slab holds 208 blocks of 3,328 tokens, a SmolLM2 slab 19 of 304."""
    for layer, layers, block, blocks in (
        (436_207_616, 32, 65_536, 208),
        (7_077_888, 30, 12_288, 19),
    ):
        assert layer // layers // block == blocks
    eight = 3 * (LLAMA_8B.weight_bytes - 32 * LLAMA_8B.layer_bytes)
    homes = (56 * GB - eight) // LLAMA_8B.layer_bytes - 96
    assert (eight / GB, homes, homes * 3328) == (close(6.3), 17, 56_576)
    assert (homes + 60) * 3328 == 256_256


def test_engines_import_the_module_with_the_standard_library_alone():
    """Engine images have no planner dependencies: nothing outside of the standard library loads."""
    code = (
        "import sys; before = set(sys.modules); import trimtab.planning.remap; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'trimtab'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
