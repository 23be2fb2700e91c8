from __future__ import annotations

import itertools
import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.gateway.observed import Moments, Observed, Outcome

KEY = "team-a/chat"


def done(**fields):
    return Outcome(**({"failed": False} | fields))


def report(observed, now):
    return observed.document(replica="gw-0", now=now)["intents"].get(KEY)


def test_document_has_the_agreed_shape():
    """The document has exactly the fields of the wire format, and is JSON."""
    observed = Observed()
    observed.arrived(KEY, now=1000.0)
    outcome = done(
        prompt_tokens=10,
        output_tokens=5,
        ttft_ms=80.0,
        tpot_ms=20.0,
        overhead_ms=0.5,
        pod_uid="u1",
    )
    observed.ended(KEY, outcome, now=1003.0)
    document = observed.document(replica="gw-0", now=1004.0)
    assert json.loads(json.dumps(document)) == {
        "v": 1,
        "replica": "gw-0",
        "now": 1004.0,
        "intents": {
            KEY: {
                "counts": [[1000, 1, 10, 5, 0]],
                "gap_cv": None,
                "prompt": {"n": 1, "mean": 10.0, "m2": 0.0},
                "output": {"n": 1, "mean": 5.0, "m2": 0.0},
                "ttft_ms": [80.0],
                "tpot_ms": [20.0],
                "overhead_ms_p50": 0.5,
                "pods": {"u1": {"tpot_ms_p50": 20.0, "n": 1}},
            }
        },
    }


def test_counts_fall_into_ten_second_buckets():
    """Arrivals count when they come, tokens and errors when they end."""
    observed = Observed()
    for now in (100.0, 109.9, 110.0):
        observed.arrived(KEY, now=now)
    observed.ended(KEY, done(prompt_tokens=3, output_tokens=4), now=111.0)
    observed.ended(KEY, Outcome(failed=True), now=125.0)
    assert report(observed, 126.0)["counts"] == [
        [100, 2, 0, 0, 0],
        [110, 1, 3, 4, 0],
        [120, 0, 0, 0, 1],
    ]


def test_an_hour_is_kept_and_no_more():
    """Buckets older than one hour are gone, and an intent without any is too."""
    observed = Observed()
    for second in range(0, 5000, 10):
        observed.arrived(KEY, now=float(second))
    counts = report(observed, 4999.0)["counts"]
    assert len(counts) == 360
    assert counts[0][0] == 4990 - 3590
    assert report(observed, 5000.0 + 3600) is None


def test_samples_last_five_minutes():
    """TTFT, TPOT and overhead samples are of the last five minutes, at most 512."""
    observed = Observed()
    observed.ended(KEY, done(ttft_ms=1.0, tpot_ms=1.0, overhead_ms=1.0, pod_uid="u"), now=0.0)
    assert report(observed, 299.0)["ttft_ms"] == [1.0]
    late = report(observed, 300.0)
    assert (late["ttft_ms"], late["tpot_ms"], late["overhead_ms_p50"]) == ([], [], None)
    assert late["pods"] == {}
    for index in range(2000):
        observed.ended(KEY, done(ttft_ms=float(index), tpot_ms=1.0, pod_uid="u"), now=400.0)
    full = report(observed, 400.0)
    assert full["ttft_ms"] == [float(index) for index in range(2000 - 512, 2000)]
    assert full["pods"]["u"]["n"] == 200


def test_pods_have_their_own_medians():
    """Each pod's TPOT median is its own."""
    observed = Observed()
    for uid, value in (("a", 10.0), ("a", 30.0), ("a", 20.0), ("b", 5.0)):
        observed.ended(KEY, done(tpot_ms=value, pod_uid=uid), now=1.0)
    assert report(observed, 2.0)["pods"] == {
        "a": {"tpot_ms_p50": 20.0, "n": 3},
        "b": {"tpot_ms_p50": 5.0, "n": 1},
    }


def test_even_arrivals_have_no_variation():
    """The coefficient of variation is 0 for a metronome and near 1 for Poisson arrivals."""
    even, poisson = Observed(), Observed()
    for index in range(100):
        even.arrived(KEY, now=10.0 * index)
    now = 0.0
    for index in range(3000):
        now -= math.log(((index * 7919) % 3001 + 0.5) / 3001)  # exponential by inverse, shuffled
        poisson.arrived(KEY, now=now)
    assert report(even, 999.0)["gap_cv"] == pytest.approx(0.0, abs=1e-9)
    assert report(poisson, now)["gap_cv"] == pytest.approx(1.0, abs=0.05)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), min_size=1, max_size=6))
