import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from trimtab.planning.remap import (
    Hardware,
    ModelShape,
    Traffic,
    hidden_bound,
    plan_remap,
    slots_for,
    streamed_layers,
)

MIB = 2**20


@st.composite
def shapes(draw, *, layer_bytes=None):
    layers = draw(st.integers(1, 80))
    fixed = draw(st.integers(0, 4096)) * MIB
    return ModelShape(
        layers=layers,
        layer_bytes=layer_bytes or draw(st.integers(1, 2048)) * MIB,
        fixed_bytes=fixed,
        read_outside_bytes=draw(st.integers(0, fixed)),
        kv_bytes_per_token=draw(st.integers(1, 1024)) * 1024,
    )


@st.composite
def cases(draw):
    """Return models, the active ones, a device that holds them, and traffic."""
    size = draw(st.one_of(st.none(), st.integers(1, 2048).map(lambda n: n * MIB)))
    models = {
        name: draw(shapes(layer_bytes=size)) for name in draw(st.sampled_from(["a", "ab", "abc"]))
    }
    active = draw(st.sets(st.sampled_from(sorted(models))))
    weights = sum(shape.weight_bytes for shape in models.values())
    hw = Hardware(
        memory_bytes=weights + draw(st.integers(0, 65_536)) * MIB,
        memory_rate=draw(st.floats(1e10, 8e12)),
        link_rate=draw(st.one_of(st.just(0.0), st.floats(1e8, 1e12))),
        link_latency_s=draw(st.sampled_from([0.0, 1e-5])),
        flops_rate=draw(st.floats(1e11, 2e15)),
        host_bytes=draw(st.integers(0, 400_000)) * MIB,
    )
    traffic = Traffic(
        sequence_tokens=draw(st.integers(1, 100_000)),
        prefill_tokens_per_step=draw(st.integers(0, 4096)),
        switch_interval_s=draw(st.one_of(st.none(), st.floats(1e-3, 1e4))),
        step_s=draw(st.one_of(st.none(), st.floats(1e-4, 10.0))),
    )
    return models, active, hw, traffic


@given(cases())
def test_advice_never_promises_what_is_not_there(case):
    """Only idle models lend, never their last layers; what streams is hidden; every no has a reason."""
    models, active, hw, traffic = case
    advice = plan_remap(models, active, hw, traffic)
    assert not set(advice.lend_units) & active
    for name, units in advice.lend_units.items():
        assert 0 < units <= models[name].layers - 2
    lent = sum(models[name].layers * models[name].layer_bytes for name in advice.lend_units)
    assert lent <= hw.host_bytes
    assert advice.kv_tokens_after >= advice.kv_tokens_before
    assert (advice.verdict == "IdleAndActive") == (advice.alpha > 0)
    assert (advice.verdict == "DoNotRemap") == (not advice.lend_units and not advice.alpha)
    if advice.alpha:
        assert advice.alpha + advice.slots <= advice.hidden_m
        assert advice.alpha <= 0.25 * min(models[name].layers for name in active)
        assert advice.ratio_if_forced >= 1.02
    else:
        assert advice.slots == 0
    if advice.verdict == "DoNotRemap":
        assert advice.reasons
    assert all(any(sign.isdigit() for sign in reason) for reason in advice.reasons)


@given(cases(), st.floats(1.0, 100.0))
def test_alpha_is_monotone_in_link_rate(case, faster):
    """A faster link never frees fewer active layers, as long as what idle models lend stays equal."""
    models, active, hw, traffic = case
    traffic = dataclasses.replace(traffic, switch_interval_s=None)
    quick = dataclasses.replace(hw, link_rate=hw.link_rate * faster)
    slow, fast = (plan_remap(models, active, each, traffic) for each in (hw, quick))
    assert fast.lend_units == slow.lend_units
    assert fast.alpha >= slow.alpha


@given(st.integers(1, 40), st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_the_slot_rule_takes_the_cheaper(alpha, transfer_s, layer_s):
    """The rule is the comparison of the two costs, and so of the two hidden bounds."""
    one, two = (alpha + 1) * (transfer_s + layer_s), (alpha + 2) * transfer_s
    if abs(one - two) > 1e-9 * two:
        assert slots_for(alpha, transfer_s, layer_s) == (2 if two < one else 1)
    step_s = 0.5 * (one + two)
    slack = {
        slots: hidden_bound(step_s=step_s, transfer_s=transfer_s, layer_s=layer_s, slots=slots)
        for slots in (1, 2)
    }
    assert slack[1] <= slack[2]


@given(st.integers(1, 128), st.data())
def test_streamed_layers_lie_evenly_on_the_cycle(n, data):
    """Gaps between streamed layers, also across the end, differ by at most one."""
    m = data.draw(st.integers(1, n))
    chosen = streamed_layers(n, m)
    assert len(set(chosen)) == m
    assert all(0 <= layer < n for layer in chosen)
    gaps = [
        (after - before) % n or n
        for before, after in zip(chosen, (*chosen[1:], chosen[0]), strict=True)
    ]
    assert max(gaps) - min(gaps) <= 1
