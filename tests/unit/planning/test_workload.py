"""Traces drawn from a load: seeded from outside, alike for all options of an intent."""

import itertools
import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest

from trimtab.planning.variation import Variation
from trimtab.planning.workload import Arrival, PlannedLoad, load_bucket, synthesize, trace_seed

LOAD = PlannedLoad(rate=2.0, prompt=500, output=100, assumed=False)


def a_trace(load=LOAD, *, count=4000, seed=1, longest=10**6, **variation):
    return synthesize(
        load,
        count=count,
        draws=random.Random(seed),
        variation=Variation(**variation),
        longest=longest,
    )


def gaps(trace):
    times = [0.0, *(a.at_us for a in trace)]
    return [b - a for a, b in itertools.pairwise(times)]


def cv(values):
    return pstdev(values) / fmean(values)


def test_a_trace_has_the_load_s_means():
    """Rate, prompt and output come out as declared, each varying as asked."""
    trace = a_trace(gap=1.0, prompt=0.97, output=0.5)
    assert fmean(gaps(trace)) == pytest.approx(5e5, rel=0.05)
    assert fmean(a.prompt for a in trace) == pytest.approx(500, rel=0.05)
    assert fmean(a.output for a in trace) == pytest.approx(100, rel=0.05)
    assert cv(gaps(trace)) == pytest.approx(1.0, rel=0.1)
    assert cv([a.prompt for a in trace]) == pytest.approx(0.97, rel=0.15)
    assert cv([a.output for a in trace]) == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(("asked", "drawn"), [(0.0, 0.5), (13.0, 4.0)])
def test_gaps_vary_within_bounds(asked, drawn):
    """An hour with one burst is no law: the CV of gaps is clamped to 0.5 to 4."""
    assert cv(gaps(a_trace(gap=asked))) == pytest.approx(drawn, rel=0.2)


def test_lengths_fit_the_longest_request():
    """Prompts are cut before outputs, and a token of each is left."""
    trace = a_trace(count=500, longest=64, output=0.0)
    assert {a.prompt + a.output for a in trace} == {64}
    assert {(a.prompt, a.output) for a in trace} == {(1, 63)}


def test_a_seed_is_a_trace():
    """The same source of randomness gives the same requests."""
    assert a_trace(count=20) == a_trace(count=20)
    assert a_trace(count=20) != a_trace(count=20, seed=2)


def test_close_loads_share_their_requests_and_far_ones_do_not():
    """Rate within 5 % and lengths within 10 % are one bucket of one intent; another intent has its own."""
    near = replace(LOAD, rate=2.01, prompt=501)
    assert load_bucket(near) == load_bucket(LOAD)
    assert trace_seed("a", near) == trace_seed("a", LOAD) != trace_seed("b", LOAD)
    for far in (replace(LOAD, rate=2.3), replace(LOAD, prompt=700), replace(LOAD, output=150)):
        assert load_bucket(far) != load_bucket(LOAD)
    assert load_bucket(replace(LOAD, rate=0.0))[0] < load_bucket(replace(LOAD, rate=1e-6))[0]


def test_a_load_without_a_rate_has_no_trace():
    """One request in flight is not a rate."""
    with pytest.raises(ValueError, match="the rate is 0"):
        a_trace(replace(LOAD, rate=0.0))


@pytest.mark.parametrize("fields", [{"prompt": 0}, {"output": 0}, {"at_us": -1.0}])
def test_impossible_arrivals_are_refused(fields):
    """A request has a time, a prompt and an output."""
    with pytest.raises(ValueError, match="at least one token of each"):
        Arrival(**({"at_us": 0.0, "prompt": 1, "output": 1} | fields))
