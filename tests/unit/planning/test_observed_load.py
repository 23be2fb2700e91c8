from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY
from tests.unit.planning.change_builders import a_load, arrivals
from trimtab.planning.load_history import LoadHistory
from trimtab.planning.observed_load import busy_load, next_load
from trimtab.planning.variation import ObservedVariation, Sample, Variation


def _next(history, *, held=None, declared=None, **fields):
    return next_load(history, held=held, declared=declared, policy=POLICY, **fields)


def test_without_traffic_what_is_declared_or_assumed_holds():
    """Nothing observed replaces nothing, however long nothing is observed."""
    assert _next(LoadHistory()) is None
    assert _next(LoadHistory(since=0, until=3600), declared=a_load(5.0)) is None


@pytest.mark.parametrize(("seconds", "rate"), [(190, 1.0), (590, 0.1)])
def test_an_assumed_load_is_replaced_after_200_requests_or_10_minutes(seconds, rate):
    """Whichever comes first (AIBrix #1713: never)."""
    history = arrivals(rate, seconds=seconds)
    assert _next(history) is None
    more = arrivals(rate, seconds=10, history=history)
    assert _next(more) == a_load(pytest.approx(rate, rel=0.06))


def test_a_declared_load_holds_while_the_observed_one_is_within_its_band():
    """Between 0.6 and 1.2 times the declared rate nothing moves."""
    for rate in (0.7, 1.0, 1.1):
        assert _next(arrivals(rate, seconds=3600), declared=a_load(1.0)) is None


def test_three_times_the_load_is_believed_within_a_minute():
    """Up is quick, and the new figure is that of the minute."""
    calm = arrivals(2.0, seconds=1800, seed=1)
    seen = [
        _next(arrivals(6.0, seconds=s, seed=2, history=calm), declared=a_load(2.0))
        for s in range(10, 71, 10)
    ]
    assert seen[0] is None
    assert seen[-1].requests_per_second == pytest.approx(6.0, rel=0.2)
    assert sum(s is None for s in seen) >= 3


def test_a_load_that_rose_does_not_fall_again_because_the_window_holds_the_past():
    """The 5 min behind a rise are below the new band; the last minute says otherwise."""
    calm = arrivals(2.0, seconds=1800, seed=1)
    risen = arrivals(6.0, seconds=70, seed=2, history=calm)
    held = _next(risen, declared=a_load(2.0))
    for seconds in range(10, 600, 10):
        held = _next(arrivals(6.0, seconds=seconds, seed=3, history=risen), held=held)
        assert held.requests_per_second > 4.5


def test_a_load_that_fell_is_believed_after_five_minutes_at_what_the_half_hour_needed():
    """Down is slow, and the busy part of the last 30 min still counts."""
    busy = arrivals(6.0, seconds=3600)
    four = arrivals(1.0, seconds=240, history=busy)
    assert _next(four, held=a_load(6.0)) == a_load(6.0)
    assert _next(arrivals(1.0, seconds=120, history=four), held=a_load(6.0)) == a_load(6.0)
    late = arrivals(1.0, seconds=2100, history=four)
    assert _next(late, held=a_load(6.0)) == a_load(1.0)


def test_an_idle_intent_keeps_its_lengths():
    """A load of nothing would be planned as an assumed one."""
    idle = arrivals(0.0, seconds=2400, history=arrivals(1.0, seconds=600))
    found = _next(idle, held=a_load(1.0))
    assert 0 < found.requests_per_second < 0.001
    assert (found.prompt_tokens, found.output_tokens) == (100, 50)


@pytest.mark.parametrize("rate", [0.05, 0.3, 3.0, 40.0])
def test_chance_alone_asks_for_no_plan(rate):
    """Two hours of Poisson arrivals at the planned rate stay within the band."""
    held, history = a_load(rate), LoadHistory()
    for _ in range(72):
        history = arrivals(rate, seconds=100, seed=int(100 * rate) + history.until, history=history)
        held = _next(history, held=held)
    assert held == a_load(rate)


def test_without_the_patience_for_chance_the_same_arrivals_move_the_plan():
    """The guard is what holds it: with none the load of a Poisson minute is followed."""
    held, history = a_load(0.3), LoadHistory()
    eager = replace(POLICY, load_sigma_milli=0)
    for _ in range(72):
        history = arrivals(0.3, seconds=100, seed=30 + history.until, history=history)
        held = next_load(history, held=held, declared=None, policy=eager)
    assert held != a_load(0.3)


def test_longer_prompts_are_more_load():
    """Equal requests of four times the tokens lie above the band."""
    history = arrivals(5.0, seconds=600)
    found = _next(history, held=a_load(5.0), lengths=(400.0, 50.0))
    assert found.prompt_tokens == 400
    assert found.requests_per_second == pytest.approx(5.0)


def test_a_missed_target_takes_any_rise_at_its_word():
    """Within the band, but more than planned: the plan is made for what is."""
    history = arrivals(1.1, seconds=600)
    assert _next(history, held=a_load(1.0)) == a_load(1.0)
    assert _next(history, held=a_load(1.0), missed=True) == a_load(1.1)
    less = arrivals(0.9, seconds=600)
    assert _next(less, held=a_load(1.0), missed=True) == a_load(1.0)


def test_the_busy_load_is_at_least_what_is_planned_until_half_an_hour_is_known():
    """What has not been seen for 30 min may have missed the busy part."""

    def busy(history, held=None):
        return busy_load(history, planned=a_load(3.0), held=held, policy=POLICY)

    assert busy(LoadHistory()) == a_load(3.0)
    assert busy(arrivals(1.0, seconds=900)) == a_load(3.0)
    assert busy(arrivals(1.0, seconds=1800)) == a_load(1.0)


def test_the_busy_load_is_held_within_a_fifth():
    """A little less is no reason for a plan; more is, at once."""
    history = arrivals(1.0, seconds=1800)
    for held, found in ((1.2, 1.2), (1.3, 1.0), (0.9, 1.0)):
        busy = busy_load(history, planned=None, held=a_load(held), policy=POLICY)
        assert busy == a_load(found)


BURSTS = ObservedVariation(gap=Sample(3.0, 3600))


def test_bursts_are_planned_for_at_the_declared_rate_that_holds():
    """The rate is within its band, so its figures stay; the gaps vary more than was assumed."""
    declared = a_load(1.0)
    found = _next(arrivals(1.1, seconds=3600), declared=declared, variation=BURSTS)
    assert found == replace(declared, variation=Variation(gap=3.0))
    assert _next(arrivals(1.1, seconds=3600), held=found, variation=BURSTS) == found


def test_a_load_that_moves_keeps_what_is_known_of_its_gaps():
    """A new rate is no reason to forget the bursts, and silence of the gateways is none either."""
    held = replace(a_load(1.0), variation=Variation(gap=3.0))
    risen = _next(arrivals(6.0, seconds=1800), held=held)
    assert risen.requests_per_second == pytest.approx(6.0)
    assert risen.variation == held.variation


def test_bursts_of_a_load_that_nobody_knows_are_no_load():
    """Before a rate is observed or declared there is nothing that could vary."""
    assert _next(LoadHistory(), variation=BURSTS) is None


def test_fewer_replicas_carry_the_bursts_too():
    """The busy load is as uneven as the planned one, also when that becomes so."""
    planned = replace(a_load(3.0), variation=Variation(gap=3.0))
    history = arrivals(3.0, seconds=1800)
    busy = busy_load(history, planned=planned, held=a_load(3.0), policy=POLICY)
    assert busy.variation == planned.variation
    assert busy_load(history, planned=planned, held=busy, policy=POLICY) is busy
