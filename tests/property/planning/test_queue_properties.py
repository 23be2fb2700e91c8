"""Properties of the queue simulation over drawn loads, with guards that each is about something."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.planning import queue_oracle
from tests.unit.planning.queue_cases import MODEL, ROOMY, arrival, limits
from trimtab.planning.queue_replica import Progress, QueueReplica
from trimtab.planning.queue_sim import simulate
from trimtab.planning.step_tables import StepTables

SOME = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BLOCK = 16

# Times that no sum of steps hits, so that "before" and "after" do not hang on a rounding.
gaps = st.floats(0, 4e5).map(lambda x: x + math.pi / 1000)
requests = st.tuples(gaps, st.integers(1, 300), st.integers(1, 60))


@st.composite
def loads(draw, *, most=12):
    now, found = 0.0, []
    for gap, prompt, output in draw(st.lists(requests, min_size=1, max_size=most)):
        now += gap
        found.append(arrival(now, prompt=prompt, output=output))
    return found


PLAIN = {"token_budget": 300, "max_running": 8, "prefix_caching": True, "watermark": 0.02}
OUTGROWN = [arrival(prompt=60, output=100), arrival(prompt=60, output=100)]
TOO_LONG = [*OUTGROWN, arrival(prompt=300, output=2)]

settings_of_replica = st.fixed_dictionaries(
    {
        "token_budget": st.integers(16, 300),
        "max_running": st.integers(1, 8),
        "prefix_caching": st.booleans(),
        "watermark": st.sampled_from([0.0, 0.02, 0.1]),
    }
)


def test_a_jump_is_its_single_steps():
    """Steps taken at once end when they would one by one, to 1e-9, under memory pressure too."""
    longest, pressed = [], []

    @SOME
    @given(loads(), settings_of_replica, st.sampled_from([40, 90, 10_000]), st.integers(1, 3))
    @example(OUTGROWN, PLAIN, 13, 1)
    def check(arrivals, fields, blocks, replicas):
        asked = {
            "kv_tokens": blocks * BLOCK,
            "limits": limits(**fields),
            "arrivals": arrivals,
            "replicas": replicas,
        }
        events = []
        jumped = simulate(MODEL, **asked, observe=lambda _, event: events.append(event.steps))
        stepped = simulate(MODEL, **asked, single_steps=True)
        assert stepped.events == stepped.steps == jumped.steps
        for name in ("rejected", "preemptions", "recomputed_tokens", "peak_kv_tokens"):
            assert getattr(jumped, name) == getattr(stepped, name)
        assert len(jumped.served) == len(stepped.served)
        for one, other in zip(jumped.served, stepped.served, strict=True):
            assert (one.index, one.preemptions) == (other.index, other.preemptions)
            assert one.first_us == pytest.approx(other.first_us, rel=1e-9)
            assert one.last_us == pytest.approx(other.last_us, rel=1e-9)
        longest.append(max(events, default=0))
        pressed.append(jumped.preemptions)

    check()
    assert max(longest) > 10, "no jump of more than 10 steps was seen"
    assert sum(pressed) > 0, "no preemption was seen"


def test_every_arrival_ends_or_is_rejected_and_blocks_return():
    """Nothing is lost and nothing is kept, whatever the cache and the limits are."""
    rejected, preempted = [], []

    @SOME
    @given(loads(most=20), settings_of_replica, st.integers(12, 60))
    @example(TOO_LONG, PLAIN, 13)
    def check(arrivals, fields, blocks):
        bounds = limits(**fields)
        replica = QueueReplica(
            StepTables(MODEL, bounds), blocks=blocks, limits=bounds, progress=Progress()
        )
        for index, each in enumerate(arrivals):
            replica.advance(until=each.at_us)
            replica.submit(index, each, at_us=each.at_us)
        replica.advance(until=math.inf)
        assert len(replica.finished) + replica.rejected == len(arrivals)
        assert replica.outstanding == 0
        assert replica._blocks.held == 0
        assert replica._blocks.available == blocks
        assert replica.peak_blocks <= blocks
        for request in replica.finished:
            assert request.arrival_us < request.first_us <= request.last_us
            assert request.length == request.limit
        rejected.append(replica.rejected)
        preempted.append(replica.preemptions)

    check()
    assert sum(rejected) > 0, "no rejection was seen"
    assert sum(preempted) > 0, "no preemption was seen"


@SOME
@given(loads(), st.integers(64, 512), st.integers(1, 8))
def test_without_pressure_it_is_the_plain_simulation(arrivals, budget, slots):
    """With memory for all, times are those of a simulation that follows every sequence.

    But for prompts of one token, which the engine takes for a decode and the plain one does not.
    """
    arrivals = [replace(a, prompt=max(2, a.prompt)) for a in arrivals]
    plain = [queue_oracle.Request(a.at_us, a.prompt, a.output) for a in arrivals]
    queue_oracle.simulate(MODEL, plain, budget=budget, slots=slots)
    result = simulate(
        MODEL,
        kv_tokens=ROOMY,
        limits=limits(token_budget=budget, max_running=slots),
        arrivals=arrivals,
    )
    for served, request in zip(result.served, plain, strict=True):
        assert served.first_us == pytest.approx(request.first, rel=1e-9)
        assert served.last_us == pytest.approx(request.last, rel=1e-9)


@SOME
@given(loads(), settings_of_replica, st.integers(1, 6))
def test_the_result_is_the_same_each_time(arrivals, fields, replicas):
    """Equal inputs give equal results, to the last bit."""
    asked = {
        "kv_tokens": 60 * BLOCK,
        "limits": limits(**fields),
        "arrivals": arrivals,
        "replicas": replicas,
    }
    assert simulate(MODEL, **asked) == simulate(MODEL, **asked)
