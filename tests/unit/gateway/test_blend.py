from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.gateway.blend import LiveWeights, blended
from trimtab_workers.gateway.observed import Observed, Outcome
from trimtab_workers.gateway.routes import ModelRoute, PodFactors

FACTORS = st.floats(200, 5000)


def a_route(**fields):
    return ModelRoute(**{"namespace": "a", "name": "m", "intent": "m", "service": "s"} | fields)


def slow_and_fast(observed, *, requests, now=100.0):
    """Record that pod `slow` takes twice what pod `fast` takes."""
    for _ in range(requests):
        for uid, tpot in (("slow", 40.0), ("fast", 20.0)):
            observed.ended("a/m", Outcome(failed=False, tpot_ms=tpot, pod_uid=uid), now=now)


def test_fifty_requests_weigh_as_much_as_the_score():
    """With n = 50 score and measurement count half each."""
    factors = blended({"a": 1000.0, "b": 1000.0}, {"a": (30.0, 50), "b": (10.0, 50)})
    assert factors == {"a": pytest.approx(1250.0), "b": pytest.approx(750.0)}


def test_a_pod_alone_keeps_its_score():
    """One pod's latency says nothing about its speed beside others."""
    assert blended({"a": 900.0, "b": 1000.0}, {"a": (30.0, 200)}) == {"a": 900.0, "b": 1000.0}


@given(
    st.dictionaries(st.sampled_from("abcd"), FACTORS, min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(0.1, 1e4), st.integers(1, 200))),
)
def test_factors_lie_between_score_and_measurement(scores, live):
    """A blended factor lies between what it blends; pods without samples keep their score."""
    factors = blended(scores, live)
    assert set(factors) == set(scores)
    for uid, factor in factors.items():
        assert factor > 0
        if uid not in live:
            assert factor == scores[uid]


def test_slow_pods_get_less_work():
    """A pod measured twice as slow gets about half the weight, though its score is even."""
    observed = Observed()
    slow_and_fast(observed, requests=200)
    weight = LiveWeights(observed).of(a_route(), ["slow", "fast"], now=100.0)
    assert weight("slow") / weight("fast") == pytest.approx(0.5, abs=0.08)


def test_alarms_and_lone_pods_leave_the_score():
    """While an alarm is set, or with one pod, the table alone decides."""
    observed = Observed()
    slow_and_fast(observed, requests=200)
    pods = {"slow": PodFactors(500, 500)}
    alarmed = LiveWeights(observed).of(a_route(alarm=True, pods=pods), ["slow", "fast"], now=100.0)
    assert (alarmed("slow"), alarmed("fast")) == (2000, 1000)
    assert LiveWeights(observed).of(a_route(pods=pods), ["slow"], now=100.0)("slow") == 2000


def test_measurements_are_read_every_five_seconds():
    """Weights follow new samples after 5 s, and a clock set back at once."""
    observed = Observed()
    weights = LiveWeights(observed)
    pods = ["slow", "fast"]
    assert weights.of(a_route(), pods, now=100.0)("slow") == 1000
    slow_and_fast(observed, requests=200)
    assert weights.of(a_route(), pods, now=104.9)("slow") == 1000
    assert weights.of(a_route(), pods, now=105.0)("slow") < 1000
    weights.forget_all_but(set())
    assert weights.of(a_route(), pods, now=99.0)("slow") < 1000
