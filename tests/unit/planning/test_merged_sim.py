"""Several models on one engine: alone they run as in `queue_sim`, together they alternate by step."""

import random

import pytest

from tests.unit.planning.queue_cases import MODEL, chunk_us, decode_us, limits
from trimtab.planning.merged_sim import Finished, MergedResult, Tenant, simulate_merged
from trimtab.planning.queue_sim import simulate
from trimtab.planning.variation import Variation
from trimtab.planning.workload import Arrival, PlannedLoad, synthesize

KV_TOKENS = 100_000
TENANT = Tenant(model=MODEL, kv_tokens=KV_TOKENS)


def trace(seed, *, rate, count=60, gap=2.0):
    return synthesize(
        PlannedLoad(rate=rate, prompt=100, output=40, assumed=False),
        count=count,
        draws=random.Random(seed),
        variation=Variation(gap=gap),
        longest=2048,
    )


def merged(engines, **arrivals):
    return simulate_merged(engines, limits=limits(), arrivals=arrivals)


@pytest.mark.parametrize("rate", [1.0, 5.0, 20.0])
def test_alone_a_model_runs_as_in_the_queue_simulation(rate):
    """Turns of one model are its own steps and jumps: the same first and last tokens."""
    arrivals = trace(1, rate=rate)
    alone = simulate(MODEL, kv_tokens=KV_TOKENS, limits=limits(), arrivals=arrivals)
    found = merged([{"a": TENANT}], a=arrivals)["a"]
    assert found.rejected == 0
    assert sorted(f.ttft_us for f in found.served) == pytest.approx(
        sorted(s.ttft_us for s in alone.served)
    )
    assert sorted(f.tpot_us for f in found.served) == pytest.approx(
        sorted(s.tpot_us for s in alone.served)
    )


def test_a_model_without_requests_costs_nothing():
    """An idle neighbour changes no time."""
    arrivals = trace(2, rate=5.0)
    one = merged([{"a": TENANT}], a=arrivals)["a"]
    two = merged([{"a": TENANT, "b": TENANT}], a=arrivals, b=())["a"]
    assert [f.ttft_us for f in two.served] == pytest.approx([f.ttft_us for f in one.served])


def test_two_busy_models_take_turns_by_step():
    """Each waits for the other's step: prompts one after the other, then decode steps in turns."""
    request = (Arrival(at_us=0.0, prompt=100, output=11),)
    found = merged([{"a": TENANT, "b": TENANT}], a=request, b=request)
    (a,), (b,) = found["a"].served, found["b"].served
    assert a.ttft_us == pytest.approx(chunk_us(100))
    assert b.ttft_us == pytest.approx(2 * chunk_us(100))
    alone = sum(decode_us(100 + n) for n in range(1, 11)) / 10
    assert 1.8 * alone < a.tpot_us < 2.3 * alone
    assert 1.8 * alone < b.tpot_us < 2.3 * alone


def test_a_newcomer_waits_for_a_step_and_not_for_a_jump():
    """A long answer does not hold the engine: the other's request begins after the step under way."""
    long_answer = (Arrival(at_us=0.0, prompt=10, output=1000),)
    newcomer = (Arrival(at_us=1e6, prompt=100, output=2),)
    found = merged([{"a": TENANT, "b": TENANT}], a=long_answer, b=newcomer)
    assert found["b"].served[0].ttft_us < chunk_us(100) + 2 * decode_us(1010)


def test_requests_go_to_the_engine_with_the_fewest():
    """Two engines halve the company; a model that none has is rejected."""
    arrivals = trace(3, rate=40.0)
    one = merged([{"a": TENANT}], a=arrivals)["a"]
    two = merged([{"a": TENANT}, {"a": TENANT}], a=arrivals, b=arrivals)
    assert sum(f.ttft_us for f in two["a"].served) < sum(f.ttft_us for f in one.served)
    assert (two["b"].served, two["b"].rejected) == ((), len(arrivals))


def test_every_request_ends():
    """Whatever the order of turns, all are served, with caches that preempt too."""
    small = Tenant(model=MODEL, kv_tokens=1600)
    arrivals = {name: trace(seed, rate=10.0) for seed, name in enumerate("abc")}
    found = simulate_merged(
        [dict.fromkeys("abc", small)], limits=limits(max_running=16), arrivals=arrivals
    )
    assert all(len(found[n].served) + found[n].rejected == 60 for n in "abc")
    assert all(len(found[n].served) > 50 for n in "abc")


def test_attainment_counts_both_targets_and_the_rejected():
    """Late first tokens, slow ones and rejected requests miss; one token has no pace."""
    served = (
        Finished(ttft_us=1, tpot_us=1, output=5),
        Finished(ttft_us=9, tpot_us=1, output=5),
        Finished(ttft_us=1, tpot_us=9, output=5),
        Finished(ttft_us=1, tpot_us=9, output=1),
    )
    result = MergedResult(served=served, rejected=1)
    assert result.attainment(ttft_us=5, tpot_us=5) == pytest.approx(2 / 5)
    assert MergedResult(served=(), rejected=0).attainment(ttft_us=1, tpot_us=1) == 1