def test_moments_merge_exactly(parts):
    """Merged moments are those of all values together."""
    whole = Moments()
    for part in parts:
        moments = Moments()
        for value in part:
            moments.add(value)
        whole.merge(moments)
    values = [value for part in parts for value in part]
    assert whole.n == len(values)
    if values:
        scale = max(1.0, *(abs(value) for value in values))
        assert whole.mean == pytest.approx(statistics.fmean(values), abs=1e-9 * scale)
        variance = statistics.pvariance(values)
        assert whole.m2 / whole.n == pytest.approx(variance, abs=1e-6 * scale * scale)


@given(st.lists(st.tuples(st.floats(-1e4, 1e5), st.booleans()), max_size=200))
def test_any_clock_keeps_it_bounded_and_ordered(steps):
    """Whatever the clock does, buckets stay ordered, bounded, and lose no recent arrival."""
    observed = Observed()
    for now, arrives in steps:
        if arrives:
            observed.arrived(KEY, now=now)
        else:
            observed.ended(KEY, done(ttft_ms=1.0), now=now)
    end = max((now for now, _ in steps), default=0.0)
    found = report(observed, end)
    starts = [row[0] for row in found["counts"]] if found else []
    assert starts == sorted(set(starts))
    assert len(starts) <= 360


def gamma(cv, *, rate, seconds, seed=1, start=0.0):
    """Yield times of arrivals with Gamma gaps."""
    draws, now = random.Random(seed), start
    while (now := now + draws.gammavariate(1 / cv**2, cv**2 / rate)) < start + seconds:
        yield now


def cv_of(times):
    observed, now = Observed(), 0.0
    for now in times:
        observed.arrived(KEY, now=now)
    return report(observed, now)["gap_cv"]


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.2, 5.0])
def test_the_variation_of_gaps_is_found_at_high_and_low_rates(cv, rate):
    """Also where five minutes hold sixty gaps, of which the long ones are mostly missing."""
    found = [cv_of(gamma(cv, rate=rate, seconds=3500, seed=seed)) for seed in range(4)]
    assert statistics.fmean(found) == pytest.approx(cv, rel=0.25)


def test_a_rate_that_changes_is_no_variation():
    """Poisson arrivals at one rate and then at twenty times that are Poisson arrivals."""
    times = [*gamma(1, rate=0.2, seconds=1800), *gamma(1, rate=4, seconds=1700, start=1800.0)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) > 2
    assert cv_of(times) == pytest.approx(1.0, abs=0.15)


def test_a_pause_is_no_gap():
    """After forty idle minutes a load is as even as before."""
    times = [*gamma(0.5, rate=1, seconds=600), *gamma(0.5, rate=1, seconds=500, start=3000.0)]
    assert cv_of(times) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("pause", [60, 290])
def test_one_pause_within_the_hour_is_no_burst(pause):
    """Poisson arrivals with one pause in the middle of five minutes are Poisson arrivals."""
    times = [
        *gamma(1, rate=10, seconds=1510),
        *gamma(1, rate=10, seconds=1700, start=1510.0 + pause),
    ]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) > 2
    assert cv_of(times) == pytest.approx(1.0, abs=0.1)


def test_a_clock_that_steps_is_no_burst():
    """Half of an hour's arrivals come a minute late by a clock that was set once."""
    times = [now + 60 * (now > 1650) for now in gamma(1, rate=5, seconds=3300)]
    assert cv_of(times) == pytest.approx(1.0, abs=0.1)


def test_one_window_of_most_requests_does_not_decide():
    """A minute before and five minutes after them agree, so five uneven minutes between move nothing."""
    times = [
        *gamma(1, rate=1, seconds=55, start=240.0),
        *gamma(4, rate=10, seconds=298, start=301.0),
        *gamma(1, rate=2, seconds=298, start=601.0),
    ]
    assert cv_of(times) < 1.4


def test_three_windows_of_ten_gaps_tell_how_uneven_requests_are():
    """Two of them, or a third with nine gaps, tell nothing."""
    times = [float(now) for now in range(0, 900, 20)]
    assert cv_of(times[:30]) is None
    assert cv_of(times[:39]) is None
    assert cv_of(times[:40]) == pytest.approx(0.0, abs=1e-9)
