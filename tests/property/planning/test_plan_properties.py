"""Properties of the step model, the steady state and the plan, over drawn inputs."""

import itertools
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.planning.builders import (
    POLICY,
    a_fingerprint,
    a_fleet,
    a_key,
    a_model,
    a_pool,
    an_intent,
    plan_one,
)
from tests.unit.planning.one_replica import OneReplica
from trimtab.planning.curves import isotonic, rising_curve
from trimtab.planning.fingerprint import dump, parse
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.snapshot import Constraints, Load, Targets
from trimtab.planning.step_model import StepWork, fit

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=25, deadline=None)

times = st.fixed_dictionaries(
    {
        "fixed_us": st.floats(100, 50_000),
        "layer_us": st.floats(50, 5_000),
        "us_per_token": st.floats(0, 100),
        "us_per_kv_token": st.floats(0, 1),
        "us_per_work": st.floats(0, 0.1),
    }
)
loads = st.builds(
    Load,
    requests_per_second=st.floats(0.01, 5),
    prompt_tokens=st.integers(1, 1000),
    output_tokens=st.integers(1, 500),
)


@SOME
@given(times=times, batch=st.floats(1, 32), context=st.floats(0, 4096), more=st.floats(0, 16))
def test_a_decode_step_never_gets_cheaper_by_more_work(times, batch, context, more):
    """Step time does not fall with sequences at equal context, with context, or with tokens."""
    model = fit(a_fingerprint(**times), depth=30)

    def step(b, c, extra=0.0):
        work = StepWork(tokens=b + extra, sampled=b, batch=b, kv_tokens=b * c)
        return model.step_us(work)

    here = step(batch, context)
    assert step(batch + more, context) >= here * (1 - 1e-9)
    assert step(batch, context + more) >= here * (1 - 1e-9)
    assert step(batch, context, more) >= here * (1 - 1e-9)


@SOME
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_isotonic_regression_rises_and_keeps_the_sum(values):
    """The result rises, has the same mean, and leaves a rising input alone."""
    result = isotonic(values)
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(result))
    assert abs(sum(result) - sum(values)) <= 1e-6 * (1 + sum(abs(v) for v in values))
    rising = sorted(values)
    assert isotonic(rising) == rising


@SOME
@given(points=st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1e6)), min_size=1, max_size=10))
def test_a_rising_curve_rises_everywhere(points):
    """Between and beyond its knots the curve does not fall."""
    curve = rising_curve([(float(x), y) for x, y in points])
    values = [curve.at(x / 2) for x in range(250)]
    assert all(b >= a - 1e-6 * (1 + abs(a)) for a, b in itertools.pairwise(values))


@SOME
@given(
    times=times, prompt=st.integers(1, 2000), output=st.integers(1, 500), slots=st.integers(1, 64)
)
def test_a_replica_s_latency_rises_with_the_rate(times, prompt, output, slots):
    """Up to its capacity a replica has a steady state, and more load never makes it faster."""
    model = fit(a_fingerprint(**times), depth=30)
    replica = OneReplica(model, prompt=prompt, output=output, slots=slots, kv_tokens=100_000)
    capacity = replica.capacity()
    assert capacity > 0
    last = 0.0
    for share in (0.0, 0.2, 0.5, 0.8, 0.99):
        state = replica.steady(share * capacity)
        assert state.running <= replica.slots
        assert state.step_us >= last * (1 - 1e-6)
        last = state.step_us


@SOME
@given(times=times, distance=st.sampled_from([1, 2, 4]), taken=st.sampled_from(["", "2026Z"]))
def test_a_document_reads_back_to_what_was_written(times, distance, taken):
    """Dump and parse are inverse."""
    fingerprint = a_fingerprint(distance=distance, taken=taken, **times)
    assert parse(dump(fingerprint)) == fingerprint


@FEW
@given(times=times, load=loads, target=st.integers(1, 500), looser=st.integers(1, 500))
def test_a_looser_target_never_raises_the_cost(times, load, target, looser):
    """What meets a tight target meets a loose one, so the loose one is no dearer."""
    fingerprints = tuple(a_fingerprint(key=a_key(threads=t), **times) for t in (1, 2))

    def cost(milliseconds):
        intent = an_intent(
            objective="TargetLatency",
            targets=Targets(tpot_us=milliseconds * 1000),
            load=load,
            infeasible="Refuse",
        )
        found = plan_one(intent, pools=(a_pool(threads=8, gib=32),), fingerprints=fingerprints)
        return found.option.cost_per_hour_micro_usd if found.option else None

    tight, loose = cost(target), cost(target + looser)
    if tight is not None:
        assert loose is not None
        assert loose <= tight


@FEW
@given(times=times, load=loads, budget=st.integers(10_000, 500_000), more=st.integers(0, 500_000))
def test_a_larger_budget_never_raises_the_latency(times, load, budget, more):
    """One intent: within 2 %, what a smaller budget delivers a larger one delivers too."""
    fingerprints = tuple(a_fingerprint(key=a_key(threads=t), **times) for t in (1, 2))

    def latency(amount):
        intent = an_intent(
            objective="TargetCost",
            targets=Targets(cost_per_hour_micro_usd=amount),
            load=load,
            infeasible="Refuse",
        )
        found = plan_one(intent, pools=(a_pool(threads=8, gib=32),), fingerprints=fingerprints)
        if found.option is None:
            return None
        assert found.option.cost_per_hour_micro_usd <= amount
        return found.option.predicted.e2e.mean_us

    small, large = latency(budget), latency(budget + more)
    if small is not None:
        assert large is not None
        assert large <= small * (1 + 2 * POLICY.latency_tie_permille / 1000)


intents = st.builds(
    lambda n, objective, load, priority, least, refuse: an_intent(
        f"i{n}",
        objective=objective,
        load=load,
        priority=priority,
        constraints=Constraints(min_replicas=least),
        infeasible="Refuse" if refuse else "ServeNearest",
        model=None if n == 7 else a_model(),
    ),
    st.integers(0, 9),
    st.sampled_from(["MinLatency", "MinCost"]),
    st.none() | loads,
    st.integers(-1, 1),
    st.none() | st.integers(1, 3),
    st.booleans(),
)
fleets = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 8), st.integers(1, 16)), min_size=1, max_size=4
)


@FEW
@given(
    wanted=st.lists(intents, min_size=1, max_size=5, unique_by=lambda i: i.uid),
    nodes=fleets,
    data=st.data(),
)
def test_every_fleet_plan_is_sound_and_independent_of_order(wanted, nodes, data):
    """Nothing is oversubscribed, pins hold, every plan has a reason, permuted inputs are equal bytes."""
    pools = tuple({f"n{i}": a_pool(f"n{i}", threads=t, gib=g) for i, t, g in nodes}.values())
    snapshot = a_fleet(*wanted, pools=pools)
    found = plan_fleet(snapshot, POLICY)
    shuffled = replace(
        snapshot,
        intents=tuple(data.draw(st.permutations(snapshot.intents))),
        pools=tuple(data.draw(st.permutations(snapshot.pools))),
    )
    assert repr(plan_fleet(shuffled, POLICY)) == repr(found)
    used = {pool.node: [0, 0] for pool in pools}
    by_name = {intent.name: intent for intent in wanted}
    assert len(found.intents) == len(wanted)
    for each in found.intents:
        assert each.message
        assert len(each.alternatives) <= POLICY.shown_alternatives
        assert (each.option is None) == (each.verdict == "Unplanned")
        if each.option is None:
            assert each.reason != "Chosen"
            continue
        option, pins = each.option, by_name[each.name].constraints
        assert option.replicas == sum(count for _, count in each.nodes)
        assert option.replicas >= (pins.min_replicas or 1)
        assert 1 <= option.max_seqs <= POLICY.cpu_max_sequences
        assert option.predicted.capacity_milli_rps >= 0
        assert option.predicted.overloaded or option.predicted.utilisation_permille <= 1000
        for node, count in each.nodes:
            used[node][0] += count * option.config.threads
            used[node][1] += count * option.memory_bytes
    for pool in pools:
        assert used[pool.node][0] <= pool.millicores // 1000
        assert used[pool.node][1] <= pool.memory_bytes
